//! sled made durable: an exclusive directory, a commit that survives power loss, and errors that stop the process.
//!
//! ```text
//!  dir/            0700
//!    lock          held exclusively while a process uses the directory; holds its process id
//!    commits       how many commits were made, to notice when some have vanished
//!    db, conf,     sled's; `db` is synced through a descriptor of our own, because sled's `flush` only hands pages
//!    snap.*, blobs/    to the disk's cache and its background thread merely logs a failed fsync
//! ```
//! The settings and why they are what they are: `docs/adr/0003-sled-settings.md`.

mod error;
mod flusher;
mod lock;
mod mark;
mod panic;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::durable::flusher::Flusher;
use crate::durable::lock::DirLock;
use crate::durable::mark::CommitMark;

pub use error::StorageError;
pub use panic::install_panic_policy;
pub use tree::{Batch, Bytes, Tree};

/// Bytes of one sled segment, fixed when the store is created. With the default (512 KiB) a store of model snapshots
/// grows without end.
const SEGMENT_BYTES: usize = 16 << 20;
/// How often sled's background thread rewrites fragmented segments. It is not relied on for durability, but without it
/// nothing is ever cleaned (`attempt_gc` has no other caller).
const CLEAN_EVERY_MS: u64 = 500;
/// After the last handle is dropped sled's worker threads may keep the file open for a moment. While we hold our own
/// lock, nobody else can be meant by a held sled lock, so it is waited for.
const REOPEN_TRIES: u32 = 100;
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

/// An open store. One process, one directory. Safe to share between threads.
pub struct DurableDb {
    committer: Mutex<Committer>,
    db: sled::Db,
    dir: Arc<Path>,
    /// Dropped last: the directory is free when sled has let go of it.
    _lock: DirLock,
}

impl fmt::Debug for DurableDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableDb").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl DurableDb {
    /// Opens the store in `dir`, which is created (mode 0700) if it is not there. Blocks: recovery may take seconds.
    ///
    /// # Errors
    /// See [`StorageError`]; `Locked` if another process has it open.
    pub fn open(dir: &Path, options: DbOptions) -> Result<Self, StorageError> {
        create_private_dir(dir)?;
        let lock = DirLock::acquire(dir)?;
        sweep_partial_snapshots(dir)?;
        let db = open_sled(dir, options)?;
        crate::faults::point("store-opening");
        let at = |path: PathBuf| move |source| StorageError::of_io(&path, source);
        let file = dir.join("db");
        // Written by sled without a sync: the settings, and the directory entries themselves.
        for path in [dir.join("conf"), dir.join("blobs"), file.clone(), dir.to_owned()] {
            File::open(&path).and_then(|opened| opened.sync_all()).map_err(at(path.clone()))?;
        }
        let own = File::options().read(true).write(true).open(&file).map_err(at(file.clone()))?;
        let mark = CommitMark::open(dir, &db)?;
        let flusher = Flusher::start(db.clone()).map_err(at(dir.to_owned()))?;
        let committer = Committer { flusher, sync: Box::new(move || own.sync_data()), mark, poisoned: None };
        Ok(Self { committer: Mutex::new(committer), db, dir: dir.into(), _lock: lock })
    }

    /// The keyspace called `name`, created if it is not there.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn tree(&self, name: &str) -> Result<Tree, StorageError> {
        let tree = self.db.open_tree(name).map_err(|error| StorageError::of_sled(&self.dir, error))?;
        Ok(Tree::new(tree, Arc::clone(&self.dir)))
    }

    /// Makes every write that returned before this call survive power loss. Blocks for the disk.
    ///
    /// # Errors
    /// The first failure poisons the store: what the disk holds is then unknown (a repeated fsync can succeed although
    /// pages were lost), so that call and every later one fail, and nothing may be acknowledged.
    pub fn commit(&self) -> Result<(), StorageError> {
        let mut committer = self.committer();
        if let Some(reason) = &committer.poisoned {
            return Err(StorageError::Poisoned { path: self.dir.to_path_buf(), reason: reason.clone() });
        }
        let synced = self.flush_and_sync(&mut committer);
        if let Err(error) = &synced {
            committer.poisoned = Some(error.to_string());
        }
        synced
    }

    fn flush_and_sync(&self, committer: &mut Committer) -> Result<(), StorageError> {
        let of_sled = |error| StorageError::of_sled(&self.dir, error);
        let of_io = |error| StorageError::of_io(&self.dir, error);
        committer.mark.begin().map_err(of_sled)?;
        committer.flusher.flush(&self.db).map_err(of_sled)?;
        (committer.sync)().map_err(of_io)?;
        committer.mark.done().map_err(of_io)
    }

    fn committer(&self) -> MutexGuard<'_, Committer> {
        // A panic while committing leaves no half-changed state behind: at worst the flush is not known to be done.
        self.committer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that the directory takes on disk.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn disk_bytes(&self) -> Result<u64, StorageError> {
        disk_bytes(&self.dir).map_err(|error| StorageError::of_io(&self.dir, error))
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    #[cfg(test)]
    fn replace_sync(&self, sync: impl Fn() -> io::Result<()> + Send + 'static) {
        self.committer().sync = Box::new(sync);
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

/// Creates `dir` for the owner alone, and makes its entry in the parent durable.
fn create_private_dir(dir: &Path) -> Result<(), StorageError> {
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

fn open_sled(dir: &Path, options: DbOptions) -> Result<sled::Db, StorageError> {
    // `mode` is not set: 0.34.7 stores it and never reads it.
    let config = sled::Config::new()
        .path(dir)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(options.cache_bytes)
        .flush_every_ms(Some(CLEAN_EVERY_MS))
        .print_profile_on_drop(false);
    let mut tries = 0;
    loop {
        let opened = panic::catching(|| config.open())
            .map_err(|detail| StorageError::Corrupt { path: dir.to_owned(), detail })?
            .map_err(|error| StorageError::of_sled(dir, error));
        match opened {
            Err(StorageError::Locked { .. }) if tries < REOPEN_TRIES => {
                tries += 1;
                std::thread::sleep(REOPEN_PAUSE);
            }
            opened => return opened,
        }
    }
}
