//! What a member of a ring sends and receives over the wire, and what it refuses.

use std::collections::VecDeque;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;

use super::super::pipeline::{ParcelError, PipelineError};
use super::ring::{AllReduce, Ring};
use crate::pod::{Address, Parcel, Wire, WireError};

/// The owner's place in the ring.
pub(super) const OWNER: usize = 0;

/// The model to start from, and the seed that those of all members follow from.
pub(super) type Base = (u64, Vec<f32>);

/// A member's links with the others.
pub(super) struct Exchange<'a> {
    wire: &'a mut dyn Wire,
    members: &'a [AgentId],
    place: usize,
    ring: Ring,
    params: usize,
    /// At a helper: what the owner has sent, until it is taken.
    base: Option<Base>,
    has_base: bool,
    /// Chunks from the left that were not used: its neighbour may have the base before this member.
    chunks: VecDeque<Vec<f32>>,
    /// Chunks that were sent to the right, and that came from the left.
    sent: u64,
    received: u64,
    /// At the owner: what each member ended with.
    ended: Vec<Option<Digest>>,
    is_through: bool,
    /// Members that are gone, and owed nothing.
    gone: Vec<AgentId>,
}

impl<'a> Exchange<'a> {
    /// The links of the member at `place` of `members`, who train a model of so many parameters.
    pub(super) fn new(wire: &'a mut dyn Wire, members: &'a [AgentId], place: usize, params: usize) -> Self {
        Self {
            wire,
            members,
            place,
            ring: Ring::new(place, members.len()),
            params,
            base: None,
            has_base: place == OWNER,
            chunks: VecDeque::new(),
            sent: 0,
            received: 0,
            ended: vec![None; members.len()],
            is_through: false,
            gone: Vec::new(),
        }
    }

    /// Sends every other member the model to start from.
    pub(super) fn send_base(&mut self, seed: u64, base: &[f32]) -> Result<(), PipelineError> {
        (1..self.members.len()).try_for_each(|to| self.send(to, Parcel::Base { seed, values: base.to_vec() }))
    }

    /// Waits for the model to start from.
    pub(super) fn receive_base(&mut self) -> Result<Base, PipelineError> {
        loop {
            if let Some(base) = self.base.take() {
                return Ok(base);
            }
            self.receive()?;
        }
    }

    /// Sums `values` over the ring.
    pub(super) fn sum(&mut self, values: Vec<f32>) -> Result<Vec<f32>, PipelineError> {
        let mut sum = AllReduce::new(self.ring, values, limits::REPLICA_CHUNK_VALUES);
        for chunk in sum.begin() {
            self.send_chunk(chunk)?;
        }
        while let Some(expected) = sum.awaits() {
            let Some(chunk) = self.chunks.pop_front() else {
                self.receive()?;
                continue;
            };
            if chunk.len() != expected {
                let error = ParcelError::Length { what: "a gradient's chunk", found: chunk.len(), expected };
                return Err(self.blame(self.ring.left(), &error));
            }
            if let Some(chunk) = sum.take(chunk) {
                self.send_chunk(chunk)?;
            }
        }
        Ok(sum.into_values())
    }

    /// Tells the owner what this member ended with.
    pub(super) fn send_end(&mut self, digest: Digest) -> Result<(), PipelineError> {
        self.send(OWNER, Parcel::Ended(digest))
    }

    /// Waits until every member has ended as the owner has.
    pub(super) fn receive_ends(&mut self, own: Digest) -> Result<(), PipelineError> {
        self.is_through = true;
        self.ended[OWNER] = Some(own);
        while self.ended.contains(&None) {
            self.receive()?;
        }
        match self.ended.iter().position(|digest| *digest != Some(own)) {
            Some(other) => {
                let agent = self.members[other];
                let reason = format!("member {}: ended the round with another model than its owner", agent.short());
                Err(WireError::Member { agent, reason }.into())
            }
            None => Ok(()),
        }
    }

    fn send_chunk(&mut self, values: Vec<f32>) -> Result<(), PipelineError> {
        let number = self.sent;
        self.sent += 1;
        self.send(self.ring.right(), Parcel::Chunk { number, values })
    }

    fn send(&mut self, to: usize, parcel: Parcel) -> Result<(), PipelineError> {
        Ok(self.wire.send(Address { from: self.place, to }, parcel)?)
    }

    /// Waits for the next parcel and takes it.
    fn receive(&mut self) -> Result<(), PipelineError> {
        match self.wire.receive() {
            Ok((Address { from, .. }, parcel)) => self.deliver(from, parcel).map_err(|error| self.blame(from, &error)),
            // A member leaves when it is through, and others need not be so.
            Err(WireError::Member { agent, .. }) if !self.gone.contains(&agent) && !self.expects(agent) => {
                self.gone.push(agent);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn deliver(&mut self, from: usize, parcel: Parcel) -> Result<(), ParcelError> {
        let to = self.place;
        match parcel {
            Parcel::Base { seed, values } if from == OWNER && to != OWNER => {
                check_length("a model", values.len(), self.params)?;
                if std::mem::replace(&mut self.has_base, true) {
                    return Err(ParcelError::Unexpected { what: "a model" });
                }
                self.base = Some((seed, values));
            }
            Parcel::Chunk { number, values } if from == self.ring.left() => {
                // The left neighbour is never a whole sum ahead, as each takes all members.
                let waiting: usize = self.chunks.iter().map(Vec::len).sum();
                let is_room = waiting + values.len() <= self.params + 1;
                if number != self.received || values.is_empty() || !is_room || self.is_through {
                    return Err(ParcelError::Unexpected { what: "a gradient's chunk" });
                }
                self.received += 1;
                self.chunks.push_back(values);
            }
            Parcel::Ended(digest) if to == OWNER && self.ended.get(from) == Some(&None) => {
                self.ended[from] = Some(digest);
            }
            Parcel::Ended(_) if to == OWNER => return Err(ParcelError::Unexpected { what: "the end of a round" }),
            parcel => return Err(ParcelError::Address { what: parcel.name(), from, to }),
        }
        Ok(())
    }

    /// Returns whether the round is lost without a member: the owner's end is that of all.
    fn expects(&self, agent: AgentId) -> bool {
        let is_owed = |place: usize| match self.place {
            OWNER => self.ended[place].is_none(),
            _ => place == OWNER || place == self.ring.left(),
        };
        self.members.iter().position(|member| *member == agent).is_some_and(is_owed)
    }

    fn blame(&self, member: usize, error: &ParcelError) -> PipelineError {
        match self.members.get(member) {
            Some(agent) => WireError::Member { agent: *agent, reason: error.to_string() }.into(),
            None => error.clone().into(),
        }
    }
}

fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), ParcelError> {
    if found == expected { Ok(()) } else { Err(ParcelError::Length { what, found, expected }) }
}
