//! The whole model in a few stages, so that the gradient of the last one can travel while those before are computed.

use std::ops::Range;

use anabranch_common::limits;
use anabranch_common::spec::ModelSpec;
use burn_flex::Flex;

use super::super::architecture::Architecture;
use super::super::graph::{Input, Matrix, Place, Trace};
use super::super::stage::{self, Stage};
use super::super::{add_share, gpt, read};
use crate::shard::Shard;
use crate::train::TrainError;

/// How many values a stage has at least, unless it is the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StageSize(pub(super) usize);

impl Default for StageSize {
    fn default() -> Self {
        Self(limits::REPLICA_STAGE_VALUES)
    }
}

/// A model that is trained as a whole, in stages of this process.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) architecture: Architecture,
    stages: Vec<Stage>,
    threads: rayon::ThreadPool,
}

/// The examples of a member's batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch<'a> {
    pub(super) shard: &'a dyn Shard,
    /// Which of the shard's examples.
    pub(super) indices: &'a [usize],
    /// Examples that are computed at once.
    pub(super) micro_batch: usize,
    /// Examples of the joined batch.
    pub(super) joined: usize,
}

/// The gradients of stages before they are summed over the members, and vectors to compute them in.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// By stage. Those of the last stage are followed by the loss.
    stages: Vec<Vec<f32>>,
    part: Vec<f32>,
    labels: Vec<u32>,
}

impl Sums {
    /// Gives a stage's vector back, to be used again.
    pub(super) fn give_back(&mut self, stage: usize, vector: Vec<f32>) {
        if let Some(place) = self.stages.get_mut(stage) {
            *place = vector;
        }
    }
}

impl Staged {
    /// Builds the model of `spec`, with so many threads for the maths; 0 is one for each core.
    ///
    /// # Errors
    /// The model cannot be built, or the system gives no threads.
    pub(super) fn new(spec: &ModelSpec, size: StageSize, threads: usize) -> Result<Self, TrainError> {
        let architecture = Architecture::new(spec)?;
        let stages = stages(&architecture, size);
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let threads = threads.map_err(|error| TrainError::Backend(error.to_string()))?;
        Ok(Self { architecture, stages, threads })
    }

    /// Returns the number of stages.
    pub(super) fn stages(&self) -> usize {
        self.stages.len()
    }

    /// Examples in a shard, and labels of each: of text windows, with a label a position.
    pub(super) fn extent(&self, shard: &dyn Shard) -> (usize, usize) {
        match (&self.architecture.gpt, shard.text()) {
            (Some(gpt), Some(text)) => (text.windows(gpt::to_usize(gpt.context)), gpt::to_usize(gpt.context)),
            _ => (shard.len(), 1),
        }
    }

    /// Computes this member's share of the gradient of the joined batch, and hands each stage's to `ready` as soon as it is
    /// there, the last stage's first. That one is followed by the share of the joined batch's mean loss.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "shares of a batch, and losses, are f32"
    )]
    pub(super) fn backward(
        &self,
        model: &[f32],
        batch: Batch<'_>,
        sums: &mut Sums,
        mut ready: impl FnMut(usize, Vec<f32>),
    ) {
        let Batch { shard, indices, micro_batch, joined } = batch;
        sums.stages.resize_with(self.stages.len(), Vec::new);
        sums.stages.iter_mut().for_each(Vec::clear);
        let params: Vec<_> = (0..self.stages.len()).map(|stage| self.params(stage, model)).collect();
        let (_, labels_each) = self.extent(shard);
        let last = self.stages.len() - 1;
        let mut loss_sum = 0.0;
        let mut waiting = indices.len();
        for indices in indices.chunks(micro_batch.max(1)) {
            waiting -= indices.len();
            let share = indices.len() as f32 / joined as f32;
            let inputs = read(&self.architecture, shard, indices, &mut sums.labels);
            let mut input = Input::Examples { values: inputs, count: sums.labels.len() };
            let mut traces: Vec<Trace<Flex>> = Vec::with_capacity(self.stages.len());
            for (stage, params) in params.iter().enumerate() {
                let trace = self.at(stage, |place| place.trace(params, input));
                input = Input::Activations(trace.output());
                traces.push(trace);
            }
            let Input::Activations(Matrix { values: logits, .. }) = input else { unreachable!("a model has a layer") };
            let score = self.at(last, |place| place.score(&logits, &sums.labels));
            loss_sum += score.loss_sum;
            let mut slope = score.gradient;
            // The sum of the head's use of a tensor that an earlier stage owns.
            let mut borrowed = None;
            for (stage, trace) in traces.into_iter().enumerate().rev() {
                let of_input = self.at(stage, |place| place.backward(trace, slope, &mut sums.part));
                add_share(&mut sums.stages[stage], &sums.part, share);
                slope = of_input.map(|matrix| matrix.values).unwrap_or_default();
                if waiting > 0 {
                    continue;
                }
                let mut sum = std::mem::take(&mut sums.stages[stage]);
                self.tie(stage, &mut sum, &mut borrowed);
                if stage == last {
                    sum.push((loss_sum / (joined as f64 * labels_each as f64)) as f32);
                }
                ready(stage, sum);
            }
        }
    }

    /// Puts the summed gradient of a stage into that of the whole model. Returns the loss where it is the last one's.
    pub(super) fn place(&self, stage: usize, sum: &[f32], gradient: &mut [f32]) -> Option<f32> {
        let of = &self.stages[stage];
        let (own, loss) = sum.split_at(of.params());
        gradient[of.own.clone()].copy_from_slice(own);
        loss.first().copied()
    }

    /// Adds the two uses of a tied tensor: at once where both are in this stage.
    fn tie(&self, stage: usize, sum: &mut Vec<f32>, borrowed: &mut Option<(Range<usize>, Vec<f32>)>) {
        let of = &self.stages[stage];
        match of.borrowed() {
            Some(range) => *borrowed = Some((range.clone(), sum.split_off(of.params()))),
            None => of.tie(sum),
        }
        let is_its = |(range, _): &mut (Range<usize>, _)| of.own.start <= range.start && range.end <= of.own.end;
        if let Some((range, later)) = borrowed.take_if(is_its) {
            stage::add_to(&mut sum[range.start - of.own.start..range.end - of.own.start], &later);
        }
    }

    fn params(&self, stage: usize, model: &[f32]) -> Vec<burn_tensor::Tensor<Flex, 2>> {
        let of = &self.stages[stage];
        let tied = of.borrowed().map_or(&[][..], |range| &model[range.clone()]);
        self.at(stage, |place| place.params(&model[of.own.clone()], tied))
    }

    fn at<T: Send>(&self, stage: usize, work: impl FnOnce(Place<'_, Flex>) -> T + Send) -> T {
        let device = Default::default();
        let place = Place::<Flex> { stage: &self.stages[stage], device: &device, threads: &self.threads };
        self.threads.install(|| work(place))
    }
}

/// Cuts a model into stages.
fn stages(architecture: &Architecture, size: StageSize) -> Vec<Stage> {
    let layers = &architecture.whole.layers;
    let params: Vec<usize> = layers.iter().map(|layer| usize::try_from(layer.params).unwrap_or(usize::MAX)).collect();
    let starts = starts(&params, size);
    let ends = starts.iter().skip(1).copied().chain([layers.len()]);
    let stage = |(start, end)| Stage::new(layers, start..end, &architecture.manifest);
    starts.iter().copied().zip(ends).map(stage).collect()
}

/// Returns what is summed at once in a step, in this order: layers, and values of the vector. The loss is behind those of the last
/// layers.
pub(super) fn summed_together(spec: &ModelSpec, size: StageSize) -> Result<Vec<(Range<usize>, usize)>, TrainError> {
    let stages = stages(&Architecture::new(spec)?, size);
    let (mut layer, mut found) = (0, Vec::new());
    for (number, stage) in stages.iter().enumerate() {
        let end = layer + stage.layers.len();
        found.push((layer..end, stage.params() + usize::from(number + 1 == stages.len())));
        layer = end;
    }
    found.reverse();
    Ok(found)
}

/// Where stages begin: as many layers each, counted from the last one, as have `size` values together, and few stages.
fn starts(params: &[usize], StageSize(size): StageSize) -> Vec<usize> {
    let all = params.iter().fold(0, |sum: usize, params| sum.saturating_add(*params));
    let size = size.max(all / limits::REPLICA_STAGES + 1);
    let mut starts = Vec::new();
    let mut held = 0;
    for (layer, params) in params.iter().enumerate().rev() {
        held += params;
        if held >= size || layer == 0 {
            starts.push(layer);
            held = 0;
        }
    }
    starts.reverse();
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_few_and_none_but_the_first_is_small() {
        let cut = |params: &[usize], size| starts(params, StageSize(size));
        assert_eq!(cut(&[10, 10, 10, 10], 1), [0, 1, 2, 3]);
        assert_eq!(cut(&[10, 10, 10, 10], 15), [0, 2]);
        assert_eq!(cut(&[10, 10, 10], 15), [0, 1]);
        assert_eq!(cut(&[10, 10, 10], 1_000), [0]);
        assert_eq!(cut(&[5, 0, 0], 1), [0], "layers without parameters are a stage with the next one before");
        let many = vec![10; 100];
        let found = cut(&many, 1);
        assert!(found.len() <= limits::REPLICA_STAGES, "{found:?}");
    }
}
