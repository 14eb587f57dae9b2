//! What a member of a ring sends and receives over the wire, and what it refuses.
//!
//! ```text
//!  owner 0 ─ Base ─► 1 ─ Base ─► ... ─► N-1           the model to start from, passed on part by part
//!  member k ─ Chunk ─► k+1 ─ Chunk ─► ...             gradients, all the way round
//!  helper ─ Ended ─► owner 0
//! ```

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;

use super::super::pipeline::{ParcelError, PipelineError};
use super::ring::{AllReduce, Ring};
use crate::pod::{Address, Parcel, Wire, WireError};

/// The owner's place in the ring.
pub(super) const OWNER: usize = 0;

/// Values that are passed on at a time.
const CHUNK: usize = limits::REPLICA_CHUNK_VALUES;

/// The model to start from, and the seed that those of all members follow from.
#[derive(Debug, Default)]
pub(super) struct Base {
    pub(super) seed: u64,
    pub(super) values: Vec<f32>,
}

/// A member's links with the others.
pub(super) struct Exchange<'a> {
    wire: &'a mut dyn Wire,
    members: &'a [AgentId],
    place: usize,
    ring: Ring,
    /// At a helper: what has come of the base, of so many parameters.
    base: Base,
    params: usize,
    /// Values of the next chunk from the left, while one is awaited, and that chunk.
    awaited: Option<usize>,
    chunk: Option<Vec<f32>>,
    /// Chunks that were sent to the right, and that came from the left.
    sent: u64,
    received: u64,
    /// At the owner: what each member ended with.
    ended: Vec<Option<Digest>>,
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
            base: Base::default(),
            params,
            awaited: None,
            chunk: None,
            sent: 0,
            received: 0,
            ended: vec![None; members.len()],
            gone: Vec::new(),
        }
    }

    /// Sends the model to start from on its way along the ring.
    pub(super) fn send_base(&mut self, seed: u64, base: &[f32]) -> Result<(), PipelineError> {
        base.chunks(CHUNK).try_for_each(|part| self.pass_on_base(seed, part.to_vec()))
    }

    /// Waits for the model to start from, and passes it on.
    pub(super) fn receive_base(&mut self) -> Result<Base, PipelineError> {
        let mut passed_on = 0;
        while passed_on < self.params {
            if passed_on == self.base.values.len() {
                self.receive()?;
                continue;
            }
            let part = self.base.values[passed_on..].to_vec();
            passed_on += part.len();
            self.pass_on_base(self.base.seed, part)?;
        }
        Ok(std::mem::take(&mut self.base))
    }

    /// Sums `values` over the ring.
    pub(super) fn sum(&mut self, values: Vec<f32>) -> Result<Vec<f32>, PipelineError> {
        let mut sum = AllReduce::new(self.ring, values, CHUNK);
        for chunk in sum.begin() {
            self.send_chunk(chunk)?;
        }
        while let Some(expected) = sum.awaits() {
            let chunk = self.receive_chunk(expected)?;
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

    fn pass_on_base(&mut self, seed: u64, values: Vec<f32>) -> Result<(), PipelineError> {
        match self.ring.right() {
            OWNER => Ok(()),
            right => self.send(right, Parcel::Base { seed, values }),
        }
    }

    fn send_chunk(&mut self, values: Vec<f32>) -> Result<(), PipelineError> {
        let number = self.sent;
        self.sent += 1;
        self.send(self.ring.right(), Parcel::Chunk { number, values })
    }

    fn receive_chunk(&mut self, expected: usize) -> Result<Vec<f32>, PipelineError> {
        self.awaited = Some(expected);
        loop {
            if let Some(chunk) = self.chunk.take() {
                return Ok(chunk);
            }
            self.receive()?;
        }
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
        let (is_owner, is_left) = (self.place == OWNER, from == self.ring.left());
        match parcel {
            Parcel::Base { seed, values } if is_left && !is_owner => self.take_base(seed, &values)?,
            Parcel::Chunk { number, values } if is_left => {
                let expected = self.awaited.filter(|_| number == self.received);
                let expected = expected.ok_or(ParcelError::Unexpected { what: "a gradient's chunk" })?;
                check_length("a gradient's chunk", values.len(), expected)?;
                (self.awaited, self.chunk) = (None, Some(values));
                self.received += 1;
            }
            Parcel::Ended(digest) if is_owner => match self.ended.get_mut(from) {
                Some(ended @ None) => *ended = Some(digest),
                _ => return Err(ParcelError::Unexpected { what: "the end of a round" }),
            },
            parcel => return Err(ParcelError::Address { what: parcel.name(), from, to: self.place }),
        }
        Ok(())
    }

    fn take_base(&mut self, seed: u64, part: &[f32]) -> Result<(), ParcelError> {
        let Base { seed: known, values } = &mut self.base;
        // Nothing else comes from the left before its end, and nothing of it later.
        let is_next = self.awaited.is_none() && self.received == 0 && values.len() < self.params;
        if !is_next || (!values.is_empty() && *known != seed) {
            return Err(ParcelError::Unexpected { what: "a model" });
        }
        check_length("a model's chunk", part.len(), CHUNK.min(self.params - values.len()))?;
        *known = seed;
        values.extend_from_slice(part);
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
