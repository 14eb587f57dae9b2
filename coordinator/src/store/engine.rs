//! [`Store`] over any [`Medium`]: entries, chunks, torn tails and pruning, written once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use anabranch_common::ids::{Digest, Position};
use parking_lot::Mutex;

use super::layout::{CHUNK_BYTES, EntryHead, INLINE_BYTES, Name, Placement, SMALL_BYTES};
use super::{Area, Medium, StorageError, Store, StoreUsage};

/// A [`Store`] on a [`Medium`].
#[derive(Debug)]
pub struct Engine<M> {
    pub(super) medium: M,
    journal: Mutex<Journal>,
    /// Blobs that were written, or read and found whole, since the store was opened.
    whole: Mutex<BTreeSet<Digest>>,
    live_bytes: AtomicU64,
}

/// Where the journal begins and ends.
#[derive(Debug, Clone, Copy)]
struct Journal {
    /// Records from 1 to below this were pruned; 0 or 1 when none were.
    pruned_below: Position,
    /// The position of the next record.
    next: Position,
    /// Every record below this has been committed.
    durable_below: Position,
}

impl<M: Medium> Engine<M> {
    /// Takes over what the medium holds: finishes a pruning that was cut short, drops the records at the tail that
    /// power loss tore before they were committed, and commits, so that everything that can be read is durable.
    ///
    /// # Errors
    /// The storage fails, or a head is damaged that says where the journal ends.
    pub fn open(medium: M) -> Result<Self, StorageError> {
        let journal = Journal { pruned_below: Position(0), next: Position(0), durable_below: Position(0) };
        let engine =
            Self { medium, journal: Mutex::new(journal), whole: Mutex::default(), live_bytes: AtomicU64::new(0) };
        let pruned_below = engine.read_pruned_below()?;
        engine.delete_records(Position(1), pruned_below)?;
        let next = engine.repair_tail(pruned_below)?;
        engine.sweep_blob_chunks()?;
        engine.medium.commit()?;
        engine.live_bytes.store(engine.count_live_bytes()?, Ordering::Relaxed);
        *engine.journal.lock() = Journal { pruned_below, next, durable_below: next };
        Ok(engine)
    }

    pub(super) fn damaged(&self, name: &Name, what: &str) -> StorageError {
        StorageError::Corrupt { path: self.medium.path().to_path_buf(), detail: format!("{name} {what}") }
    }

    fn read_pruned_below(&self) -> Result<Position, StorageError> {
        let Some(bytes) = self.read(&Name::Pruned)? else { return Ok(Position(0)) };
        let bytes = bytes.try_into().map_err(|_| self.damaged(&Name::Pruned, "is not a position"))?;
        Ok(Position(u64::from_le_bytes(bytes)))
    }

    /// Deletes torn records at the end of the journal, and returns the position after the last whole one.
    ///
    /// A record may be torn only if it was never committed: not below what a later record saw committed. An earlier gap
    /// stays as it is and is refused when it is read.
    fn repair_tail(&self, pruned_below: Position) -> Result<Position, StorageError> {
        let mut newest = None;
        let range = Name::Record(Position(0)).key()..=Name::Record(Position(u64::MAX)).key();
        self.medium.scan(Area::Catalogue, range, &mut |key, value| {
            if let Some(Name::Record(position)) = Name::of_key(key) {
                newest = Some((position, EntryHead::from_value(value).map(|(head, _)| head.durable_below)));
            }
            Ok(())
        })?;
        let (mut next, mut end) = (Position(0), Position(0));
        if let Some((last, durable_below)) = newest {
            let durable_below = durable_below.map_err(|what| self.damaged(&Name::Record(last), what))?;
            end = last.next();
            next = durable_below.max(pruned_below).min(end);
            while next < end && self.is_whole(&Name::Record(next))? {
                next = next.next();
            }
        }
        if next < end {
            tracing::warn!(
                from = next.0,
                to = end.0 - 1,
                "dropped records that power loss tore before they were synced"
            );
        }
        self.delete_records(next, end)?;
        let chunks = Name::Record(next).chunk_key(0)..=Name::Record(Position(u64::MAX)).chunk_key(u32::MAX);
        let orphans = self.keys(Area::Bulk, chunks)?;
        for key in orphans {
            self.medium.remove(Area::Bulk, &key)?;
        }
        Ok(next)
    }

    /// Whether head and chunks are there. Says nothing about their content.
    fn is_whole(&self, name: &Name) -> Result<bool, StorageError> {
        let Some(value) = self.medium.get(Area::Catalogue, &name.key())? else { return Ok(false) };
        let (head, _) = EntryHead::from_value(&value).map_err(|what| self.damaged(name, what))?;
        for chunk in 0..self.chunks(name, &head)? {
            if self.medium.get(Area::Bulk, &name.chunk_key(chunk))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn chunks(&self, name: &Name, head: &EntryHead) -> Result<u32, StorageError> {
        u32::try_from(head.chunks()).map_err(|_| self.damaged(name, "has a head that says an impossible length"))
    }

    pub(super) fn keys(
        &self,
        area: Area,
        range: std::ops::RangeInclusive<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, StorageError> {
        self.medium.keys(area, range)
    }

    /// Removes the chunks of blobs that are not listed: a deletion was cut short, or the entry of a new one was lost.
    fn sweep_blob_chunks(&self) -> Result<(), StorageError> {
        let first = Name::Blob(Digest([0; 32])).chunk_key(0);
        for key in self.keys(Area::Bulk, first..=Name::Blob(Digest([u8::MAX; 32])).chunk_key(u32::MAX))? {
            let owner = &key[..key.len().saturating_sub(4)];
            if self.medium.get(Area::Catalogue, owner)?.is_none() {
                self.medium.remove(Area::Bulk, &key)?;
            }
        }
        Ok(())
    }

    fn count_live_bytes(&self) -> Result<u64, StorageError> {
        let mut live_bytes = 0;
        self.medium.scan(Area::Catalogue, vec![0]..=vec![u8::MAX], &mut |_, value| {
            live_bytes += EntryHead::from_value(value).map_or(0, |(head, _)| head.len);
            Ok(())
        })?;
        Ok(live_bytes)
    }

    /// The catalogue's entry first, then the chunks: what a crash leaves behind is then always listed.
    fn write(&self, name: &Name, content: &[u8], head: &EntryHead) -> Result<(), StorageError> {
        self.medium.insert(Area::Catalogue, &name.key(), head.to_value(content))?;
        if head.placement == Placement::Bulk {
            for (chunk, bytes) in (0..self.chunks(name, head)?).zip(content.chunks(CHUNK_BYTES)) {
                self.medium.insert(Area::Bulk, &name.chunk_key(chunk), bytes.to_vec())?;
            }
        }
        self.live_bytes_change(0, head.len);
        Ok(())
    }

    pub(super) fn write_small(&self, name: &Name, content: &[u8]) -> Result<(), StorageError> {
        if content.len() > SMALL_BYTES {
            let problem = format!("{name} of {} bytes, more than {SMALL_BYTES}", content.len());
            return Err(self.refused(problem));
        }
        self.write_over(name, content, SMALL_BYTES)
    }

    /// Writes an entry in place of what is there under its name, if anything is.
    fn write_over(&self, name: &Name, content: &[u8], inline_bytes: usize) -> Result<(), StorageError> {
        let old = self.medium.get(Area::Catalogue, &name.key())?;
        let old = old.map(|value| EntryHead::from_value(&value).map(|(head, _)| head));
        let head = EntryHead::of(content, inline_bytes, Position(0));
        self.write(name, content, &head)?;
        if old.as_ref().is_some_and(|old| !matches!(old, Ok(old) if old.placement == Placement::Inline)) {
            let first = if head.placement == Placement::Bulk { self.chunks(name, &head)? } else { 0 };
            for key in self.keys(Area::Bulk, name.chunk_key(first)..=name.chunk_key(u32::MAX))? {
                self.medium.remove(Area::Bulk, &key)?;
            }
        }
        self.live_bytes_change(old.and_then(Result::ok).map_or(0, |old| old.len), 0);
        Ok(())
    }

    pub(super) fn refused(&self, problem: String) -> StorageError {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, problem);
        StorageError::Io { path: self.medium.path().to_path_buf(), source }
    }

    fn read(&self, name: &Name) -> Result<Option<Vec<u8>>, StorageError> {
        let Some(value) = self.medium.get(Area::Catalogue, &name.key())? else { return Ok(None) };
        let (head, inline) = EntryHead::from_value(&value).map_err(|what| self.damaged(name, what))?;
        let content = match head.placement {
            Placement::Inline => inline.to_vec(),
            Placement::Bulk => {
                let chunks = self.chunks(name, &head)?;
                // A damaged length must not reserve what was never stored.
                let whole = chunks == 0 || self.medium.get(Area::Bulk, &name.chunk_key(chunks - 1))?.is_some();
                let mut content = Vec::with_capacity(if whole { usize::try_from(head.len).unwrap_or(0) } else { 0 });
                for chunk in 0..chunks {
                    let bytes = self.medium.get(Area::Bulk, &name.chunk_key(chunk))?;
                    content.extend(bytes.ok_or_else(|| self.damaged(name, "is not complete"))?);
                }
                content
            }
        };
        self.check(name, &head, content).map(Some)
    }

    /// Passes the content on if it is what its head says.
    pub(super) fn check(&self, name: &Name, head: &EntryHead, content: Vec<u8>) -> Result<Vec<u8>, StorageError> {
        if content.len() as u64 != head.len {
            return Err(self.damaged(name, "has another length than its head says"));
        }
        if crc32c::crc32c(&content) != head.crc {
            return Err(self.damaged(name, "does not match its checksum"));
        }
        Ok(content)
    }

    pub(super) fn live_bytes_change(&self, less: u64, more: u64) {
        let change = |live: u64| Some((live + more).saturating_sub(less));
        _ = self.live_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Deletes the chunks first, so that a deletion that is cut short leaves an entry that can be deleted again.
    fn delete(&self, name: &Name) -> Result<bool, StorageError> {
        let Some(value) = self.medium.get(Area::Catalogue, &name.key())? else { return Ok(false) };
        let len = match EntryHead::from_value(&value) {
            Ok((head, _)) => {
                for chunk in 0..self.chunks(name, &head)? {
                    self.medium.remove(Area::Bulk, &name.chunk_key(chunk))?;
                }
                head.len
            }
            Err(_) => {
                for key in self.keys(Area::Bulk, name.chunk_key(0)..=name.chunk_key(u32::MAX))? {
                    self.medium.remove(Area::Bulk, &key)?;
                }
                0
            }
        };
        self.medium.remove(Area::Catalogue, &name.key())?;
        self.live_bytes_change(len, 0);
        Ok(true)
    }

    /// Deletes the records that are there from `from` to below `to`, and says how many.
    fn delete_records(&self, from: Position, to: Position) -> Result<u64, StorageError> {
        if from >= to {
            return Ok(0);
        }
        let last = Position(to.0 - 1);
        let keys = self.keys(Area::Catalogue, Name::Record(from).key()..=Name::Record(last).key())?;
        let mut deleted = 0;
        for name in keys.iter().filter_map(|key| Name::of_key(key)) {
            deleted += u64::from(self.delete(&name)?);
        }
        Ok(deleted)
    }
}

impl<M: Medium> Store for Engine<M> {
    fn append(&self, records: &[(Position, Vec<u8>)]) -> Result<(), StorageError> {
        let mut journal = self.journal.lock();
        let mut expected = journal.next;
        for (position, _) in records {
            if *position != expected {
                return Err(self.refused(format!("record {position} where record {expected} comes next")));
            }
            expected = expected.next();
        }
        for (position, bytes) in records {
            let head = EntryHead::of(bytes, INLINE_BYTES, journal.durable_below);
            self.write(&Name::Record(*position), bytes, &head)?;
        }
        journal.next = expected;
        Ok(())
    }

    fn commit(&self) -> Result<(), StorageError> {
        let written = self.journal.lock().next;
        self.medium.commit()?;
        let mut journal = self.journal.lock();
        journal.durable_below = journal.durable_below.max(written);
        Ok(())
    }

    fn record(&self, position: Position) -> Result<Option<Vec<u8>>, StorageError> {
        let journal = *self.journal.lock();
        let pruned = position > Position(0) && position < journal.pruned_below;
        if pruned || position >= journal.next {
            return Ok(None);
        }
        let name = Name::Record(position);
        self.read(&name)?.map_or_else(|| Err(self.damaged(&name, "is missing")), |bytes| Ok(Some(bytes)))
    }

    fn last_position(&self) -> Result<Option<Position>, StorageError> {
        Ok(self.journal.lock().next.0.checked_sub(1).map(Position))
    }

    fn first_position(&self) -> Result<Option<Position>, StorageError> {
        let journal = *self.journal.lock();
        // Pruning nothing but record 0 away prunes nothing, since record 0 stays.
        let first = if journal.pruned_below <= Position(1) { Position(0) } else { journal.pruned_below };
        Ok((journal.next > Position(0)).then_some(first))
    }

    fn prune_records(&self, below: Position) -> Result<u64, StorageError> {
        let below = {
            let mut journal = self.journal.lock();
            let below = below.min(Position(journal.next.0.saturating_sub(1)));
            if below <= journal.pruned_below || below <= Position(1) {
                return Ok(0);
            }
            journal.pruned_below = below;
            below
        };
        self.write_small(&Name::Pruned, &below.0.to_le_bytes())?;
        self.medium.commit()?;
        anabranch_io::faults::point("prune-in-records");
        let deleted = self.delete_records(Position(1), below)?;
        self.commit()?;
        Ok(deleted)
    }

    fn put_blob(&self, id: Digest, bytes: &[u8]) -> Result<(), StorageError> {
        let name = Name::Blob(id);
        if matches!(self.read(&name), Ok(Some(stored)) if stored == bytes) {
            self.whole.lock().insert(id);
            return Ok(());
        }
        self.whole.lock().remove(&id);
        self.write_over(&name, bytes, INLINE_BYTES)?;
        self.whole.lock().insert(id);
        Ok(())
    }

    fn blob(&self, id: Digest) -> Result<Option<Vec<u8>>, StorageError> {
        let read = self.read(&Name::Blob(id));
        if matches!(read, Ok(Some(_))) {
            self.whole.lock().insert(id);
        } else {
            self.whole.lock().remove(&id);
        }
        read
    }

    fn holds_blob(&self, id: Digest) -> Result<bool, StorageError> {
        if self.whole.lock().contains(&id) {
            return Ok(true);
        }
        match self.blob(id) {
            Err(StorageError::Corrupt { .. }) => Ok(false),
            read => Ok(read?.is_some()),
        }
    }

    fn blob_bytes(&self, id: Digest) -> Result<Option<u64>, StorageError> {
        let name = Name::Blob(id);
        let Some(value) = self.medium.get(Area::Catalogue, &name.key())? else { return Ok(None) };
        EntryHead::from_value(&value).map(|(head, _)| Some(head.len)).map_err(|what| self.damaged(&name, what))
    }

    fn delete_blob(&self, id: Digest) -> Result<(), StorageError> {
        self.whole.lock().remove(&id);
        self.delete(&Name::Blob(id)).map(drop)
    }

    fn blobs(&self) -> Result<Vec<Digest>, StorageError> {
        let range = Name::Blob(Digest([0; 32])).key()..=Name::Blob(Digest([u8::MAX; 32])).key();
        let keys = self.keys(Area::Catalogue, range)?;
        let digest = |key: &Vec<u8>| match Name::of_key(key) {
            Some(Name::Blob(id)) => Some(id),
            _ => None,
        };
        Ok(keys.iter().filter_map(digest).collect())
    }

    fn put_checkpoint(&self, position: Position, manifest: &[u8]) -> Result<(), StorageError> {
        self.write_small(&Name::Checkpoint(position), manifest)
    }

    fn checkpoints(&self) -> Result<Vec<(Position, Vec<u8>)>, StorageError> {
        let range = Name::Checkpoint(Position(0)).key()..=Name::Checkpoint(Position(u64::MAX)).key();
        let mut out = Vec::new();
        for key in self.keys(Area::Catalogue, range)? {
            let Some(name @ Name::Checkpoint(position)) = Name::of_key(&key) else { continue };
            match self.read(&name) {
                Ok(manifest) => out.extend(manifest.map(|manifest| (position, manifest))),
                Err(StorageError::Corrupt { .. }) => out.push((position, Vec::new())),
                Err(error) => return Err(error),
            }
        }
        Ok(out)
    }

    fn delete_checkpoint(&self, position: Position) -> Result<(), StorageError> {
        self.delete(&Name::Checkpoint(position)).map(drop)
    }

    fn put_item(&self, key: &str, value: &[u8]) -> Result<(), StorageError> {
        self.write_small(&Name::Item(key.to_owned()), value)
    }

    fn item(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError> {
        self.read(&Name::Item(key.to_owned()))
    }

    fn items(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        // 0xff is in no UTF-8 text, so it comes after every key with this prefix.
        let mut end = Name::Item(prefix.to_owned()).key();
        end.push(u8::MAX);
        let keys = self.keys(Area::Catalogue, Name::Item(prefix.to_owned()).key()..=end)?;
        let text = |key: &Vec<u8>| match Name::of_key(key) {
            Some(Name::Item(text)) => Some(text),
            _ => None,
        };
        Ok(keys.iter().filter_map(text).collect())
    }

    fn delete_item(&self, key: &str) -> Result<(), StorageError> {
        self.delete(&Name::Item(key.to_owned())).map(drop)
    }

    fn usage(&self) -> Result<StoreUsage, StorageError> {
        let live_bytes = self.live_bytes.load(Ordering::Relaxed);
        Ok(StoreUsage { disk_bytes: self.medium.disk_bytes()?, live_bytes })
    }
}
