//! What a search was told of a trial is in the run's own journal, durably: the contributions with which it came to a rung are
//! those of the version, and its metric is an aggregate of exactly that version.

use std::sync::Arc;

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{Record as RunRecord, RecordBody as RunBody};
use anabranch_coordinator::search::record::{Record, RecordBody, TrialId};

use crate::invariants::journal::{Checked, ensure};

const NAME: &str = "search measured";

/// `of_run`: the durable records of the trial's run.
pub(super) fn reached(of_run: &[Arc<RunRecord>], contributions: u64, version: ModelVersion) -> Checked {
    let (mut newest, mut waiting, mut in_version) = (ModelVersion(0), 0, 0);
    for record in of_run {
        match &record.body {
            RunBody::Contribution(_) => waiting += 1,
            RunBody::Closed(close) => {
                newest = close.version;
                in_version += std::mem::take(&mut waiting);
                if newest == version {
                    break;
                }
            }
            _ => {}
        }
    }
    ensure(newest == version && in_version == contributions, NAME, || {
        format!(
            "a trial is said to have {contributions} contributions in version {version}; durable are {in_version} in \
             version {newest}"
        )
    })
}

/// `records`: those of the search, this one last; `of_run`: the durable records of the trial's run.
pub(super) fn measured(
    records: &[Record],
    of_run: &[Arc<RunRecord>],
    (trial, rung): (TrialId, u32),
    version: ModelVersion,
    metric: f64,
) -> Checked {
    let came = records.iter().rev().find_map(|record| match &record.body {
        RecordBody::Reached { trial: of, rung: at, version, .. } if (*of, *at) == (trial, rung) => Some(*version),
        _ => None,
    });
    ensure(came == Some(version), NAME, || {
        format!("trial {trial} came to rung {rung} with version {came:?}, and version {version} was measured")
    })?;
    let says = |record: &Arc<RunRecord>| match &record.body {
        RunBody::Aggregated(aggregate) => {
            aggregate.version == version && aggregate.covers_most() && aggregate.accuracy.to_bits() == metric.to_bits()
        }
        _ => false,
    };
    ensure(of_run.iter().any(says), NAME, || {
        format!("trial {trial} was measured with {metric} at version {version}, and its run's journal does not say so")
    })
}
