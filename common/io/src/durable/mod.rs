//! sled made durable: an exclusive directory, a commit that survives power loss, and errors that stop the process.
//!
//! ```text
//!  dir/            0700
//!    lock          held exclusively while a process uses the directory; holds its process id
//!    new/          a store that is being created, until all of it is synced
//!    commits       how many commits were made, to notice when some have vanished
//!    db, conf,     sled's; `db` is synced through a descriptor of our own, because sled's `flush` only hands pages
//!    snap.*, blobs/    to the disk's cache and its background thread merely logs a failed fsync
//!    bulk/         long contents in files beside sled, synced before its commit ([`Files`])
//! ```
//! The settings and why they are what they are: `docs/adr/0003-sled-settings.md`.

mod create;
mod error;
mod files;
mod flusher;
mod lock;
mod look;
mod mark;
mod owner;
mod panic;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::limits::STORE_VALUE_BYTES;
use parking_lot::Mutex;

use crate::durable::flusher::Flusher;
use crate::durable::look::PrivateCopy;
use crate::durable::mark::CommitMark;

pub use error::{LockHolder, StorageError};
pub use files::{Access, Files, Growing};
pub use lock::{Lock, ReadLock, is_written};
pub use owner::act_as_owner;
pub use panic::install_panic_policy;
pub use tree::{Batch, Bytes, Tree};

/// A commit is made by itself when this share of a segment has been written since the last one. sled writes over a
/// segment as soon as what was in it lies elsewhere in the disk's cache; a sync must come in between.
const SEGMENT_SHARE: u64 = 8;
/// How often sled's background thread rewrites fragmented segments. It is not relied on for durability, but without it
/// nothing is ever cleaned (`attempt_gc` has no other caller).
const CLEAN_EVERY_MS: u64 = 500;
const REOPEN_PAUSE: Duration = Duration::from_millis(10);

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DbOptions {
    /// Bytes of sled's page cache. The process needs about five times as much at its peak.
    pub cache_bytes: u64,
}

impl Default for DbOptions {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20 }
    }
}

type SyncFn = Box<dyn Fn() -> io::Result<()> + Send>;

/// What a commit needs, under one mutex: commits are serial.
struct Committer {
    flusher: Flusher,
    /// Syncs our own descriptor of the database file, opened before the first write and kept: the kernel reports a
    /// failed write-back once to each descriptor that was open, so a later one would not learn of it.
    sync: SyncFn,
    mark: CommitMark,
    /// Why the first failed commit failed.
    poisoned: Option<String>,
}

/// What the database and its keyspaces share.
struct Shared {
    /// A panic while committing leaves no half-changed state behind: at worst the flush is not known to be done.
    committer: Mutex<Committer>,
    db: sled::Db,
    dir: Arc<Path>,
    /// Bytes written since the last commit began.
    written_bytes: AtomicU64,
    /// A commit is made by itself at so many.
    barrier_bytes: u64,
    /// Where a store that is only read really lies. Last: it is removed when sled has let go of it.
    _copy: Option<PrivateCopy>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// An open store. One process, one directory. Safe to share between threads.
pub struct DurableDb {
    shared: Arc<Shared>,
    /// Dropped last: the directory is free when sled has let go of it.
    _lock: Lock,
}

impl fmt::Debug for DurableDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableDb").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl DurableDb {
    /// Opens the store in `dir`, which is created (mode 0700) if it is not there. Blocks: recovery may take seconds.
    ///
    /// # Errors
    /// See [`StorageError`]; `Locked` if another process has it open.
    pub fn open(dir: &Path, options: DbOptions) -> Result<Self, StorageError> {
        Self::open_with_segments(dir, options, limits::STORE_SEGMENT_MAX_BYTES)
    }

    /// The same with segments of another size: a power of two, at least eight times the largest value. A small store
    /// of small values takes less room with small ones. The size is fixed when the store is created: one that is there
    /// keeps its own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_segments(dir: &Path, options: DbOptions, segment_bytes: usize) -> Result<Self, StorageError> {
        Self::open_in(dir, dir, None, options, segment_bytes)
    }

    /// Opens a private copy of the store in `dir`, for reading: nothing in `dir` is created or changed, and what is written
    /// goes with the copy. A store that is not there is an empty one.
    ///
    /// # Errors
    /// As [`open`](Self::open); also when the temporary directory has no room for the copy.
    pub fn open_copy(dir: &Path, options: DbOptions, segment_bytes: usize) -> Result<Self, StorageError> {
        let copy = PrivateCopy::of(dir)?;
        let path = copy.path().to_owned();
        Self::open_in(&path, dir, Some(copy), options, segment_bytes).map_err(|error| error.moved(&path, dir))
    }

    /// Opens what lies in `dir`, and calls it `shown` in messages.
    fn open_in(
        dir: &Path,
        shown: &Path,
        copy: Option<PrivateCopy>,
        options: DbOptions,
        segment_bytes: usize,
    ) -> Result<Self, StorageError> {
        create_private_dir(dir)?;
        let lock = Lock::acquire(dir)?;
        create::complete(dir, options, segment_bytes)?;
        let segment_bytes = stored_segment_bytes(dir).unwrap_or(segment_bytes);
        sweep_partial_snapshots(dir)?;
        let db = open_sled(dir, options, segment_bytes)?;
        crate::faults::point("store-opening");
        let at = |path: PathBuf| move |source| StorageError::of_io(&path, source);
        let file = dir.join("db");
        // What a process that was killed had written, and may not have synced, is durable from here on: whoever opens the
        // store may delete what it no longer names. And sled syncs its snapshots, but not their names.
        for path in [file.clone(), dir.to_owned()] {
            File::open(&path).and_then(|opened| opened.sync_all()).map_err(at(path.clone()))?;
        }
        let own = File::options().read(true).write(true).open(&file).map_err(at(file.clone()))?;
        let mark = CommitMark::open(dir, &db)?;
        let flusher = Flusher::start(db.clone()).map_err(at(dir.to_owned()))?;
        let committer = Committer { flusher, sync: Box::new(move || own.sync_data()), mark, poisoned: None };
        let shared = Shared {
            committer: Mutex::new(committer),
            db,
            dir: shown.into(),
            written_bytes: AtomicU64::new(0),
            barrier_bytes: segment_bytes as u64 / SEGMENT_SHARE,
            _copy: copy,
        };
        Ok(Self { shared: Arc::new(shared), _lock: lock })
    }

    /// The keyspace called `name`, created if it is not there.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn tree(&self, name: &str) -> Result<Tree, StorageError> {
        let tree = self.shared.db.open_tree(name).map_err(|error| self.shared.of_sled(error))?;
        Ok(Tree::new(tree, Arc::clone(&self.shared)))
    }

    /// Makes every write that returned before this call survive power loss. Blocks for the disk.
    ///
    /// # Errors
    /// The first failure poisons the store: what the disk holds is then unknown (a repeated fsync can succeed although
    /// pages were lost), so that call and every later one fail, and nothing may be acknowledged.
    pub fn commit(&self) -> Result<(), StorageError> {
        self.shared.commit(|| Ok(()))
    }

    /// The same, after `first`: what must be durable before what is committed here, in files beside the database. Its
    /// failure poisons the store like any other. One commit runs at a time, `first` included.
    ///
    /// # Errors
    /// What `first` returned, or as [`commit`](Self::commit).
    pub fn commit_after(&self, first: impl FnOnce() -> Result<(), StorageError>) -> Result<(), StorageError> {
        self.shared.commit(first)
    }

    /// Bytes that the directory takes on disk.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn disk_bytes(&self) -> Result<u64, StorageError> {
        disk_bytes(self.dir()).map_err(|error| StorageError::of_io(self.dir(), error))
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    #[cfg(test)]
    fn replace_sync(&self, sync: impl Fn() -> io::Result<()> + Send + 'static) {
        self.shared.committer.lock().sync = Box::new(sync);
    }
}

impl Shared {
    fn of_sled(&self, error: sled::Error) -> StorageError {
        StorageError::of_sled(&self.dir, error)
    }

    fn commit(&self, first: impl FnOnce() -> Result<(), StorageError>) -> Result<(), StorageError> {
        self.commit_with(&mut self.committer.lock(), first)
    }

    fn commit_with(
        &self,
        committer: &mut Committer,
        first: impl FnOnce() -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        if let Some(reason) = &committer.poisoned {
            return Err(StorageError::Poisoned { path: self.dir.to_path_buf(), reason: reason.clone() });
        }
        let synced = first().and_then(|()| self.flush_and_sync(committer));
        if let Err(error) = &synced {
            committer.poisoned = Some(error.to_string());
        }
        synced
    }

    fn flush_and_sync(&self, committer: &mut Committer) -> Result<(), StorageError> {
        let of_io = |error| StorageError::of_io(&self.dir, error);
        self.written_bytes.store(0, Ordering::Relaxed);
        committer.mark.begin().map_err(|error| self.of_sled(error))?;
        committer.flusher.flush(&self.db).map_err(|error| self.of_sled(error))?;
        (committer.sync)().map_err(of_io)?;
        committer.mark.done().map_err(of_io)
    }

    /// Counts what was written, and commits when it is so much that sled might soon write over what is not synced. While
    /// a commit is under way it is left to the next write.
    fn wrote(&self, bytes: usize) -> Result<(), StorageError> {
        let before = self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if before + (bytes as u64) < self.barrier_bytes {
            return Ok(());
        }
        self.committer.try_lock().map_or(Ok(()), |mut committer| self.commit_with(&mut committer, || Ok(())))
    }
}

fn disk_bytes(dir: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        total += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path())?,
            Ok(metadata) => allocated_bytes(&metadata),
            // sled removes files in the background.
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(total)
}

#[cfg(unix)]
fn allocated_bytes(metadata: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // POSIX counts blocks of 512 bytes, whatever the file system's own size is.
    metadata.blocks() * 512
}

#[cfg(not(unix))]
fn allocated_bytes(metadata: &std::fs::Metadata) -> u64 {
    metadata.len()
}

/// Creates `dir` for the owner alone unless it is there, and makes its entry in the parent durable.
///
/// # Errors
/// It cannot be created.
pub fn create_private_dir(dir: &Path) -> Result<(), StorageError> {
    if dir.is_dir() {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(|error| StorageError::of_io(dir, error))?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| StorageError::of_io(parent, error))
}

/// A crash while sled opens or closes can leave `snap.<lsn>.generating` half written. sled would take it for its newest
/// snapshot and refuse to open (sled issues 1527 and 1533). It is never needed: the one before is still there.
fn sweep_partial_snapshots(dir: &Path) -> Result<(), StorageError> {
    let at = |source| StorageError::of_io(dir, source);
    for entry in std::fs::read_dir(dir).map_err(at)? {
        let entry = entry.map_err(at)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(file = %name, "removing a snapshot that was not finished");
            std::fs::remove_file(entry.path()).map_err(|source| StorageError::of_io(&entry.path(), source))?;
        }
    }
    Ok(())
}

/// What a store was created with, if sled's `conf` can be read; whether it is sound is for sled to find out.
fn stored_segment_bytes(dir: &Path) -> Option<usize> {
    let conf = std::fs::read(dir.join("conf")).ok()?;
    let value = conf.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"segment_size: "))?;
    let bytes: usize = str::from_utf8(value).ok()?.parse().ok()?;
    (bytes.is_power_of_two() && (STORE_VALUE_BYTES..=limits::STORE_SEGMENT_MAX_BYTES).contains(&bytes)).then_some(bytes)
}

fn open_sled(dir: &Path, options: DbOptions, segment_bytes: usize) -> Result<sled::Db, StorageError> {
    // `mode` is not set: 0.34.7 stores it and never reads it.
    let config = sled::Config::new()
        .path(dir)
        .segment_size(segment_bytes)
        .cache_capacity(options.cache_bytes)
        .flush_every_ms(Some(CLEAN_EVERY_MS))
        .print_profile_on_drop(false);
    let mut tries = 0;
    loop {
        let opened = panic::catching(|| config.open())
            .map_err(|detail| StorageError::Corrupt { path: dir.to_owned(), detail })?
            .map_err(|error| StorageError::of_sled(dir, error));
        match opened {
            Err(StorageError::Locked { .. }) if tries < limits::STORE_REOPEN_TRIES => {
                tries += 1;
                std::thread::sleep(REOPEN_PAUSE);
            }
            opened => return opened,
        }
    }
}
