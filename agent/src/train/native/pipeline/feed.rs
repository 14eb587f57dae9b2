//! What a pipeline is fed with: the micro-batches of the batches that the native trainer draws from the same seed.

use std::collections::VecDeque;

use anabranch_common::spec::TrainSpec;

use super::super::architecture::Architecture;
use super::super::graph::Input;
use super::super::{gpt, read};
use super::PipelineError;
use crate::shard::Shard;
use crate::shard::draw::{Draw, Purpose};

/// The micro-batches of a round, in their order, and their labels for the last stage.
pub(super) struct Feed<'a> {
    architecture: &'a Architecture,
    shard: &'a dyn Shard,
    draw: Draw,
    /// Examples in the shard, of text: windows.
    count: usize,
    labels_each: usize,
    batch: usize,
    micro_batch: usize,
    /// Examples of the current batch that were not handed out.
    waiting: VecDeque<usize>,
    /// Labels of micro-batches that are on their way to the last stage.
    labels: VecDeque<Vec<u32>>,
}

impl<'a> Feed<'a> {
    pub(super) fn new(
        architecture: &'a Architecture,
        shard: &'a dyn Shard,
        plan: &TrainSpec,
        micro_batches: u32,
        seed: u64,
    ) -> Result<Self, PipelineError> {
        let micro_batch = plan.batch_size.div_ceil(micro_batches);
        if plan.batch_size.div_ceil(micro_batch) != micro_batches {
            return Err(PipelineError::MicroBatches { batch: plan.batch_size, micro_batches });
        }
        let (count, labels_each) = match (&architecture.gpt, shard.text()) {
            (Some(gpt), Some(text)) => (text.windows(gpt::to_usize(gpt.context)), gpt::to_usize(gpt.context)),
            _ => (shard.len(), 1),
        };
        Ok(Self {
            architecture,
            shard,
            draw: Draw::new(seed, Purpose::Batches),
            count,
            labels_each,
            batch: gpt::to_usize(plan.batch_size),
            micro_batch: gpt::to_usize(micro_batch),
            waiting: VecDeque::new(),
            labels: VecDeque::new(),
        })
    }

    /// The next micro-batch; its labels wait for the last stage.
    pub(super) fn next(&mut self) -> Input {
        if self.waiting.is_empty() {
            self.waiting.extend((0..self.batch).map(|_| self.draw.below(self.count)));
        }
        let indices: Vec<usize> = self.waiting.drain(..self.micro_batch.min(self.waiting.len())).collect();
        let mut labels = Vec::new();
        let values = read(self.architecture, self.shard, &indices, &mut labels);
        let count = labels.len();
        self.labels.push_back(labels);
        Input::Examples { values, count }
    }

    /// Labels of the next micro-batch that reaches the last stage.
    pub(super) fn labels(&mut self) -> Vec<u32> {
        self.labels.pop_front().expect("the micro-batch was handed to the first stage")
    }

    /// Part of its batch that a micro-batch is; none where it is the batch.
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most 65536 examples")]
    pub(super) fn share(&self, index: u32) -> Option<f32> {
        let before = gpt::to_usize(index) * self.micro_batch;
        let examples = self.micro_batch.min(self.batch - before);
        (examples < self.batch).then(|| examples as f32 / self.batch as f32)
    }

    /// Examples of a micro-batch that is not the last of its batch.
    pub(super) fn micro_batch(&self) -> u32 {
        u32::try_from(self.micro_batch).expect("a batch is counted in 32 bits")
    }

    #[expect(clippy::cast_precision_loss, reason = "a batch has at most 2^30 labels")]
    pub(super) fn labels_of_a_step(&self) -> f64 {
        self.batch as f64 * self.labels_each as f64
    }
}
