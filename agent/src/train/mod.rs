//! How a delta is computed: a [`Trainer`] takes a flat model, trains it on a [`Shard`], and gives a flat model back.
//!
//! ```text
//!  Round { base, plan, seed, shard, .. } ──► Trainer::train ──► RoundResult { end, num_examples, steps, .. }
//!                                              │ one StepReport a step
//!                                              ▼
//!                                            control: go on, or stop here
//! ```

mod bound;
mod error;
mod modules;
pub mod native;
mod optimizer;
pub mod process;
mod reordered;
mod round;
mod vector;

use std::fmt;
use std::ops::ControlFlow;

use anabranch_common::journal::{Lease, Plan};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{AgentSpec, ModelSpec, TrainSpec};
use serde::{Deserialize, Serialize};

use crate::encode::EncodeOrder;
use crate::session::event::Encoded;
use crate::shard::Shard;

pub use bound::Bound;
pub use error::TrainError;
pub use modules::{ModuleBackward, ModuleDraw, ModuleForward, ModulePart, ModulePass, ModuleRound, ModuleTrainer};
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

/// One local round: everything that a trainer is told of it.
pub struct Round<'a> {
    /// The model to start from.
    pub base: &'a [f32],
    /// `[train]` as it counts for this round: the steps of its lease, and the learning rate that
    /// is due by then.
    pub plan: &'a TrainSpec,
    /// Decides which examples are drawn.
    pub seed: u64,
    /// Where in the run the round is.
    pub context: RoundContext,
    /// The examples to train on.
    pub shard: &'a dyn Shard,
    /// Bounds and observes the micro-batches of a trainer that cuts batches.
    pub budget: Option<MicroBatchBudget<'a>>,
    /// Where to keep the round's state. A trainer that keeps rounds continues from the state that
    /// is there, if the state is of the same round (same base, plan, seed and shard): the result
    /// then has the same bits as that of an uninterrupted round. Other trainers start over.
    pub keep: Option<RoundFile>,
    /// How to encode the update, for a trainer that has an encoder of its own, such as one on a
    /// GPU. The agent encodes the updates of other trainers.
    pub encode: Option<EncodeOrder>,
    /// Is called after every step, and may end the round there: the result then has `stopped` set.
    /// A trainer whose steps are long calls it in between too, with no new examples.
    pub control: &'a mut dyn FnMut(StepReport) -> ControlFlow<()>,
}

/// How many examples a round may compute at once. A trainer that cuts batches sums the gradients of
/// micro-batches and takes one optimizer step for the batch.
pub struct MicroBatchBudget<'a> {
    /// Most examples of a micro-batch, learned from rounds that ran out of memory. `None`: no such
    /// bound.
    pub most: Option<u32>,
    /// Is called once with the examples of a micro-batch, before the first step: that step may get
    /// the process killed for its memory.
    pub begins: &'a mut dyn FnMut(u32),
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

impl RoundContext {
    /// The first round of an agent, from version 0.
    const FIRST: Self = Self { version: 0, number: 0, progress: None, lr_factor: 1.0 };

    fn of(lease: &Lease) -> Self {
        let Lease { base_version, plan: Plan { round, progress, lr_factor, .. }, .. } = lease;
        Self { version: base_version.0, number: *round, progress: *progress, lr_factor: *lr_factor }
    }
}

impl<'a> Round<'a> {
    /// Returns the first round of an agent, from version 0, without a micro-batch budget. The round
    /// is neither kept nor encoded.
    #[must_use]
    pub fn new(
        base: &'a [f32],
        plan: &'a TrainSpec,
        seed: u64,
        shard: &'a dyn Shard,
        control: &'a mut dyn FnMut(StepReport) -> ControlFlow<()>,
    ) -> Self {
        let context = RoundContext::FIRST;
        Self { base, plan, seed, context, shard, budget: None, keep: None, encode: None, control }
    }

    /// Returns the round under `lease`, where `plan` is what the lease made of `[train]`; otherwise
    /// as [`new`](Self::new).
    #[must_use]
    pub fn of(
        lease: &Lease,
        base: &'a [f32],
        plan: &'a TrainSpec,
        shard: &'a dyn Shard,
        control: &'a mut dyn FnMut(StepReport) -> ControlFlow<()>,
    ) -> Self {
        Self { context: RoundContext::of(lease), ..Self::new(base, plan, lease.seed, shard, control) }
    }

    /// Returns the same round from another base, for a trainer that wraps another one. The round is
    /// neither kept nor encoded: both would be of that base.
    #[must_use]
    pub fn with_base<'b>(self, base: &'b [f32]) -> Round<'b>
    where
        'a: 'b,
    {
        let Self { plan, seed, context, shard, budget, control, .. } = self;
        let budget = budget.map(|MicroBatchBudget { most, begins }| MicroBatchBudget { most, begins });
        Round { base, plan, seed, context, shard, budget, keep: None, encode: None, control }
    }
}

impl fmt::Debug for Round<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, seed, context, budget, keep, encode, .. } = self;
        let mut round = f.debug_struct("Round");
        round.field("plan", plan).field("seed", seed).field("context", context).field("budget", budget);
        round.field("keep", keep).field("encode", encode).finish_non_exhaustive()
    }
}

impl fmt::Debug for MicroBatchBudget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MicroBatchBudget").field("most", &self.most).finish_non_exhaustive()
    }
}

/// Computes a model's training steps and its metrics. Driven from one blocking thread at a time; between calls it keeps
/// nothing but caches and, where `TrainSpec::keep_optimizer_state` asks for it, the optimizer's state.
pub trait Trainer: Send + fmt::Debug {
    /// Names and shapes of the tensors that every flat vector here consists of.
    fn manifest(&self) -> &ModelManifest;

    /// Whether a round whose plan has `proximal_mu` adds the proximal term to each gradient. An agent whose trainer does not
    /// refuses a run that needs the term.
    fn adds_proximal_term(&self) -> bool {
        false
    }

    /// What computes parts of the model, pass by pass, for a trainer that can and whose tensors have the order of
    /// [`manifest`](Self::manifest). Native models need none: the agent computes parts of them itself.
    fn modules(&self) -> Option<&dyn ModuleTrainer> {
        None
    }

    /// The model before any training: the same bits on every machine for the same `seed`.
    ///
    /// # Errors
    /// A trainer in another process can be lost; the native one makes any model that it could be built for.
    fn initial(&mut self, seed: u64) -> Result<Vec<f32>, TrainError>;

    /// Takes `round.plan.local_steps` steps from `round.base`, on examples that `round.seed` draws
    /// from `round.shard`, and reports each of them to `round.control`. A trainer uses as much of
    /// the rest of the round as it supports: `budget`, `keep` and `encode` may be ignored.
    ///
    /// # Errors
    /// The base or the shard does not fit the model, `round.plan` is not usable, or the loss stops
    /// being finite. [`TrainError::Memory`]: not even one example fits.
    fn train(&mut self, round: Round<'_>) -> Result<RoundResult, TrainError>;

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

/// What a round gave.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundResult {
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
    /// The update, if the trainer has encoded it.
    pub encoded: Option<Encoded>,
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
