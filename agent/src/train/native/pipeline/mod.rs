//! A model cut into stages that take turns as the members of a pod do, all in this process and without links: what a pod computes,
//! for tests and for comparisons of schedules.
//!
//! ```text
//!  batch ─► stage 0 ─ activations ─► stage 1 ─ ... ─► stage N-1 ─► logits, loss
//!           stage 0 ◄── gradients ── stage 1 ◄ ... ◄─ stage N-1 ◄── gradient by the logits
//!             └─ update               └─ update        └─ update
//! ```
//!
//! A tied tensor belongs to the first stage. The last one sends its sum of a step's gradients there, and computes with the copy that
//! the first stage's update of an earlier step gave ([`Order::tied_version`]).
//!
//! With `sequential` and `flush` the result has the bits of the native trainer that computes the same micro-batches.

mod feed;
mod member;
mod stall;

use std::ops::{ControlFlow, Range};

use anabranch_common::pod::Schedule;
use anabranch_common::pod::order::{Order, OrderError, OutOfTurn, Work};
use anabranch_common::spec::{ModelSpec, TrainSpec};
use burn_flex::Flex;

use super::architecture::Architecture;
use super::check_plan;
use super::graph::Place;
use super::stage::Stage;
use crate::shard::Shard;
use crate::train::{StepReport, TrainError};
use feed::Feed;
use member::Member;

pub use stall::{Missing, Waiting};

/// Why a model cannot be trained in stages.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PipelineError {
    /// Model, plan or shard cannot be used, or training diverged.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The schedule cannot be used.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// A stage sent what the next one has no use for: a fault of the order.
    #[error(transparent)]
    OutOfTurn(#[from] OutOfTurn),
    /// No stage can go on, and some are not through: a fault of the order.
    #[error("no stage can go on: {}", stall::list(.0))]
    Stalled(Vec<Waiting>),
    /// Stages have to be consecutive layers that cover the model.
    #[error("stages end at the layers {ends:?}, expected increasing figures, the last one {layers}")]
    Cut {
        /// Where they end.
        ends: Vec<usize>,
        /// Layers of the model.
        layers: usize,
    },
    /// A batch has fewer examples than micro-batches, or cannot be cut into as many of equal size and a smaller rest.
    #[error("a batch of {batch} examples cannot be cut into {micro_batches} micro-batches")]
    MicroBatches {
        /// Examples of a batch.
        batch: u32,
        /// Micro-batches of a step.
        micro_batches: u32,
    },
}

/// A model cut into stages.
#[derive(Debug)]
pub struct Pipeline {
    architecture: Architecture,
    stages: Vec<Stage>,
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
        let layers = &architecture.whole.layers;
        let starts = [0].into_iter().chain(ends.iter().copied());
        let ranges: Vec<Range<usize>> = starts.zip(ends.iter().copied()).map(|(start, end)| start..end).collect();
        if ranges.iter().any(|range| range.is_empty()) || ends.last() != Some(&layers.len()) {
            return Err(PipelineError::Cut { ends: ends.to_vec(), layers: layers.len() });
        }
        let stages = ranges.into_iter().map(|range| Stage::new(layers, range, &architecture.manifest)).collect();
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let threads = threads.map_err(|error| TrainError::Backend(error.to_string()))?;
        Ok(Self { architecture, stages, threads })
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
        check_plan(plan)?;
        self.check(base, shard)?;
        let stages = u32::try_from(self.stages.len()).unwrap_or(u32::MAX);
        let order = Order::new(schedule, stages, micro_batches, plan.local_steps)?;
        let feed = Feed::new(&self.architecture, shard, plan, micro_batches, seed)?;
        let members =
            self.stages.iter().zip(0..).map(|(stage, index)| Member::new(stage, order.stage(index), plan, base));
        let members = members.collect::<Result<Vec<_>, TrainError>>()?;
        let mut round =
            Round { pipeline: self, order, feed, members, losses: Vec::new(), loss_sum: 0.0, stopped: false };
        round.run(plan, control)?;
        let Round { members, losses, stopped, .. } = round;
        let end: Vec<f32> = members.into_iter().flat_map(Member::into_weights).collect();
        if !end.iter().all(|value| value.is_finite()) {
            return Err(TrainError::Diverged { step: plan.local_steps }.into());
        }
        Ok(Trained { end, losses, stopped })
    }

    fn check(&self, model: &[f32], shard: &dyn Shard) -> Result<(), TrainError> {
        let expected = self.architecture.manifest.params();
        if model.len() != expected {
            return Err(TrainError::Length { expected, found: model.len() });
        }
        super::Held::of(shard).check(&self.architecture)
    }
}

/// A round in progress.
struct Round<'a> {
    pipeline: &'a Pipeline,
    order: Order,
    feed: Feed<'a>,
    members: Vec<Member<'a>>,
    losses: Vec<f32>,
    loss_sum: f64,
    stopped: bool,
}

type Control<'a> = dyn FnMut(StepReport) -> ControlFlow<()> + 'a;

impl Round<'_> {
    /// Lets stages work until all are through or `control` ends the round.
    fn run(&mut self, plan: &TrainSpec, control: &mut Control<'_>) -> Result<(), PipelineError> {
        loop {
            let mut idle = true;
            for stage in 0..self.members.len() {
                while !self.stopped && self.work(stage, plan, control)? {
                    idle = false;
                }
            }
            if idle {
                let waiting = if self.stopped { Vec::new() } else { self.waiting() };
                return if waiting.is_empty() { Ok(()) } else { Err(PipelineError::Stalled(waiting)) };
            }
        }
    }

    /// Carries out what is next at a stage. False: its input is not there, or it is through.
    fn work(&mut self, stage: usize, plan: &TrainSpec, control: &mut Control<'_>) -> Result<bool, PipelineError> {
        let Some(work) = self.members[stage].ready() else { return Ok(false) };
        let device = Default::default();
        let (of, threads) = (&self.pipeline.stages[stage], &self.pipeline.threads);
        let place = Place::<Flex> { stage: of, device: &device, threads };
        let is_last = stage + 1 == self.members.len();
        match work {
            Work::Forward { micro_batch, version, ahead } => {
                let tied = self.order.tied_version(micro_batch.step);
                if !self.members[stage].has_tied(tied) {
                    return Ok(false);
                }
                let input = if stage == 0 { Some(self.feed.next()) } else { None };
                let tied_ahead = if self.order.predicts() { micro_batch.step - tied } else { 0 };
                let member = &mut self.members[stage];
                let output = threads.install(|| member.forward(&place, input, [version, ahead, tied, tied_ahead]));
                if is_last {
                    let score = place.score(&output.values, &self.feed.labels());
                    self.loss_sum += score.loss_sum;
                    self.members[stage].scored(score.gradient);
                } else {
                    self.members[stage + 1].take_activations(output)?;
                }
            }
            Work::Backward { micro_batch, version } => {
                let tied = self.order.tied_version(micro_batch.step);
                let share = self.feed.share(micro_batch.index);
                let member = &mut self.members[stage];
                let slope = threads.install(|| member.backward(&place, [version, tied], share));
                if let Some(slope) = slope {
                    self.members[stage - 1].take_gradient(slope)?;
                }
            }
            Work::Update { step } => {
                if !self.update(stage, step) {
                    return Ok(false);
                }
                if is_last {
                    self.report(step, plan, control)?;
                }
            }
        }
        self.members[stage].done();
        Ok(true)
    }

    /// The optimizer's step of a stage, unless it waits for the sum of a tied tensor's gradients.
    fn update(&mut self, stage: usize, step: u32) -> bool {
        let last = self.members.len() - 1;
        if stage > 0 || !self.members[last].borrows() {
            self.members[stage].update(None);
            return true;
        }
        // The embedding is the first layer, so that a tied tensor belongs to the first stage.
        let Some(sum) = self.members[last].take_tied_sum() else { return false };
        let range = self.members[last].tied_range();
        self.members[0].update(Some((range.clone(), sum)));
        let copy = self.members[0].part(&range);
        self.members[last].give_tied(step + 1, copy);
        true
    }

    #[expect(clippy::cast_possible_truncation, reason = "losses are reported as f32")]
    fn report(&mut self, step: u32, plan: &TrainSpec, control: &mut Control<'_>) -> Result<(), TrainError> {
        let loss = (std::mem::take(&mut self.loss_sum) / self.feed.labels_of_a_step()) as f32;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: step + 1 });
        }
        self.losses.push(loss);
        let micro_batch = Some(self.feed.micro_batch());
        let report = StepReport { step: step + 1, loss, examples: plan.batch_size, micro_batch };
        self.stopped = control(report).is_break() && step + 1 < plan.local_steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
