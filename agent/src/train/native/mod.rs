//! The native trainer: burn on the CPU, or on a GPU in builds that have a backend for it.
//!
//! ```text
//!  architecture   ModelSpec, checked; manifest; initial model (gpt: that of a model of text)
//!  stage          consecutive layers, and their part of the flat vector; a whole model is one stage
//!  layer          a layer's forward pass
//!  engine         where that is computed: on this machine's cores, or (accelerator) on a GPU
//!  graph          a stage: flat vector + batch or activations ──► output; its gradient ──► flat gradient (burn's autodiff)
//!  dense_ops      a dense layer with its bias and ReLU as one operation, with its gradient
//!  ops            a convolution with its pooling, likewise
//!  attention, text_ops   the operations of a gpt, with their gradients
//!  weights        weights for a backward pass other than those of its forward pass
//!  pipeline       a model cut into parts that take turns as the members of a pod do: in this process, or over links
//!  replicas       whole models whose gradients are summed over a ring of members in every step
//!  keep           a long round on disk, and taken up again
//!  memory         how much a round takes, and the micro-batches that it is cut into
//! ```
//!
//! The same base, plan, seed and shard give the same bytes on the same machine, with any number of threads: every
//! sum has a fixed order, and threads only share out independent rows (a test holds this). Where memory is too small for
//! the batch, gradients of micro-batches are summed: the same micro-batch gives the same bytes, another one differs in
//! the last bits. A GPU gives the CPU's results but for rounding (docs/hardware.md).

#[cfg(feature = "accelerator")]
pub(crate) mod accelerator;
mod architecture;
mod attention;
mod dense_ops;
mod engine;
mod fit;
mod gpt;
mod graph;
mod keep;
mod layer;
mod memory;
mod ops;
pub mod pipeline;
pub mod replicas;
mod stage;
mod tensors;
mod text_ops;
mod weights;

use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{ModelSpec, TrainSpec};

use super::optimizer::Optimizer;
use super::{Metrics, Round, RoundResult, StepReport, TrainError, Trainer};
#[cfg(not(feature = "accelerator"))]
use crate::device::ChoiceError;
use crate::device::GpuId;
use crate::shard::Shard;
use crate::shard::draw::{Draw, Purpose};
use architecture::Architecture;
use engine::{Cores, Engine};
pub(crate) use fit::Held;
use keep::Keeper;
use memory::{Budget, Needs};

/// Examples that are evaluated together: enough for a matrix product, few enough that unfolded patches stay in the
/// caches. Batches are shared out among the threads.
const EVALUATION_BATCH: usize = 32;
/// Bytes of text that are evaluated together.
const EVALUATION_TOKENS: usize = 2048;

/// How the native trainer uses this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NativeOptions {
    /// Threads for the maths; `None` is one for each core this process may use. With several agents on one machine,
    /// give each its share. Results do not depend on it.
    pub threads: Option<usize>,
    /// The most that this process may have in memory, in bytes, its shards included; `None` is what the machine and the
    /// process's cgroup have free.
    pub max_memory_bytes: Option<u64>,
    /// The GPU to train on; `None` is the CPU. It must not be opened in a process that has to survive a sick driver: an
    /// agent does it in a child.
    pub device: Option<GpuId>,
    /// Bytes of this process before any of its trainers was made; none: as found when a trainer is made.
    pub before_bytes: Option<u64>,
    /// Bytes of that GPU's memory that somebody else in this process takes for each parameter of the model.
    pub reserved_per_param: u64,
}

/// A native trainer for `spec` on every core this process may use.
///
/// # Errors
/// [`TrainError::Spec`] names the key of `run.toml` that cannot be used.
pub fn native(spec: &ModelSpec) -> Result<Box<dyn Trainer>, TrainError> {
    native_with(spec, NativeOptions::default())
}

/// A native trainer for `spec`, once it is known that these shards fit it.
pub(crate) fn native_for(
    spec: &ModelSpec,
    options: NativeOptions,
    shards: &[Held],
) -> Result<Box<dyn Trainer>, TrainError> {
    let native = Native::new(spec, options)?;
    shards.iter().try_for_each(|shard| shard.check(&native.architecture))?;
    Ok(Box::new(native))
}

/// A native trainer for `spec`.
///
/// # Errors
/// As [`native`]; [`TrainError::Backend`] where the system gives no threads, or the GPU cannot be used.
pub fn native_with(spec: &ModelSpec, options: NativeOptions) -> Result<Box<dyn Trainer>, TrainError> {
    Ok(Box::new(Native::new(spec, options)?))
}

/// A model with its threads, and the optimizer of the last lease where the plan keeps it.
#[derive(Debug)]
struct Native {
    architecture: Architecture,
    engine: Box<dyn Engine>,
    kept: Option<Optimizer>,
    budget: Budget,
}

impl Native {
    fn new(spec: &ModelSpec, options: NativeOptions) -> Result<Self, TrainError> {
        let architecture = Architecture::new(spec)?;
        // 0 is rayon's word for one thread a core.
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.unwrap_or(0))
            .thread_name(|index| format!("train-{index}"))
            .build()
            .map_err(|error| TrainError::Backend(error.to_string()))?;
        let engine = engine(options.device, threads)?;
        let reserved = options.reserved_per_param.saturating_mul(architecture.manifest.params() as u64);
        let budget =
            Budget::new(options.max_memory_bytes, engine.room().without(reserved)).beside(options.before_bytes);
        Ok(Self { architecture, engine, kept: None, budget })
    }

    fn check(&self, model: &[f32], shard: &dyn Shard) -> Result<(), TrainError> {
        let expected = self.architecture.manifest.params();
        if model.len() != expected {
            return Err(TrainError::Length { expected, found: model.len() });
        }
        Held::of(shard).check(&self.architecture)
    }

    /// Examples in the shard, and labels of each: of text windows, with a label a position.
    fn extent(&self, shard: &dyn Shard) -> (usize, usize) {
        match (&self.architecture.gpt, shard.text()) {
            (Some(gpt), Some(text)) => (text.windows(gpt::to_usize(gpt.context)), gpt::to_usize(gpt.context)),
            _ => (shard.len(), 1),
        }
    }

    /// Sum of the losses of a batch, and the gradient of its mean loss. Micro-batches are added in their order, each by its
    /// share of the batch.
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most 65536 examples")]
    fn backward(&self, model: &[f32], shard: &dyn Shard, batch: &[usize], micro: usize, sums: &mut Sums) -> f64 {
        let Sums { gradient, part, labels } = sums;
        let mut compute = |indices: &[usize], gradient: &mut Vec<f32>| {
            let inputs = read(&self.architecture, shard, indices, labels);
            self.engine.backward(&self.architecture, model, inputs, labels, gradient)
        };
        let mut loss_sum = 0.0;
        if batch.len() <= micro {
            loss_sum = compute(batch, gradient);
        } else {
            gradient.clear();
            for indices in batch.chunks(micro) {
                loss_sum += compute(indices, part);
                add_share(gradient, part, indices.len() as f32 / batch.len() as f32);
            }
        }
        // Of a tensor that is used twice each use is summed on its own, which a stage of a pod does too.
        self.architecture.whole.tie(gradient);
        loss_sum
    }

    fn optimizer(&mut self, plan: &TrainSpec) -> Result<Optimizer, TrainError> {
        match self.kept.take().filter(|kept| plan.keep_optimizer_state && kept.is(&plan.optimizer)) {
            Some(mut kept) => {
                kept.set_lr(&plan.optimizer)?;
                Ok(kept)
            }
            None => Optimizer::new(&plan.optimizer, self.architecture.manifest.params()),
        }
    }
}

/// What a step fills in, kept for the next one.
#[derive(Debug, Default)]
struct Sums {
    gradient: Vec<f32>,
    /// The gradient of one micro-batch.
    part: Vec<f32>,
    labels: Vec<u32>,
}

impl Trainer for Native {
    fn manifest(&self) -> &ModelManifest {
        &self.architecture.manifest
    }

    fn adds_proximal_term(&self) -> bool {
        true
    }

    fn initial(&mut self, seed: u64) -> Result<Vec<f32>, TrainError> {
        Ok(self.architecture.initial(seed))
    }

    #[expect(clippy::cast_possible_truncation, reason = "losses are reported as f32")]
    fn train(&mut self, round: Round<'_>) -> Result<RoundResult, TrainError> {
        let Round { base, plan, seed, shard, budget, keep, control, .. } = round;
        check_plan(plan)?;
        self.check(base, shard)?;
        let needs = Needs::of(&self.architecture, plan);
        self.budget.limit(budget.as_ref().and_then(|budget| budget.most));
        let mut micro = self.budget.micro_batch(&needs, plan.batch_size)?;
        if let Some(budget) = budget {
            (budget.begins)(micro);
        }
        self.budget.measure();
        let mut optimizer = self.optimizer(plan)?;
        let mut draw = Draw::new(seed, Purpose::Batches);
        let end = base.to_vec();
        let mut reached = RoundResult { end, num_examples: 0, steps: 0, mean_loss: 0.0, stopped: false, encoded: None };
        let (mut sums, mut indices) = (Sums::default(), Vec::new());
        let (count, labels_each) = self.extent(shard);
        let mut loss_sum = 0.0;
        let mut keeper = keep.map(|file| Keeper::new(file, self, plan, seed, count));
        if let Some(kept) = keeper.as_ref().and_then(|keeper| keeper.take_up(&mut optimizer, &mut reached.end)) {
            (reached.steps, loss_sum, micro) = (kept.step, kept.loss_sum, micro.min(kept.micro_batch));
            reached.num_examples = u64::from(kept.step) * u64::from(plan.batch_size);
            (0..reached.num_examples).for_each(|_| _ = draw.below(count));
        }
        let first = reached.steps + 1;
        for step in first..=plan.local_steps {
            indices.clear();
            indices.extend((0..plan.batch_size).map(|_| draw.below(count)));
            let batch_loss = self.backward(&reached.end, shard, &indices, micro as usize, &mut sums);
            let loss = (batch_loss / (f64::from(plan.batch_size) * labels_each as f64)) as f32;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step });
            }
            pull_back(plan.proximal_mu, &mut sums.gradient, &reached.end, base);
            optimizer.step(&mut reached.end, &sums.gradient);
            if step == first {
                self.budget.measured(&needs, micro.min(plan.batch_size));
            }
            loss_sum += f64::from(loss);
            reached.steps = step;
            reached.num_examples += u64::from(plan.batch_size);
            let micro_batch = Some(micro.min(plan.batch_size));
            let report = StepReport { step, loss, examples: plan.batch_size, micro_batch };
            if control(report).is_break() && step < plan.local_steps {
                reached.stopped = true;
                break;
            }
            if let Some(keeper) = keeper.as_mut().filter(|_| step < plan.local_steps) {
                keeper.keep(base, &reached, loss_sum, micro, &optimizer);
            }
        }
        // ReLU and the maximum can hide a NaN from the loss.
        if !reached.end.iter().all(|value| value.is_finite()) {
            return Err(TrainError::Diverged { step: reached.steps });
        }
        reached.mean_loss = (loss_sum / f64::from(reached.steps)) as f32;
        self.kept = plan.keep_optimizer_state.then_some(optimizer);
        Ok(reached)
    }

    fn evaluate(&mut self, model: &[f32], shard: &dyn Shard) -> Result<Metrics, TrainError> {
        self.check(model, shard)?;
        let (count, labels_each) = self.extent(shard);
        let (tokens, batch) = (EVALUATION_TOKENS * self.engine.breadth(), EVALUATION_BATCH * self.engine.breadth());
        let together = if self.architecture.gpt.is_some() { (tokens / labels_each).max(1) } else { batch };
        let batch = |index: usize| {
            let start = index * together;
            let indices: Vec<usize> = (start..count.min(start + together)).collect();
            let mut labels = Vec::new();
            let inputs = read(&self.architecture, shard, &indices, &mut labels);
            (inputs, labels)
        };
        let scores = self.engine.evaluate(&self.architecture, model, count.div_ceil(together), &batch);
        let (mut loss_sum, mut correct) = (0.0, 0);
        for (loss, hits) in scores {
            loss_sum += loss;
            correct += hits;
        }
        let num_examples = count as u64;
        let labels = num_examples as f64 * labels_each as f64;
        let loss = loss_sum / labels;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: 0 });
        }
        Ok(Metrics { accuracy: correct as f64 / labels, loss, num_examples })
    }
}

fn engine(device: Option<GpuId>, threads: rayon::ThreadPool) -> Result<Box<dyn Engine>, TrainError> {
    let Some(device) = device else { return Ok(Box::new(Cores::new(threads))) };
    #[cfg(feature = "accelerator")]
    return accelerator::engine(device, threads).map_err(|error| TrainError::Backend(error.to_string()));
    #[cfg(not(feature = "accelerator"))]
    Err(TrainError::Backend(ChoiceError::NotBuilt(device.backend).to_string()))
}

/// Reads examples, scaled.
fn read(architecture: &Architecture, shard: &dyn Shard, indices: &[usize], labels: &mut Vec<u32>) -> Vec<f32> {
    let mut inputs = Vec::new();
    if let (Some(gpt), Some(text)) = (&architecture.gpt, shard.text()) {
        text.read_windows(gpt::to_usize(gpt.context), indices, &mut inputs, labels);
        return inputs;
    }
    shard.read(indices, &mut inputs, labels);
    inputs.iter_mut().for_each(|value| *value *= architecture.input_scale);
    inputs
}

/// Adds the gradient of a micro-batch by its share of the batch. `sum` is empty before the first one.
fn add_share(sum: &mut Vec<f32>, part: &[f32], share: f32) {
    sum.resize(part.len(), 0.0);
    sum.iter_mut().zip(part).for_each(|(sum, slope)| *sum += share * slope);
}

/// Adds the gradient of FedProx's proximal term, mu / 2 |w - w_base|^2 (Li et al. 2020, equation 2).
fn pull_back(mu: f32, gradient: &mut [f32], model: &[f32], base: &[f32]) {
    if mu > 0.0 {
        for ((slope, value), start) in gradient.iter_mut().zip(model).zip(base) {
            *slope += mu * (value - start);
        }
    }
}

fn check_plan(plan: &TrainSpec) -> Result<(), TrainError> {
    let refuse = |key, found: u32, expected: String| Err(TrainError::Spec { key, found: found.to_string(), expected });
    if !(plan.proximal_mu.is_finite() && plan.proximal_mu >= 0.0) {
        let (key, found) = ("train.proximal_mu", plan.proximal_mu.to_string());
        return Err(TrainError::Spec { key, found, expected: "expected 0 or a number above it".to_owned() });
    }
    if plan.local_steps == 0 {
        return refuse("train.local_steps", plan.local_steps, "expected at least 1".to_owned());
    }
    if plan.batch_size == 0 || plan.batch_size > limits::BATCH_EXAMPLES {
        return refuse("train.batch_size", plan.batch_size, format!("expected 1 to {}", limits::BATCH_EXAMPLES));
    }
    Ok(())
}

#[cfg(test)]
mod bits;
#[cfg(test)]
mod tests;
