//! How versions come about: contributions, their closes, and publications.

use crate::ids::{Digest, ModelVersion};
use crate::merge::Arrival;
use crate::merge::ef21::MemoryInputs;
use crate::merge::recall::RecallInputs;
use crate::update::UpdateMeta;

/// An accepted update, without its payload (the record's payload). It waits for the record that closes a version.
#[derive(Debug, Clone, PartialEq)]
pub struct Contribution {
    /// What the agent said.
    pub meta: UpdateMeta,
    /// The examples credited to it (at most `admit.max_examples`).
    pub credited_examples: u64,
    /// Versions between its base and its admission.
    pub staleness: u64,
    /// The factor it is merged with, as computed when it was admitted.
    pub weight: f32,
    /// Its weight in the mean of its round, or of all memories ([`MergeSpec::mean_weight`](crate::merge::MergeSpec::mean_weight)), in examples.
    pub mean_weight: u64,
    /// Euclidean norm of its content, as computed when it was admitted.
    pub norm: f64,
    /// What the recall rule is told of it, where it is merged by that rule.
    pub recall: Option<RecallInputs>,
    /// What the EF21 rule is told of it, where it is merged by that rule.
    pub memory: Option<MemoryInputs>,
    /// Milliseconds from asking for its chunks to having all of them, by the coordinator's clock.
    /// None if some of them were here already.
    pub transfer_ms: Option<u64>,
}

impl Contribution {
    /// Returns what a merge rule is told of it.
    #[must_use]
    pub fn arrival(&self) -> Arrival<'_> {
        let Self { meta: UpdateMeta { key, base_dot, .. }, weight, mean_weight, staleness, recall, memory, .. } = self;
        let (agent, weight, mean_weight) = (key.agent, *weight, *mean_weight);
        let (staleness, base_dot, recall, memory) = (*staleness, *base_dot, recall.as_ref(), memory.as_ref());
        Arrival { agent, weight, mean_weight, staleness, base_dot, recall, memory }
    }
}

/// The waiting contributions make a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// The version that they make.
    pub version: ModelVersion,
    /// How many of them there are: every contribution since the record that emptied the buffer.
    pub contributions: u32,
    /// Why now.
    pub why: CloseReason,
    /// Whether agents may train from the version. Always, but where the run has a published track: that has a record at some
    /// versions only.
    pub is_base: bool,
}

/// Why a version is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// As many contributions wait as the merge rule asks for.
    Filled,
    /// Behind a barrier: no agent is at work on the version before, and at least one has delivered.
    Complete,
    /// Behind a barrier: its deadline has passed, and its quorum of the active agents has delivered.
    Deadline,
}

/// A version that agents can fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publication {
    /// Which version.
    pub version: ModelVersion,
    /// The form in which it is sent.
    pub form: PublicationForm,
    /// Digest of its content.
    pub digest: Digest,
}

impl Publication {
    /// Whether it can come after `before` on one branch: versions do not go back, and one version has one digest.
    #[must_use]
    pub fn may_follow(&self, before: &Self) -> bool {
        self.version > before.version || (self.version == before.version && self.digest == before.digest)
    }
}

/// The form in which a version is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicationForm {
    /// The model that updates are merged into, lossless.
    Snapshot,
    /// The published track at this version: see [`crate::downlink::track`].
    Track,
}
