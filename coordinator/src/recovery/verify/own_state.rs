//! Rules with a state of their own, beside the sum of what waits.

use anabranch_common::codec::Delta;
use anabranch_common::ids::{Digest, Position};
use anabranch_common::journal::Contribution;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::MergeSpec;

use super::delayed_nesterov::DelayedNesterov;
use super::fadas::Fadas;
use super::recall::Recall;
use super::rounds::Rounds;
use crate::recovery::checkpoint::{self, Checkpoint};
use crate::recovery::{RecoveryError, vectors};
use crate::store::Blobs;

/// The state of such a rule.
#[derive(Debug, Clone)]
pub(super) enum OwnState {
    DelayedNesterov(DelayedNesterov),
    Fadas(Fadas),
    Recall(Box<Recall>),
    Rounds(Rounds),
}

impl OwnState {
    /// An empty state; `None` if the rule has none of its own.
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        None.or_else(|| DelayedNesterov::of(spec, params).map(Self::DelayedNesterov))
            .or_else(|| Fadas::of(spec, params).map(Self::Fadas))
            .or_else(|| Rounds::of(spec, params).map(Self::Rounds))
            .or_else(|| Recall::of(spec, params).map(|recall| Self::Recall(Box::new(recall))))
    }

    /// The state that a checkpoint has saved.
    pub(super) fn load(
        spec: &MergeSpec,
        blobs: &dyn Blobs,
        checkpoint: &Checkpoint,
        manifest: &ModelManifest,
    ) -> Result<Option<Self>, RecoveryError> {
        let mut state = Self::of(spec, manifest.params());
        if let Some(state) = &mut state {
            let saved = Saved { blobs, checkpoint, manifest };
            match state {
                Self::DelayedNesterov(rule) => rule.load(&saved)?,
                Self::Fadas(rule) => rule.load(&saved)?,
                Self::Recall(rule) => rule.load(&saved)?,
                Self::Rounds(rule) => rule.load(&saved)?,
            }
        }
        Ok(state)
    }

    /// The same rule goes on with other settings.
    pub(super) fn set(&mut self, spec: &MergeSpec) {
        match self {
            Self::DelayedNesterov(rule) => rule.set(spec),
            Self::Fadas(rule) => rule.set(spec),
            Self::Recall(rule) => rule.set(spec),
            Self::Rounds(rule) => rule.set(spec),
        }
    }

    pub(super) fn contribute(&mut self, x: &[f32], delta: &Delta, contribution: &Contribution) {
        match self {
            Self::DelayedNesterov(rule) => rule.contribute(x, delta, contribution.weight),
            Self::Fadas(rule) => rule.contribute(delta, contribution),
            Self::Recall(rule) => rule.contribute(x, delta, contribution),
            Self::Rounds(rule) => rule.contribute(delta, contribution),
        }
    }

    pub(super) fn close(&mut self, x: &mut [f32]) {
        match self {
            Self::DelayedNesterov(rule) => rule.close(x),
            Self::Fadas(rule) => rule.close(x),
            Self::Recall(rule) => rule.close(x),
            Self::Rounds(rule) => rule.close(x),
        }
    }

    /// Whether a checkpoint has saved this state.
    pub(super) fn is_in(
        &self,
        blobs: &dyn Blobs,
        checkpoint: &Checkpoint,
        manifest: &ModelManifest,
    ) -> Result<bool, RecoveryError> {
        let saved = Saved { blobs, checkpoint, manifest };
        match self {
            Self::DelayedNesterov(rule) => rule.is_in(&saved),
            Self::Fadas(rule) => rule.is_in(&saved),
            Self::Recall(rule) => rule.is_in(&saved),
            Self::Rounds(rule) => rule.is_in(&saved),
        }
    }
}

/// What a checkpoint has saved of a rule's state.
pub(super) struct Saved<'a> {
    blobs: &'a dyn Blobs,
    checkpoint: &'a Checkpoint,
    pub(super) manifest: &'a ModelManifest,
}

impl Saved<'_> {
    pub(super) fn position(&self) -> Position {
        self.checkpoint.position
    }

    /// Digests of its vectors.
    pub(super) fn vectors(&self) -> &[Digest] {
        &self.checkpoint.merge_state
    }

    pub(super) fn load(&self, digest: &Digest) -> Result<Vec<f32>, RecoveryError> {
        vectors::load(self.blobs, "merge vector", self.manifest, *digest)
    }

    /// What it has beside vectors.
    pub(super) fn parts(&self) -> Result<Vec<Vec<u8>>, RecoveryError> {
        self.checkpoint.merge_parts.iter().map(|digest| checkpoint::load_part(self.blobs, *digest)).collect()
    }

    /// It is not what the rule saves.
    pub(super) fn different(&self) -> RecoveryError {
        RecoveryError::Contradiction { position: self.position(), what: "merge state" }
    }
}
