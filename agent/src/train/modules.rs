//! A custom model in parts: the seam to a trainer that computes consecutive modules of its model, pass by pass. The agent keeps
//! weights and optimizer, and hands activations and gradients on to other members of a pod.

use std::fmt;
use std::ops::Range;

use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::TrainSpec;

use super::TrainError;

/// Computes passes of the modules of a custom model. All calls are of the round that has begun last.
///
/// Weights, activations and gradients are flat vectors: of activations an example after the other.
pub trait ModuleTrainer: Send + Sync + fmt::Debug {
    /// The tensors of the model, in the run's order.
    fn tensors(&self) -> &ModelManifest;

    /// Begins a round; what is left of an earlier one is dropped.
    ///
    /// # Errors
    /// As those of the other calls: the trainer is lost, or refuses.
    fn begin(&self, round: &ModuleRound<'_>) -> Result<(), TrainError>;

    /// Loads the weights of a part. All passes that follow have them: also the backward passes of micro-batches that were forwarded
    /// with others.
    ///
    /// # Errors
    /// See [`begin`](Self::begin).
    fn load(&self, part: usize, weights: &[f32]) -> Result<(), TrainError>;

    /// Computes the output of a micro-batch from the output of the part before; the first part draws the examples. The last part
    /// computes the loss too.
    ///
    /// # Errors
    /// See [`begin`](Self::begin). Values that are not finite are passed on: the owner of the round sees by the loss that it diverges.
    fn forward(&self, pass: ModulePass, input: Option<&[f32]>) -> Result<ModuleForward, TrainError>;

    /// Computes the gradients of a micro-batch that was forwarded, given that of its output; the last part knows it.
    ///
    /// # Errors
    /// See [`forward`](Self::forward).
    fn backward(&self, pass: ModulePass, slope: Option<&[f32]>) -> Result<ModuleBackward, TrainError>;
}

/// A round, as a trainer that computes parts of it is told.
#[derive(Debug, Clone)]
pub struct ModuleRound<'a> {
    /// A number of the round's own, the same at every member and in every attempt: what is drawn in a pass, such as which values are
    /// dropped, follows from it.
    pub number: u64,
    /// The parts that are computed here.
    pub parts: Vec<ModulePart>,
    /// Which examples the first part draws, if it is here.
    pub draw: Option<ModuleDraw<'a>>,
}

/// Consecutive modules of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModulePart {
    /// Which part of the model, from 0.
    pub part: usize,
    /// Its modules, from 0.
    pub modules: Range<usize>,
}

/// Which examples are drawn.
#[derive(Debug, Clone, Copy)]
pub struct ModuleDraw<'a> {
    /// Decides which.
    pub seed: u64,
    /// Steps, and examples of a step.
    pub plan: &'a TrainSpec,
    /// Examples of a micro-batch; the last one of a step may have fewer.
    pub micro_batch: u32,
}

/// A pass of a micro-batch through a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModulePass {
    /// The part.
    pub part: usize,
    /// Number of the micro-batch in the round, from 0.
    pub micro_batch: u64,
    /// Its examples.
    pub examples: usize,
}

/// What a forward pass gave.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleForward {
    /// The output; empty at the last part.
    pub output: Vec<f32>,
    /// At the last part: mean loss of the micro-batch, which may be no finite number; 0 at others.
    pub mean_loss: f64,
}

/// What a backward pass gave.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleBackward {
    /// The gradient of the micro-batch's mean loss by the part's weights.
    pub gradient: Vec<f32>,
    /// The same by its input; empty at the first part.
    pub of_input: Vec<f32>,
}
