//! Chunks in files beside sled ([`Files`] says in which order they become durable).
//!
//! ```text
//!  store/bulk/0000000000000003    the chunks of one blob or item, one after another
//!  store/bulk/0000000000000004    the chunks of records, until it is long enough
//! ```
//! Where each chunk lies, and its checksum, is a value in sled: its place. A file goes when no
//! place names it.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::limits;
use anabranch_io::durable::{Files, Growing, Tree};
use parking_lot::Mutex;

use super::StorageError;

/// Bytes of a chunk's number at the end of its key.
const NUMBER_BYTES: usize = 4;

/// Where a chunk lies.
///
/// ```text
///  0          8          16        20       24
///  ┌──────────┬──────────┬─────────┬────────┐
///  │ file     │ offset   │ length  │ crc32c │
///  │ u64 le   │ u64 le   │ u32 le  │ u32 le │
///  └──────────┴──────────┴─────────┴────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    file: u64,
    offset: u64,
    len: u32,
    crc: u32,
}

impl Place {
    fn to_bytes(self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.file.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..20].copy_from_slice(&self.len.to_le_bytes());
        out[20..].copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (file, rest) = bytes.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        Some(Self {
            file: u64::from_le_bytes(*file),
            offset: u64::from_le_bytes(*offset),
            len: u32::from_le_bytes(*len),
            crc: u32::from_le_bytes(rest.try_into().ok()?),
        })
    }
}

/// The files of a store, and the tree that says what is where.
#[derive(Debug)]
pub(super) struct BulkFiles {
    files: Files,
    places: Tree,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_file: u64,
    /// Where records go, and where the newest blob or item goes.
    shared: Option<Writing>,
    own: Option<Writing>,
    /// Chunks that are in a file, and not yet in `places`.
    pending: BTreeMap<Vec<u8>, Place>,
    /// Chunks that count, by file.
    live: BTreeMap<u64, u64>,
    /// Files in which none is left.
    emptied: BTreeSet<u64>,
}

#[derive(Debug)]
struct Writing {
    /// Whose chunks these are; nobody's in particular in a shared file.
    owner: Vec<u8>,
    file: Growing,
}

/// What a commit has to do after sled's.
#[derive(Debug, Default)]
pub(super) struct Emptied(BTreeSet<u64>);

impl BulkFiles {
    /// Takes over the places of `files`, and removes files that no place names.
    pub(super) fn open(files: Files, places: Tree) -> Result<Self, StorageError> {
        let files = Self { files, places, state: Mutex::default() };
        let mut state = State::default();
        for entry in files.places.iter() {
            let (key, value) = entry?;
            let place = files.decode(&key, &value)?;
            *state.live.entry(place.file).or_default() += 1;
        }
        let numbers = files.files.numbers()?;
        numbers.iter().filter(|number| !state.live.contains_key(number)).try_for_each(|n| files.files.remove(*n))?;
        // A number that a place still names is not used again, whatever became of the file.
        let used = state.live.keys().chain(&numbers);
        state.next_file = used.max().map_or(0, |number| number.saturating_add(1));
        *files.state.lock() = state;
        Ok(files)
    }

    fn decode(&self, key: &[u8], value: &[u8]) -> Result<Place, StorageError> {
        let bad = || StorageError::Corrupt {
            path: self.files.dir().to_owned(),
            detail: format!("the place of chunk {key:02x?} cannot be read"),
        };
        Place::from_bytes(value).ok_or_else(bad)
    }

    /// Writes a chunk at the end of a file. It is durable after the next commit.
    pub(super) fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.remove(key)?;
        let mut state = self.state.lock();
        let is_record = key.first() == Some(&b'r');
        let (owner, number) = key.split_at(key.len().saturating_sub(NUMBER_BYTES));
        let (owner, begins) = if is_record { (&[][..], false) } else { (owner, number.iter().all(|byte| *byte == 0)) };
        let slot = if is_record { state.shared.take() } else { state.own.take() };
        let fits = |writing: &Writing| {
            let is_full = is_record && writing.file.len >= limits::STORE_SHARED_FILE_BYTES;
            writing.owner == owner && !begins && !is_full
        };
        let mut writing = match slot {
            Some(writing) if fits(&writing) => writing,
            before => {
                // What was written into until now may be empty already.
                if let Some(before) = before.filter(|before| !state.live.contains_key(&before.file.number)) {
                    state.emptied.insert(before.file.number);
                }
                let number = state.next_file;
                state.next_file += 1;
                Writing { owner: owner.to_vec(), file: self.files.create(number)? }
            }
        };
        let number = writing.file.number;
        let len = u32::try_from(value.len()).map_err(|_| self.files.damaged(number, "a chunk is too long"))?;
        let offset = self.files.append(&mut writing.file, value)?;
        *state.live.entry(number).or_default() += 1;
        state.pending.insert(key.to_vec(), Place { file: number, offset, len, crc: crc32c::crc32c(value) });
        if is_record {
            state.shared = Some(writing);
        } else {
            state.own = Some(writing);
        }
        Ok(())
    }

    /// The bytes of a chunk.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let Some(place) = self.place(key)? else { return Ok(None) };
        match self.files.read_at(place.file, place.offset, place.len.into())? {
            Some(bytes) if crc32c::crc32c(&bytes) == place.crc => Ok(Some(bytes)),
            Some(_) => Err(self
                .files
                .damaged(place.file, &format!("the chunk at {} does not match its checksum", place.offset))),
            // Removed while it was being read, or lost.
            None => match self.place(key)? {
                Some(_) => Err(self.files.damaged(place.file, "it is missing")),
                None => Ok(None),
            },
        }
    }

    fn place(&self, key: &[u8]) -> Result<Option<Place>, StorageError> {
        // Under the lock: a commit moves places from one to the other.
        let state = self.state.lock();
        match state.pending.get(key) {
            Some(place) => Ok(Some(*place)),
            None => self.places.get(key)?.map(|value| self.decode(key, &value)).transpose(),
        }
    }

    /// Removes a chunk, if it is there. Its file goes, with a later commit, when no other chunk in
    /// it counts.
    pub(super) fn remove(&self, key: &[u8]) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        let place = match state.pending.remove(key) {
            Some(place) => place,
            None => match self.places.get(key)? {
                Some(value) => {
                    self.places.remove(key)?;
                    self.decode(key, &value)?
                }
                None => return Ok(()),
            },
        };
        let left = state.live.get_mut(&place.file).map(|live| {
            *live = live.saturating_sub(1);
            *live
        });
        if left == Some(0) {
            state.live.remove(&place.file);
            let written =
                [&state.shared, &state.own].into_iter().flatten().any(|writing| writing.file.number == place.file);
            if !written {
                state.emptied.insert(place.file);
            }
        }
        Ok(())
    }

    /// The keys in a range, in ascending order.
    pub(super) fn keys(&self, range: std::ops::RangeInclusive<Vec<u8>>) -> Result<BTreeSet<Vec<u8>>, StorageError> {
        let state = self.state.lock();
        let mut keys: BTreeSet<Vec<u8>> = state.pending.range(range.clone()).map(|(key, _)| key.clone()).collect();
        for entry in self.places.range(range) {
            keys.insert(entry?.0.to_vec());
        }
        Ok(keys)
    }

    /// Syncs what was written and notes where it lies: before sled commits.
    pub(super) fn sync(&self) -> Result<Emptied, StorageError> {
        let (batch, emptied) = {
            let mut state = self.state.lock();
            let batch: Vec<(Vec<u8>, Place)> = state.pending.iter().map(|(key, place)| (key.clone(), *place)).collect();
            (batch, std::mem::take(&mut state.emptied))
        };
        emptied.iter().for_each(|number| self.files.forget(*number));
        self.files.sync()?;
        let mut state = self.state.lock();
        for (key, place) in batch {
            if state.pending.get(&key) == Some(&place) {
                self.places.insert(&key, &place.to_bytes())?;
                state.pending.remove(&key);
            }
        }
        Ok(Emptied(emptied))
    }

    /// Removes the files in which nothing counts: after sled's commit.
    pub(super) fn sweep(&self, Emptied(emptied): Emptied) -> Result<(), StorageError> {
        emptied.into_iter().try_for_each(|number| self.files.remove(number))
    }
}
