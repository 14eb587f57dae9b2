//! One part of a model in a round: takes parcels, and computes what its order says as soon as it has what that takes.

use std::ops::Range;

use anabranch_common::pod::order::{MicroBatch, StageOrder, Work};
use anabranch_common::spec::{Activations, TrainSpec};

use super::super::graph::Matrix;
use super::super::stage::Stage;
use super::bf16;
use super::content::Contents;
use super::cut::Cut;
use super::error::ParcelError;
use super::inbox::Inbox;
use super::owner::Owner;
use super::passes::{Forwarded, Passes};
use super::stall::{Missing, Waiting};
use super::training::{Lent, Training};
use super::turns::{Batches, Turns};
use crate::pod::{Address, Parcel, rows};
use crate::train::TrainError;

/// A part that is computed here.
#[derive(Debug)]
pub(super) struct Member<'a> {
    cut: &'a Cut,
    part: usize,
    turns: Turns,
    batches: Batches,
    order: StageOrder,
    training: Training<'a>,
    inbox: Inbox,
    /// What the first part knows besides.
    owner: Option<Owner>,
    /// What its layers come to, where the round is to be sent.
    contents: Option<Contents>,
    forwards: u64,
    backwards: u64,
    /// Versions of the borrowed tensor that arrived.
    tied: u32,
    /// At the last part: the sum of the losses of a step so far.
    loss_sum: f64,
}

impl<'a> Member<'a> {
    /// Sets up part `part`, whose passes `passes` computes. The first one reads the examples: it has an `owner`.
    ///
    /// # Errors
    /// The optimizer cannot be used.
    pub(super) fn new(
        (cut, part): (&'a Cut, usize),
        passes: Box<dyn Passes + 'a>,
        (turns, batches): (Turns, Batches),
        plan: &TrainSpec,
        owner: Option<Owner>,
        contents: Option<Contents>,
    ) -> Result<Self, TrainError> {
        let training = Training::new(&cut.stages[part], passes, plan, turns.order.predicts(), contents.is_some())?;
        Ok(Self {
            cut,
            part,
            turns,
            batches,
            order: turns.order.stage(u32::try_from(part).unwrap_or(u32::MAX)),
            training,
            inbox: Inbox::default(),
            owner,
            contents,
            forwards: 0,
            backwards: 0,
            tied: 0,
            loss_sum: 0.0,
        })
    }

    /// Returns which part it is.
    pub(super) fn part(&self) -> usize {
        self.part
    }

    /// Returns what the first part knows besides.
    pub(super) fn owner(&mut self) -> Option<&mut Owner> {
        self.owner.as_mut()
    }

    /// Returns whether it has nothing more to compute and, at the first part, whether everything of the others is there.
    pub(super) fn is_through(&self) -> bool {
        let has_sent = self.contents.as_ref().is_none_or(Contents::is_through);
        self.order.next().is_none()
            && has_sent
            && self.owner.as_ref().is_none_or(|owner| owner.is_through(self.turns.steps))
    }

    /// Takes a parcel of part `from`.
    ///
    /// # Errors
    /// It is not what that part may send now. The part is as it was before.
    pub(super) fn deliver(&mut self, from: usize, parcel: Parcel) -> Result<(), ParcelError> {
        let (part, last) = (self.part, self.last());
        match parcel {
            Parcel::Weights { own, tied, held } if from == 0 => self.take_weights(own, tied, held),
            Parcel::Activations { values, shape } if from < part && from + 1 == part => {
                self.take_activations(Matrix { values, shape })
            }
            Parcel::Gradient { values, shape } if from <= last && from == part + 1 => {
                self.take_gradient(Matrix { values, shape })
            }
            Parcel::Labels(labels) if from == 0 && part == last && part > 0 && self.cut.labels.is_some() => {
                self.take_labels(labels)
            }
            Parcel::Tied { version, values, moved } if from == 0 && self.stage().borrowed().is_some() => {
                self.take_tied(version, Lent { values, moved })
            }
            Parcel::TiedSum(sum) if from == last && self.lends().is_some() => self.take_tied_sum(sum),
            Parcel::Loss(sum) if from == last && self.owner.is_some() => {
                let (steps, owner) = (self.forwarded_steps(), self.owner.as_mut());
                owner.map_or(Ok(()), |owner| owner.take_loss(sum, steps))
            }
            Parcel::Layer(content) if from <= last && self.owner.is_some() => {
                let owner = self.owner.as_mut();
                owner.map_or(Ok(()), |owner| owner.take_layer(&self.cut.stages[from].own, content))
            }
            parcel => Err(ParcelError::Address { what: parcel.name(), from, to: part }),
        }
    }

    /// Carries out what is next, and returns what the other parts need of it. `None`: it waits for something, or is through.
    ///
    /// # Errors
    /// Training has led to values that are not finite. Or what computes the passes is in another process, and lost or at a loss: the
    /// round cannot go on here.
    pub(super) fn work(&mut self) -> Result<Option<Vec<(Address, Parcel)>>, TrainError> {
        let Some(work) = self.order.next() else { return self.tell_content() };
        if self.missing(&work).is_some() {
            return Ok(None);
        }
        let parcels = match work {
            Work::Forward { micro_batch, version, ahead } => self.forward(micro_batch, [version, ahead])?,
            Work::Backward { micro_batch, version } => self.backward(micro_batch, version)?,
            Work::Update { step } => self.update(step),
        };
        self.order.done();
        self.training.forget(self.order.oldest_version());
        Ok(Some(parcels.into_iter().map(|(to, parcel)| (self.to(to), parcel)).collect()))
    }

    /// A layer at a time, so that no more of them is in memory than has to be.
    fn tell_content(&mut self) -> Result<Option<Vec<(Address, Parcel)>>, TrainError> {
        let Some(contents) = &mut self.contents else { return Ok(None) };
        let content = contents.next(&mut self.training).map_err(|_| TrainError::Diverged { step: self.turns.steps })?;
        Ok(content.map(|content| vec![(self.to(0), Parcel::Layer(content))]))
    }

    /// Returns what it waits for, unless it can go on or is through.
    pub(super) fn waiting(&self) -> Option<Waiting> {
        let work = self.order.next()?;
        self.missing(&work).map(|input| Waiting { stage: self.part, work, input })
    }

    /// Returns whether part `from` still has to send it something.
    pub(super) fn expects(&self, from: usize) -> bool {
        let (total, inbox, is_first) = (self.turns.total(), &self.inbox, from == 0);
        let is_lender = is_first && self.stage().borrowed().is_some();
        (is_first && !self.training.has_begun())
            || (from < self.part && from + 1 == self.part && inbox.activations.arrived() < total)
            || (from == self.part + 1 && inbox.gradients.arrived() < total)
            || (is_first && self.takes_labels() && inbox.labels.arrived() < total)
            || (is_lender && self.tied < self.turns.last_tied())
            || (from == self.last() && self.lends().is_some() && inbox.tied_sums.arrived() < self.turns.steps.into())
            || self.owner.as_ref().filter(|_| from <= self.last()).is_some_and(|owner| {
                owner.is_without(&self.cut.stages[from].own)
                    || (from == self.last() && owner.losses() < self.turns.steps)
            })
    }

    /// Takes its newest weights, where the round was stopped.
    pub(super) fn into_weights(mut self) -> Vec<f32> {
        self.training.take_weights()
    }

    /// How many of each kind wait here.
    #[cfg(test)]
    pub(super) fn queued(&self) -> [usize; 5] {
        let Inbox { activations, gradients, labels, tied_sums } = &self.inbox;
        [activations.len(), gradients.len(), labels.len(), tied_sums.len(), self.training.tied_versions()]
    }

    fn missing(&self, work: &Work) -> Option<Missing> {
        if !self.training.has_begun() {
            return Some(Missing::Weights);
        }
        match work {
            Work::Forward { micro_batch, .. } => {
                let (inbox, tied) = (&self.inbox, self.turns.order.tied_version(micro_batch.step));
                let is_fed = self.owner.is_some();
                if !is_fed && inbox.activations.is_empty() {
                    Some(Missing::Activations)
                } else if !self.training.has_tied(tied) {
                    Some(Missing::Tied(tied))
                } else {
                    (self.takes_labels() && inbox.labels.is_empty()).then_some(Missing::Labels)
                }
            }
            Work::Backward { .. } => self.inbox.gradients.is_empty().then_some(Missing::Gradient),
            Work::Update { .. } => {
                (self.lends().is_some() && self.inbox.tied_sums.is_empty()).then_some(Missing::TiedSum)
            }
        }
    }

    fn forward(
        &mut self,
        micro_batch: MicroBatch,
        [version, ahead]: [u32; 2],
    ) -> Result<Vec<(usize, Parcel)>, TrainError> {
        let tied = self.turns.order.tied_version(micro_batch.step);
        let tied_ahead = if self.turns.order.predicts() { micro_batch.step - tied } else { 0 };
        let is_fed = self.owner.is_some();
        let input = (!is_fed).then(|| self.inbox.activations.pop().expect("the activations are there"));
        let Forwarded { output, labels } = self.training.forward(input, [version, ahead, tied, tied_ahead])?;
        self.forwards += 1;
        if self.is_last() {
            let labels = if is_fed { labels } else { self.inbox.labels.pop().unwrap_or_default() };
            let scored = self.training.score(&output, &labels);
            self.loss_sum += scored.loss_sum;
            self.inbox.gradients.push(scored.slope);
            return Ok(Vec::new());
        }
        let Matrix { values, shape } = self.rounded(output);
        let mut parcels = vec![(self.part + 1, Parcel::Activations { values, shape })];
        if is_fed && self.cut.labels.is_some() {
            parcels.push((self.last(), Parcel::Labels(labels)));
        }
        Ok(parcels)
    }

    fn backward(&mut self, micro_batch: MicroBatch, version: u32) -> Result<Vec<(usize, Parcel)>, TrainError> {
        let tied = self.turns.order.tied_version(micro_batch.step);
        let slope = self.inbox.gradients.pop().expect("the gradient is there");
        let share = self.batches.share(micro_batch.index);
        let of_input = self.training.backward(slope, [version, tied], share)?;
        self.backwards += 1;
        let of_input = of_input.map(|slope| {
            let Matrix { values, shape } = self.rounded(slope);
            (self.part - 1, Parcel::Gradient { values, shape })
        });
        Ok(of_input.into_iter().collect())
    }

    fn update(&mut self, step: u32) -> Vec<(usize, Parcel)> {
        let lent = self.lends().cloned();
        let sum = lent.clone().zip(self.inbox.tied_sums.pop());
        let mut parcels = Vec::new();
        if let Some(sum) = self.training.update(sum) {
            parcels.push((0, Parcel::TiedSum(sum)));
        }
        let version = step + 1;
        if let Some(range) = lent.filter(|_| version <= self.turns.last_tied()) {
            let Lent { values, moved } = self.training.lend(&range);
            parcels.push((self.last(), Parcel::Tied { version, values, moved }));
        }
        if self.is_last() {
            parcels.push((0, Parcel::Loss(std::mem::take(&mut self.loss_sum))));
        }
        parcels
    }

    fn take_weights(&mut self, own: Vec<f32>, tied: Vec<f32>, held: Vec<f32>) -> Result<(), ParcelError> {
        check_length("weights", own.len(), self.stage().params())?;
        check_length("a tied tensor", tied.len(), self.stage().borrowed().map_or(0, Range::len))?;
        let most_held = if self.contents.is_some() { self.stage().params() } else { 0 };
        if !held.is_empty() {
            check_length("what is held of a part", held.len(), most_held)?;
        }
        if self.training.has_begun() {
            return Err(ParcelError::Unexpected { what: "weights" });
        }
        if let Some(contents) = &mut self.contents {
            contents.hold(held);
        }
        self.training.begin(own, tied);
        Ok(())
    }

    fn take_activations(&mut self, input: Matrix) -> Result<(), ParcelError> {
        let examples = self.batches.examples(self.turns.index(self.inbox.activations.arrived()));
        let expected = self.cut.stages[self.part - 1].output_shape(examples);
        if input.shape != expected {
            return Err(ParcelError::Shape { what: "activations", found: input.shape, expected });
        }
        check_length("activations", input.values.len(), expected[0] * expected[1])?;
        self.order.activation()?;
        self.inbox.activations.push(input);
        Ok(())
    }

    fn take_gradient(&mut self, slope: Matrix) -> Result<(), ParcelError> {
        let examples = self.batches.examples(self.turns.index(self.inbox.gradients.arrived()));
        let expected = self.stage().output_shape(examples);
        if slope.shape != expected {
            return Err(ParcelError::Shape { what: "a gradient", found: slope.shape, expected });
        }
        check_length("a gradient", slope.values.len(), expected[0] * expected[1])?;
        self.order.gradient()?;
        self.inbox.gradients.push(slope.values);
        Ok(())
    }

    fn take_labels(&mut self, labels: Vec<u32>) -> Result<(), ParcelError> {
        let arrived = self.inbox.labels.arrived();
        // The first part has at most this many in flight, and they are not backward here.
        if arrived == self.turns.total() || arrived - self.backwards >= self.turns.in_flight() {
            return Err(ParcelError::Unexpected { what: "labels" });
        }
        check_length("labels", labels.len(), self.batches.labels(self.turns.index(arrived)))?;
        let classes = self.cut.labels.map_or(0, |labels| labels.classes);
        if let Some(label) = labels.iter().find(|label| **label >= classes) {
            return Err(ParcelError::Label { label: *label, classes });
        }
        self.inbox.labels.push(labels);
        Ok(())
    }

    fn take_tied(&mut self, version: u32, lent: Lent) -> Result<(), ParcelError> {
        let values = self.stage().borrowed().map_or(0, Range::len);
        check_length("a tied tensor", lent.values.len(), values)?;
        let moved = if self.turns.order.predicts() { values } else { 0 };
        check_length("a tied tensor's update", lent.moved.len(), moved)?;
        // The first part updates with what this one has sent after as many updates.
        if version != self.tied + 1 || version > self.order.updates().min(self.turns.last_tied()) {
            return Err(ParcelError::Unexpected { what: "a tied tensor" });
        }
        self.tied = version;
        self.training.take_tied(version, lent);
        Ok(())
    }

    fn take_tied_sum(&mut self, sum: Vec<f32>) -> Result<(), ParcelError> {
        check_length("a tied tensor's gradient", sum.len(), self.lends().map_or(0, Range::len))?;
        if self.inbox.tied_sums.arrived() >= u64::from(self.forwarded_steps()) {
            return Err(ParcelError::Unexpected { what: "a tied tensor's gradient" });
        }
        self.inbox.tied_sums.push(sum);
        Ok(())
    }

    /// Steps all of whose micro-batches are forwarded: the last part cannot be through with others.
    fn forwarded_steps(&self) -> u32 {
        u32::try_from(self.forwards / u64::from(self.turns.micro_batches)).expect("steps are counted in 32 bits")
    }

    /// The range of the model of its tensor that the last part borrows. The embedding is the first layer, so that a tied tensor
    /// belongs to the first part.
    fn lends(&self) -> Option<&'a Range<usize>> {
        self.cut.stages.last().filter(|_| self.part == 0).and_then(Stage::borrowed)
    }

    fn stage(&self) -> &'a Stage {
        &self.cut.stages[self.part]
    }

    fn last(&self) -> usize {
        self.cut.stages.len() - 1
    }

    fn is_last(&self) -> bool {
        self.part == self.last()
    }

    /// Whether it computes with labels that the first part reads and hands over.
    fn takes_labels(&self) -> bool {
        self.owner.is_none() && self.is_last() && self.cut.labels.is_some()
    }

    fn to(&self, to: usize) -> Address {
        Address { from: self.part, to }
    }

    /// What crosses a cut, as it travels: the result is the same whether or not both sides are of one process.
    fn rounded(&self, mut matrix: Matrix) -> Matrix {
        match self.cut.activations {
            Activations::F32 => {}
            Activations::Bf16 => matrix.values.iter_mut().for_each(|value| *value = bf16::round(*value)),
            Activations::Int8 => rows::round(&mut matrix.values, matrix.shape[1]),
        }
        matrix
    }
}

fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), ParcelError> {
    if found == expected { Ok(()) } else { Err(ParcelError::Length { what, found, expected }) }
}
