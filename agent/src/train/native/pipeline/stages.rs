//! The parts of a model that one member computes, and the parcels between them and those of others. It knows nothing of threads and
//! links: [`deliver`](Stages::deliver) takes what has arrived, and [`work`](Stages::work) gives what is to be sent.

use std::ops::Range;

use anabranch_common::spec::TrainSpec;

use super::content::{self, Assembly, Contents, Contribution, Encoding};
use super::cut::Cut;
use super::error::ParcelError;
use super::feed::Feed;
use super::member::Member;
use super::modules::ModulePasses;
use super::owner::Owner;
use super::passes::{NativePasses, Passes};
use super::stall::Waiting;
use super::turns::{Batches, Turns};
use super::{Pipeline, PipelineError};
use crate::pod::{Address, LayerContent, Parcel};
use crate::train::ModuleTrainer;

/// Parcels for the parts of other members.
pub(super) type Parcels = Vec<(Address, Parcel)>;

/// The parts of a model that are computed here.
#[derive(Debug)]
pub(super) struct Stages<'a> {
    cut: &'a Cut,
    members: Vec<Member<'a>>,
    encoding: Option<Encoding>,
}

impl<'a> Stages<'a> {
    /// Sets up the parts `parts` of a native model, each with its turns. Whoever has the first part has its `feed`. With an `encoding`
    /// the owner of the round is given what the layers come to.
    ///
    /// # Errors
    /// The plan cannot be used.
    pub(super) fn new(
        pipeline: &'a Pipeline,
        parts: &[(usize, Turns)],
        plan: &TrainSpec,
        batches: Batches,
        mut feed: Option<Feed<'a>>,
        encoding: Option<&Encoding>,
    ) -> Result<Self, PipelineError> {
        let owns = feed.is_some();
        Self::computed_by(&pipeline.cut, parts, (plan, batches), (owns, encoding), |part| {
            let feed = if part == 0 { feed.take() } else { None };
            Box::new(NativePasses::new(pipeline, part, feed))
        })
    }

    /// Sets up the parts `parts` of a custom model, which `modules` computes; its round has begun. `owns`: it reads the examples.
    ///
    /// # Errors
    /// The plan cannot be used.
    pub(super) fn of_modules(
        cut: &'a Cut,
        parts: &[(usize, Turns)],
        (plan, batches): (&TrainSpec, Batches),
        modules: &'a dyn ModuleTrainer,
        (owns, encoding): (bool, Option<&Encoding>),
    ) -> Result<Self, PipelineError> {
        let passes = |part| -> Box<dyn Passes + 'a> { Box::new(ModulePasses::new(cut, part, modules, batches)) };
        Self::computed_by(cut, parts, (plan, batches), (owns, encoding), passes)
    }

    fn computed_by(
        cut: &'a Cut,
        parts: &[(usize, Turns)],
        (plan, batches): (&TrainSpec, Batches),
        (owns, encoding): (bool, Option<&Encoding>),
        mut passes: impl FnMut(usize) -> Box<dyn Passes + 'a>,
    ) -> Result<Self, PipelineError> {
        let assembly = encoding.map(|encoding| Assembly::new(cut.places.clone(), encoding.clone()));
        let mut owner = owns.then(|| Owner::new(assembly));
        let mut members = Vec::with_capacity(parts.len());
        for (part, turns) in parts.iter().copied() {
            let owner = if part == 0 { owner.take() } else { None };
            if part >= cut.stages.len() || (part == 0) != owner.is_some() {
                return Err(PipelineError::Round("the first part belongs to the owner of the data"));
            }
            let own = &cut.stages[part].own;
            let contents = encoding.map(|encoding| Contents::new(&cut.places, own, encoding.clone(), owns));
            members.push(Member::new((cut, part), passes(part), (turns, batches), plan, owner, contents)?);
        }
        Ok(Self { cut, members, encoding: encoding.cloned() })
    }

    /// Returns what of a layer's content, which was made here, is in the payload of the round.
    pub(super) fn body<'p>(&self, content: &'p LayerContent) -> &'p [u8] {
        let place = self.cut.places.iter().find(|place| place.layer == content.layer);
        let known = self.encoding.as_ref().zip(place);
        known.map_or(&content.payload, |(encoding, place)| content::body(encoding, place, &content.payload))
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
    /// Training has diverged, or a part sends what another part here has no use for: a fault of the order. Or what computes is lost
    /// (see [`Member::work`]).
    pub(super) fn work(&mut self) -> Result<Option<Parcels>, PipelineError> {
        // The last part first: others wait for its gradients.
        for member in self.members.iter_mut().rev() {
            if let Some(parcels) = member.work()? {
                return Ok(Some(self.share_out(parcels)?));
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
