//! Rules with a state of their own, beside the sum of what waits.

use anabranch_common::codec::Delta;
use anabranch_common::journal::Contribution;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::MergeSpec;

use super::delayed_nesterov::DelayedNesterov;
use super::fadas::Fadas;
use super::recall::Recall;
use crate::recovery::RecoveryError;
use crate::recovery::checkpoint::{self, Checkpoint};
use crate::store::Blobs;

/// The state of such a rule.
#[derive(Debug, Clone)]
pub(super) enum OwnState {
    DelayedNesterov(DelayedNesterov),
    Fadas(Fadas),
    Recall(Box<Recall>),
}

impl OwnState {
    /// An empty state; `None` if the rule has none of its own.
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        None.or_else(|| DelayedNesterov::of(spec, params).map(Self::DelayedNesterov))
            .or_else(|| Fadas::of(spec, params).map(Self::Fadas))
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
        match &mut state {
            None => {}
            Some(Self::DelayedNesterov(rule)) => {
                rule.load(blobs, checkpoint, &parts(blobs, checkpoint)?, manifest)?;
            }
            Some(Self::Fadas(rule)) => rule.load(blobs, checkpoint, &parts(blobs, checkpoint)?, manifest)?,
            Some(Self::Recall(_)) => {
                return Ok(
                    Recall::load(spec, blobs, checkpoint, manifest)?.map(|recall| Self::Recall(Box::new(recall)))
                );
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
        }
    }

    pub(super) fn contribute(&mut self, x: &[f32], delta: &Delta, contribution: &Contribution) {
        match self {
            Self::DelayedNesterov(rule) => rule.contribute(x, delta, contribution.weight),
            Self::Fadas(rule) => rule.contribute(delta, contribution),
            Self::Recall(rule) => rule.contribute(x, delta, contribution),
        }
    }

    pub(super) fn close(&mut self, x: &mut [f32]) {
        match self {
            Self::DelayedNesterov(rule) => rule.close(x),
            Self::Fadas(rule) => rule.close(x),
            Self::Recall(rule) => rule.close(x),
        }
    }

    /// Whether a checkpoint has saved this state.
    pub(super) fn is_in(
        &self,
        blobs: &dyn Blobs,
        checkpoint: &Checkpoint,
        params: usize,
    ) -> Result<bool, RecoveryError> {
        match self {
            Self::DelayedNesterov(rule) => Ok(rule.is_in(checkpoint, &parts(blobs, checkpoint)?)),
            Self::Fadas(rule) => Ok(rule.is_in(checkpoint, &parts(blobs, checkpoint)?)),
            Self::Recall(rule) => rule.is_in(blobs, checkpoint, params),
        }
    }
}

/// What a checkpoint has saved beside vectors.
fn parts(blobs: &dyn Blobs, checkpoint: &Checkpoint) -> Result<Vec<Vec<u8>>, RecoveryError> {
    checkpoint.merge_parts.iter().map(|digest| checkpoint::load_part(blobs, *digest)).collect()
}
