//! Updates that are durable here and undecided there: what was offered, and what to do with each answer.

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::update::{UpdateKey, Verdict};
use anabranch_common::wire::message::AgentMessage;
use anabranch_common::wire::transfer::Missing;

use super::command::{ChunkSource, Command, Settlement};
use super::event::OutboxEntry;

#[derive(Debug, Clone, PartialEq)]
struct Slot {
    entry: OutboxEntry,
    transfer_id: Digest,
    state: State,
    /// An update that came after this one was decided before it, on this connection.
    overtaken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not offered on this connection.
    Kept,
    /// Offered; the coordinator owes an answer since then.
    Offered { since_ms: u64 },
    /// Being sent: to be through by then.
    Sending { until_ms: u64 },
    /// On its way as a whole; the coordinator owes a verdict since then.
    Sent { since_ms: u64 },
    /// Decided; the store is deleting it.
    Settling,
}

/// The updates without a durable end, oldest first. At most `limits::OUTBOX_UPDATES`, since training stops before.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    slots: Vec<Slot>,
    /// When the coordinator last answered anything about any of them: it takes large ones one after another.
    heard_ms: u64,
}

impl Outbox {
    /// What the store kept.
    #[must_use]
    pub fn new(kept: Vec<OutboxEntry>) -> Self {
        let mut outbox = Self::default();
        kept.into_iter().for_each(|entry| outbox.push(entry));
        outbox
    }

    /// How many updates wait for their end.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What waits, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &OutboxEntry> {
        self.slots.iter().map(|slot| &slot.entry)
    }

    /// Whether there is room for what another round would give.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.slots.len() < limits::OUTBOX_UPDATES
    }

    /// Returns how many updates still wait for the line, or are being sent on it.
    #[must_use]
    pub fn unsent(&self) -> usize {
        let is_unsent = |slot: &&Slot| !matches!(slot.state, State::Sent { .. } | State::Settling);
        self.slots.iter().filter(is_unsent).count()
    }

    /// Takes a durable update.
    pub(super) fn push(&mut self, entry: OutboxEntry) {
        let transfer_id = entry.transfer.id();
        self.slots.push(Slot { entry, transfer_id, state: State::Kept, overtaken: false });
    }

    /// Offers everything that was not offered on this connection, oldest first.
    pub(super) fn offer(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        for slot in self.slots.iter_mut().filter(|slot| slot.state == State::Kept) {
            slot.state = State::Offered { since_ms: now_ms };
            let OutboxEntry { meta, transfer, sections } = slot.entry.clone();
            out.push(Command::Send(AgentMessage::OfferUpdate { meta, transfer, sections }));
        }
    }

    /// The coordinator wants chunks. Returns whether the transfer is one of these.
    pub(super) fn need(&mut self, now_ms: u64, transfer: Digest, missing: Missing, out: &mut Vec<Command>) -> bool {
        if !self.slots.iter().any(|slot| slot.transfer_id == transfer) {
            return false;
        }
        self.heard_ms = now_ms;
        // Two updates may have the same content: it travels once.
        let mut source = None;
        for slot in self.undecided(transfer) {
            slot.state = State::Sending { until_ms: now_ms.saturating_add(slot.entry.transfer.deadline_ms()) };
            source.get_or_insert((slot.entry.meta.key, slot.entry.transfer.clone()));
        }
        if let Some((key, transfer)) = source {
            out.push(Command::SendChunks { source: ChunkSource::Update(key), transfer, missing });
        }
        true
    }

    fn undecided(&mut self, transfer: Digest) -> impl Iterator<Item = &mut Slot> {
        let undecided = move |slot: &&mut Slot| slot.transfer_id == transfer && slot.state != State::Settling;
        self.slots.iter_mut().filter(undecided)
    }

    /// All chunks that were asked for are on their way. What waits to be offered again goes on waiting: the chunks were of
    /// a connection that is gone. Where helpers send some, those may take as long as the whole update.
    pub(super) fn sent(&mut self, now_ms: u64, transfer: Digest) {
        self.heard_ms = now_ms;
        let sending = |slot: &&mut Slot| matches!(slot.state, State::Sending { .. }) && slot.entry.sections.is_none();
        self.undecided(transfer).filter(sending).for_each(|slot| slot.state = State::Sent { since_ms: now_ms });
    }

    /// The coordinator decided. Returns whether the update was still undecided here; a repeated verdict is not news.
    pub(super) fn decide(&mut self, now_ms: u64, key: UpdateKey, verdict: &Verdict, out: &mut Vec<Command>) -> bool {
        self.heard_ms = now_ms;
        let undecided = |slot: &Slot| slot.entry.meta.key == key && slot.state != State::Settling;
        let Some(index) = self.slots.iter().position(undecided) else { return false };
        self.slots[..index].iter_mut().for_each(|earlier| earlier.overtaken = true);
        self.slots[index].state = State::Settling;
        let is_difference = self.slots[index].entry.meta.memory.is_some();
        let content = match verdict {
            Verdict::Accepted { weight, .. } if is_difference => Settlement::Remember(*weight),
            Verdict::Refused { reason } if reason.content_returns() && !is_difference => Settlement::Return,
            Verdict::Accepted { .. } | Verdict::Refused { .. } => Settlement::Drop,
        };
        out.push(Command::Settle { key, content });
        true
    }

    /// The store has deleted it.
    pub(super) fn settled(&mut self, key: UpdateKey) {
        self.slots.retain(|slot| slot.entry.meta.key != key);
    }

    /// The connection is gone: everything undecided must be offered again.
    pub(super) fn disconnected(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.state != State::Settling) {
            (slot.state, slot.overtaken) = (State::Kept, false);
        }
    }

    /// When the oldest silence becomes too long. While one is being sent, the others wait for it.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        let sending = self.slots.iter().filter_map(|slot| match slot.state {
            State::Sending { until_ms } => Some(until_ms),
            State::Kept | State::Offered { .. } | State::Sent { .. } | State::Settling => None,
        });
        let silent = self.slots.iter().filter_map(|slot| match slot.state {
            State::Offered { since_ms } | State::Sent { since_ms } => {
                let busy_ms = since_ms.max(self.heard_ms).saturating_add(limits::OFFER_TIMEOUT_MS);
                // Answers to later ones show that the coordinator is there, and not for ever that it knows of this one.
                let forgotten_ms = since_ms.saturating_add(limits::OFFER_FORGOTTEN_MS);
                Some(if slot.overtaken { busy_ms.min(forgotten_ms) } else { busy_ms })
            }
            State::Kept | State::Sending { .. } | State::Settling => None,
        });
        sending.max().or_else(|| silent.min())
    }
}
