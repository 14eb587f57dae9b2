//! A store in memory that knows what was synced: tests take its power away, and make its writes and commits fail.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use anabranch_common::rng::SplitMix64;
use anabranch_coordinator::store::{
    Area, Blobs, Catalogue, Engine, Journal, Medium, StorageError, Store, StoreUsage, Visit,
};
use parking_lot::Mutex;

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    engine: Engine<MemoryMedium>,
    /// What the engine works on.
    disk: Arc<Mutex<Disk>>,
}

/// What is stored in memory. Clones share it.
#[derive(Debug, Clone, Default)]
struct MemoryMedium {
    disk: Arc<Mutex<Disk>>,
}

/// What becomes of writes that were not synced when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    /// None is there.
    None,
    /// All are there: what `kill -9` does.
    All,
    /// Each is there or not, as a generator with this seed decides: a disk that reorders.
    Some {
        /// The seed.
        seed: u64,
    },
}

/// Which operation fails, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The operation.
    pub site: FaultSite,
    /// What the storage says.
    pub kind: FaultKind,
}

/// An operation that fails, counted from 0 since the fault was set. Everything after it fails too, until the power is
/// taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultSite {
    /// This insertion or removal.
    Write(u64),
    /// This commit.
    Commit(u64),
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// No space is left.
    NoSpace,
    /// An input or output error.
    Io,
}

type Key = (Area, Vec<u8>);

#[derive(Debug, Default)]
struct Disk {
    /// What is read.
    seen: BTreeMap<Key, Vec<u8>>,
    /// What was synced.
    synced: BTreeMap<Key, Vec<u8>>,
    /// Writes since then, oldest first; a removal has no value.
    unsynced: Vec<(Key, Option<Vec<u8>>)>,
    fault: Option<Fault>,
    writes: u64,
    commits: u64,
    failed: bool,
}

impl Disk {
    fn check(&mut self, site: FaultSite) -> Result<(), StorageError> {
        self.failed |= self.fault.is_some_and(|fault| fault.site == site);
        match self.fault {
            Some(fault) if self.failed => Err(fault.kind.error()),
            _ => Ok(()),
        }
    }

    fn write(&mut self, key: Key, value: Option<Vec<u8>>) -> Result<(), StorageError> {
        self.check(FaultSite::Write(self.writes))?;
        self.writes += 1;
        apply(&mut self.seen, &key, value.clone());
        self.unsynced.push((key, value));
        Ok(())
    }
}

fn apply(map: &mut BTreeMap<Key, Vec<u8>>, key: &Key, value: Option<Vec<u8>>) {
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
}

impl FaultKind {
    fn error(self) -> StorageError {
        let path = Path::new(PATH).to_path_buf();
        match self {
            Self::NoSpace => StorageError::NoSpace { path },
            Self::Io => StorageError::Io { path, source: std::io::Error::other("injected") },
        }
    }
}

const PATH: &str = "(memory)";

impl Medium for MemoryMedium {
    fn get(&self, area: Area, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.disk.lock().seen.get(&(area, key.to_vec())).cloned())
    }

    fn insert(&self, area: Area, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        self.disk.lock().write((area, key.to_vec()), Some(value))
    }

    fn remove(&self, area: Area, key: &[u8]) -> Result<(), StorageError> {
        self.disk.lock().write((area, key.to_vec()), None)
    }

    fn scan(&self, area: Area, range: RangeInclusive<Vec<u8>>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        let (from, to) = range.into_inner();
        if from > to {
            return Ok(());
        }
        // Copied, so that `visit` may use the store.
        let entries: Vec<(Vec<u8>, Vec<u8>)> = self
            .disk
            .lock()
            .seen
            .range((area, from)..=(area, to))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        entries.iter().try_for_each(|(key, value)| visit(key, value))
    }

    fn commit(&self) -> Result<(), StorageError> {
        let mut disk = self.disk.lock();
        let commits = disk.commits;
        disk.check(FaultSite::Commit(commits))?;
        disk.commits += 1;
        let unsynced = std::mem::take(&mut disk.unsynced);
        for (key, value) in unsynced {
            apply(&mut disk.synced, &key, value);
        }
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, StorageError> {
        Ok(self.disk.lock().seen.values().map(|value| value.len() as u64).sum())
    }

    fn path(&self) -> &Path {
        Path::new(PATH)
    }
}

impl Store for MemoryStore {
    fn journal(&self) -> &dyn Journal {
        &self.engine
    }

    fn blobs(&self) -> &dyn Blobs {
        &self.engine
    }

    fn catalogue(&self) -> &dyn Catalogue {
        &self.engine
    }

    fn usage(&self) -> Result<StoreUsage, StorageError> {
        self.engine.usage()
    }
}

impl MemoryStore {
    /// An empty store.
    ///
    /// # Panics
    /// Never: an empty medium without faults opens.
    #[must_use]
    pub fn new() -> Self {
        Self::open(Disk::default()).expect("an empty medium without faults opens")
    }

    /// Takes the power away and opens what is left, as a process that starts again would. This store goes on as it was,
    /// so that a test can try several ways to lose power from the same state.
    ///
    /// # Errors
    /// What is left cannot be opened.
    pub fn crash(&self, survivors: Survivors) -> Result<Self, StorageError> {
        Self::open(self.after_power_loss(survivors))
    }

    fn open(disk: Disk) -> Result<Self, StorageError> {
        let disk = Arc::new(Mutex::new(disk));
        let engine = Engine::open(MemoryMedium { disk: Arc::clone(&disk) })?;
        Ok(Self { engine, disk })
    }

    /// What is left on the disk after the power went.
    fn after_power_loss(&self, survivors: Survivors) -> Disk {
        let disk = self.disk.lock();
        let mut left = disk.synced.clone();
        let mut rng = SplitMix64::new(match survivors {
            Survivors::Some { seed } => seed,
            Survivors::None | Survivors::All => 0,
        });
        for (key, value) in &disk.unsynced {
            let survives = match survivors {
                Survivors::None => false,
                Survivors::All => true,
                Survivors::Some { .. } => rng.next_u64() & 1 == 1,
            };
            if survives {
                apply(&mut left, key, value.clone());
            }
        }
        Disk { seen: left.clone(), synced: left, ..Disk::default() }
    }

    /// Makes an operation fail, counted from now on.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut disk = self.disk.lock();
        (disk.fault, disk.failed, disk.writes, disk.commits) = (fault, false, 0, 0);
    }

    /// Insertions and removals, and commits, since the last fault was set (or since the store was opened).
    #[must_use]
    pub fn operations(&self) -> (u64, u64) {
        let disk = self.disk.lock();
        (disk.writes, disk.commits)
    }

    /// Changes a stored value where it lies, as a bad disk does.
    ///
    /// Returns whether the key was there.
    pub fn damage(&self, area: Area, key: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut disk = self.disk.lock();
        let key = (area, key.to_vec());
        let Some(value) = disk.seen.get_mut(&key) else { return false };
        change(value);
        let value = value.clone();
        disk.synced.insert(key, value);
        true
    }

    /// Removes a stored value, as a bad disk does. Returns whether the key was there.
    pub fn lose(&self, area: Area, key: &[u8]) -> bool {
        let mut disk = self.disk.lock();
        let key = (area, key.to_vec());
        disk.synced.remove(&key);
        disk.seen.remove(&key).is_some()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}
