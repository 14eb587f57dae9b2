//! A store in memory that knows what was synced: tests take its power away, and make its writes and commits fail.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use anabranch_common::rng::SplitMix64;
use parking_lot::Mutex;

use super::{Area, Engine, Medium, StorageError, Visit};

/// A store in memory. Clones of its medium share what is stored.
pub type MemoryStore = Engine<MemoryMedium>;

/// What is stored in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryMedium {
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

impl Engine<MemoryMedium> {
    /// An empty store.
    ///
    /// # Panics
    /// Never: an empty medium without faults opens.
    #[must_use]
    pub fn new() -> Self {
        Self::open(MemoryMedium::default()).expect("an empty medium without faults opens")
    }

    /// Takes the power away and opens what is left, as a process that starts again would. This store goes on as it was,
    /// so that a test can try several ways to lose power from the same state.
    ///
    /// # Errors
    /// What is left cannot be opened.
    pub fn crash(&self, survivors: Survivors) -> Result<Self, StorageError> {
        Self::open(self.after_power_loss(survivors))
    }

    /// What is left on the disk after the power went.
    #[must_use]
    pub fn after_power_loss(&self, survivors: Survivors) -> MemoryMedium {
        let disk = self.entries.medium.disk.lock();
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
        let left = Disk { seen: left.clone(), synced: left, ..Disk::default() };
        MemoryMedium { disk: Arc::new(Mutex::new(left)) }
    }

    /// Makes an operation fail, counted from now on.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut disk = self.entries.medium.disk.lock();
        (disk.fault, disk.failed, disk.writes, disk.commits) = (fault, false, 0, 0);
    }

    /// Insertions and removals, and commits, since the last fault was set (or since the store was opened).
    #[must_use]
    pub fn operations(&self) -> (u64, u64) {
        let disk = self.entries.medium.disk.lock();
        (disk.writes, disk.commits)
    }

    /// Changes a stored value where it lies, as a bad disk does.
    ///
    /// Returns whether the key was there.
    pub fn damage(&self, area: Area, key: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut disk = self.entries.medium.disk.lock();
        let key = (area, key.to_vec());
        let Some(value) = disk.seen.get_mut(&key) else { return false };
        change(value);
        let value = value.clone();
        disk.synced.insert(key, value);
        true
    }

    /// Removes a stored value, as a bad disk does. Returns whether the key was there.
    pub fn lose(&self, area: Area, key: &[u8]) -> bool {
        let mut disk = self.entries.medium.disk.lock();
        let key = (area, key.to_vec());
        disk.synced.remove(&key);
        disk.seen.remove(&key).is_some()
    }
}

impl Default for Engine<MemoryMedium> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::Position;

    use super::*;
    use crate::store::layout::Name;
    use crate::store::{Store, suite};

    #[test]
    fn the_memory_store_conforms() {
        for survivors in [Survivors::All, Survivors::None] {
            suite::conformance(|old: Option<MemoryStore>| match old {
                Some(store) => store.crash(survivors).expect("nothing is torn"),
                None => MemoryStore::new(),
            });
        }
    }

    fn records(positions: std::ops::Range<u64>) -> Vec<(Position, Vec<u8>)> {
        positions.map(|p| (Position(p), vec![p.to_le_bytes()[0]; 300_000])).collect()
    }

    fn last(store: &MemoryStore) -> Option<u64> {
        store.journal().last_position().expect("memory").map(|position| position.0)
    }

    /// P3: what was committed survives, whatever the disk keeps of the rest; the tail is a prefix of what was written.
    #[test]
    fn power_loss_leaves_a_prefix_that_holds_everything_committed() {
        let store = MemoryStore::new();
        store.journal().append(&records(0..4)).expect("append");
        store.journal().sync().expect("commit");
        store.journal().append(&records(4..9)).expect("append");
        assert_eq!(last(&store.crash(Survivors::None).expect("open")), Some(3));
        assert_eq!(last(&store.crash(Survivors::All).expect("open")), Some(8));
        let mut ends = std::collections::BTreeSet::new();
        for seed in 0..400 {
            let after = store.crash(Survivors::Some { seed }).expect("a torn tail is not damage");
            let end = last(&after).expect("committed");
            ends.insert(end);
            for (position, bytes) in records(0..end + 1) {
                assert_eq!(after.journal().record(position).expect("whole"), Some(bytes), "seed {seed}");
            }
            after.journal().append(&records(end + 1..end + 3)).expect("the journal goes on");
            let again = after.crash(Survivors::Some { seed }).expect("nothing of the old tail is in the way");
            assert!(last(&again) >= Some(end), "what was found at opening is durable (seed {seed})");
        }
        assert!(ends.contains(&3) && ends.len() > 1, "the seeds reach different tails: {ends:?}");
    }

    /// A record that was committed and is gone is damage, and is refused by its position; it is never taken for a tail.
    #[test]
    fn a_lost_record_before_the_tail_is_refused() {
        let store = MemoryStore::new();
        for positions in [0..2, 2..4, 4..6] {
            store.journal().append(&records(positions)).expect("append");
            store.journal().sync().expect("commit");
        }
        assert!(store.lose(Area::Bulk, &Name::Record(Position(1)).chunk_key(2)));
        let after = store.crash(Survivors::All).expect("the ends are whole");
        assert_eq!(last(&after), Some(5));
        let error = after.journal().record(Position(1)).expect_err("a chunk is missing");
        assert!(error.to_string().contains("record 1 is not complete"), "{error}");
        assert!(store.damage(Area::Bulk, &Name::Record(Position(5)).chunk_key(0), |bytes| bytes[17] ^= 1));
        let after = store.crash(Survivors::All).expect("nothing is missing");
        let error = after.journal().record(Position(5)).expect_err("a changed bit is damage even in the newest record");
        assert!(error.to_string().contains("record 5 does not match its checksum"), "{error}");
    }

    #[test]
    fn a_pruning_that_is_cut_short_is_finished_at_the_next_opening() {
        let store = MemoryStore::new();
        store.journal().append(&records(0..10)).expect("append");
        store.journal().sync().expect("commit");
        store.set_fault(Some(Fault { site: FaultSite::Write(4), kind: FaultKind::Io }));
        store.journal().prune(Position(8)).expect_err("the fifth write fails");
        for seed in 0..20 {
            let after = store.crash(Survivors::Some { seed }).expect("open");
            assert_eq!(after.journal().first_position().expect("memory"), Some(Position(8)));
            assert_eq!(after.usage().expect("memory").live_bytes, 3 * 300_000 + 8, "records 0, 8 and 9, and the mark");
        }
    }

    #[test]
    fn a_damaged_blob_is_refused_and_can_be_stored_again() {
        let store = MemoryStore::new();
        let bytes = vec![9; 400_000];
        let id = anabranch_common::ids::Digest::of(&bytes);
        store.blobs().put(id, &bytes).expect("put");
        assert!(store.lose(Area::Bulk, &Name::Blob(id).chunk_key(1)));
        assert!(matches!(store.blobs().get(id), Err(StorageError::Corrupt { .. })));
        assert_eq!(store.blobs().list().expect("memory"), [id]);
        store.blobs().put(id, &bytes).expect("put");
        assert_eq!(store.blobs().get(id).expect("whole again"), Some(bytes));
    }

    /// Guards against a blob that is mended by deleting it first: power loss in between must leave it listed, so that it
    /// is damaged and not missing, and it can still be stored again.
    #[test]
    fn mending_a_blob_never_loses_it() {
        let bytes = vec![9; 400_000];
        let id = anabranch_common::ids::Digest::of(&bytes);
        for write in 0..6 {
            let store = MemoryStore::new();
            store.blobs().put(id, &vec![7; 700_000]).expect("something else, and longer");
            store.blobs().sync().expect("commit");
            store.set_fault(Some(Fault { site: FaultSite::Write(write), kind: FaultKind::Io }));
            let mended = store.blobs().put(id, &bytes).and_then(|()| store.blobs().sync()).is_ok();
            for seed in 0..20 {
                let after = store.crash(Survivors::Some { seed }).expect("open");
                assert_eq!(after.blobs().list().expect("memory"), [id]);
                assert!(!mended || after.blobs().get(id).expect("whole").as_ref() == Some(&bytes));
                after.blobs().put(id, &bytes).expect("put");
                assert_eq!(after.blobs().get(id).expect("whole").as_ref(), Some(&bytes));
                assert_eq!(after.usage().expect("memory").live_bytes, 400_000);
            }
        }
    }

    /// After power loss it is the old or the new one, never neither, and nothing of the others stays behind.
    #[test]
    fn an_item_is_replaced_as_a_whole() {
        let lengths = [30_000, 40_000, 50, 35_000];
        let books: Vec<Vec<u8>> = (1..).zip(lengths).map(|(value, len)| vec![value; len]).collect();
        for write in 0..40 {
            let store = MemoryStore::new();
            store.catalogue().put("book", &books[0]).expect("put");
            store.catalogue().sync().expect("commit");
            store.set_fault(Some(Fault { site: FaultSite::Write(write), kind: FaultKind::Io }));
            let replaced =
                |book: &Vec<u8>| store.catalogue().put("book", book).and_then(|()| store.catalogue().sync()).is_ok();
            let done = books[1..].iter().take_while(|book| replaced(book)).count();
            for seed in 0..20 {
                let after = store.crash(Survivors::Some { seed }).expect("open");
                let found = after.catalogue().get("book").expect("whole").expect("there");
                let at = books.iter().position(|book| *book == found).expect("one of them");
                assert!(at == done || at == done + 1, "{at} where {done} were committed");
                assert_eq!(after.usage().expect("memory").live_bytes, found.len() as u64);
                let stored = after.entries.medium.disk_bytes().expect("memory");
                assert!(stored < found.len() as u64 + 100, "{stored} bytes for one of {}", found.len());
            }
        }
    }
}
