//! The figures of a round that every member knows before anything is sent: who is in flight when, and how large micro-batches are.

use anabranch_common::pod::Schedule;
use anabranch_common::pod::order::{Order, OrderError};
use anabranch_common::spec::TrainSpec;

use super::super::gpt::to_usize;
use super::PipelineError;

/// How the parts of a round take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turns {
    pub(super) order: Order,
    schedule: Schedule,
    parts: u32,
    pub(super) micro_batches: u32,
    pub(super) steps: u32,
}

impl Turns {
    /// # Errors
    /// The schedule cannot be used.
    pub(super) fn new(schedule: Schedule, parts: usize, micro_batches: u32, steps: u32) -> Result<Self, OrderError> {
        let parts = u32::try_from(parts).unwrap_or(u32::MAX);
        Ok(Self { order: Order::new(schedule, parts, micro_batches, steps)?, schedule, parts, micro_batches, steps })
    }

    /// Returns the number of micro-batches of the round.
    pub(super) fn total(&self) -> u64 {
        u64::from(self.steps) * u64::from(self.micro_batches)
    }

    /// Returns how many micro-batches the first part has in flight at most.
    pub(super) fn in_flight(&self) -> u64 {
        self.schedule.in_flight(0, self.parts, self.micro_batches).into()
    }

    /// Returns the newest version of the tied tensor that the last part computes with.
    pub(super) fn last_tied(&self) -> u32 {
        self.order.tied_version(self.steps - 1)
    }

    /// Returns which micro-batch of its step the micro-batch `number` of the round is.
    pub(super) fn index(&self, number: u64) -> u32 {
        u32::try_from(number % u64::from(self.micro_batches)).expect("smaller than a u32")
    }
}

/// How the batch of a step is cut into micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batches {
    batch: usize,
    micro_batch: usize,
    labels_each: usize,
}

impl Batches {
    /// Of examples with so many labels each.
    ///
    /// # Errors
    /// The batch cannot be cut into as many micro-batches of equal size and a smaller rest.
    pub(super) fn new(labels_each: usize, plan: &TrainSpec, micro_batches: u32) -> Result<Self, PipelineError> {
        let refused = PipelineError::MicroBatches { batch: plan.batch_size, micro_batches };
        if micro_batches == 0 || plan.batch_size == 0 {
            return Err(refused);
        }
        let micro_batch = plan.batch_size.div_ceil(micro_batches);
        if plan.batch_size.div_ceil(micro_batch) != micro_batches {
            return Err(refused);
        }
        Ok(Self { batch: to_usize(plan.batch_size), micro_batch: to_usize(micro_batch), labels_each })
    }

    /// Returns the examples of a batch.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// Returns the examples of the micro-batch `index` of a step.
    pub(super) fn examples(&self, index: u32) -> usize {
        self.micro_batch.min(self.batch - to_usize(index) * self.micro_batch)
    }

    /// Returns the examples of the micro-batch `number` of the round.
    pub(super) fn examples_of(&self, number: u64) -> usize {
        let each_step = self.batch.div_ceil(self.micro_batch) as u64;
        self.examples(u32::try_from(number % each_step).expect("a batch is counted in 32 bits"))
    }

    /// Returns the labels of the micro-batch `index` of a step.
    pub(super) fn labels(&self, index: u32) -> usize {
        self.examples(index) * self.labels_each
    }

    /// Returns which part of its batch a micro-batch is; `None` where it is the batch.
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most 65536 examples")]
    pub(super) fn share(&self, index: u32) -> Option<f32> {
        let examples = self.examples(index);
        (examples < self.batch).then(|| examples as f32 / self.batch as f32)
    }

    /// Returns the examples of a micro-batch that is not the last of its batch.
    pub(super) fn micro_batch(&self) -> u32 {
        u32::try_from(self.micro_batch).expect("a batch is counted in 32 bits")
    }

    #[expect(clippy::cast_precision_loss, reason = "a batch has at most 2^30 labels")]
    pub(super) fn labels_of_a_step(&self) -> f64 {
        self.batch as f64 * self.labels_each as f64
    }
}
