//! Chunks in files of their own, so that models and payloads do not pass through sled's log.
//!
//! ```text
//!  store/bulk/0000000000000003    the chunks of one blob or item, one after another
//!  store/bulk/0000000000000004    the chunks of records, until it is long enough
//! ```
//! A file holds chunks and nothing else. Where each lies, and its checksum, is a value in sled, and that is written only
//! when the file (and its name) has been synced:
//!
//! ```text
//!  file ─► sync ─► directory ─► sync ─► places ─► sled's commit            a place never names what is not durable
//!  places removed ─► sled's commit ─► file removed when none is left       and is gone before its file
//! ```
//! A crash leaves files, or the end of one, that no place names. Such files are removed at the next opening.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use anabranch_common::limits;
use anabranch_io::durable::{self, Tree};
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

/// What may be done to the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything.
    Write,
    /// They are read; none is created or removed.
    Read,
}

/// The files of a store, and the tree that says what is where.
#[derive(Debug)]
pub(super) struct BulkFiles {
    dir: PathBuf,
    access: Access,
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
    /// Files that were written to since they were synced.
    dirty: BTreeMap<u64, Arc<File>>,
    created: bool,
    /// Chunks that count, by file.
    live: BTreeMap<u64, u64>,
    /// Files in which none is left.
    emptied: BTreeSet<u64>,
}

#[derive(Debug)]
struct Writing {
    /// Whose chunks these are; nobody's in particular in a shared file.
    owner: Vec<u8>,
    number: u64,
    file: Arc<File>,
    len: u64,
}

/// What a commit has to do after sled's.
#[derive(Debug, Default)]
pub(super) struct Emptied(BTreeSet<u64>);

impl BulkFiles {
    /// Opens the files in `dir`. With [`Access::Write`] it is created when it is not there, and files that no place names
    /// are removed.
    pub(super) fn open(dir: PathBuf, places: Tree, access: Access) -> Result<Self, StorageError> {
        let files = Self { dir, access, places, state: Mutex::default() };
        if access == Access::Read {
            return Ok(files);
        }
        let at = |source| StorageError::of_io(&files.dir, source);
        durable::create_private_dir(&files.dir)?;
        let mut state = State::default();
        for entry in files.places.iter() {
            let (key, value) = entry?;
            let place = files.decode(&key, &value)?;
            *state.live.entry(place.file).or_default() += 1;
        }
        for entry in fs::read_dir(&files.dir).map_err(at)? {
            let entry = entry.map_err(at)?;
            let number = entry.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
            let Some(number) = number else { continue };
            state.next_file = state.next_file.max(number + 1);
            if !state.live.contains_key(&number) {
                fs::remove_file(entry.path()).map_err(at)?;
            }
        }
        // A number that a place still names is not used again, whatever became of the file.
        state.next_file = state.next_file.max(state.live.last_key_value().map_or(0, |(number, _)| number + 1));
        *files.state.lock() = state;
        Ok(files)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016x}"))
    }

    fn error(&self, number: u64) -> impl Fn(io::Error) -> StorageError {
        let path = self.path(number);
        move |source| StorageError::of_io(&path, source)
    }

    fn damaged(&self, number: u64, what: &str) -> StorageError {
        StorageError::Corrupt { path: self.path(number), detail: what.to_owned() }
    }

    fn decode(&self, key: &[u8], value: &[u8]) -> Result<Place, StorageError> {
        let bad = || StorageError::Corrupt {
            path: self.dir.clone(),
            detail: format!("the place of chunk {key:02x?} cannot be read"),
        };
        Place::from_bytes(value).ok_or_else(bad)
    }

    /// Writes a chunk at the end of a file. It is durable after the next commit.
    pub(super) fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        if self.access == Access::Read {
            return Err(StorageError::of_io(&self.dir, io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        self.remove(key)?;
        let mut state = self.state.lock();
        let is_record = key.first() == Some(&b'r');
        let (owner, number) = key.split_at(key.len().saturating_sub(NUMBER_BYTES));
        let (owner, begins) = if is_record { (&[][..], false) } else { (owner, number.iter().all(|byte| *byte == 0)) };
        let slot = if is_record { state.shared.take() } else { state.own.take() };
        let fits = |writing: &Writing| {
            writing.owner == owner && !begins && !(is_record && writing.len >= limits::STORE_SHARED_FILE_BYTES)
        };
        let mut writing = match slot {
            Some(writing) if fits(&writing) => writing,
            before => {
                // What was written into until now may be empty already.
                if let Some(before) = before.filter(|before| !state.live.contains_key(&before.number)) {
                    state.emptied.insert(before.number);
                }
                let number = state.next_file;
                let mut options = File::options();
                let opened = options.write(true).create_new(true).mode(0o600).open(self.path(number));
                state.next_file += 1;
                state.created = true;
                Writing { owner: owner.to_vec(), number, file: Arc::new(opened.map_err(self.error(number))?), len: 0 }
            }
        };
        writing.file.write_all_at(value, writing.len).map_err(self.error(writing.number))?;
        let len = u32::try_from(value.len()).map_err(|_| self.damaged(writing.number, "a chunk is too long"))?;
        let place = Place { file: writing.number, offset: writing.len, len, crc: crc32c::crc32c(value) };
        writing.len += u64::from(len);
        state.dirty.insert(writing.number, Arc::clone(&writing.file));
        *state.live.entry(writing.number).or_default() += 1;
        state.pending.insert(key.to_vec(), place);
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
        let mut bytes = vec![0; place.len as usize];
        let read = File::open(self.path(place.file)).and_then(|file| file.read_exact_at(&mut bytes, place.offset));
        match read {
            Ok(()) if crc32c::crc32c(&bytes) == place.crc => Ok(Some(bytes)),
            Ok(()) => {
                Err(self.damaged(place.file, &format!("the chunk at {} does not match its checksum", place.offset)))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged(place.file, "it ends too early"))
            }
            // Removed while it was being read, or lost.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.place(key)? {
                Some(_) => Err(self.damaged(place.file, "it is missing")),
                None => Ok(None),
            },
            Err(error) => Err(self.error(place.file)(error)),
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

    /// Removes a chunk, if it is there. Its file goes, with a later commit, when no other chunk in it counts.
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
            let written = [&state.shared, &state.own].into_iter().flatten().any(|writing| writing.number == place.file);
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
        let (batch, dirty, created, emptied) = {
            let mut state = self.state.lock();
            let batch: Vec<(Vec<u8>, Place)> = state.pending.iter().map(|(key, place)| (key.clone(), *place)).collect();
            let created = std::mem::take(&mut state.created);
            (batch, std::mem::take(&mut state.dirty), created, std::mem::take(&mut state.emptied))
        };
        for (number, file) in dirty.iter().filter(|(number, _)| !emptied.contains(number)) {
            file.sync_data().map_err(self.error(*number))?;
        }
        if created {
            let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
            synced.map_err(|source| StorageError::of_io(&self.dir, source))?;
        }
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
        for number in emptied.into_iter().filter(|_| self.access == Access::Write) {
            match fs::remove_file(self.path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.error(number)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}
