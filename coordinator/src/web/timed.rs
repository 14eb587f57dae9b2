//! A store whose journal says how long it takes.

use anabranch_common::ids::Position;

use super::Events;
use crate::clock;
use crate::store::{Blobs, Catalogue, Journal, StorageError, Store, StoreUsage};

/// A store, of whose journal each append and each sync is timed.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) events: &'a Events,
}

impl Store for Timed<'_> {
    fn journal(&self) -> &dyn Journal {
        self
    }

    fn blobs(&self) -> &dyn Blobs {
        self.store.blobs()
    }

    fn catalogue(&self) -> &dyn Catalogue {
        self.store.catalogue()
    }

    fn usage(&self) -> Result<StoreUsage, StorageError> {
        self.store.usage()
    }
}

impl Journal for Timed<'_> {
    fn append(&self, records: &[(Position, Vec<u8>)]) -> Result<(), StorageError> {
        let began = clock::monotonic();
        self.store.journal().append(records)?;
        self.events.appended(began.elapsed());
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        let began = clock::monotonic();
        self.store.journal().sync()?;
        self.events.synced(began.elapsed());
        Ok(())
    }

    fn record(&self, position: Position) -> Result<Option<Vec<u8>>, StorageError> {
        self.store.journal().record(position)
    }

    fn first_position(&self) -> Result<Option<Position>, StorageError> {
        self.store.journal().first_position()
    }

    fn last_position(&self) -> Result<Option<Position>, StorageError> {
        self.store.journal().last_position()
    }

    fn prune(&self, below: Position) -> Result<u64, StorageError> {
        self.store.journal().prune(below)
    }

    fn skip_to(&self, position: Position) -> Result<(), StorageError> {
        self.store.journal().skip_to(position)
    }
}
