//! How a delta is computed: a [`Trainer`] takes a flat model, trains it on a [`Shard`], and gives a flat model back.
//!
//! ```text
//!  base: &[f32] ──┐
//!  Round ─────────┼─► Trainer::train ──► TrainOutcome { end, num_examples, steps, mean_loss }
//!  Shard ─────────┘        │ one StepReport a step
//!                          ▼
//!                       control: go on, or stop here
//! ```

mod bound;
mod encode;
mod error;
pub mod native;
mod optimizer;
pub mod process;
mod reordered;
mod round;
mod vector;

use std::fmt;
use std::ops::ControlFlow;

use anabranch_common::journal::Lease;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{AgentSpec, ModelSpec, TrainSpec};
use serde::{Deserialize, Serialize};

use crate::core::event::Encoded;
use crate::shard::Shard;

pub use bound::Bound;
pub use encode::{EncodeOrder, FeedbackSource};
pub use error::TrainError;
pub use native::{NativeOptions, native, native_with};
pub(crate) use reordered::Reordered;
pub use round::{RoundFile, Rounds};

/// The part of a run's specification that concerns a trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunPart {
    /// The run's name.
    pub name: String,
    /// The run's seed.
    pub seed: u64,
    /// `[model]`.
    pub model: ModelSpec,
    /// `[train]`.
    pub train: TrainSpec,
}

impl RunPart {
    /// That part of `spec`.
    #[must_use]
    pub fn of(spec: &AgentSpec) -> Self {
        let AgentSpec { name, seed, model, train, .. } = spec.clone();
        Self { name, seed, model, train }
    }
}

/// One local round, as a trainer is told of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Round<'a> {
    /// `[train]` as it counts for this round: the steps of its lease, and the learning rate that
    /// is due by then.
    pub plan: &'a TrainSpec,
    /// Decides which examples are drawn.
    pub seed: u64,
    /// Where in the run the round is.
    pub context: RoundContext,
}

/// Where in a run a round is: for trainers that have a schedule of their own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RoundContext {
    /// The model version that is trained from.
    pub version: u64,
    /// Number of this round among those of its agent, from 0: the leases that the agent was
    /// granted before in this run. It is in the lease, so that neither a restart nor a kill
    /// changes it.
    pub number: u64,
    /// How far the run is, in [0, 1]: `version` over `target.versions`. None in a run without that
    /// target.
    #[serde(default)]
    pub progress: Option<f32>,
    /// What `[train.schedule]` has multiplied the plan's learning rate with, in [0, 1].
    pub lr_factor: f32,
}

impl<'a> Round<'a> {
    /// The first round of an agent, from version 0.
    #[must_use]
    pub fn new(plan: &'a TrainSpec, seed: u64) -> Self {
        let context = RoundContext { version: 0, number: 0, progress: None, lr_factor: 1.0 };
        Self { plan, seed, context }
    }

    /// The round under `lease`, where `plan` is what the lease made of `[train]`.
    #[must_use]
    pub fn of(lease: &Lease, plan: &'a TrainSpec) -> Self {
        let Lease { seed, base_version, plan: given, .. } = lease;
        let (version, number) = (base_version.0, given.round);
        let context = RoundContext { version, number, progress: given.progress, lr_factor: given.lr_factor };
        Self { plan, seed: *seed, context }
    }
}

/// Computes a model's training steps and its metrics. Driven from one blocking thread at a time; between calls it keeps
/// nothing but caches and, where `TrainSpec::keep_optimizer_state` asks for it, the optimizer's state.
pub trait Trainer: Send + fmt::Debug {
    /// Names and shapes of the tensors that every flat vector here consists of.
    fn manifest(&self) -> &ModelManifest;

    /// The model before any training: the same bits on every machine for the same `seed`.
    ///
    /// # Errors
    /// A trainer in another process can be lost; the native one makes any model that it could be built for.
    fn initial(&mut self, seed: u64) -> Result<Vec<f32>, TrainError>;

    /// Takes `round.plan.local_steps` steps from `base`. `round.seed` decides which examples are
    /// drawn. `control` hears of every step and may end the training there: then what was reached
    /// is the outcome, with `stopped` set. A trainer whose steps are long asks it in between too,
    /// with no new examples.
    ///
    /// # Errors
    /// The base or the shard does not fit the model, `round.plan` is not usable, or the loss stops
    /// being finite.
    fn train(
        &mut self,
        base: &[f32],
        round: Round<'_>,
        shard: &dyn Shard,
        control: &mut dyn FnMut(StepReport) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError>;

    /// The micro-batch that the next round of `plan` would be cut into here, as far as this trainer cuts batches: gradients
    /// of micro-batches are summed, and one optimizer step is taken for the batch. Never more than `most` from now on
    /// (`None`: no such bound), which is what a round that ran out of memory taught.
    ///
    /// # Errors
    /// [`TrainError::Memory`]: not even one example fits.
    fn fit(&mut self, plan: &TrainSpec, most: Option<u32>) -> Result<Option<u32>, TrainError> {
        let _ = (plan, most);
        Ok(None)
    }

    /// Where the next round's state is to be kept, and taken up from if it is there and of the same round (same base, plan,
    /// seed and shard): then the outcome has the same bits as if nothing had happened. A trainer that keeps none starts
    /// rounds over.
    fn keep_round(&mut self, file: Option<RoundFile>) {
        let _ = file;
    }

    /// How the next round is to be encoded too, by a trainer that has an encoder of its own, such as one on a GPU. One that
    /// has none leaves it to the agent.
    fn encode_next(&mut self, order: Option<EncodeOrder>) {
        let _ = order;
    }

    /// The update of the latest round, once, if it was encoded here.
    fn take_encoded(&mut self) -> Option<Encoded> {
        None
    }

    /// Accuracy and mean loss of `model` over every example of `shard`.
    ///
    /// # Errors
    /// The model or the shard does not fit, or the loss is not finite.
    fn evaluate(&mut self, model: &[f32], shard: &dyn Shard) -> Result<Metrics, TrainError>;
}

/// One optimizer step, as it is reported to the driver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u32,
    /// Mean loss over this step's batch, before the step.
    pub loss: f32,
    /// Examples since the last report: this step's batch, or 0 where there was no new step.
    pub examples: u32,
    /// Examples computed at once, where the trainer cuts batches or says that it does not.
    pub micro_batch: Option<u32>,
}

/// What training gave.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome {
    /// The model after the last step; of no use where `stopped` is set.
    pub end: Vec<f32>,
    /// Examples seen, repetitions counted.
    pub num_examples: u64,
    /// Steps taken.
    pub steps: u32,
    /// Mean of the steps' losses (0 after no step).
    pub mean_loss: f32,
    /// Whether `control` ended the training before its last step.
    pub stopped: bool,
}

/// How good a model is on a shard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// Share of examples whose label has the largest logit, in [0, 1].
    pub accuracy: f64,
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Examples it was measured on.
    pub num_examples: u64,
}
