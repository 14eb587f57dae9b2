//! Merge rules as configured: their parameters, and what follows from these alone.

use serde::{Deserialize, Serialize};

use super::barrier::{Barrier, Closing};
use super::shares::Recalling;
use super::staleness::Staleness;
use super::{MergeRule, averaged, delayed_nesterov, ef21, fadas, fedadam, fedasync, fedavg, fedavgm, fedbuff, recall};
use crate::limits;

/// A merge rule as configured. Code that looks for one rule asks [`unaveraged`](Self::unaveraged).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "strategy", rename_all = "lowercase", deny_unknown_fields)]
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
    /// Every update makes a version, and every `buffer_size`-th also steps along the momentum.
    #[serde(rename = "delayed-nesterov")]
    DelayedNesterov {
        /// N: updates between two steps along the momentum.
        buffer_size: u32,
        /// Step along the mean of N updates.
        server_lr: f32,
        /// beta: decay of the momentum, and the step along it, in [0, 1).
        #[serde(default = "momentum")]
        momentum: f32,
        /// Damping of stale updates.
        #[serde(default)]
        staleness: Staleness,
        /// Weigh agents by examples held rather than by how fast they are.
        #[serde(default)]
        participation: bool,
    },
    /// Every `buffer_size`-th update makes a version, by an adaptive step that is smaller where one of them was stale.
    Fadas {
        /// K: updates in a version.
        buffer_size: u32,
        /// eta: step of a parameter, about.
        server_lr: f32,
        /// Decay of the first moment, in [0, 1).
        #[serde(default = "beta_1")]
        beta_1: f64,
        /// Decay of the second moment, in [0, 1).
        #[serde(default = "beta_2")]
        beta_2: f64,
        /// Added to the root of the second moment.
        #[serde(default = "epsilon")]
        epsilon: f64,
        /// Staleness, in versions, up to which the step is whole.
        #[serde(default = "tau_c")]
        tau_c: u64,
    },
    /// Behind a barrier: a version is the mean of the agents' models.
    FedAvg {
        /// Step along the mean of a round.
        #[serde(default = "whole")]
        server_lr: f32,
        /// When a round closes.
        #[serde(default)]
        barrier: Barrier,
    },
    /// As `FedAvg`, with a term in the agents' training that keeps them near the base.
    FedProx {
        /// mu: strength of the proximal term, above 0.
        mu: f32,
        /// Step along the mean of a round.
        #[serde(default = "whole")]
        server_lr: f32,
        /// When a round closes.
        #[serde(default)]
        barrier: Barrier,
    },
    /// Behind a barrier: a version is one step of plain SGD on the joined batch of the agents.
    #[serde(rename = "sync-sgd")]
    SyncSgd {
        /// When a round closes.
        #[serde(default)]
        barrier: Barrier,
    },
    /// Behind a barrier: a step along a momentum of the means of rounds.
    FedAvgM {
        /// Step along the momentum.
        #[serde(default = "whole")]
        server_lr: f32,
        /// beta: decay of the momentum, in [0, 1).
        #[serde(default = "momentum")]
        momentum: f32,
        /// When a round closes.
        #[serde(default)]
        barrier: Barrier,
    },
    /// Behind a barrier: an adaptive step along the mean of a round.
    FedAdam {
        /// eta: step of a parameter, about.
        server_lr: f32,
        /// Decay of the first moment, in [0, 1).
        #[serde(default = "beta_1")]
        beta_1: f64,
        /// Decay of the second moment, in [0, 1).
        #[serde(default = "beta_2")]
        beta_2: f64,
        /// Added to the root of the second moment, which begins at its square.
        #[serde(default = "tau")]
        tau: f64,
        /// When a round closes.
        #[serde(default)]
        barrier: Barrier,
    },
    /// Every update makes a version, by a step in proportion to the time that its agent takes.
    Rescaled {
        /// Step of an agent of mean speed, in (0, 1].
        alpha: f32,
        /// Damping of stale updates.
        #[serde(default)]
        staleness: Staleness,
    },
    /// Every update makes a version, and the last updates of agents that lack participation are recalled.
    Recall {
        /// Step of the whole fleet, in units of the agents' own deltas: each arrival steps a C-th of it. A configuration
        /// file without it gets [`recall::usual_step`] of its optimizer.
        #[serde(default = "recall_step")]
        step: f32,
        /// Whether updates are recalled.
        #[serde(default = "on")]
        recall: bool,
        /// Whether the average of the models is served, in place of the newest.
        #[serde(default = "on")]
        average: bool,
    },
    /// Every update makes a version, by a step along the mean of the agents' memories.
    Ef21 {
        /// Step of the whole fleet along the mean: each arrival steps a C-th of it.
        #[serde(default = "whole")]
        server_lr: f32,
    },
    /// A rule without an average of its own, whose [average](super::averaged) is served: [`averaged`](Self::averaged)
    /// makes it.
    #[serde(skip)]
    Averaged(Box<Self>),
}

fn whole() -> f32 {
    1.0
}

fn momentum() -> f32 {
    0.9
}

fn beta_1() -> f64 {
    0.9
}

fn beta_2() -> f64 {
    0.99
}

fn epsilon() -> f64 {
    1e-8
}

fn tau_c() -> u64 {
    1
}

fn tau() -> f64 {
    1e-3
}

fn recall_step() -> f32 {
    recall::USUAL_STEP
}

fn on() -> bool {
    true
}

/// What is known of an update when its weight is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightInputs {
    /// Versions between the update's base and now.
    pub staleness: u64,
    /// Participation weight, mean 1 (see [`participation`](super::participation)), or of a rule with shares the fresh
    /// weight, at most 1, or what the step is rescaled with (see [`shares`](super::shares)); ignored when the rule does not
    /// use it.
    pub participation: f64,
}

/// A parameter of a merge rule that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("merge.{field} is {found}, expected {expected}")]
pub struct SpecError {
    /// Which parameter, as it is written in `run.toml` under `[merge]`.
    pub field: &'static str,
    /// Its value.
    pub found: f64,
    /// What it may be.
    pub expected: &'static str,
}

impl MergeSpec {
    /// Checks every parameter.
    ///
    /// # Errors
    /// One is out of range; the error names it.
    pub fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::FedAsync { alpha, staleness, .. } | Self::Rescaled { alpha, staleness } => {
                let fits = *alpha > 0.0 && *alpha <= 1.0;
                check("alpha", *alpha, "a number above 0 and at most 1", fits)?;
                staleness.validate()
            }
            Self::FedBuff { buffer_size, server_lr, staleness, .. } => {
                check_buffer(*buffer_size, *server_lr)?;
                staleness.validate()
            }
            Self::DelayedNesterov { buffer_size, server_lr, momentum, staleness, .. } => {
                check_buffer(*buffer_size, *server_lr)?;
                check("momentum", *momentum, DECAY, (0.0..1.0).contains(momentum))?;
                staleness.validate()
            }
            Self::Fadas { buffer_size, server_lr, beta_1, beta_2, epsilon, tau_c: _ } => {
                check_buffer(*buffer_size, *server_lr)?;
                check("beta_1", *beta_1, DECAY, (0.0..1.0).contains(beta_1))?;
                check("beta_2", *beta_2, DECAY, (0.0..1.0).contains(beta_2))?;
                check("epsilon", *epsilon, POSITIVE, epsilon.is_finite() && *epsilon > 0.0)
            }
            Self::Ef21 { server_lr } => check_server_lr(*server_lr),
            Self::FedAvg { server_lr, barrier } => {
                check_server_lr(*server_lr)?;
                barrier.validate()
            }
            Self::FedProx { mu, server_lr, barrier } => {
                check("mu", *mu, POSITIVE, mu.is_finite() && *mu > 0.0)?;
                check_server_lr(*server_lr)?;
                barrier.validate()
            }
            Self::SyncSgd { barrier } => barrier.validate(),
            Self::FedAvgM { server_lr, momentum, barrier } => {
                check_server_lr(*server_lr)?;
                check("momentum", *momentum, DECAY, (0.0..1.0).contains(momentum))?;
                barrier.validate()
            }
            Self::FedAdam { server_lr, beta_1, beta_2, tau, barrier } => {
                check_server_lr(*server_lr)?;
                check("beta_1", *beta_1, DECAY, (0.0..1.0).contains(beta_1))?;
                check("beta_2", *beta_2, DECAY, (0.0..1.0).contains(beta_2))?;
                check("tau", *tau, POSITIVE, tau.is_finite() && *tau > 0.0)?;
                barrier.validate()
            }
            Self::Recall { step, .. } => {
                let fits = *step > 0.0 && *step <= limits::RECALL_STEP;
                check("step", *step, "a number above 0 and at most 1000", fits)
            }
            Self::Averaged(rule) => rule.validate(),
        }
    }

    /// Returns the same rule with its average served.
    #[must_use]
    pub fn averaged(self) -> Self {
        match self {
            Self::Recall { step, recall, .. } => Self::Recall { step, recall, average: true },
            Self::Averaged(_) => self,
            rule => Self::Averaged(Box::new(rule)),
        }
    }

    /// Returns the rule that moves the model, without the average that is kept beside it.
    #[must_use]
    pub fn unaveraged(&self) -> &Self {
        match self {
            Self::Averaged(rule) => rule.unaveraged(),
            rule => rule,
        }
    }

    /// Whether an [average](super::averaged) of the models is kept beside the rule.
    pub(super) fn is_averaged(&self) -> bool {
        matches!(self, Self::Averaged(_))
    }

    /// The factor with which an update is merged: computed when it is admitted, then journalled.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a weight is journalled and applied as f32")]
    pub fn weight(&self, inputs: WeightInputs) -> f32 {
        let (step, staleness, participation) = match self {
            Self::FedAsync { alpha, staleness, participation } => (f64::from(*alpha), staleness, participation),
            Self::FedBuff { buffer_size, server_lr, staleness, participation }
            | Self::DelayedNesterov { buffer_size, server_lr, staleness, participation, .. } => {
                (f64::from(*server_lr) / f64::from((*buffer_size).max(1)), staleness, participation)
            }
            Self::Fadas { buffer_size, .. } => (1.0 / f64::from((*buffer_size).max(1)), &Staleness::Constant, &false),
            Self::Rescaled { alpha, staleness } => (f64::from(*alpha), staleness, &true),
            Self::Recall { .. } => (1.0, &Staleness::Constant, &true),
            Self::FedAvg { .. }
            | Self::FedProx { .. }
            | Self::SyncSgd { .. }
            | Self::FedAvgM { .. }
            | Self::FedAdam { .. }
            | Self::Ef21 { .. } => (1.0, &Staleness::Constant, &false),
            Self::Averaged(rule) => return rule.weight(inputs),
        };
        let participation = if *participation { inputs.participation } else { 1.0 };
        (step * staleness.factor(inputs.staleness) * participation) as f32
    }

    /// When contributions become a version.
    #[must_use]
    pub fn closing(&self) -> Closing {
        match self {
            Self::FedAsync { .. }
            | Self::DelayedNesterov { .. }
            | Self::Rescaled { .. }
            | Self::Recall { .. }
            | Self::Ef21 { .. } => Closing::Full(1),
            Self::FedBuff { buffer_size, .. } | Self::Fadas { buffer_size, .. } => Closing::Full((*buffer_size).max(1)),
            Self::FedAvg { barrier, .. }
            | Self::FedProx { barrier, .. }
            | Self::SyncSgd { barrier }
            | Self::FedAvgM { barrier, .. }
            | Self::FedAdam { barrier, .. } => Closing::Barrier(*barrier),
            Self::Averaged(rule) => rule.closing(),
        }
    }

    /// The barrier that closes versions, if one does.
    #[must_use]
    pub fn barrier(&self) -> Option<Barrier> {
        match self.closing() {
            Closing::Full(_) => None,
            Closing::Barrier(barrier) => Some(barrier),
        }
    }

    /// Whether so many waiting contributions fill the buffer, and so make a version. No number of them does behind a barrier.
    #[must_use]
    pub fn is_full(&self, waiting: u32) -> bool {
        match self.closing() {
            Closing::Full(size) => waiting >= size,
            Closing::Barrier(_) => false,
        }
    }

    /// The number of examples that weighs an update in the mean of its round, or a memory in the mean of all, of an agent
    /// that holds `held` examples and has trained on `trained`: at least 1, and 0 where the rule takes no such mean.
    #[must_use]
    pub fn mean_weight(&self, held: u64, trained: u64) -> u64 {
        match self.unaveraged() {
            Self::SyncSgd { .. } => trained.max(1),
            Self::Ef21 { .. } => held.max(1),
            _ if self.barrier().is_some() => held.max(1),
            _ => 0,
        }
    }

    /// Strength of the proximal term that agents add to each gradient; 0 where they add none.
    #[must_use]
    pub fn proximal_mu(&self) -> f32 {
        match self.unaveraged() {
            Self::FedProx { mu, .. } => *mu,
            _ => 0.0,
        }
    }

    /// How many vectors of a saved state belong to so many waiting contributions.
    #[must_use]
    pub fn saved_vectors(&self, waiting: u32) -> u32 {
        match self {
            Self::FedAsync { .. } | Self::Rescaled { .. } => waiting,
            Self::FedBuff { .. }
            | Self::FedAvg { .. }
            | Self::FedProx { .. }
            | Self::SyncSgd { .. }
            | Self::Ef21 { .. } => 1,
            Self::FedAvgM { .. } => 2,
            Self::DelayedNesterov { .. } => 2 + waiting,
            Self::Fadas { .. } => 4,
            Self::FedAdam { .. } | Self::Recall { .. } => 3,
            Self::Averaged(rule) => rule.saved_vectors(waiting) + 1,
        }
    }

    /// Whether contributions that wait under the rule `before` go on waiting under this one, and its state goes on with
    /// them: only those of the same rule with a buffer of the same size do. An average may begin or end beside them.
    #[must_use]
    pub fn keeps_waiting(&self, before: &Self) -> bool {
        let (after, before) = (self.unaveraged(), before.unaveraged());
        std::mem::discriminant(after) == std::mem::discriminant(before) && after.buffer_size() == before.buffer_size()
    }

    /// How many updates the rule takes the mean of; 1 for rules without such a number.
    fn buffer_size(&self) -> u32 {
        match self.unaveraged() {
            Self::FedBuff { buffer_size, .. }
            | Self::DelayedNesterov { buffer_size, .. }
            | Self::Fadas { buffer_size, .. } => (*buffer_size).max(1),
            _ => 1,
        }
    }

    /// Whether agents are weighed by participation.
    #[must_use]
    pub fn uses_participation(&self) -> bool {
        match self.unaveraged() {
            Self::FedAsync { participation, .. }
            | Self::FedBuff { participation, .. }
            | Self::DelayedNesterov { participation, .. } => *participation,
            _ => false,
        }
    }

    /// Whether the rule uses the [`shares`](super::shares) of arrivals, or the intervals between them.
    #[must_use]
    pub fn uses_shares(&self) -> bool {
        self.rescales() || self.recalling().is_some() || self.keeps_memories()
    }

    /// Whether the content of an update is a difference against a memory that its agent and the coordinator hold.
    #[must_use]
    pub fn keeps_memories(&self) -> bool {
        matches!(self.unaveraged(), Self::Ef21 { .. })
    }

    /// Whether an update counts by the interval of its agent ([`Shares::rescale`](super::shares::Shares::rescale)).
    #[must_use]
    pub fn rescales(&self) -> bool {
        matches!(self.unaveraged(), Self::Rescaled { .. })
    }

    /// Whether users are given an average of the models, and not the newest one.
    #[must_use]
    pub fn serves_average(&self) -> bool {
        matches!(self, Self::Averaged(_) | Self::Recall { average: true, .. })
    }

    /// Whether the rule is told of the [`shares`](super::shares) of arrivals, and if so whether it recalls updates.
    #[must_use]
    pub fn recalling(&self) -> Option<Recalling> {
        match self {
            Self::Recall { recall, .. } => Some(if *recall { Recalling::On } else { Recalling::Off }),
            _ => None,
        }
    }

    /// Whether the rule uses the product of an update with its base ([`Arrival::base_dot`](super::Arrival::base_dot)).
    #[must_use]
    pub fn uses_base_dot(&self) -> bool {
        self.recalling() == Some(Recalling::On)
    }

    /// Returns the rule with empty state for a model of `params` parameters.
    #[must_use]
    pub fn rule(&self, params: usize) -> Box<dyn MergeRule> {
        match self {
            Self::Recall { .. } => Box::new(recall::Recall::new(self, params)),
            // So that an average can begin while the run goes on.
            _ => Box::new(averaged::Averaged::new(self, params)),
        }
    }

    /// Returns the rule that moves the model, with empty state.
    pub(super) fn moving_rule(&self, params: usize) -> Box<dyn MergeRule> {
        match self {
            Self::FedAsync { .. } | Self::Rescaled { .. } => Box::new(fedasync::FedAsync::new(params)),
            Self::FedBuff { .. } => Box::new(fedbuff::FedBuff::new(params)),
            Self::DelayedNesterov { buffer_size, momentum, .. } => {
                Box::new(delayed_nesterov::DelayedNesterov::new(*buffer_size, *momentum, params))
            }
            Self::Fadas { .. } => Box::new(fadas::Fadas::new(self, params)),
            Self::FedAvg { .. } | Self::FedProx { .. } | Self::SyncSgd { .. } => {
                Box::new(fedavg::FedAvg::new(self, params))
            }
            Self::FedAvgM { .. } => Box::new(fedavgm::FedAvgM::new(self, params)),
            Self::FedAdam { .. } => Box::new(fedadam::FedAdam::new(self, params)),
            Self::Recall { .. } => Box::new(recall::Recall::new(self, params)),
            Self::Ef21 { .. } => Box::new(ef21::Ef21::new(self, params)),
            Self::Averaged(rule) => rule.moving_rule(params),
        }
    }
}

const DECAY: &str = "a number of at least 0 and below 1";
const POSITIVE: &str = "a finite number above 0";

fn check(field: &'static str, found: impl Into<f64>, expected: &'static str, fits: bool) -> Result<(), SpecError> {
    if fits { Ok(()) } else { Err(SpecError { field, found: found.into(), expected }) }
}

/// Checks what every rule with a buffer has.
fn check_buffer(buffer_size: u32, server_lr: f32) -> Result<(), SpecError> {
    let fits = (1..=limits::MERGE_BUFFER_UPDATES).contains(&buffer_size);
    check("buffer_size", buffer_size, "a number from 1 to 65536", fits)?;
    check_server_lr(server_lr)
}

fn check_server_lr(server_lr: f32) -> Result<(), SpecError> {
    check("server_lr", server_lr, POSITIVE, server_lr.is_finite() && server_lr > 0.0)
}

mod text;

#[cfg(test)]
mod tests;
