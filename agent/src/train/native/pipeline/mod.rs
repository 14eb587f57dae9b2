//! A model cut into parts that take turns, as the members of a pod compute it.
//!
//! ```text
//!  batch ─► stage 0 ─ activations ─► stage 1 ─ ... ─► stage N-1 ─► logits, loss
//!           stage 0 ◄── gradients ── stage 1 ◄ ... ◄─ stage N-1 ◄── gradient by the logits
//!             └─ update               └─ update        └─ update
//! ```
//!
//! | what | where |
//! |---|---|
//! | what a part computes: weights, optimizer, passes in flight | `training` |
//! | one part: takes parcels, checks them, computes in its order | `member`, `inbox`; the owner's part: `owner`, `feed` |
//! | what a pass is computed by: burn here, or a trainer in another process | `passes`, `modules` |
//! | where the model is cut | `cut` |
//! | the parts of one member, which parcels they need and give; no threads, no links | `stages` |
//! | all parts in this process, for tests and comparisons of schedules | [`Pipeline`] |
//! | what the layers come to at the end of a pod's round | `content` |
//! | the parts of one member of a pod, over a [`Wire`](crate::pod::Wire) | [`train_owned`], [`serve`] |
//!
//! A tied tensor belongs to the first stage. The last one sends its sum of a step's gradients there, and computes with the copy that
//! the first stage's update of an earlier step gave ([`Order::tied_version`](anabranch_common::pod::order::Order::tied_version)).
//!
//! With `sequential` and `flush` the result has the bits of the native trainer that computes the same micro-batches, unless
//! activations are rounded. Which member computes which part changes no bit.

mod bf16;
mod content;
mod cut;
mod error;
mod feed;
mod inbox;
mod member;
mod modules;
mod owner;
mod passes;
mod pod;
mod stages;
mod stall;
mod training;
mod turns;

use std::ops::ControlFlow;

use anabranch_common::codec::EncodeError;
use anabranch_common::pod::Schedule;
use anabranch_common::spec::{Activations, ModelSpec, TrainSpec};

use super::architecture::Architecture;
use super::check_plan;
use crate::shard::Shard;
use crate::train::{StepReport, TrainError};
use cut::Cut;
use feed::Feed;
use stages::Stages;
use turns::{Batches, Turns};

pub use content::{Contribution, Encoding, Held, sizes as content_sizes};
pub use error::{ParcelError, PipelineError};
pub use pod::{Owned, PodTask, serve, train_owned};
pub use stall::{Missing, Waiting};

/// A model cut into stages.
#[derive(Debug)]
pub struct Pipeline {
    architecture: Architecture,
    cut: Cut,
    threads: rayon::ThreadPool,
}

/// What training in stages gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// The model after the last step.
    pub end: Vec<f32>,
    /// Loss of each step's batch, with the weights that it was computed with.
    pub losses: Vec<f32>,
    /// Whether `control` ended it before the last step; then the stages have not all taken the same steps.
    pub stopped: bool,
}

impl Pipeline {
    /// Cuts the model of `spec` into stages that end at the layers `ends`, with so many threads for the maths.
    ///
    /// # Errors
    /// The model cannot be built, or is not cut by `ends`.
    pub fn new(spec: &ModelSpec, ends: &[usize], threads: usize) -> Result<Self, PipelineError> {
        let architecture = Architecture::new(spec)?;
        let cut = Cut::of_layers(&architecture, ends)?;
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let threads = threads.map_err(|error| TrainError::Backend(error.to_string()))?;
        Ok(Self { architecture, cut, threads })
    }

    /// Returns it with activations and their gradients rounded as they travel in such a pod.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { cut: Cut { activations, ..self.cut }, ..self }
    }

    /// Returns the number of layers of a model, along which it can be cut.
    ///
    /// # Errors
    /// The model cannot be built.
    pub fn layers(spec: &ModelSpec) -> Result<usize, TrainError> {
        Ok(Architecture::new(spec)?.whole.layers.len())
    }

    /// Returns the model before any training.
    #[must_use]
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        self.architecture.initial(seed)
    }

    /// Takes `plan.local_steps` steps from `base`, each of `micro_batches` micro-batches of the batches that `seed` draws from
    /// `shard`, and reports each to `control`, which may end it there.
    ///
    /// # Errors
    /// See [`PipelineError`].
    pub fn train(
        &self,
        base: &[f32],
        plan: &TrainSpec,
        (schedule, micro_batches): (Schedule, u32),
        seed: u64,
        shard: &dyn Shard,
        control: &mut dyn FnMut(StepReport) -> ControlFlow<()>,
    ) -> Result<Trained, PipelineError> {
        self.check(base, plan, shard)?;
        let turns = Turns::new(schedule, self.cut.stages.len(), micro_batches, plan.local_steps)?;
        let feed = Feed::new(&self.architecture, shard, plan, micro_batches, seed)?;
        let batches = feed.batches();
        let parts: Vec<(usize, Turns)> = (0..self.cut.stages.len()).map(|part| (part, turns)).collect();
        let mut stages = Stages::new(self, &parts, plan, batches, Some(feed), None)?;
        for part in 0..self.cut.stages.len() {
            stages.begin(base, &mut |_| Vec::new(), part)?;
        }
        let mut steps = Steps { plan, batches, control, losses: Vec::new(), stopped: false };
        run(&mut stages, &mut steps)?;
        let Steps { losses, stopped, .. } = steps;
        Ok(Trained { end: finite(stages.into_weights(), plan)?, losses, stopped })
    }

    /// Returns what a round comes to that started from `base` and ended there, with what is `held` of the model (nothing: an empty
    /// vector): what the members of a pod encode, whichever parts they compute.
    ///
    /// # Errors
    /// It has led to values that are not finite.
    ///
    /// # Panics
    /// A vector is shorter than the model.
    pub fn contribution(
        &self,
        [base, end]: [&[f32]; 2],
        held: &[f32],
        encoding: &Encoding,
    ) -> Result<Contribution, EncodeError> {
        content::whole(&self.cut.places, [base, end], held, encoding)
    }

    fn check(&self, model: &[f32], plan: &TrainSpec, shard: &dyn Shard) -> Result<(), TrainError> {
        check_plan(plan)?;
        let expected = self.architecture.manifest.params();
        if model.len() != expected {
            return Err(TrainError::Length { expected, found: model.len() });
        }
        super::Held::of(shard).check(&self.architecture)
    }
}

/// Lets stages work, all of which are here, until they are through or the round is stopped.
fn run(stages: &mut Stages<'_>, steps: &mut Steps<'_>) -> Result<(), PipelineError> {
    while stages.work()?.is_some() {
        if steps.report(stages)?.is_break() {
            return Ok(());
        }
    }
    if stages.is_through() { Ok(()) } else { Err(PipelineError::Stalled(stages.waiting())) }
}

/// ReLU and the maximum can hide a NaN from the loss.
fn finite(end: Vec<f32>, plan: &TrainSpec) -> Result<Vec<f32>, TrainError> {
    if end.iter().all(|value| value.is_finite()) {
        Ok(end)
    } else {
        Err(TrainError::Diverged { step: plan.local_steps })
    }
}

type Control<'a> = dyn FnMut(StepReport) -> ControlFlow<()> + 'a;

/// The steps of a round as its owner reports them.
struct Steps<'a> {
    plan: &'a TrainSpec,
    batches: Batches,
    control: &'a mut Control<'a>,
    losses: Vec<f32>,
    stopped: bool,
}

impl Steps<'_> {
    /// Reports the steps whose losses have arrived. Break: the round ends there.
    #[expect(clippy::cast_possible_truncation, reason = "losses are reported as f32")]
    fn report(&mut self, stages: &mut Stages<'_>) -> Result<ControlFlow<()>, TrainError> {
        while let Some(sum) = stages.loss() {
            let step = u32::try_from(self.losses.len()).unwrap_or(u32::MAX).saturating_add(1);
            let loss = (sum / self.batches.labels_of_a_step()) as f32;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step });
            }
            self.losses.push(loss);
            let (examples, micro_batch) = (self.plan.batch_size, Some(self.batches.micro_batch()));
            let report = StepReport { step, loss, examples, micro_batch };
            self.stopped = (self.control)(report).is_break() && step < self.plan.local_steps;
            if self.stopped {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
pub(super) mod tests;
