//! The store in a bucket, on a bucket that misbehaves: the seams' suites, deaths at every request, writers that supersede
//! one another, damage, and the check of a bucket.

mod check;
mod deaths;
mod seams;
mod writers;

use anabranch_coordinator::store::object::Writer;
use anabranch_coordinator::store::{Blobs, Catalogue, Journal, ObjectStore, StorageError, Store, StoreUsage};
use anabranch_testkit_store::SimBucket;
use anabranch_testkit_store::bucket::Weather;
use std::sync::Arc;

/// A store, and a way to its bucket that stays fair.
#[derive(Debug)]
struct Opened {
    bucket: SimBucket,
    store: ObjectStore,
}

/// Opens the store of a bucket over a way of its own.
fn open(bucket: &SimBucket, seed: u64, weather: Weather) -> Result<ObjectStore, StorageError> {
    open_over(bucket.connect(seed, weather), seed)
}

fn open_over(way: SimBucket, seed: u64) -> Result<ObjectStore, StorageError> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&seed.to_le_bytes());
    ObjectStore::open(Arc::new(way), &Writer { id, name: format!("writer {seed}") })
}

impl Opened {
    fn new(bucket: SimBucket, seed: u64, weather: Weather) -> Self {
        let store = open(&bucket, seed, weather).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        Self { bucket, store }
    }
}

impl Store for Opened {
    fn journal(&self) -> &dyn Journal {
        self.store.journal()
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
