//! The three seams over any [`Medium`], written once.

mod blobs;
mod catalogue;
mod entries;
mod journal;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use anabranch_common::ids::Digest;
use parking_lot::Mutex;

use self::entries::Entries;
use self::journal::Extent;
use super::{Blobs, Catalogue, Journal, Medium, StorageError, Store, StoreUsage};

/// A [`Store`] on a [`Medium`]. A sync of one seam covers the writes of all three.
#[derive(Debug)]
pub struct Engine<M> {
    entries: Entries<M>,
    extent: Mutex<Extent>,
    /// Blobs that were written, or read and found whole, since the store was opened.
    whole: Mutex<BTreeSet<Digest>>,
}

impl<M: Medium> Engine<M> {
    /// Takes over what the medium holds: finishes a pruning that was cut short, drops the records
    /// at the tail that power loss tore before they were committed, and commits, so that
    /// everything that can be read is durable.
    ///
    /// # Errors
    /// The storage fails, or a head is damaged that says where the journal ends.
    pub fn open(medium: M) -> Result<Self, StorageError> {
        let entries = Entries::new(medium);
        let extent = Extent::open(&entries)?;
        blobs::sweep_chunks(&entries)?;
        entries.medium.commit()?;
        entries.live_bytes.store(entries.count_live_bytes()?, Ordering::Relaxed);
        Ok(Self { entries, extent: Mutex::new(extent), whole: Mutex::default() })
    }
}

impl<M: Medium> Store for Engine<M> {
    fn journal(&self) -> &dyn Journal {
        self
    }

    fn blobs(&self) -> &dyn Blobs {
        self
    }

    fn catalogue(&self) -> &dyn Catalogue {
        self
    }

    fn usage(&self) -> Result<StoreUsage, StorageError> {
        let live_bytes = self.entries.live_bytes.load(Ordering::Relaxed);
        Ok(StoreUsage { disk_bytes: self.entries.medium.disk_bytes()?, live_bytes })
    }
}
