//! Where the payloads come from that are sent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anabranch_common::codec::CodecSpec;
use anabranch_common::ids::{BranchId, Digest, Epoch, LeaseId, UpdateSeq};
use anabranch_common::manifest::TensorSpec;
use anabranch_common::testkit::lease::lease;

use parking_lot::Mutex;

use super::*;
use crate::session::event::Outcome;
use crate::store::{Content, Shelf};

const RUN: RunId = RunId([1; 16]);
const AGENT: AgentId = AgentId([2; 16]);

/// A storage in memory that counts how often blobs are read.
#[derive(Debug, Clone, Default)]
struct Counting {
    entries: Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>,
    reads: Arc<AtomicUsize>,
}

impl Counting {
    /// Reads since the last call.
    fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::Relaxed)
    }

    /// The thread of an agent that starts on this storage.
    fn start(&self) -> (StoreThread, mpsc::Receiver<Event>) {
        let ledger = Ledger::over(Box::new(self.clone())).expect("opens");
        let (events, told) = mpsc::channel(4);
        let thread = StoreThread::spawn(ledger, RUN, AGENT, events).expect("a thread");
        // What was read to open it is not of interest.
        self.reads();
        (thread, told)
    }
}

impl Shelf for Counting {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.entries.lock().get(key).cloned())
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.entries.lock().insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn remove(&self, key: &[u8]) -> Result<(), StorageError> {
        self.entries.lock().remove(key);
        Ok(())
    }

    fn put(&self, prefix: &[u8], content: Content<'_>) -> Result<Digest, StorageError> {
        let bytes = content.to_bytes().into_owned();
        let digest = Digest::of(&bytes);
        self.entries.lock().insert(prefix.to_vec(), bytes);
        Ok(digest)
    }

    fn read(&self, prefix: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.get(prefix)
    }

    fn delete(&self, prefix: &[u8]) -> Result<(), StorageError> {
        self.remove(prefix)
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StorageError> {
        Ok(self.entries.lock().keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }

    fn commit(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn path(&self) -> &Path {
        Path::new("memory")
    }

    fn place(&self, _prefix: &[u8]) -> PathBuf {
        self.path().to_owned()
    }
}

fn manifest() -> ModelManifest {
    ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![3] }]).expect("valid")
}

fn bank() -> Bank {
    let lease = lease(LeaseId(1), AGENT, BranchId([3; 16]));
    let outcome = Outcome {
        lease: lease.id,
        delta: [1.0, -2.0, 3.0].into(),
        num_examples: 1,
        local_steps: 1,
        train_loss: 0.0,
        compute_ms: 1,
        encoded: None,
    };
    Bank { lease, epoch: Epoch(1), seq: UpdateSeq(0), codec: CodecSpec::F32, feedback_decay: 0.0, outcome }
}

/// The disk is slow and may be busy with the next update: it is for restarts.
#[test]
fn a_fresh_update_is_sent_without_a_read_of_the_store_and_after_a_restart_it_is_read() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let storage = Counting::default();
    let (store, mut told) = storage.start();
    let job = StoreJob::Bank { bank: Box::new(bank()), manifest: Arc::new(manifest()) };
    store.jobs().send(job).expect("the thread is there");
    let Some(Event::Banked(entry)) = told.blocking_recv() else { panic!("it is not banked") };
    let key = entry.meta.key;
    let fresh = runtime.block_on(store.payloads().get(key)).expect("in the outbox");
    assert_eq!(Digest::of(&fresh), entry.meta.payload_digest);
    assert_eq!(storage.reads(), 0, "it is in memory");
    store.finish();

    let (store, mut told) = storage.start();
    let read = runtime.block_on(store.payloads().get(key)).expect("in the outbox");
    assert_eq!((read, storage.reads()), (fresh, 1));

    store.jobs().send(StoreJob::Settle { key, content: Settlement::Drop }).expect("the thread is there");
    assert_eq!(told.blocking_recv(), Some(Event::Settled { key }));
    assert_eq!(runtime.block_on(store.payloads().get(key)), None, "it has left the outbox");
    store.finish();
}

#[test]
fn a_settled_update_leaves_the_memory_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (store, mut told) = Counting::default().start();
    let job = StoreJob::Bank { bank: Box::new(bank()), manifest: Arc::new(manifest()) };
    store.jobs().send(job).expect("the thread is there");
    let Some(Event::Banked(entry)) = told.blocking_recv() else { panic!("it is not banked") };
    let key = entry.meta.key;
    store.jobs().send(StoreJob::Settle { key, content: Settlement::Return }).expect("the thread is there");
    assert_eq!(told.blocking_recv(), Some(Event::Settled { key }));
    assert_eq!(runtime.block_on(store.payloads().get(key)), None);
    store.finish();
}
