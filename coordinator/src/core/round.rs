//! The contributions that wait for the close of a version: a part of the fold.

use anabranch_common::ids::{ModelVersion, Position};
use anabranch_common::journal::{Close, CloseReason};
use anabranch_common::merge::MergeSpec;

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

    /// Returns the close of the version after `version`, if as many contributions wait as the rule asks for.
    #[must_use]
    pub fn due(&self, merge: &MergeSpec, version: ModelVersion) -> Option<Close> {
        merge.is_full(self.contributions).then(|| self.close(version, CloseReason::Filled))
    }

    /// Returns the close of the version after `version`.
    #[must_use]
    pub(super) fn close(&self, version: ModelVersion, why: CloseReason) -> Close {
        Close { version: version.next(), contributions: self.contributions, why }
    }

    /// Returns the version after the next contribution, and after the close that it makes due.
    #[must_use]
    pub(super) fn version_with_next(&self, merge: &MergeSpec, version: ModelVersion) -> ModelVersion {
        if merge.is_full(self.contributions + 1) { version.next() } else { version }
    }
}
