//! What the next snapshot will say, and how it becomes durable.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{Digest, Position};
use anabranch_common::limits;

use super::bucket::{self, Put};
use super::format::HEAD_BYTES;
use super::keys::{self, BlobCopy};
use super::snapshot::{BlobAt, Snapshot, kept};
use super::{ObjectStore, terms};
use crate::store::StorageError;

/// The catalogue and the index of blobs, as they are read; the newest snapshot may be behind.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) items: BTreeMap<String, Vec<u8>>,
    pub(super) checkpoints: BTreeMap<Position, Vec<u8>>,
    pub(super) blobs: BTreeMap<Digest, BlobAt>,
    /// Contents that were put into a copy.
    pub(super) private: BTreeMap<Digest, Vec<u8>>,
    /// Blobs that were written, or read and found whole, since the store was opened.
    pub(super) whole: BTreeSet<Digest>,
    /// The number of the seal of each sealed term.
    pub(super) seals: BTreeMap<u64, u64>,
    /// Term and number of the snapshot that the store was opened with, until an own one replaces it.
    pub(super) inherited: Option<(u64, u64)>,
    /// Number of the newest own snapshot.
    number: u64,
    /// Own snapshots that are there, and bytes of their objects.
    snapshots: BTreeMap<u64, u64>,
    /// Changes so far, and how many of them the newest snapshot has.
    changes: u64,
    committed: u64,
    /// Objects that go when a snapshot is durable that does not need them, with their length.
    discarded: Vec<(String, u64)>,
    next_blob: BlobCopy,
}

impl Book {
    pub(super) fn new(snapshot: Snapshot, inherited: Option<(u64, u64)>, seals: BTreeMap<u64, u64>, term: u64) -> Self {
        let mut all_seals = snapshot.seals;
        all_seals.extend(seals);
        Self {
            items: snapshot.items,
            checkpoints: snapshot.checkpoints,
            blobs: snapshot.blobs,
            private: BTreeMap::new(),
            whole: BTreeSet::new(),
            seals: all_seals,
            inherited,
            number: 0,
            snapshots: BTreeMap::new(),
            // The first sync of a writer makes a snapshot of its own.
            changes: 1,
            committed: 0,
            discarded: Vec::new(),
            next_blob: BlobCopy { term, number: 0 },
        }
    }

    /// Something is not as the newest snapshot says.
    pub(super) fn change(&mut self) {
        self.changes += 1;
    }

    /// Lets an object go when the next snapshot is durable.
    pub(super) fn discard(&mut self, key: String, bytes: u64) {
        self.discarded.push((key, bytes));
    }

    /// The key of the next blob.
    pub(super) fn next_blob(&mut self) -> BlobCopy {
        self.next_blob.number += 1;
        self.next_blob
    }

    pub(super) fn live_bytes(&self) -> u64 {
        let blobs: u64 = self.blobs.values().map(|at| at.bytes).sum();
        let items: u64 = self.items.values().map(|value| value.len() as u64).sum();
        let manifests: u64 = self.checkpoints.values().map(|manifest| manifest.len() as u64).sum();
        blobs + items + manifests
    }

    /// Snapshots that nothing needs once `number` is durable.
    fn outdated(&self, number: u64) -> Vec<u64> {
        let kept = kept(number);
        self.snapshots.keys().copied().filter(|old| *old != number && !kept.contains(old)).collect()
    }
}

/// Bytes of the object of a blob.
pub(super) fn blob_object_bytes(at: &BlobAt) -> u64 {
    at.bytes + HEAD_BYTES as u64
}

/// Returns the number of the snapshot after `number`; none when a term has no more.
fn next_number(number: u64) -> Option<u64> {
    Some(number + 1).filter(|next| next >> limits::OBJECT_SNAPSHOT_BITS == 0)
}

impl ObjectStore {
    /// Makes the catalogue, the index of blobs and the floor of the journal durable, and deletes what they no longer need.
    pub(super) fn commit(&self) -> Result<(), StorageError> {
        let Some(author) = self.author else { return Ok(()) };
        let _one_at_a_time = self.committing.lock();
        self.check_running()?;
        let (snapshot, number, changes, discarded) = {
            // The line within the book: what was discarded with a new floor goes only when a snapshot has that floor.
            let mut book = self.book.lock();
            let mut snapshot = {
                let line = self.line.lock();
                let (floor, tail, fences) = (line.floor, line.durable, line.fences.clone());
                Snapshot { floor, tail, fences, ..Snapshot::default() }
            };
            if book.committed == book.changes {
                return Ok(());
            }
            snapshot.seals = book.seals.clone();
            snapshot.blobs = book.blobs.clone();
            snapshot.items = book.items.clone();
            snapshot.checkpoints = book.checkpoints.clone();
            let Some(number) = next_number(book.number) else {
                let problem = "one process has written all the snapshots that it can; start it again".to_owned();
                return Err(terms::refused(self.bucket.as_ref(), problem));
            };
            (snapshot, number, book.changes, std::mem::take(&mut book.discarded))
        };
        let (key, object) = (keys::snapshot(author.term, number), snapshot.to_object(author));
        match bucket::create(self.bucket.as_ref(), &key, &object) {
            Ok(Put::Done) => {}
            Ok(Put::Taken(bytes)) => return Err(self.stop(self.taken(&key, &bytes))),
            Err(error) => return Err(self.stop(error)),
        }
        self.stored(object.len());
        let outdated = {
            let mut book = self.book.lock();
            (book.number, book.committed) = (number, changes);
            book.snapshots.insert(number, object.len() as u64);
            book.outdated(number)
        };
        self.forget_snapshots(&outdated)?;
        self.delete_all(discarded);
        Ok(())
    }

    /// Deletes own snapshots that are outdated, and the inherited one. Not where a later term was announced: its writer may
    /// be looking for the newest among them.
    fn forget_snapshots(&self, outdated: &[u64]) -> Result<(), StorageError> {
        let Some(author) = self.author else { return Ok(()) };
        let inherited = self.book.lock().inherited;
        if outdated.is_empty() && inherited.is_none() {
            return Ok(());
        }
        if terms::is_superseded(self.bucket.as_ref(), author)? {
            return Err(self.stop(terms::superseded(self.bucket.as_ref(), author.term + 1)));
        }
        let mut keys = Vec::new();
        {
            let mut book = self.book.lock();
            for number in outdated {
                let bytes = book.snapshots.remove(number).unwrap_or_default();
                keys.push((keys::snapshot(author.term, *number), bytes));
            }
            if let Some((term, number)) = book.inherited.take() {
                keys.extend(kept(number).into_iter().map(|number| (keys::snapshot(term, number), 0)));
            }
        }
        self.delete_all(keys);
        Ok(())
    }

    /// Deletes objects. One that cannot be deleted takes room and is in nobody's way; the next opening sweeps it.
    pub(super) fn delete_all(&self, keys: Vec<(String, u64)>) {
        for (key, bytes) in keys {
            match bucket::delete(self.bucket.as_ref(), &key) {
                Ok(()) => self.removed(bytes),
                Err(error) => tracing::warn!(key, %error, "an object that nothing needs cannot be deleted"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshots_of_a_term_are_bounded() {
        let most = (1 << limits::OBJECT_SNAPSHOT_BITS) - 1;
        assert_eq!(next_number(0), Some(1));
        assert_eq!(next_number(most - 1), Some(most));
        assert_eq!(next_number(most), None);
    }
}
