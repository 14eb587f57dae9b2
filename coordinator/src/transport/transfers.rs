//! The uploads that a connection was asked for, by content.

use std::collections::BTreeMap;

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::wire::transfer::{Missing, TransferError};
use tokio::sync::OwnedSemaphorePermit;

use super::partials::PartialName;
use super::uploads::Upload;
use crate::node::Expected;

/// More transfers than one connection may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {} transfers offered at once", limits::TRANSFERS_PER_PEER)]
pub(super) struct TooMany;

/// An upload, and everything that has this content: two updates of one agent may be equal.
#[derive(Debug)]
struct Slot {
    waiting: Vec<Expected>,
    /// None until there is room for it.
    open: Option<Open>,
}

impl Slot {
    fn is_model(&self) -> bool {
        self.waiting.iter().any(|what| matches!(what, Expected::Model { .. }))
    }
}

#[derive(Debug)]
struct Open {
    upload: Upload,
    /// Looks since it was opened, ...
    looks: u64,
    /// ... and since its latest chunk.
    silent_looks: u64,
    /// Bytes of the chunks that came since it was opened.
    received_bytes: u64,
    /// Its turn among the large uploads of this connection.
    _turn: Option<OwnedSemaphorePermit>,
}

impl Open {
    /// Another look. Beside the time that everyone has, an upload has to show chunks; and while others wait for room it
    /// has to come at a rate that is worth its share.
    fn is_over(&mut self, room_is_short: bool) -> bool {
        self.looks += 1;
        self.silent_looks += 1;
        let (age_ms, silent_ms) = (self.looks * limits::TRANSFER_LOOK_MS, self.silent_looks * limits::TRANSFER_LOOK_MS);
        let earned_ms = self.received_bytes.saturating_mul(1000) / limits::UPLOAD_BUSY_MIN_BYTES_PER_S;
        age_ms > self.upload.assembly.manifest().deadline_ms()
            || silent_ms > limits::UPLOAD_STALL_MS
            || (room_is_short && age_ms > limits::UPLOAD_BUSY_GRACE_MS.saturating_add(earned_ms))
    }
}

/// An upload whose time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overdue {
    pub(super) id: Digest,
    /// Whether it is an initial model.
    pub(super) is_model: bool,
}

/// A whole upload.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) waiting: Vec<Expected>,
    pub(super) upload: Upload,
}

/// What came of opening.
#[derive(Debug)]
pub(super) enum Opened {
    /// These chunks are missing.
    Missing(Missing),
    /// Nothing is.
    Whole(Whole),
    /// It was given up meanwhile.
    Gone(Upload),
}

/// The uploads of one connection.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    slots: BTreeMap<Digest, Slot>,
}

impl Transfers {
    /// Takes note of an upload that was offered. Returns whether it has to be opened: not when the same content is on
    /// its way already.
    pub(super) fn announce(&mut self, id: Digest, what: Expected) -> Result<bool, TooMany> {
        let waiting: usize = self.slots.values().map(|slot| slot.waiting.len()).sum();
        let slot = self.slots.get_mut(&id);
        if slot.as_ref().is_some_and(|slot| slot.waiting.iter().any(|other| other.is_same(&what))) {
            return Ok(false);
        }
        if waiting >= limits::TRANSFERS_PER_PEER {
            return Err(TooMany);
        }
        match slot {
            Some(slot) => {
                slot.waiting.push(what);
                Ok(false)
            }
            None => {
                self.slots.insert(id, Slot { waiting: vec![what], open: None });
                Ok(true)
            }
        }
    }

    /// There is room: from now on it has a deadline.
    pub(super) fn opened(&mut self, id: Digest, upload: Upload, turn: Option<OwnedSemaphorePermit>) -> Opened {
        let Some(slot) = self.slots.get_mut(&id) else { return Opened::Gone(upload) };
        let missing = upload.assembly.missing().clone();
        if missing.is_empty() {
            let waiting = self.slots.remove(&id).map(|slot| slot.waiting).unwrap_or_default();
            return Opened::Whole(Whole { waiting, upload });
        }
        slot.open = Some(Open { upload, looks: 0, silent_looks: 0, received_bytes: 0, _turn: turn });
        Opened::Missing(missing)
    }

    /// It cannot be opened; who waits for it.
    pub(super) fn not_opened(&mut self, id: Digest) -> Vec<Expected> {
        self.slots.remove(&id).map(|slot| slot.waiting).unwrap_or_default()
    }

    /// A chunk is here. Of a transfer that is not under way (complete, or given up: sent twice over a bad line) it is
    /// harmless, and nothing. Returns where it has to be written to, and the whole if this was the last one.
    pub(super) fn put(&mut self, id: Digest, index: u32, chunk: &[u8]) -> Result<Put, TransferError> {
        let Some(slot) = self.slots.get_mut(&id) else { return Ok(Put::default()) };
        let of_model = slot.is_model();
        let Some(open) = slot.open.as_mut() else { return Ok(Put::default()) };
        let was_missing = open.upload.assembly.missing().contains(index);
        let whole = open.upload.assembly.put(index, chunk)?;
        if was_missing {
            open.silent_looks = 0;
            open.received_bytes += chunk.len() as u64;
        }
        let range = open.upload.assembly.manifest().range(index);
        let counts = was_missing.then_some(open.upload.kept_as());
        let offset = range.map_or(0, |range| range.start as u64);
        let whole = if whole { self.slots.remove(&id) } else { None };
        let whole = whole.and_then(|slot| Some(Whole { waiting: slot.waiting, upload: slot.open?.upload }));
        Ok(Put { counts, of_model, offset, whole })
    }

    /// Whether chunks of this transfer are awaited.
    pub(super) fn expects(&self, id: Digest) -> bool {
        self.slots.get(&id).is_some_and(|slot| slot.open.is_some())
    }

    /// Another `limits::TRANSFER_LOOK_MS` have passed: ends the uploads whose time is over. Whether others wait for room
    /// decides how patient this is.
    pub(super) fn look(&mut self, room_is_short: bool) -> Vec<Overdue> {
        let open = self.slots.iter_mut().filter_map(|(id, slot)| Some((*id, slot.open.as_mut()?)));
        let over: Vec<Digest> = open.filter_map(|(id, open)| open.is_over(room_is_short).then_some(id)).collect();
        let end = |id| {
            let slot = self.slots.remove(&id)?;
            Some(Overdue { id, is_model: slot.is_model() })
        };
        over.into_iter().filter_map(end).collect()
    }

    /// Ends all of them.
    pub(super) fn give_up(&mut self) -> Vec<Upload> {
        let slots = std::mem::take(&mut self.slots);
        slots.into_values().filter_map(|slot| Some(slot.open?.upload)).collect()
    }
}

/// What became of a chunk.
#[derive(Debug, Default)]
pub(super) struct Put {
    /// Set if it was news; under which name it belongs on disk, if there.
    pub(super) counts: Option<Option<PartialName>>,
    /// Whether it belongs to an initial model.
    pub(super) of_model: bool,
    /// Where in the content it begins.
    pub(super) offset: u64,
    /// Everything, if nothing is missing now.
    pub(super) whole: Option<Whole>,
}

#[cfg(test)]
#[path = "transfers_tests.rs"]
mod tests;
