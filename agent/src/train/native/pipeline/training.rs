//! The stage of one part with its weights, its optimizer and what is in flight through it: what it computes, whoever asks, and
//! whatever computes the passes.

use std::collections::VecDeque;
use std::ops::Range;

use anabranch_common::spec::TrainSpec;

use super::super::graph::Matrix;
use super::super::stage::{self, Stage};
use super::super::{add_share, pull_back};
use super::passes::{Forwarded, Passes, Scored};
use crate::train::TrainError;
use crate::train::optimizer::Optimizer;

/// Values after some number of updates.
#[derive(Debug)]
struct Version {
    number: u32,
    values: Vec<f32>,
    /// lr times the direction of the last update: the version before it, minus this one. Empty before the first update, and where
    /// no weights are predicted.
    moved: Vec<f32>,
}

/// A tensor that another part uses too, as it is sent there.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) values: Vec<f32>,
    pub(super) moved: Vec<f32>,
}

/// Which weights a pass used: version, updates ahead of it, version of the tied tensor, updates ahead of that.
pub(super) type Used = [u32; 4];

/// A stage that is trained.
#[derive(Debug)]
pub(super) struct Training<'a> {
    stage: &'a Stage,
    passes: Box<dyn Passes + 'a>,
    optimizer: Optimizer,
    proximal_mu: f32,
    /// Whether weights are predicted.
    predicts: bool,
    /// Whether the weights to start from are needed later.
    keeps_base: bool,
    /// The weights to start from, if so.
    base: Vec<f32>,
    has_begun: bool,
    /// Its weights, oldest first; none before it has [begun](Self::begin).
    versions: VecDeque<Version>,
    /// Copies of the tied tensor, if another stage owns it; oldest first.
    tied: VecDeque<Version>,
    /// The weights that were loaded last.
    loaded: Option<Used>,
    /// Those of the forward passes whose backward passes are to come, oldest first.
    in_flight: VecDeque<Used>,
    /// Sum of the gradients of a step so far, of the tied tensor at the end.
    sums: Vec<f32>,
    /// Share of the step's examples whose gradients are in `sums`.
    gathered: f32,
    gradient: Vec<f32>,
}

impl<'a> Training<'a> {
    /// # Errors
    /// The optimizer cannot be used.
    pub(super) fn new(
        stage: &'a Stage,
        passes: Box<dyn Passes + 'a>,
        plan: &TrainSpec,
        predicts: bool,
        keeps_base: bool,
    ) -> Result<Self, TrainError> {
        Ok(Self {
            stage,
            passes,
            optimizer: Optimizer::new(&plan.optimizer, stage.params())?,
            proximal_mu: plan.proximal_mu,
            predicts,
            keeps_base: keeps_base || plan.proximal_mu > 0.0,
            base: Vec::new(),
            has_begun: false,
            versions: VecDeque::new(),
            tied: VecDeque::new(),
            loaded: None,
            in_flight: VecDeque::new(),
            sums: Vec::new(),
            gathered: 0.0,
            gradient: Vec::new(),
        })
    }

    /// Takes the weights to start from: its own, and those of the tensor that it borrows.
    pub(super) fn begin(&mut self, own: Vec<f32>, tied: Vec<f32>) {
        let version = |values| Version { number: 0, values, moved: Vec::new() };
        if self.keeps_base {
            self.base.clone_from(&own);
        }
        self.has_begun = true;
        self.versions = [version(own)].into();
        self.tied = self.stage.borrowed().map(|_| version(tied)).into_iter().collect();
    }

    /// Returns whether the weights to start from have been there.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Drops the versions before `oldest`.
    pub(super) fn forget(&mut self, oldest: u32) {
        while self.versions.front().is_some_and(|version| version.number < oldest) {
            self.versions.pop_front();
        }
    }

    /// Computes the output of the next micro-batch, of which the first part reads the examples itself.
    ///
    /// # Errors
    /// See [`Passes::forward`].
    pub(super) fn forward(&mut self, input: Option<Matrix>, weights: Used) -> Result<Forwarded, TrainError> {
        self.load(weights)?;
        let forwarded = self.passes.forward(input)?;
        self.in_flight.push_back(weights);
        Ok(forwarded)
    }

    /// Judges the output that was computed last, of the last part.
    pub(super) fn score(&mut self, output: &Matrix, labels: &[u32]) -> Scored {
        self.passes.score(output, labels)
    }

    /// Adds the gradient of the oldest micro-batch in flight, by its share of the batch, and returns that of its input. `slope` is
    /// the gradient of its output.
    ///
    /// # Errors
    /// See [`Passes::backward`].
    pub(super) fn backward(
        &mut self,
        slope: Vec<f32>,
        [version, tied]: [u32; 2],
        share: Option<f32>,
    ) -> Result<Option<Matrix>, TrainError> {
        let current = [version, 0, tied, 0];
        let is_as_forwarded = self.in_flight.pop_front().expect("it was forwarded") == current;
        if !(is_as_forwarded && self.passes.keeps_weights()) {
            self.load(current)?;
        }
        let of_input = self.passes.backward(slope, is_as_forwarded, &mut self.gradient)?;
        match share {
            Some(share) => {
                add_share(&mut self.sums, &self.gradient, share);
                self.gathered += share;
            }
            None => std::mem::swap(&mut self.sums, &mut self.gradient),
        }
        Ok(of_input)
    }

    /// Takes the optimizer's step with the sum of the step's gradients, to which `tied` is added: the sum of another stage's
    /// gradients of a part of this stage's weights. Returns its own such sum, if it borrows.
    pub(super) fn update(&mut self, tied: Option<(Range<usize>, Vec<f32>)>) -> Option<Vec<f32>> {
        let mut gradient = std::mem::take(&mut self.sums);
        self.gathered = 0.0;
        let mut borrowed = None;
        if self.stage.borrowed().is_some() {
            borrowed = Some(gradient.split_off(self.stage.params()));
        } else {
            self.stage.tie(&mut gradient);
        }
        if let Some((range, sum)) = tied {
            stage::add_to(&mut gradient[self.within(&range)], &sum);
        }
        let newest = self.versions.back().expect("the stage has begun");
        let (mut values, number) = (newest.values.clone(), newest.number + 1);
        pull_back(self.proximal_mu, &mut gradient, &values, &self.base);
        self.optimizer.step(&mut values, &gradient);
        let moved = if self.predicts {
            newest.values.iter().zip(&values).map(|(before, after)| before - after).collect()
        } else {
            Vec::new()
        };
        self.versions.push_back(Version { number, values, moved });
        borrowed
    }

    /// Returns whether a version of the borrowed tensor is there, or it borrows none.
    pub(super) fn has_tied(&self, number: u32) -> bool {
        self.stage.borrowed().is_none() || self.tied.iter().any(|version| version.number == number)
    }

    /// Takes a version of the borrowed tensor.
    pub(super) fn take_tied(&mut self, number: u32, lent: Lent) {
        let Lent { values, moved } = lent;
        self.tied.push_back(Version { number, values, moved });
    }

    /// Returns a part of its newest weights, for a stage that borrows it.
    pub(super) fn lend(&self, range: &Range<usize>) -> Lent {
        let (range, newest) = (self.within(range), self.versions.back().expect("the stage has begun"));
        let moved = newest.moved.get(range.clone()).unwrap_or_default().to_vec();
        Lent { values: newest.values[range].to_vec(), moved }
    }

    #[cfg(test)]
    pub(super) fn tied_versions(&self) -> usize {
        self.tied.len()
    }

    /// Takes its newest weights, at the end.
    pub(super) fn take_weights(&mut self) -> Vec<f32> {
        self.versions.pop_back().map(|version| version.values).unwrap_or_default()
    }

    /// Takes the weights that it started from, if they were kept, and its newest ones, at the end. Nothing else is kept.
    pub(super) fn finish(&mut self) -> [Vec<f32>; 2] {
        let (base, newest) = (std::mem::take(&mut self.base), self.take_weights());
        self.versions.clear();
        self.tied.clear();
        self.passes.forget();
        (self.sums, self.gradient) = (Vec::new(), Vec::new());
        self.optimizer.forget();
        [base, newest]
    }

    fn within(&self, range: &Range<usize>) -> Range<usize> {
        range.start - self.stage.own.start..range.end - self.stage.own.start
    }

    /// Loads weights, unless they are those that were loaded last.
    fn load(&mut self, weights: Used) -> Result<(), TrainError> {
        let [version, ahead, tied, tied_ahead] = weights;
        let is_foreseen = ahead > 0 && self.gathered > 0.0;
        // Each micro-batch that is backward changes what is foreseen.
        if !is_foreseen && self.loaded == Some(weights) {
            return Ok(());
        }
        let own = if is_foreseen { self.foreseen(ahead) } else { moved_on(&self.versions, version, ahead) };
        let tied = if self.stage.borrowed().is_some() {
            // The head is at the last stage, where no earlier micro-batch is in flight.
            self.tied.retain(|version| version.number >= tied);
            moved_on(&self.tied, tied, tied_ahead)
        } else {
            Vec::new()
        };
        self.passes.load(&own, &tied)?;
        self.loaded = Some(weights);
        Ok(())
    }

    /// The newest values, moved on by `ahead` of the update in progress, as it would be if the step's other micro-batches had the
    /// mean gradient of those that are backward. A tensor that another stage uses too lacks that use's gradient.
    fn foreseen(&self, ahead: u32) -> Vec<f32> {
        let newest = &self.versions.back().expect("the stage has begun").values;
        let mut values = self.sums[..newest.len()].to_vec();
        values.iter_mut().for_each(|slope| *slope /= self.gathered);
        pull_back(self.proximal_mu, &mut values, newest, &self.base);
        self.optimizer.foresee(newest, &mut values);
        if ahead > 1 {
            move_on(&mut values, newest, ahead);
        }
        values
    }
}

/// Multiplies the way from `from` to `values` by `times`.
#[expect(clippy::cast_precision_loss, reason = "as many updates as a pipeline has stages")]
fn move_on(values: &mut [f32], from: &[f32], times: u32) {
    let factor = times as f32;
    values.iter_mut().zip(from).for_each(|(value, from)| *value = from + factor * (*value - from));
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
