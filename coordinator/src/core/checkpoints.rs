//! Checkpoints: when one is due, and how far back they reach.

use anabranch_common::ids::ModelVersion;

use super::command::{CheckpointOrder, Command};
use super::event::Now;
use super::{Core, Options};

/// The checkpoint that was ordered last, and what all of them keep.
#[derive(Debug)]
pub(super) struct Checkpoints {
    /// The one that was ordered last is not written yet.
    outstanding: bool,
    /// Version and monotonic time of the one that was ordered last.
    last: (ModelVersion, u64),
    oldest_rebuildable: ModelVersion,
}

impl Checkpoints {
    /// Takes up a run whose newest checkpoint is of `version` and whose oldest version that can be rebuilt is `oldest`.
    pub(super) fn new(now: Now, version: ModelVersion, oldest: ModelVersion) -> Self {
        Self { outstanding: false, last: (version, now.mono_ms), oldest_rebuildable: oldest }
    }

    /// Returns the oldest version that can be rebuilt.
    pub(super) fn oldest_rebuildable(&self) -> ModelVersion {
        self.oldest_rebuildable
    }

    /// Returns whether one is being written.
    pub(super) fn is_outstanding(&self) -> bool {
        self.outstanding
    }

    /// Returns the version of the newest one, unless it is being written.
    pub(super) fn version(&self) -> Option<ModelVersion> {
        (self.last.0 > ModelVersion(0) && !self.outstanding).then_some(self.last.0)
    }

    /// Notes that no checkpoint is written any more: what was ordered will not be answered.
    pub(super) fn abandon(&mut self) {
        self.outstanding = false;
    }

    fn ordered(&mut self, version: ModelVersion, now: Now) {
        (self.outstanding, self.last) = (true, (version, now.mono_ms));
    }

    fn written(&mut self, oldest: ModelVersion) {
        (self.outstanding, self.oldest_rebuildable) = (false, oldest);
    }

    fn is_due(&self, version: ModelVersion, now: Now, options: &Options) -> bool {
        let (last, at_ms) = self.last;
        let reached = |passed: u64, every: u64| every > 0 && passed >= every;
        let by_versions = reached(version.staleness_of(last), options.checkpoint_every_versions);
        let by_time = reached(now.mono_ms.saturating_sub(at_ms), options.checkpoint_every_ms);
        !self.outstanding && (by_versions || (by_time && version > last))
    }
}

impl Core {
    /// Orders a checkpoint if one is due. A trial that is held has none: it could prune the version that is measured, or that
    /// will be the search's result, while leases that were out go on making versions.
    pub(super) fn pace_checkpoint(&mut self) {
        if self.is_held() {
            return;
        }
        let Some(state) = self.state.as_ref().filter(|state| state.finished.is_none()) else { return };
        if self.checkpoints.is_due(state.version, self.now, &self.options) {
            self.order_checkpoint();
        }
    }

    /// Orders a checkpoint of everything up to here, as soon as it is durable and merged.
    pub(super) fn order_checkpoint(&mut self) {
        self.record_models_sent();
        let Some(state) = &self.state else { return };
        let order = CheckpointOrder {
            position: state.position,
            chain: self.chain,
            at_ms: self.now.unix_ms,
            oldest: self.checkpoints.oldest_rebuildable(),
            state: state.clone(),
        };
        self.checkpoints.ordered(state.version, self.now);
        self.gated(Command::Checkpoint(Box::new(order)));
    }

    pub(super) fn checkpointed(&mut self, version: ModelVersion, oldest: ModelVersion) {
        self.checkpoints.written(oldest);
        tracing::debug!(%version, %oldest, "checkpoint is durable");
        self.pace_parking();
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::{BranchId, RunId};

    use super::*;

    #[test]
    fn a_checkpoint_is_due_by_versions_or_by_time_and_one_after_the_other() {
        let options = |every_versions, every_ms| Options {
            run: RunId::default(),
            first_branch: BranchId::default(),
            starts: 0,
            lease_ttl_ms: 0,
            checkpoint_every_versions: every_versions,
            checkpoint_every_ms: every_ms,
        };
        let at = |mono_ms| Now { unix_ms: 0, mono_ms };
        let mut checkpoints = Checkpoints::new(at(100), ModelVersion(3), ModelVersion(1));
        let due = |checkpoints: &Checkpoints, version, ms, options: &Options| {
            checkpoints.is_due(ModelVersion(version), at(ms), options)
        };
        assert_eq!([12, 13].map(|version| due(&checkpoints, version, 100, &options(10, 0))), [false, true]);
        assert_eq!([149, 150].map(|ms| due(&checkpoints, 4, ms, &options(0, 50))), [false, true]);
        assert!(!due(&checkpoints, 3, 900, &options(0, 50)), "there is nothing new");
        checkpoints.ordered(ModelVersion(13), at(200));
        assert!(!due(&checkpoints, 99, 900, &options(10, 50)), "one is being written");
        checkpoints.written(ModelVersion(2));
        assert_eq!(
            (checkpoints.version(), checkpoints.oldest_rebuildable()),
            (Some(ModelVersion(13)), ModelVersion(2))
        );
        assert!(due(&checkpoints, 99, 900, &options(10, 0)));
    }
}
