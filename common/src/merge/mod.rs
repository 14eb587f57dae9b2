//! Merging: how an accepted update moves the model.
//!
//! The weight of an update is computed once, when it is admitted ([`MergeSpec::weight`]), and journalled. Applying it
//! ([`MergeStrategy::apply`]) uses that number and nothing else, so that replay gives the same bits on any machine.
//!
//! | strategy | rule | version |
//! |---|---|---|
//! | [`FedAsync`](fedasync::FedAsync) (Xie et al. 2019), delta form | x += w * delta, w = alpha * s(tau) * p | every update |
//! | [`FedBuff`](fedbuff::FedBuff) (Nguyen et al. 2022) | b += w * delta, w = server_lr / K * s(tau) * p; after K: x += b, b = 0 | every K-th update |
//!
//! s is the [`Staleness`](staleness::Staleness) function and p the [participation](participation) weight.

pub mod fedasync;
pub mod fedbuff;
pub mod participation;
pub mod staleness;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::codec::Delta;
use staleness::Staleness;

/// A merge rule as configured.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(tag = "strategy", rename_all = "lowercase", deny_unknown_fields)]
pub enum MergeSpec {
    /// Every update makes a version.
    FedAsync {
        /// Mixing rate, in (0, 1].
        alpha: f32,
        /// Damping of stale updates.
        #[serde(default)]
        staleness: Staleness,
        /// Weigh agents by examples held rather than by how fast they are.
        #[serde(default)]
        participation: bool,
    },
    /// Every `buffer_size`-th update makes a version.
    FedBuff {
        /// K: updates in a version.
        buffer_size: u32,
        /// eta_g: step along the buffer's mean.
        server_lr: f32,
        /// Damping of stale updates.
        #[serde(default)]
        staleness: Staleness,
        /// Weigh agents by examples held rather than by how fast they are.
        #[serde(default)]
        participation: bool,
    },
}

/// What is known of an update when its weight is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightInputs {
    /// Versions between the update's base and now.
    pub staleness: u64,
    /// Participation weight, mean 1 (see [`participation`]); ignored when the rule does not use it.
    pub participation: f64,
}

impl MergeSpec {
    /// The factor with which an update is merged: computed when it is admitted, then journalled.
    #[must_use]
    pub fn weight(&self, inputs: WeightInputs) -> f32 {
        let (step, staleness, participation) = match self {
            Self::FedAsync { alpha, staleness, participation } => (f64::from(*alpha), staleness, participation),
            Self::FedBuff { buffer_size, server_lr, staleness, participation } => {
                (f64::from(*server_lr) / f64::from((*buffer_size).max(1)), staleness, participation)
            }
        };
        let participation = if *participation { inputs.participation } else { 1.0 };
        (step * staleness.factor(inputs.staleness) * participation) as f32
    }

    /// How many updates make a version.
    #[must_use]
    pub fn updates_per_version(&self) -> u32 {
        match self {
            Self::FedAsync { .. } => 1,
            Self::FedBuff { buffer_size, .. } => (*buffer_size).max(1),
        }
    }

    /// Whether agents are weighed by participation.
    #[must_use]
    pub fn uses_participation(&self) -> bool {
        match self {
            Self::FedAsync { participation, .. } | Self::FedBuff { participation, .. } => *participation,
        }
    }

    /// A strategy with empty state for a model of `params` parameters.
    #[must_use]
    pub fn strategy(&self, params: usize) -> Box<dyn MergeStrategy> {
        match self {
            Self::FedAsync { .. } => Box::new(fedasync::FedAsync),
            Self::FedBuff { .. } => Box::new(fedbuff::FedBuff::new(params)),
        }
    }
}

/// Why a saved state is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The state belongs to another strategy or to another model.
    #[error("merge state holds {found} vectors of {params} values, expected {expected}")]
    WrongShape {
        /// Vectors this strategy keeps.
        expected: usize,
        /// Vectors found.
        found: usize,
        /// Parameters of the model.
        params: usize,
    },
}

/// An aggregation rule in its applied form. Deterministic: the same calls give the same bits.
pub trait MergeStrategy: Send + std::fmt::Debug {
    /// Applies one journalled update to `model`. `closes` says that this update makes a new version; it is journalled,
    /// never recounted here. Infallible: the update was validated before it was journalled.
    fn apply(&mut self, model: &mut [f32], delta: &Delta, weight: f32, closes: bool);

    /// The state beside the model (buffers, momenta), each a vector of the model's length: part of every checkpoint.
    fn save(&self) -> Vec<&[f32]>;

    /// Takes over a saved state.
    ///
    /// # Errors
    /// Number or length of the vectors is not what [`save`](Self::save) gives.
    fn restore(&mut self, state: Vec<Vec<f32>>) -> Result<(), RestoreError>;
}
