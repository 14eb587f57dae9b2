//! What a pipeline is fed with: the micro-batches of the batches that the native trainer draws from the same seed.

use std::collections::VecDeque;

use anabranch_common::spec::TrainSpec;

use super::super::architecture::Architecture;
use super::super::graph::Input;
use super::super::{gpt, read};
use super::PipelineError;
use super::turns::Batches;
use crate::shard::Shard;
use crate::shard::draw::{Draw, Purpose};

/// The micro-batches of a round, in their order, and their labels.
#[derive(Debug)]
pub(super) struct Feed<'a> {
    architecture: &'a Architecture,
    shard: &'a dyn Shard,
    draw: Draw,
    /// Examples in the shard, of text: windows.
    count: usize,
    batches: Batches,
    /// Examples of the current batch that were not handed out.
    waiting: VecDeque<usize>,
    /// Micro-batches of the current batch that were handed out.
    index: u32,
    /// Labels of the micro-batch that was handed out last.
    labels: Vec<u32>,
}

impl<'a> Feed<'a> {
    pub(super) fn new(
        architecture: &'a Architecture,
        shard: &'a dyn Shard,
        plan: &TrainSpec,
        micro_batches: u32,
        seed: u64,
    ) -> Result<Self, PipelineError> {
        let batches = Batches::new(architecture.labels_each(), plan, micro_batches)?;
        let count = match (&architecture.gpt, shard.text()) {
            (Some(gpt), Some(text)) => text.windows(gpt::to_usize(gpt.context)),
            _ => shard.len(),
        };
        let draw = Draw::new(seed, Purpose::Batches);
        Ok(Self { architecture, shard, draw, count, batches, waiting: VecDeque::new(), index: 0, labels: Vec::new() })
    }

    /// Returns the next micro-batch, whose labels are then [`labels`](Self::labels).
    pub(super) fn next(&mut self) -> Input {
        if self.waiting.is_empty() {
            self.waiting.extend((0..self.batches.batch()).map(|_| self.draw.below(self.count)));
            self.index = 0;
        }
        let indices: Vec<usize> = self.waiting.drain(..self.batches.examples(self.index)).collect();
        self.index += 1;
        self.labels.clear();
        let values = read(self.architecture, self.shard, &indices, &mut self.labels);
        Input::Examples { values, count: self.labels.len() }
    }

    /// Takes the labels of the micro-batch that was handed out last.
    pub(super) fn labels(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.labels)
    }

    /// Returns how batches are cut.
    pub(super) fn batches(&self) -> Batches {
        self.batches
    }

    /// Returns which part of its batch a micro-batch is; `None` where it is the batch.
    #[cfg(test)]
    pub(super) fn share(&self, index: u32) -> Option<f32> {
        self.batches.share(index)
    }
}
