//! Where a model's maths happens: on this machine's cores here, on a GPU in `accelerator`.

use std::fmt;

use burn_flex::Flex;
use rayon::prelude::*;

use super::architecture::Architecture;
use super::graph;
use super::memory::Room;

/// A batch as it is computed: inputs, scaled, and labels.
pub(super) type Batch = (Vec<f32>, Vec<u32>);

/// Something that computes losses and gradients.
pub(super) trait Engine: Send + fmt::Debug {
    /// Sum of a batch's losses, and the gradient of its mean loss by the model and its tied tensor, written to `gradient`.
    fn backward(
        &self,
        architecture: &Architecture,
        model: &[f32],
        inputs: Vec<f32>,
        labels: &[u32],
        gradient: &mut Vec<f32>,
    ) -> f64;

    /// Loss sums and hits of `batches` batches, in their order.
    fn evaluate(
        &self,
        architecture: &Architecture,
        model: &[f32],
        batches: usize,
        read: &(dyn Fn(usize) -> Batch + Sync),
    ) -> Vec<(f64, u64)>;

    /// How many times as many examples as on a CPU are evaluated together.
    fn breadth(&self) -> usize;

    /// What bounds the memory of a step.
    fn room(&self) -> Room;
}

/// This machine's cores.
#[derive(Debug)]
pub(super) struct Cores {
    threads: rayon::ThreadPool,
}

impl Cores {
    pub(super) fn new(threads: rayon::ThreadPool) -> Self {
        Self { threads }
    }
}

impl Engine for Cores {
    fn backward(
        &self,
        architecture: &Architecture,
        model: &[f32],
        inputs: Vec<f32>,
        labels: &[u32],
        gradient: &mut Vec<f32>,
    ) -> f64 {
        let device = Default::default();
        let place = graph::Place::<Flex> { stage: &architecture.whole, device: &device, threads: &self.threads };
        self.threads.install(|| place.gradient(model, inputs, labels, gradient))
    }

    fn evaluate(
        &self,
        architecture: &Architecture,
        model: &[f32],
        batches: usize,
        read: &(dyn Fn(usize) -> Batch + Sync),
    ) -> Vec<(f64, u64)> {
        let device = Default::default();
        let place = graph::Place::<Flex> { stage: &architecture.whole, device: &device, threads: &self.threads };
        let score = |batch: usize| {
            let (inputs, labels) = read(batch);
            let score = place.forward(&place.params(model, &[]), inputs, &labels);
            (score.loss_sum, score.correct)
        };
        // Collected in order, so that the sum does not depend on which batch was ready first.
        self.threads.install(|| (0..batches).into_par_iter().map(score).collect())
    }

    fn breadth(&self) -> usize {
        1
    }

    fn room(&self) -> Room {
        Room::Process
    }
}
