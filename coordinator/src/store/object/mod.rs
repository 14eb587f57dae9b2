//! A store in a bucket: objects under keys that are created once (`docs/adr/0042-object-store.md`).
//!
//! ```text
//!   Journal          Blobs           Catalogue
//!      │ append        │ put             │ put
//!      ▼               ▼                 ▼
//!   pending         index            items, checkpoints        in memory
//!      │ sync          └───────┬─────────┘ sync
//!      ▼                       ▼
//!   journal/{slot}       catalogue/{term}/{number}             one put in flight on either line
//!                        blobs/{digest}/{copy}                 put at once, counts when a snapshot lists it
//! ```
//! A snapshot is the whole catalogue, the index of the blobs, and where the journal begins. What no snapshot lists does
//! not exist; it is swept at the next opening.
//!
//! | file | content |
//! |---|---|
//! | `bucket.rs` | what is needed of an object store, and retries whose answer was lost |
//! | `keys.rs`, `format.rs`, `snapshot.rs` | names and bytes of objects |
//! | `terms.rs` | who may write: announcements, seals, fences |
//! | `line.rs`, `journal.rs` | records |
//! | `book.rs`, `catalogue.rs`, `blobs.rs` | snapshots and what they list |
//! | `check.rs` | whether an object store may be used |
//! | `remote.rs` | object stores of others, behind the feature `object-store` |

mod blobs;
mod book;
mod bucket;
mod catalogue;
mod check;
mod format;
mod journal;
mod keys;
mod line;
#[cfg(feature = "object-store")]
pub mod remote;
mod snapshot;
mod sweep;
mod terms;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anabranch_common::limits;
use parking_lot::Mutex;

use self::book::Book;
pub use self::bucket::{Bucket, BucketError, Created, Listed};
pub use self::check::{CheckError, CheckPlan, CheckReport, check};
use self::format::{Author, Entry};
use self::line::{Line, Memory};
use self::snapshot::Floor;
use self::terms::Found;
use super::{Blobs, Catalogue, Journal, StorageError, Store, StoreUsage};

/// Who opens a store to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Drawn at random for each opening.
    pub id: [u8; 16],
    /// For people: what an earlier writer names when it finds that it was superseded. Cut at
    /// `limits::OBJECT_WRITER_BYTES`.
    pub name: String,
}

/// Why nothing more may be written.
#[derive(Debug, Clone)]
enum Stopped {
    Superseded(String),
    Failed(String),
}

/// A [`Store`] in a bucket.
#[derive(Debug)]
pub struct ObjectStore {
    bucket: Arc<dyn Bucket>,
    /// None: what is written stays in memory and goes with the store.
    author: Option<Author>,
    stopped: Mutex<Option<Stopped>>,
    line: Mutex<Line>,
    memory: Mutex<Memory>,
    /// Held while records are on their way to the bucket.
    appending: Mutex<()>,
    book: Mutex<Book>,
    /// Held while a snapshot is on its way to the bucket.
    committing: Mutex<()>,
    /// Bytes of objects that this store knows of.
    stored_bytes: AtomicU64,
}

impl ObjectStore {
    /// Opens the store in a bucket to write, and supersedes the process that had it. An empty bucket is an empty store.
    ///
    /// # Errors
    /// Another process opens it at the same time and is ahead, an object is damaged, or the bucket cannot be used.
    pub fn open(bucket: Arc<dyn Bucket>, writer: &Writer) -> Result<Self, StorageError> {
        let name = format::writer_name(&writer.name);
        let author = terms::announce(bucket.as_ref(), writer.id, name)?;
        let opened = terms::take_over(bucket.as_ref(), author)
            .and_then(|found| Self::found(Arc::clone(&bucket), found, Some((author, name))));
        // The writer of a later term deletes the snapshots and groups that this one was looking for: then what was found
        // may be too little, or look damaged. Where none was announced by now, it was all there.
        let may_be_late = matches!(opened, Ok(_) | Err(StorageError::Corrupt { .. }));
        if may_be_late && terms::is_superseded(bucket.as_ref(), author)? {
            return Err(terms::superseded(bucket.as_ref(), author.term + 1));
        }
        let store = opened?;
        store.sweep()?;
        Ok(store)
    }

    /// Opens the store in a bucket to read: nothing in it is changed. What is written goes with the store.
    ///
    /// # Errors
    /// An object is damaged, or the bucket cannot be used.
    pub fn open_copy(bucket: Arc<dyn Bucket>) -> Result<Self, StorageError> {
        for _ in 0..limits::OBJECT_LOOKS {
            let before = terms::extent(bucket.as_ref())?;
            let opened = terms::look(bucket.as_ref())
                .and_then(|found| found.map(|found| Self::found(Arc::clone(&bucket), found, None)).transpose());
            // A writer that made a snapshot meanwhile may have deleted what was looked for.
            if terms::extent(bucket.as_ref())? == before
                && let Some(store) = opened?
            {
                return Ok(store);
            }
        }
        let detail = "another process changes it faster than it can be read".to_owned();
        Err(StorageError::Remote { path: bucket::path(bucket.as_ref()), detail })
    }

    fn found(bucket: Arc<dyn Bucket>, found: Found, writer: Option<(Author, &str)>) -> Result<Self, StorageError> {
        let Found { snapshot, at, seals } = found;
        let mut memory = Memory::default();
        let tail = snapshot.tail;
        let followed = terms::follow(bucket.as_ref(), tail, writer, |slot, entry| {
            if let Entry::Group(group) = entry {
                memory.put(slot, Arc::new(group));
            }
        })?;
        let mut line = Line { floor: snapshot.floor, durable: followed.end, ..Line::default() };
        line.fences = snapshot.fences.iter().copied().chain(followed.fences).collect();
        line.groups = followed.groups.into_iter().collect();
        if line.floor != Floor::default() {
            line.groups.entry(line.floor.place.slot).or_default();
        }
        let author = writer.map(|(author, _)| author);
        let book = Book::new(snapshot, at, seals, author.map_or(0, |author| author.term));
        Ok(Self {
            bucket,
            author,
            stopped: Mutex::default(),
            line: Mutex::new(line),
            memory: Mutex::new(memory),
            appending: Mutex::default(),
            book: Mutex::new(book),
            committing: Mutex::default(),
            stored_bytes: AtomicU64::new(0),
        })
    }

    /// Returns the term of this writer; none for a copy.
    #[must_use]
    pub fn term(&self) -> Option<u64> {
        self.author.map(|author| author.term)
    }

    /// Fails once anything has failed that makes it uncertain what is stored.
    fn check_running(&self) -> Result<(), StorageError> {
        let path = || bucket::path(self.bucket.as_ref());
        match &*self.stopped.lock() {
            None => Ok(()),
            Some(Stopped::Superseded(by)) => Err(StorageError::Superseded { path: path(), by: by.clone() }),
            Some(Stopped::Failed(reason)) => Err(StorageError::Poisoned { path: path(), reason: reason.clone() }),
        }
    }

    /// Lets every later write fail.
    fn stop(&self, error: StorageError) -> StorageError {
        let mut stopped = self.stopped.lock();
        if stopped.is_none() {
            *stopped = Some(match &error {
                StorageError::Superseded { by, .. } => Stopped::Superseded(by.clone()),
                other => Stopped::Failed(other.to_string()),
            });
        }
        error
    }

    /// The key that this writer was about to create holds `bytes`.
    fn taken(&self, key: &str, bytes: &[u8]) -> StorageError {
        let own = self.author.map_or(0, |author| author.term);
        match format::read(bytes) {
            Ok((_, by, _)) if by.term > own => terms::superseded(self.bucket.as_ref(), by.term),
            Ok(_) => bucket::damaged(self.bucket.as_ref(), key, "was there before it was written"),
            Err(what) => bucket::damaged(self.bucket.as_ref(), key, what),
        }
    }

    fn stored(&self, bytes: usize) {
        self.stored_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn removed(&self, bytes: u64) {
        let less = |stored: u64| Some(stored.saturating_sub(bytes));
        _ = self.stored_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Store for ObjectStore {
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
        let (records, mark) = {
            let line = self.line.lock();
            // The position of the floor, as stores on a disk keep it.
            (line.live_bytes(), if line.floor == Floor::default() { 0 } else { 8 })
        };
        let live_bytes = records + mark + self.book.lock().live_bytes();
        Ok(StoreUsage { disk_bytes: self.stored_bytes.load(Ordering::Relaxed), live_bytes })
    }
}
