//! What a listing is good for: where groups of the journal begin, how much room the store takes, and what earlier writers
//! have left that nothing needs. A listing that lags costs a few more reads and leaves some of it for the next opening.

use anabranch_common::ids::Position;

use super::bucket::{self, Listed};
use super::snapshot::{Numbered, kept};
use super::{ObjectStore, keys};
use crate::store::StorageError;

impl ObjectStore {
    /// Looks through the bucket, and deletes what is left over.
    pub(super) fn sweep(&self) -> Result<(), StorageError> {
        let Some(author) = self.author else { return Ok(()) };
        let listed = bucket::list(self.bucket.as_ref(), "")?;
        let (mut left_over, mut strange) = (Vec::new(), Vec::new());
        let mut stored_bytes = 0;
        for Listed { key, bytes } in listed {
            stored_bytes += bytes;
            if let Some(slot) = keys::parse_slot(&key) {
                if self.is_pruned(slot, bytes) {
                    left_over.push((key, bytes));
                }
            } else if let Some((id, copy)) = keys::parse_blob(&key) {
                let is_listed = self.book.lock().blobs.get(&id).is_some_and(|at| at.copy == copy);
                if copy.term < author.term && !is_listed {
                    left_over.push((key, bytes));
                }
            } else if let Some((term, number)) = keys::parse_snapshot(&key)
                && term < author.term
                && !self.is_needed(term, number)
            {
                strange.push((key, bytes));
            }
        }
        self.stored_bytes.store(stored_bytes, std::sync::atomic::Ordering::Relaxed);
        for (key, bytes) in strange {
            // A seal that no snapshot lists stays for ever, as every seal does.
            let found = bucket::get(self.bucket.as_ref(), &key)?;
            match found.as_deref().map(Numbered::read) {
                Some(Ok((_, Numbered::Snapshot(_)))) => left_over.push((key, bytes)),
                Some(Ok((_, Numbered::Seal))) => {
                    if let Some((term, number)) = keys::parse_snapshot(&key) {
                        self.book.lock().seals.insert(term, number);
                    }
                }
                _ => {}
            }
        }
        if !left_over.is_empty() {
            tracing::info!(objects = left_over.len(), "deleting what earlier writers have left over");
        }
        self.delete_all(left_over);
        Ok(())
    }

    /// Whether the records of the object at this slot were all pruned. Notes groups that count.
    fn is_pruned(&self, slot: u64, bytes: u64) -> bool {
        let mut line = self.line.lock();
        let is_fence = line.fences.iter().any(|fence| fence.slot == slot);
        if is_fence || slot >= line.durable.slot {
            return false;
        }
        if slot >= line.floor.place.slot || slot == line.slot_of(Position(0)) {
            line.groups.insert(slot, bytes);
            return false;
        }
        true
    }

    /// Whether a number of an earlier term's catalogue is a seal that is known, or leads to the snapshot that counts.
    fn is_needed(&self, term: u64, number: u64) -> bool {
        let book = self.book.lock();
        let leads = |(of, newest): (u64, u64)| of == term && kept(newest).contains(&number);
        book.seals.get(&term) == Some(&number) || book.inherited.is_some_and(leads)
    }
}
