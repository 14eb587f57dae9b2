//! The seam between what a part is trained to and what computes it: [`Training`](super::training::Training) says which weights a pass
//! has, [`Passes`] computes it.
//!
//! | who computes | where |
//! |---|---|
//! | burn, in this process: the layers of a native model | [`NativePasses`] |
//! | a trainer in another process: the modules of a custom model | [`ModulePasses`](super::modules::ModulePasses) |

use std::collections::VecDeque;
use std::fmt;

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::super::graph::{Input, Matrix, Place, Trace};
use super::Pipeline;
use super::feed::Feed;
use crate::train::TrainError;

/// The output of a micro-batch.
#[derive(Debug)]
pub(super) struct Forwarded {
    /// What the next part takes; of no use at the last part of a custom model.
    pub(super) output: Matrix,
    /// Where the first part reads the examples: their labels. Empty where labels stay with what computes.
    pub(super) labels: Vec<u32>,
}

/// The loss of a micro-batch at the last part.
#[derive(Debug)]
pub(super) struct Scored {
    /// Sum of the losses of its labels.
    pub(super) loss_sum: f64,
    /// Gradient of the mean loss by the output, for the backward pass; empty where what computes keeps it.
    pub(super) slope: Vec<f32>,
}

/// Computes the forward and backward passes of one part. Micro-batches go forward in their order, and backward in the same order.
pub(super) trait Passes: fmt::Debug {
    /// Takes the weights for the passes that follow: the part's own, and the tensor that it borrows.
    ///
    /// # Errors
    /// What computes is in another process, and lost.
    fn load(&mut self, own: &[f32], tied: &[f32]) -> Result<(), TrainError>;

    /// Returns whether a backward pass has the weights of its forward pass although others were loaded in between.
    fn keeps_weights(&self) -> bool;

    /// Computes the next micro-batch. The first part reads its examples itself, and is given nothing.
    ///
    /// # Errors
    /// As [`load`](Self::load), or what computes refuses the pass.
    fn forward(&mut self, input: Option<Matrix>) -> Result<Forwarded, TrainError>;

    /// Judges what the last part has just computed.
    ///
    /// # Errors
    /// None here: what computes elsewhere has judged it already.
    fn score(&mut self, output: &Matrix, labels: &[u32]) -> Scored;

    /// No pass follows: what passes take is given back.
    fn forget(&mut self);

    /// Computes the backward pass of the oldest micro-batch in flight, given the gradient of its output. The gradient by the part's
    /// weights is written to `gradient`, that of its borrowed tensor behind it; that by its input is returned, except at the first
    /// part. `is_as_forwarded`: with the weights of its forward pass, otherwise with those that were loaded last.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn backward(
        &mut self,
        slope: Vec<f32>,
        is_as_forwarded: bool,
        gradient: &mut Vec<f32>,
    ) -> Result<Option<Matrix>, TrainError>;
}

/// The layers of a native model, on the processor.
#[derive(Debug)]
pub(super) struct NativePasses<'a> {
    pipeline: &'a Pipeline,
    part: usize,
    /// The examples, at the first part.
    feed: Option<Feed<'a>>,
    params: Vec<Tensor<Flex, 2>>,
    in_flight: VecDeque<Trace<Flex>>,
}

impl<'a> NativePasses<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, part: usize, feed: Option<Feed<'a>>) -> Self {
        Self { pipeline, part, feed, params: Vec::new(), in_flight: VecDeque::new() }
    }

    /// Computes on the pipeline's threads.
    fn at_place<T: Send>(&self, work: impl FnOnce(&Place<'_, Flex>) -> T + Send) -> T {
        let (device, threads) = (Default::default(), &self.pipeline.threads);
        let place = Place::<Flex> { stage: &self.pipeline.cut.stages[self.part], device: &device, threads };
        threads.install(|| work(&place))
    }
}

impl Passes for NativePasses<'_> {
    fn load(&mut self, own: &[f32], tied: &[f32]) -> Result<(), TrainError> {
        self.params = self.at_place(|place| place.params(own, tied));
        Ok(())
    }

    fn keeps_weights(&self) -> bool {
        true
    }

    fn forward(&mut self, input: Option<Matrix>) -> Result<Forwarded, TrainError> {
        let (input, labels) = match (input, &mut self.feed) {
            (Some(input), _) => (Input::Activations(input), Vec::new()),
            (None, Some(feed)) => (feed.next(), feed.labels()),
            (None, None) => unreachable!("only the first part has no input, and it has the examples"),
        };
        let params = &self.params;
        let trace = self.at_place(|place| place.trace(params, input));
        let output = trace.output();
        self.in_flight.push_back(trace);
        Ok(Forwarded { output, labels })
    }

    fn forget(&mut self) {
        self.params = Vec::new();
        self.in_flight.clear();
    }

    fn score(&mut self, output: &Matrix, labels: &[u32]) -> Scored {
        let score = self.at_place(|place| place.score(&output.values, labels));
        Scored { loss_sum: score.loss_sum, slope: score.gradient }
    }

    fn backward(
        &mut self,
        slope: Vec<f32>,
        is_as_forwarded: bool,
        gradient: &mut Vec<f32>,
    ) -> Result<Option<Matrix>, TrainError> {
        let trace = self.in_flight.pop_front().expect("it was forwarded");
        let params = &self.params;
        Ok(self.at_place(|place| {
            if is_as_forwarded {
                place.backward(trace, slope, gradient)
            } else {
                place.backward_with(params, trace, slope, gradient)
            }
        }))
    }
}
