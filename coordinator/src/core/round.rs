//! The contributions that wait for the close of a version: a part of the fold.
//!
//! ```text
//!  contributions ──► full, complete or at the deadline ──► Close ──┬──► a base: agents may train from this version
//!                                                                  └──► no base: the published track has no record here
//! ```

use anabranch_common::ids::{ModelVersion, Position};
use anabranch_common::journal::{Close, CloseReason};
use anabranch_common::merge::MergeSpec;

use super::state::{FoldError, RunState};

/// What waits for the next version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Contributions.
    pub contributions: u32,
    /// Examples that are credited to them.
    pub examples: u64,
    /// The record that began it: every contribution after it waits.
    pub since: Position,
}

impl Round {
    /// Returns the round that begins with the record at `since`.
    #[must_use]
    pub(super) fn new(since: Position) -> Self {
        Self { since, ..Self::default() }
    }

    /// Takes in a contribution.
    pub(super) fn add(&mut self, examples: u64) {
        self.contributions += 1;
        self.examples = self.examples.saturating_add(examples);
    }

    /// Returns the version after the next contribution, and after the close that it makes due.
    #[must_use]
    pub(super) fn version_with_next(&self, merge: &MergeSpec, version: ModelVersion) -> ModelVersion {
        if merge.is_full(self.contributions + 1) { version.next() } else { version }
    }
}

impl RunState {
    /// Returns the close that is due: as many contributions wait as the merge rule asks for.
    #[must_use]
    pub fn close_due(&self) -> Option<Close> {
        self.spec.merge.is_full(self.round.contributions).then(|| self.close_for(CloseReason::Filled))
    }

    /// Returns the close of the next version for this reason.
    #[must_use]
    pub fn close_for(&self, why: CloseReason) -> Close {
        let version = self.version.next();
        let is_base = version.0 - self.base.0 >= self.base_distance();
        Close { version, contributions: self.round.contributions, why, is_base }
    }

    /// How many versions lie between two that agents may train from. A round behind a barrier begins from every version.
    fn base_distance(&self) -> u64 {
        let Some(track) = self.spec.downlink.track.as_ref().filter(|_| self.spec.merge.barrier().is_none()) else {
            return 1;
        };
        // Not the holders of leases: that of an agent that is gone lasts long.
        track.distance(
            self.recent.reporting(self.totals.accepted),
            self.round.contributions,
            self.spec.admit.max_staleness.saturating_add(1),
        )
    }

    pub(super) fn close(&mut self, position: Position, close: &Close) -> Result<(), FoldError> {
        self.expect_version(position, close.version, self.version.next())?;
        let Round { contributions: waiting, examples, .. } = self.round;
        if close.contributions != waiting || !self.may_close(close.why) {
            let said = close.contributions;
            return Err(FoldError::Contributions { position, said, waiting });
        }
        if *close != self.close_for(close.why) {
            return Err(FoldError::Base { position, version: close.version });
        }
        self.examples = self.examples.saturating_add(examples);
        (self.version, self.round) = (close.version, Round::new(position));
        if close.is_base {
            self.base = close.version;
        }
        Ok(())
    }

    /// Whether what waits may be closed for this reason.
    fn may_close(&self, why: CloseReason) -> bool {
        let (merge, barrier) = (&self.spec.merge, self.spec.merge.barrier());
        match why {
            CloseReason::Filled => merge.is_full(self.round.contributions),
            CloseReason::Complete => barrier.is_some() && self.is_complete(),
            CloseReason::Deadline => {
                barrier.is_some_and(|barrier| barrier.deadline_s.is_some() && self.has_quorum(&barrier))
            }
        }
    }
}
