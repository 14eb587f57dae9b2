//! The parts of a model that one member computes, and the parcels between them and those of others. It knows nothing of threads and
//! links: [`deliver`](Stages::deliver) takes what has arrived, and [`work`](Stages::work) gives what is to be sent.

use std::ops::Range;

use anabranch_common::spec::TrainSpec;

use super::content::{self, Assembly, Contents, Contribution, Encoding};
use super::error::ParcelError;
use super::feed::Feed;
use super::member::Member;
use super::owner::Owner;
use super::stall::Waiting;
use super::turns::{Batches, Turns};
use super::{Pipeline, PipelineError};
use crate::pod::{Address, Parcel};
use crate::train::TrainError;

/// Parcels for the parts of other members.
pub(super) type Parcels = Vec<(Address, Parcel)>;

/// The parts of a model that are computed here.
#[derive(Debug)]
pub(super) struct Stages<'a> {
    cut: &'a Pipeline,
    members: Vec<Member<'a>>,
    /// Steps of the round.
    steps: u32,
}

impl<'a> Stages<'a> {
    /// Sets up the parts `parts`, each with its turns. Whoever has the first part has its `feed`. With an `encoding` the owner of the
    /// round is given what the layers come to.
    ///
    /// # Errors
    /// The plan cannot be used.
    pub(super) fn new(
        cut: &'a Pipeline,
        parts: &[(usize, Turns)],
        plan: &TrainSpec,
        batches: Batches,
        feed: Option<Feed<'a>>,
        encoding: Option<Encoding>,
    ) -> Result<Self, PipelineError> {
        let places = || content::places(&cut.architecture.whole.layers, &cut.architecture.manifest);
        let assembly = encoding.clone().map(|encoding| Assembly::new(places(), encoding));
        let mut owner = feed.map(|feed| Owner::new(feed, assembly));
        let mut members = Vec::with_capacity(parts.len());
        for (part, turns) in parts.iter().copied() {
            let owner = if part == 0 { owner.take() } else { None };
            if part >= cut.stages.len() || (part == 0) != owner.is_some() {
                return Err(PipelineError::Round("the first part belongs to the owner of the data"));
            }
            let contents = encoding.clone().map(|encoding| Contents::new(places(), &cut.stages[part].own, encoding));
            members.push(Member::new((cut, part), (turns, batches), plan, owner, contents)?);
        }
        Ok(Self { cut, members, steps: plan.local_steps })
    }

    /// Hands the weights of `base` to a part that is computed here, or returns them for another one. `held` gives what is held of a
    /// range of the model; nothing: an empty vector.
    ///
    /// # Errors
    /// The part has them already.
    pub(super) fn begin(
        &mut self,
        base: &[f32],
        held: &mut dyn FnMut(Range<usize>) -> Vec<f32>,
        part: usize,
    ) -> Result<Parcels, ParcelError> {
        let stage = &self.cut.stages[part];
        let tied = stage.borrowed().map_or(&[][..], |range| &base[range.clone()]).to_vec();
        let parcel = Parcel::Weights { own: base[stage.own.clone()].to_vec(), tied, held: held(stage.own.clone()) };
        self.share_out(vec![(Address { from: 0, to: part }, parcel)])
    }

    /// Takes a parcel for a part that is computed here.
    ///
    /// # Errors
    /// It is not what the sender may send now. Everything is as it was before.
    pub(super) fn deliver(&mut self, address: Address, parcel: Parcel) -> Result<(), ParcelError> {
        let Address { from, to } = address;
        match self.members.iter_mut().find(|member| member.part() == to) {
            Some(member) => member.deliver(from, parcel),
            None => Err(ParcelError::Address { what: "a parcel", from, to }),
        }
    }

    /// Carries out the next piece of work that is possible, and returns what other members need of it. `None`: all parts wait, or
    /// are through.
    ///
    /// # Errors
    /// Training has diverged, or a part sends what another part here has no use for: a fault of the order.
    pub(super) fn work(&mut self) -> Result<Option<Parcels>, PipelineError> {
        // The last part first: others wait for its gradients.
        for member in self.members.iter_mut().rev() {
            if let Some(parcels) = member.work().map_err(|_| TrainError::Diverged { step: self.steps })? {
                return Ok(self.share_out(parcels).map(Some)?);
            }
        }
        Ok(None)
    }

    /// Returns the sum of the losses of the next step that was not reported.
    pub(super) fn loss(&mut self) -> Option<f64> {
        self.members.iter_mut().find_map(Member::owner).and_then(Owner::loss)
    }

    /// Returns whether there is nothing more to compute or to wait for.
    pub(super) fn is_through(&self) -> bool {
        self.members.iter().all(Member::is_through)
    }

    /// Returns what the parts here wait for.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        self.members.iter().filter_map(Member::waiting).collect()
    }

    /// Returns whether a part still has to send something.
    pub(super) fn expects(&self, from: usize) -> bool {
        self.members.iter().any(|member| member.expects(from))
    }

    /// Returns the newest weights of the parts that are computed here, in their order.
    pub(super) fn into_weights(self) -> Vec<f32> {
        self.members.into_iter().flat_map(Member::into_weights).collect()
    }

    /// Takes what the round comes to, once all of it is there.
    pub(super) fn contribution(&mut self) -> Option<Contribution> {
        self.members.iter_mut().find_map(Member::owner).and_then(Owner::contribution)
    }

    /// How many parcels of each kind wait at each part.
    #[cfg(test)]
    pub(super) fn queued(&self) -> Vec<[usize; 5]> {
        self.members.iter().map(Member::queued).collect()
    }

    /// Hands over what is for parts here, and returns the rest.
    fn share_out(&mut self, parcels: Parcels) -> Result<Parcels, ParcelError> {
        let mut others = Vec::new();
        for (address, parcel) in parcels {
            if self.members.iter().any(|member| member.part() == address.to) {
                self.deliver(address, parcel)?;
            } else {
                others.push((address, parcel));
            }
        }
        Ok(others)
    }
}
