//! Room in memory for uploads: the budgets, and the uploads that wait for a part of one.
//!
//! ```text
//!  turn among the large uploads of a connection ─► share of its agent ─► budget of payloads ─► ... ─► budget of decoded content
//! ```
//! Each of them is given out in the order in which it was asked for.

use std::collections::BTreeMap;

use super::budget::{Budget, Budgets, Hold, Of, Returned};
use super::upload::UploadId;
use crate::ids::{AgentId, PeerId};
use crate::limits;

/// Copies of chunks that one upload may hold for each connection beside its buffer: on their way into it, or on their way to disk.
const CHUNKS_BYTES: u64 = limits::CHUNK_STREAMS as u64 * limits::CHUNK_BYTES as u64;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Room {
    budgets: Budgets,
    turns: BTreeMap<PeerId, Budget>,
    /// Only of agents that hold or want some.
    shares: BTreeMap<AgentId, Budget>,
    payloads: Budget,
    decoded: Budget,
    decoding: usize,
    returned: Returned,
}

impl Room {
    pub(super) fn new(budgets: Budgets) -> Self {
        Self {
            turns: BTreeMap::new(),
            shares: BTreeMap::new(),
            payloads: Budget::new(budgets.payload_bytes),
            decoded: Budget::new(budgets.decoded_bytes),
            decoding: 0,
            returned: Returned::default(),
            budgets,
        }
    }

    /// Bytes of the largest upload that there can be room for.
    pub(super) fn most_bytes(&self) -> u64 {
        self.budgets.payload_bytes
    }

    /// Bytes that are free of the budgets of payloads and of decoded content.
    pub(super) fn free_bytes(&self) -> (u64, u64) {
        (self.payloads.free(), self.decoded.free())
    }

    /// Returns how many uploads wait for a part of the budget of payloads.
    pub(super) fn waiting(&self) -> usize {
        self.payloads.waiting()
    }

    /// Asks for a turn among the large uploads of a connection; [`next_turn`](Self::next_turn) gives it.
    pub(super) fn ask_for_turn(&mut self, peer: PeerId, id: UploadId) {
        self.turns.entry(peer).or_insert_with(|| Budget::new(1)).ask(id, 1);
    }

    /// Returns the upload of a connection that has its turn now.
    pub(super) fn next_turn(&mut self, peer: PeerId) -> Option<UploadId> {
        self.turns.get_mut(&peer).and_then(Budget::next).map(|(id, _)| id)
    }

    /// The upload that has its turn is over with it.
    pub(super) fn end_turn(&mut self, peer: PeerId) {
        if let Some(turns) = self.turns.get_mut(&peer) {
            turns.give_back(1);
        }
    }

    /// An upload waits for no turn any more.
    pub(super) fn forget_turn(&mut self, peer: PeerId, id: UploadId) {
        if let Some(turns) = self.turns.get_mut(&peer) {
            turns.forget(id);
        }
    }

    /// A connection has ended: it has no turns.
    pub(super) fn forget_turns(&mut self, peer: PeerId) {
        self.turns.remove(&peer);
    }

    /// Asks for a part of an agent's share; [`next_share`](Self::next_share) gives it. Returns whether the share lacks so
    /// many bytes.
    pub(super) fn ask_for_share(&mut self, agent: AgentId, id: UploadId, bytes: u64) -> bool {
        let share = self.shares.entry(agent).or_insert_with(|| Budget::new(self.budgets.agent_bytes));
        let lacks = share.lacks(bytes);
        share.ask(id, bytes);
        lacks
    }

    /// Returns the upload of an agent that has its part of the share now, and that part.
    pub(super) fn next_share(&mut self, agent: AgentId) -> Option<(UploadId, Hold)> {
        let (id, bytes) = self.shares.get_mut(&agent).and_then(Budget::next)?;
        Some((id, Hold::new(Of::Share(agent), bytes, &self.returned)))
    }

    /// Whether an upload waits for a part of an agent's share.
    pub(super) fn share_is_wanted(&self, agent: AgentId) -> bool {
        self.shares.get(&agent).is_some_and(|share| share.waiting() > 0)
    }

    /// Forgets an agent's share if nobody holds or wants any of it.
    pub(super) fn forget_unused_share(&mut self, agent: AgentId) {
        if self.shares.get(&agent).is_some_and(Budget::is_unused) {
            self.shares.remove(&agent);
        }
    }

    /// Asks for a buffer of so many bytes and for the copies of its chunks, which come on so many connections;
    /// [`next_buffer`](Self::next_buffer) gives it.
    pub(super) fn ask_for_buffer(&mut self, id: UploadId, bytes: u64, connections: u64) {
        self.payloads.ask(id, bytes + bytes.min(CHUNKS_BYTES.saturating_mul(connections)));
    }

    /// Returns the upload that has room for its buffer now, and how much.
    pub(super) fn next_buffer(&mut self) -> Option<(UploadId, u64)> {
        self.payloads.next()
    }

    /// Returns a part of what [`next_buffer`](Self::next_buffer) gave, to be held.
    pub(super) fn hold_of_buffer(&self, bytes: u64) -> Hold {
        Hold::new(Of::Payloads, bytes, &self.returned)
    }

    /// An upload waits for no share and no buffer any more.
    pub(super) fn forget_buffer(&mut self, agent: AgentId, id: UploadId) {
        self.payloads.forget(id);
        if let Some(share) = self.shares.get_mut(&agent) {
            share.forget(id);
        }
    }

    /// Asks for room for decoded content; [`next_decoding`](Self::next_decoding) gives it.
    pub(super) fn ask_for_decoding(&mut self, id: UploadId, bytes: u64) {
        self.decoded.ask(id, bytes);
    }

    /// Returns the upload that may be decoded now, with room for its content.
    pub(super) fn next_decoding(&mut self) -> Option<(UploadId, Hold)> {
        let (id, bytes) = if self.decoding < self.budgets.decoders { self.decoded.next()? } else { return None };
        Some((id, Hold::new(Of::Decoded, bytes, &self.returned)))
    }

    /// An upload waits for no room for decoded content any more.
    pub(super) fn forget_decoding(&mut self, id: UploadId) {
        self.decoded.forget(id);
    }

    /// An upload is being decoded from now on.
    pub(super) fn decoding_begins(&mut self) {
        self.decoding += 1;
    }

    /// An upload is decoded, or cannot be.
    pub(super) fn decoding_ends(&mut self) {
        self.decoding = self.decoding.saturating_sub(1);
    }

    /// Returns what was dropped since the last call, and is to be given back.
    pub(super) fn take_returned(&mut self) -> Vec<(Of, u64)> {
        std::mem::take(&mut *self.returned.lock())
    }

    /// Whether nothing is to be given back.
    pub(super) fn is_settled(&self) -> bool {
        self.returned.lock().is_empty()
    }

    /// Gives a part of a budget back. Returns the agent if it is of a share.
    pub(super) fn give_back(&mut self, of: Of, bytes: u64) -> Option<AgentId> {
        match of {
            Of::Payloads => self.payloads.give_back(bytes),
            Of::Decoded => self.decoded.give_back(bytes),
            Of::Share(agent) => {
                if let Some(share) = self.shares.get_mut(&agent) {
                    share.give_back(bytes);
                }
                return Some(agent);
            }
        }
        None
    }
}
