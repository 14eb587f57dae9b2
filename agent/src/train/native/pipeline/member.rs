//! One stage of a pipeline with its weights, its optimizer and what is in flight through it.

use std::collections::VecDeque;
use std::ops::Range;

use anabranch_common::pod::order::{OutOfTurn, StageOrder, Work};
use anabranch_common::spec::TrainSpec;
use burn_flex::Flex;
use burn_tensor::Tensor;

use super::super::graph::{Input, Matrix, Place, Trace};
use super::super::stage::{self, Stage};
use super::super::{add_share, pull_back};
use crate::train::TrainError;
use crate::train::optimizer::Optimizer;

/// Values after some number of updates.
#[derive(Debug)]
struct Version {
    number: u32,
    values: Vec<f32>,
    /// lr times the direction of the last update: the version before it, minus this one. Empty before the first update.
    moved: Vec<f32>,
}

/// A part of the model that another stage owns, as it gives it away.
#[derive(Debug)]
pub(super) struct Part {
    values: Vec<f32>,
    moved: Vec<f32>,
}

/// A forward pass whose backward pass is to come, and whether its weights were others than those of a whole version.
#[derive(Debug)]
struct InFlight {
    trace: Trace<Flex>,
    weights: Used,
}

/// Which weights a pass used: version, updates ahead of it, version of the tied tensor, updates ahead of that.
pub(super) type Used = [u32; 4];

/// A stage that is trained.
#[derive(Debug)]
pub(super) struct Member<'a> {
    stage: &'a Stage,
    order: StageOrder,
    optimizer: Optimizer,
    proximal_mu: f32,
    base: &'a [f32],
    /// Its weights, oldest first.
    versions: VecDeque<Version>,
    /// Copies of the tied tensor, if another stage owns it; oldest first.
    tied: VecDeque<Version>,
    /// Matrices of the weights that were used last.
    params: Option<(Used, Vec<Tensor<Flex, 2>>)>,
    activations: VecDeque<Matrix>,
    slopes: VecDeque<Vec<f32>>,
    in_flight: VecDeque<InFlight>,
    /// Sum of the gradients of a step so far, of the tied tensor at the end.
    sums: Vec<f32>,
    gradient: Vec<f32>,
    /// Sums of the tied tensor's gradients, for the stage that owns it.
    tied_sums: VecDeque<Vec<f32>>,
}

impl<'a> Member<'a> {
    pub(super) fn new(
        stage: &'a Stage,
        order: StageOrder,
        plan: &TrainSpec,
        model: &'a [f32],
    ) -> Result<Self, TrainError> {
        let version =
            |range: &Range<usize>| Version { number: 0, values: model[range.clone()].to_vec(), moved: Vec::new() };
        let borrowed = stage.tied.iter().filter(|tied| tied.here.is_none());
        Ok(Self {
            stage,
            order,
            optimizer: Optimizer::new(&plan.optimizer, stage.params())?,
            proximal_mu: plan.proximal_mu,
            base: &model[stage.own.clone()],
            versions: [version(&stage.own)].into(),
            tied: borrowed.map(|tied| version(&tied.range)).collect(),
            params: None,
            activations: VecDeque::new(),
            slopes: VecDeque::new(),
            in_flight: VecDeque::new(),
            sums: Vec::new(),
            gradient: Vec::new(),
            tied_sums: VecDeque::new(),
        })
    }

    /// What comes next, whether or not its input is there; nothing when the stage is through.
    pub(super) fn next(&self) -> Option<Work> {
        self.order.next()
    }

    pub(super) fn ready(&self) -> Option<Work> {
        self.order.ready()
    }

    /// What was ready has been carried out.
    pub(super) fn done(&mut self) {
        self.order.done();
        let oldest = self.order.oldest_version();
        while self.versions.front().is_some_and(|version| version.number < oldest) {
            self.versions.pop_front();
        }
    }

    pub(super) fn take_activations(&mut self, activations: Matrix) -> Result<(), OutOfTurn> {
        self.order.activation()?;
        self.activations.push_back(activations);
        Ok(())
    }

    pub(super) fn take_gradient(&mut self, slope: Matrix) -> Result<(), OutOfTurn> {
        self.order.gradient()?;
        self.slopes.push_back(slope.values);
        Ok(())
    }

    /// The gradient by the logits, at the last stage.
    pub(super) fn scored(&mut self, slope: Vec<f32>) {
        self.slopes.push_back(slope);
    }

    /// Computes the output of the next micro-batch, which is `input` at the first stage.
    pub(super) fn forward(&mut self, place: &Place<'_, Flex>, input: Option<Input>, weights: Used) -> Matrix {
        let input = input.unwrap_or_else(|| {
            Input::Activations(self.activations.pop_front().expect("the order says that the activations are there"))
        });
        self.load(place, weights);
        let params = self.params.as_ref().map_or(&[][..], |(_, params)| params);
        let trace = place.trace(params, input);
        let output = trace.output();
        self.in_flight.push_back(InFlight { trace, weights });
        output
    }

    /// Adds the gradient of the oldest micro-batch in flight, by its share of the batch, and returns that of its input.
    pub(super) fn backward(
        &mut self,
        place: &Place<'_, Flex>,
        [version, tied]: [u32; 2],
        share: Option<f32>,
    ) -> Option<Matrix> {
        let InFlight { trace, weights } = self.in_flight.pop_front().expect("it was forwarded");
        let slope = self.slopes.pop_front().expect("the order says that the gradient is there");
        let current = [version, 0, tied, 0];
        let of_input = if current == weights {
            place.backward(trace, slope, &mut self.gradient)
        } else {
            self.load(place, current);
            let params = self.params.as_ref().map_or(&[][..], |(_, params)| params);
            place.backward_with(params, trace, slope, &mut self.gradient)
        };
        match share {
            Some(share) => add_share(&mut self.sums, &self.gradient, share),
            None => std::mem::swap(&mut self.sums, &mut self.gradient),
        }
        of_input
    }

    /// The optimizer's step with the sum of the step's gradients, to which `tied` is added: the sum of another stage's gradients of
    /// a part of this stage's.
    pub(super) fn update(&mut self, tied: Option<(Range<usize>, Vec<f32>)>) {
        let mut gradient = std::mem::take(&mut self.sums);
        if self.borrows() {
            self.tied_sums.push_back(gradient.split_off(self.stage.params()));
        } else {
            self.stage.tie(&mut gradient);
        }
        if let Some((range, sum)) = tied {
            stage::add_to(&mut gradient[self.within(&range)], &sum);
        }
        let newest = self.versions.back().expect("there is always a version");
        let (before, number) = (newest.values.clone(), newest.number + 1);
        let mut values = before.clone();
        pull_back(self.proximal_mu, &mut gradient, &values, self.base);
        self.optimizer.step(&mut values, &gradient);
        let moved = before.iter().zip(&values).map(|(before, after)| before - after).collect();
        self.versions.push_back(Version { number, values, moved });
    }

    /// Whether it uses a tensor that another stage owns.
    pub(super) fn borrows(&self) -> bool {
        !self.tied.is_empty()
    }

    /// The range of the model that it borrows.
    pub(super) fn tied_range(&self) -> Range<usize> {
        self.stage.tied.as_ref().map_or(0..0, |tied| tied.range.clone())
    }

    /// Whether a version of the borrowed tensor is there, or none is needed.
    pub(super) fn has_tied(&self, number: u32) -> bool {
        !self.borrows() || self.tied.iter().any(|version| version.number == number)
    }

    /// Takes a version of the borrowed tensor.
    pub(super) fn give_tied(&mut self, number: u32, part: Part) {
        let Part { values, moved } = part;
        self.tied.push_back(Version { number, values, moved });
    }

    /// The sum of a step's gradients of the borrowed tensor.
    pub(super) fn take_tied_sum(&mut self) -> Option<Vec<f32>> {
        self.tied_sums.pop_front()
    }

    /// A part of its newest weights, for a stage that borrows it.
    pub(super) fn part(&self, range: &Range<usize>) -> Part {
        let (range, newest) = (self.within(range), self.versions.back().expect("there is always a version"));
        let moved = newest.moved.get(range.clone()).unwrap_or_default().to_vec();
        Part { values: newest.values[range].to_vec(), moved }
    }

    pub(super) fn into_weights(mut self) -> Vec<f32> {
        self.versions.pop_back().map(|version| version.values).unwrap_or_default()
    }

    fn within(&self, range: &Range<usize>) -> Range<usize> {
        range.start - self.stage.own.start..range.end - self.stage.own.start
    }

    /// Makes matrices of weights, unless they are those that were used last.
    fn load(&mut self, place: &Place<'_, Flex>, weights: Used) {
        if self.params.as_ref().is_some_and(|(loaded, _)| *loaded == weights) {
            return;
        }
        let [version, ahead, tied, tied_ahead] = weights;
        let own = moved_on(&self.versions, version, ahead);
        let tied = if self.borrows() {
            // The head is at the last stage, where no earlier micro-batch is in flight.
            self.tied.retain(|version| version.number >= tied);
            moved_on(&self.tied, tied, tied_ahead)
        } else {
            Vec::new()
        };
        self.params = Some((weights, place.params(&own, &tied)));
    }
}

/// The values of a version, moved on by `ahead` of its last update.
#[expect(clippy::cast_precision_loss, reason = "as many updates as a pipeline has stages")]
fn moved_on(versions: &VecDeque<Version>, number: u32, ahead: u32) -> Vec<f32> {
    let version = versions.iter().find(|version| version.number == number);
    let version = version.expect("the order keeps the versions that it computes with");
    if ahead == 0 || version.moved.is_empty() {
        return version.values.clone();
    }
    let factor = ahead as f32;
    version.values.iter().zip(&version.moved).map(|(value, moved)| value - factor * moved).collect()
}
