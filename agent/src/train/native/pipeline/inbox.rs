//! What has arrived for a part and was not used yet.

use std::collections::VecDeque;

use super::super::graph::Matrix;

/// What a part computes with, in the order in which it arrived. What may wait here follows from the order.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) activations: Queue<Matrix>,
    /// Gradients of its outputs; at the last part, those by its logits.
    pub(super) gradients: Queue<Vec<f32>>,
    pub(super) labels: Queue<Vec<u32>>,
    /// Sums of a step's gradients of the tensor that it lends.
    pub(super) tied_sums: Queue<Vec<f32>>,
}

/// Things in their order, and how many there were.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: VecDeque<T>,
    arrived: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), arrived: 0 }
    }
}

impl<T> Queue<T> {
    pub(super) fn push(&mut self, item: T) {
        self.waiting.push_back(item);
        self.arrived += 1;
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        self.waiting.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns how many ever arrived.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived
    }
}
