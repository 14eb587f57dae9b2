//! How a delta is computed: a [`Trainer`] takes a flat model, trains it on a [`Shard`], and gives a flat model back.
//!
//! ```text
//!  base: &[f32] ──┐
//!  TrainSpec ─────┼─► Trainer::train ──► TrainOutcome { end, num_examples, steps, mean_loss }
//!  seed, Shard ───┘        │ one StepReport a step
//!                          ▼
//!                       control: go on, or stop here
//! ```

mod error;
pub mod native;
mod optimizer;

use std::fmt;
use std::ops::ControlFlow;

use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::TrainSpec;

use crate::shard::Shard;

pub use error::TrainError;
pub use native::{NativeOptions, native, native_with};

/// Computes a model's training steps and its metrics. Driven from one blocking thread at a time; between calls it keeps
/// nothing but caches and, where `TrainSpec::keep_optimizer_state` asks for it, the optimizer's state.
pub trait Trainer: Send + fmt::Debug {
    /// Names and shapes of the tensors that every flat vector here consists of.
    fn manifest(&self) -> &ModelManifest;

    /// The model before any training: the same bits on every machine for the same `seed`.
    fn initial(&self, seed: u64) -> Vec<f32>;

    /// Takes `plan.local_steps` steps from `base`. `seed` decides which examples are drawn. `control` hears of every
    /// step and may end the training there: then what was reached is the outcome, with `stopped` set.
    ///
    /// # Errors
    /// The base or the shard does not fit the model, `plan` is not usable, or the loss stops being finite.
    fn train(
        &mut self,
        base: &[f32],
        plan: &TrainSpec,
        seed: u64,
        shard: &dyn Shard,
        control: &mut dyn FnMut(StepReport) -> ControlFlow<()>,
    ) -> Result<TrainOutcome, TrainError>;

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
    /// Examples in this step's batch.
    pub examples: u32,
}

/// What training gave.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome {
    /// The model after the last step.
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
