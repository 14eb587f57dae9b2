//! The journal on a [`Medium`]: where it begins and ends, torn tails, pruning.

use anabranch_common::ids::Position;

use super::Engine;
use super::entries::Entries;
use crate::store::layout::{EntryHead, INLINE_BYTES, Name};
use crate::store::{Area, Journal, Medium, StorageError};

/// Where the journal begins and ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Records from 1 to below this were pruned; 0 or 1 when none were.
    pruned_below: Position,
    /// The position of the next record.
    next: Position,
    /// Every record below this has been committed.
    durable_below: Position,
}

impl Extent {
    /// Finishes a pruning that was cut short, and drops the records at the tail that power loss
    /// tore before they were committed. What is left must be committed before it is used.
    pub(super) fn open<M: Medium>(entries: &Entries<M>) -> Result<Self, StorageError> {
        let pruned_below = read_pruned_below(entries)?;
        delete_records(entries, Position(1), pruned_below)?;
        let next = repair_tail(entries, pruned_below)?;
        Ok(Self { pruned_below, next, durable_below: next })
    }
}

impl<M: Medium> Engine<M> {
    /// Makes every change that has returned durable, and notes how far the journal is.
    pub(super) fn commit(&self) -> Result<(), StorageError> {
        let written = self.extent.lock().next;
        self.entries.commit()?;
        let mut extent = self.extent.lock();
        extent.durable_below = extent.durable_below.max(written);
        Ok(())
    }
}

impl<M: Medium> Journal for Engine<M> {
    fn append(&self, records: &[(Position, Vec<u8>)]) -> Result<(), StorageError> {
        let mut extent = self.extent.lock();
        let mut expected = extent.next;
        for (position, _) in records {
            if *position != expected {
                return Err(self.entries.refused(format!("record {position} where record {expected} comes next")));
            }
            expected = expected.next();
        }
        for (position, bytes) in records {
            let head = EntryHead::of(bytes, INLINE_BYTES, extent.durable_below);
            self.entries.write(&Name::Record(*position), bytes, &head)?;
        }
        extent.next = expected;
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.commit()
    }

    fn record(&self, position: Position) -> Result<Option<Vec<u8>>, StorageError> {
        let extent = *self.extent.lock();
        let pruned = position > Position(0) && position < extent.pruned_below;
        if pruned || position >= extent.next {
            return Ok(None);
        }
        let name = Name::Record(position);
        self.entries
            .read(&name)?
            .map_or_else(|| Err(self.entries.damaged(&name, "is missing")), |bytes| Ok(Some(bytes)))
    }

    fn first_position(&self) -> Result<Option<Position>, StorageError> {
        let extent = *self.extent.lock();
        // Pruning nothing but record 0 away prunes nothing, since record 0 stays.
        let first = if extent.pruned_below <= Position(1) { Position(0) } else { extent.pruned_below };
        Ok((extent.next > Position(0)).then_some(first))
    }

    fn last_position(&self) -> Result<Option<Position>, StorageError> {
        Ok(self.extent.lock().next.0.checked_sub(1).map(Position))
    }

    fn prune(&self, below: Position) -> Result<u64, StorageError> {
        let below = {
            let mut extent = self.extent.lock();
            let below = below.min(Position(extent.next.0.saturating_sub(1)));
            if below <= extent.pruned_below || below <= Position(1) {
                return Ok(0);
            }
            extent.pruned_below = below;
            below
        };
        self.entries.write_small(&Name::Pruned, &below.0.to_le_bytes())?;
        self.commit()?;
        anabranch_io::faults::point("prune-in-records");
        let deleted = delete_records(&self.entries, Position(1), below)?;
        self.commit()?;
        Ok(deleted)
    }

    fn skip_to(&self, position: Position) -> Result<(), StorageError> {
        {
            let mut extent = self.extent.lock();
            if extent.next != Position(1) || position < extent.next {
                return Err(self
                    .entries
                    .refused(format!("only behind record 0 alone can record {position} come next")));
            }
            if position == extent.next {
                return Ok(());
            }
            (extent.pruned_below, extent.next) = (position, position);
        }
        self.entries.write_small(&Name::Pruned, &position.0.to_le_bytes())?;
        self.commit()
    }
}

fn read_pruned_below<M: Medium>(entries: &Entries<M>) -> Result<Position, StorageError> {
    let Some(bytes) = entries.read(&Name::Pruned)? else { return Ok(Position(0)) };
    let bytes = bytes.try_into().map_err(|_| entries.damaged(&Name::Pruned, "is not a position"))?;
    Ok(Position(u64::from_le_bytes(bytes)))
}

/// Deletes torn records at the end of the journal, and returns the position after the last whole
/// one.
///
/// A record may be torn only if it was never committed: not below what a later record saw
/// committed. An earlier gap stays as it is and is refused when it is read.
fn repair_tail<M: Medium>(entries: &Entries<M>, pruned_below: Position) -> Result<Position, StorageError> {
    let mut newest = None;
    let range = Name::Record(Position(0)).key()..=Name::Record(Position(u64::MAX)).key();
    entries.medium.scan(Area::Catalogue, range, &mut |key, value| {
        if let Some(Name::Record(position)) = Name::of_key(key) {
            newest = Some((position, EntryHead::from_value(value).map(|(head, _)| head.durable_below)));
        }
        Ok(())
    })?;
    let (mut next, mut end) = (Position(0), Position(0));
    if let Some((last, durable_below)) = newest {
        let durable_below = durable_below.map_err(|what| entries.damaged(&Name::Record(last), what))?;
        end = last.next();
        next = durable_below.max(pruned_below).min(end);
        while next < end && entries.is_whole(&Name::Record(next))? {
            next = next.next();
        }
    }
    if next < end {
        tracing::warn!(from = next.0, to = end.0 - 1, "dropped records that power loss tore before they were synced");
    }
    delete_records(entries, next, end)?;
    let chunks = Name::Record(next).chunk_key(0)..=Name::Record(Position(u64::MAX)).chunk_key(u32::MAX);
    let orphans = entries.keys(Area::Bulk, chunks)?;
    for key in orphans {
        entries.remove(Area::Bulk, &key)?;
    }
    Ok(next)
}

/// Deletes the records that are there from `from` to below `to`, and says how many.
fn delete_records<M: Medium>(entries: &Entries<M>, from: Position, to: Position) -> Result<u64, StorageError> {
    if from >= to {
        return Ok(0);
    }
    let last = Position(to.0 - 1);
    let keys = entries.keys(Area::Catalogue, Name::Record(from).key()..=Name::Record(last).key())?;
    let mut deleted = 0;
    for name in keys.iter().filter_map(|key| Name::of_key(key)) {
        deleted += u64::from(entries.delete(&name)?);
    }
    Ok(deleted)
}
