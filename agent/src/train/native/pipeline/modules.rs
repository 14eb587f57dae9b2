//! The passes of a part of a custom model, which a trainer in another process computes.

use std::collections::VecDeque;

use super::super::graph::Matrix;
use super::cut::Cut;
use super::passes::{Forwarded, Passes, Scored};
use super::turns::Batches;
use crate::train::{ModulePass, ModuleTrainer, TrainError};

/// The modules of one part.
#[derive(Debug)]
pub(super) struct ModulePasses<'a> {
    cut: &'a Cut,
    part: usize,
    trainer: &'a dyn ModuleTrainer,
    batches: Batches,
    /// Number of the micro-batch of the round that goes forward next.
    next: u64,
    in_flight: VecDeque<ModulePass>,
    /// At the last part: sum of the losses of the micro-batch that was forwarded last.
    loss_sum: f64,
}

impl<'a> ModulePasses<'a> {
    pub(super) fn new(cut: &'a Cut, part: usize, trainer: &'a dyn ModuleTrainer, batches: Batches) -> Self {
        Self { cut, part, trainer, batches, next: 0, in_flight: VecDeque::new(), loss_sum: 0.0 }
    }
}

impl Passes for ModulePasses<'_> {
    /// What it has is the other process's, until the next round begins.
    fn forget(&mut self) {}

    fn load(&mut self, own: &[f32], _tied: &[f32]) -> Result<(), TrainError> {
        self.trainer.load(self.part, own)
    }

    fn keeps_weights(&self) -> bool {
        false
    }

    #[expect(clippy::cast_precision_loss, reason = "a batch has at most 65536 examples")]
    fn forward(&mut self, input: Option<Matrix>) -> Result<Forwarded, TrainError> {
        let examples = self.batches.examples_of(self.next);
        let pass = ModulePass { part: self.part, micro_batch: self.next, examples };
        let forwarded = self.trainer.forward(pass, input.as_ref().map(|input| input.values.as_slice()))?;
        self.next += 1;
        self.in_flight.push_back(pass);
        // Where the loss is not finite the step's is not, and training has diverged.
        self.loss_sum = forwarded.mean_loss * examples as f64;
        let shape = self.cut.stages[self.part].output_shape(examples);
        Ok(Forwarded { output: Matrix { values: forwarded.output, shape }, labels: Vec::new() })
    }

    fn score(&mut self, _output: &Matrix, _labels: &[u32]) -> Scored {
        Scored { loss_sum: self.loss_sum, slope: Vec::new() }
    }

    fn backward(
        &mut self,
        slope: Vec<f32>,
        _is_as_forwarded: bool,
        gradient: &mut Vec<f32>,
    ) -> Result<Option<Matrix>, TrainError> {
        let pass = self.in_flight.pop_front().expect("it was forwarded");
        let backward = self.trainer.backward(pass, (!slope.is_empty()).then_some(slope.as_slice()))?;
        *gradient = backward.gradient;
        let before = self.part.checked_sub(1).map(|part| self.cut.stages[part].output_shape(pass.examples));
        Ok(before.map(|shape| Matrix { values: backward.of_input, shape }))
    }
}
