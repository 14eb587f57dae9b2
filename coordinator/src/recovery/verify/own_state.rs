//! Rules with a state of their own, beside the sum of what waits.

use anabranch_common::codec::Delta;
use anabranch_common::ids::{Digest, Position};
use anabranch_common::journal::Contribution;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::MergeSpec;

use super::delayed_nesterov::DelayedNesterov;
use super::ef21::Ef21;
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
    Ef21(Ef21),
    Fadas(Fadas),
    Recall(Box<Recall>),
    Rounds(Rounds),
}

impl OwnState {
    /// An empty state; `None` if the rule has none of its own.
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        None.or_else(|| DelayedNesterov::of(spec, params).map(Self::DelayedNesterov))
            .or_else(|| Ef21::of(spec, params).map(Self::Ef21))
            .or_else(|| Fadas::of(spec, params).map(Self::Fadas))
            .or_else(|| Rounds::of(spec, params).map(Self::Rounds))
            .or_else(|| Recall::of(spec, params).map(|recall| Self::Recall(Box::new(recall))))
    }

    /// The state that a checkpoint has saved.
    pub(super) fn load(spec: &MergeSpec, saved: &Saved<'_>) -> Result<Option<Self>, RecoveryError> {
        let mut state = Self::of(spec, saved.manifest.params());
        match &mut state {
            None => {}
            Some(Self::DelayedNesterov(rule)) => rule.load(saved)?,
            Some(Self::Ef21(rule)) => rule.load(saved)?,
            Some(Self::Fadas(rule)) => rule.load(saved)?,
            Some(Self::Recall(rule)) => rule.load(saved)?,
            Some(Self::Rounds(rule)) => rule.load(saved)?,
        }
        Ok(state)
    }

    /// The same rule goes on with other settings.
    pub(super) fn set(&mut self, spec: &MergeSpec) {
        match self {
            Self::DelayedNesterov(rule) => rule.set(spec),
            Self::Ef21(rule) => rule.set(spec),
            Self::Fadas(rule) => rule.set(spec),
            Self::Recall(rule) => rule.set(spec),
            Self::Rounds(rule) => rule.set(spec),
        }
    }

    pub(super) fn contribute(&mut self, x: &[f32], delta: &Delta, contribution: &Contribution) {
        match self {
            Self::DelayedNesterov(rule) => rule.contribute(x, delta, contribution.weight),
            Self::Ef21(rule) => rule.contribute(delta, contribution),
            Self::Fadas(rule) => rule.contribute(delta, contribution),
            Self::Recall(rule) => rule.contribute(x, delta, contribution),
            Self::Rounds(rule) => rule.contribute(delta, contribution),
        }
    }

    pub(super) fn close(&mut self, x: &mut [f32]) {
        match self {
            Self::DelayedNesterov(rule) => rule.close(x),
            Self::Ef21(rule) => rule.close(x),
            Self::Fadas(rule) => rule.close(x),
            Self::Recall(rule) => rule.close(x),
            Self::Rounds(rule) => rule.close(x),
        }
    }

    /// Whether a checkpoint has saved this state.
    pub(super) fn is_in(&self, saved: &Saved<'_>) -> Result<bool, RecoveryError> {
        match self {
            Self::DelayedNesterov(rule) => rule.is_in(saved),
            Self::Ef21(rule) => rule.is_in(saved),
            Self::Fadas(rule) => rule.is_in(saved),
            Self::Recall(rule) => rule.is_in(saved),
            Self::Rounds(rule) => rule.is_in(saved),
        }
    }
}

/// What a checkpoint has saved of a rule's state, and of the average beside it.
pub(super) struct Saved<'a> {
    blobs: &'a dyn Blobs,
    position: Position,
    pub(super) manifest: &'a ModelManifest,
    vectors: &'a [Digest],
    parts: &'a [Digest],
    /// Vector and part of the average.
    average: Option<(&'a Digest, &'a Digest)>,
}

impl<'a> Saved<'a> {
    /// The state of a run that is merged by `spec`. The average stands last.
    pub(super) fn of(
        spec: &MergeSpec,
        blobs: &'a dyn Blobs,
        checkpoint: &'a Checkpoint,
        manifest: &'a ModelManifest,
    ) -> Self {
        let Checkpoint { position, merge_state, merge_parts, .. } = checkpoint;
        let whole =
            Self { blobs, position: *position, manifest, vectors: merge_state, parts: merge_parts, average: None };
        match (spec, merge_state.split_last(), merge_parts.split_last()) {
            (MergeSpec::Averaged(_), Some((average, vectors)), Some((closes, parts))) => {
                Self { vectors, parts, average: Some((average, closes)), ..whole }
            }
            _ => whole,
        }
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Digests of the rule's vectors.
    pub(super) fn vectors(&self) -> &'a [Digest] {
        self.vectors
    }

    pub(super) fn load(&self, digest: &Digest) -> Result<Vec<f32>, RecoveryError> {
        vectors::load(self.blobs, "merge vector", self.manifest, *digest)
    }

    /// What the rule has beside vectors.
    pub(super) fn parts(&self) -> Result<Vec<Vec<u8>>, RecoveryError> {
        self.parts.iter().map(|digest| checkpoint::load_part(self.blobs, *digest)).collect()
    }

    /// The digest of the average, and its part, if an average is saved.
    pub(super) fn average(&self) -> Result<Option<(&'a Digest, Vec<u8>)>, RecoveryError> {
        let Some((vector, part)) = self.average else { return Ok(None) };
        Ok(Some((vector, checkpoint::load_part(self.blobs, *part)?)))
    }

    /// It is not what the rule saves.
    pub(super) fn different(&self) -> RecoveryError {
        RecoveryError::Contradiction { position: self.position(), what: "merge state" }
    }
}
