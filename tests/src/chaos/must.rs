//! `[must]` of a scenario.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What must hold beyond the promises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Must {
    /// After the last fault every agent has another update accepted within so many seconds (P6).
    pub resume_s: f64,
    /// Updates that are merged, at least.
    pub updates: u64,
    /// Test accuracy at the end (0..1), at least; digits only.
    pub accuracy: Option<f64>,
    /// Agents that no fault names keep this share of their updates a second (P8).
    pub others_keep: f64,
    /// Resident memory of the coordinator, at most, in MiB (P5).
    pub coordinator_mib: u64,
    /// The coordinator's directory, at most, in MiB (P5).
    pub disk_mib: u64,
    /// The model at the end has the bits of the same run without faults; one owner of pods, and `versions`.
    pub same_bits: bool,
    /// Seconds from the restart of a killed process until its pods have another update accepted, at most; only with pods.
    pub recover_s: f64,
    /// Exit codes with which a daemon may end by itself while its fault is on; it is started again when the fault is over.
    pub exits: BTreeSet<i32>,
}

impl Default for Must {
    fn default() -> Self {
        Self {
            resume_s: 20.0,
            updates: 1,
            accuracy: None,
            others_keep: 0.5,
            coordinator_mib: 256,
            disk_mib: 256,
            same_bits: false,
            recover_s: 5.0,
            exits: BTreeSet::new(),
        }
    }
}
