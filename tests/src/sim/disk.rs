//! A disk in memory: what was written, what of it was synced, and what a crash leaves.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_agent::store::{Content, Shelf};
use anabranch_common::ids::Digest;
use anabranch_common::rng::SplitMix64;
use anabranch_coordinator::store::{Area, Medium, StorageError, Visit};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const PATH: &str = "(simulated)";

/// How an operation fails, and every one after it until the process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The process is killed in this operation, which has no effect.
    Killed,
    /// The same, counting syncs alone.
    KilledInSync,
    /// No space is left.
    NoSpace,
    /// An input or output error.
    Io,
}

/// What becomes of writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All are there: the process died, the machine did not.
    Nothing,
    /// Each is there or not, as a generator with this seed decides: the power went.
    Power {
        /// The seed.
        seed: u64,
    },
}

type Key = (u8, Vec<u8>);
type Values = BTreeMap<Key, Arc<[u8]>>;

#[derive(Debug, Default)]
struct Platter {
    seen: Values,
    synced: Values,
    unsynced: Vec<(Key, Option<Arc<[u8]>>)>,
    fuse: Option<(u64, Failure)>,
    burnt: Option<Failure>,
    flips: Vec<Flip>,
}

/// A bit that has changed by itself.
#[derive(Debug)]
struct Flip {
    key: Key,
    was: Arc<[u8]>,
    is: Arc<[u8]>,
}

impl Flip {
    fn is_in(&self, values: &Values) -> bool {
        values.get(&self.key).is_some_and(|value| Arc::ptr_eq(value, &self.is))
    }
}

impl Platter {
    fn operation(&mut self, syncs: bool) -> Result<(), StorageError> {
        if let Some((left, failure)) = &mut self.fuse
            && (syncs || *failure != Failure::KilledInSync)
        {
            if *left == 0 {
                self.burnt = Some(*failure);
                self.fuse = None;
            } else {
                *left -= 1;
            }
        }
        match self.burnt {
            None => Ok(()),
            Some(Failure::NoSpace) => Err(StorageError::NoSpace { path: PATH.into() }),
            Some(Failure::Io) => Err(error("injected")),
            Some(Failure::Killed | Failure::KilledInSync) => Err(error("killed")),
        }
    }

    fn write(&mut self, key: Key, value: Option<Arc<[u8]>>) -> Result<(), StorageError> {
        self.operation(false)?;
        set(&mut self.seen, &key, value.clone());
        self.unsynced.push((key, value));
        Ok(())
    }
}

fn below(rng: &mut SplitMix64, bound: usize) -> Option<usize> {
    if bound == 0 { None } else { usize::try_from(rng.below(bound as u64)).ok() }
}

fn error(what: &'static str) -> StorageError {
    StorageError::Io { path: PATH.into(), source: std::io::Error::other(what) }
}

fn set(values: &mut Values, key: &Key, value: Option<Arc<[u8]>>) {
    match value {
        Some(value) => values.insert(key.clone(), value),
        None => values.remove(key),
    };
}

/// One machine's disk. Clones share what is stored.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Platter>>);

impl SimDisk {
    /// Makes the operation after `left` others fail.
    pub fn light(&self, left: u64, failure: Failure) {
        self.0.lock().fuse = Some((left, failure));
    }

    /// How operations fail at present, if they do.
    #[must_use]
    pub fn burnt(&self) -> Option<Failure> {
        self.0.lock().burnt
    }

    /// What `DurableDb::open` does: what is found is durable from here on.
    ///
    /// # Errors
    /// The sync fails.
    pub fn open(&self) -> Result<(), StorageError> {
        self.sync()
    }

    /// Ends every fault: there is room again, the medium works again.
    pub fn mend(&self) {
        let mut platter = self.0.lock();
        (platter.fuse, platter.burnt) = (None, None);
    }

    /// Changes a bit of something that is durable, and says where: of a kind of entry that `seed` draws, one of them.
    pub fn flip(&self, seed: u64) -> Option<String> {
        let mut rng = SplitMix64::new(seed);
        let mut platter = self.0.lock();
        let mut kinds: BTreeMap<(u8, Option<u8>), Vec<&Key>> = BTreeMap::new();
        for (key, value) in &platter.seen {
            let durable = platter.synced.get(key).is_some_and(|synced| Arc::ptr_eq(synced, value));
            if durable && !value.is_empty() {
                kinds.entry((key.0, key.1.first().copied())).or_default().push(key);
            }
        }
        let keys = kinds.values().nth(below(&mut rng, kinds.len())?)?;
        let key = (*keys.get(below(&mut rng, keys.len())?)?).clone();
        let was = Arc::clone(platter.seen.get(&key)?);
        let (byte, bit) = (below(&mut rng, was.len())?, rng.below(8));
        let mut changed = was.to_vec();
        changed[byte] ^= 1 << bit;
        let (is, text) =
            (Arc::from(changed), format!("bit {bit} of byte {byte} under {:?}", key.1.escape_ascii().to_string()));
        platter.seen.insert(key.clone(), Arc::clone(&is));
        platter.synced.insert(key.clone(), Arc::clone(&is));
        platter.flips.push(Flip { key, was, is });
        Some(text)
    }

    /// Whether something here has changed by itself.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        let platter = self.0.lock();
        platter.flips.iter().any(|flip| flip.is_in(&platter.seen))
    }

    /// Puts back what has changed by itself: the owner has a copy.
    pub fn restore(&self) {
        let platter = &mut *self.0.lock();
        for flip in std::mem::take(&mut platter.flips).into_iter().rev() {
            for values in [&mut platter.seen, &mut platter.synced] {
                if flip.is_in(values) {
                    values.insert(flip.key.clone(), Arc::clone(&flip.was));
                }
            }
        }
    }

    /// Ends every fault, and puts back what has changed by itself.
    pub fn repair(&self) {
        self.mend();
        self.restore();
    }

    /// What a process that starts again finds.
    pub fn crash(&self, loss: Loss) {
        let mut platter = self.0.lock();
        (platter.fuse, platter.burnt) = (None, None);
        let Loss::Power { seed } = loss else { return };
        let mut rng = SplitMix64::new(seed);
        let mut left = platter.synced.clone();
        for (key, value) in std::mem::take(&mut platter.unsynced) {
            if rng.below(2) == 1 {
                set(&mut left, &key, value);
            }
        }
        platter.seen = left.clone();
        platter.synced = left;
    }

    /// Another disk with the same content: an audit may write to it.
    #[must_use]
    pub fn copy(&self) -> Self {
        let platter = self.0.lock();
        let copy = Platter { seen: platter.seen.clone(), synced: platter.synced.clone(), ..Platter::default() };
        Self(Arc::new(Mutex::new(copy)))
    }

    /// Bytes of everything that can be read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.lock().seen.values().map(|value| value.len() as u64).sum()
    }

    fn sync(&self) -> Result<(), StorageError> {
        let mut platter = self.0.lock();
        platter.operation(true)?;
        for (key, value) in std::mem::take(&mut platter.unsynced) {
            set(&mut platter.synced, &key, value);
        }
        Ok(())
    }

    fn value(&self, area: u8, key: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().seen.get(&(area, key.to_vec())).map(|value| value.to_vec())
    }

    fn found(&self, area: u8, range: RangeInclusive<Vec<u8>>) -> Vec<(Vec<u8>, Arc<[u8]>)> {
        let (from, to) = range.into_inner();
        if from > to {
            return Vec::new();
        }
        let platter = self.0.lock();
        let entries = platter.seen.range((area, from)..=(area, to));
        entries.map(|((_, key), value)| (key.clone(), Arc::clone(value))).collect()
    }
}

fn number(area: Area) -> u8 {
    match area {
        Area::Catalogue => 0,
        Area::Bulk => 1,
    }
}

impl Medium for SimDisk {
    fn get(&self, area: Area, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.value(number(area), key))
    }

    fn insert(&self, area: Area, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        self.0.lock().write((number(area), key.to_vec()), Some(value.into()))
    }

    fn remove(&self, area: Area, key: &[u8]) -> Result<(), StorageError> {
        self.0.lock().write((number(area), key.to_vec()), None)
    }

    fn scan(&self, area: Area, range: RangeInclusive<Vec<u8>>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        self.found(number(area), range).iter().try_for_each(|(key, value)| visit(key, value))
    }

    fn commit(&self) -> Result<(), StorageError> {
        self.sync()
    }

    fn disk_bytes(&self) -> Result<u64, StorageError> {
        Ok(self.bytes())
    }

    fn path(&self) -> &Path {
        Path::new(PATH)
    }
}

/// Area of an agent's shelf.
const SHELF: u8 = 2;

impl Shelf for SimDisk {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.value(SHELF, key))
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.0.lock().write((SHELF, key.to_vec()), Some(value.into()))
    }

    fn remove(&self, key: &[u8]) -> Result<(), StorageError> {
        self.0.lock().write((SHELF, key.to_vec()), None)
    }

    fn put(&self, prefix: &[u8], content: Content<'_>) -> Result<Digest, StorageError> {
        let bytes = content.to_bytes();
        Shelf::insert(self, prefix, &bytes)?;
        Ok(Digest::of(&bytes))
    }

    fn read(&self, prefix: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Shelf::get(self, prefix)
    }

    fn delete(&self, prefix: &[u8]) -> Result<(), StorageError> {
        Shelf::remove(self, prefix)
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StorageError> {
        let last = [prefix, &[u8::MAX; 32]].concat();
        Ok(self.found(SHELF, prefix.to_vec()..=last).into_iter().map(|(key, _)| key).collect())
    }

    fn commit(&self) -> Result<(), StorageError> {
        self.sync()
    }

    fn path(&self) -> &Path {
        Path::new(PATH)
    }

    fn place(&self, _prefix: &[u8]) -> PathBuf {
        PATH.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_keeps_what_was_written_and_power_loss_what_was_synced() {
        let disk = SimDisk::default();
        Medium::insert(&disk, Area::Catalogue, b"a", vec![1]).expect("write");
        disk.sync().expect("sync");
        let mut kept = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let disk = disk.copy();
            Medium::insert(&disk, Area::Catalogue, b"b", vec![2]).expect("write");
            Medium::remove(&disk, Area::Catalogue, b"a").expect("write");
            disk.crash(Loss::Nothing);
            assert_eq!((disk.value(0, b"a"), disk.value(0, b"b")), (None, Some(vec![2])));
            disk.crash(Loss::Power { seed });
            kept.insert((disk.value(0, b"a").is_some(), disk.value(0, b"b").is_some()));
        }
        assert_eq!(kept.len(), 4, "a disk may keep any part of what was not synced");
    }

    #[test]
    fn a_flipped_bit_stays_through_power_loss_until_it_is_restored_or_overwritten() {
        let disk = SimDisk::default();
        assert_eq!(disk.flip(1), None, "there is nothing");
        for key in [b"a", b"b"] {
            Medium::insert(&disk, Area::Catalogue, key, vec![0; 8]).expect("write");
        }
        assert_eq!(disk.flip(1), None, "nothing is durable");
        disk.sync().expect("sync");
        let bits =
            |disk: &SimDisk, key| disk.value(0, key).expect("it is there").iter().map(|b| b.count_ones()).sum::<u32>();
        (0..20).for_each(|seed| _ = disk.flip(seed).expect("something durable"));
        disk.crash(Loss::Power { seed: 1 });
        assert!(disk.is_damaged() && bits(&disk, b"a") + bits(&disk, b"b") > 0);
        Medium::insert(&disk, Area::Catalogue, b"a", vec![255; 8]).expect("write");
        disk.restore();
        assert_eq!((bits(&disk, b"a"), bits(&disk, b"b"), disk.is_damaged()), (64, 0, false));
    }

    #[test]
    fn a_burnt_disk_fails_until_it_is_mended_and_changes_nothing() {
        let disk = SimDisk::default();
        disk.light(1, Failure::NoSpace);
        Shelf::insert(&disk, b"a", &[1]).expect("one more");
        Shelf::insert(&disk, b"b", &[1]).expect_err("no space");
        disk.sync().expect_err("nor is anything synced");
        disk.mend();
        assert_eq!(Shelf::keys(&disk, b"").expect("read"), [b"a".to_vec()]);
    }
}
