//! Blobs in files: every step of a change cut off, files that are torn, lost or left over, and ledgers without files.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anabranch_io::durable::{DbOptions, DurableDb};

use super::tests::{AGENT, BRANCH, RUN, bank, close_to, delta, key, manifest, sum, total};
use super::*;
use crate::encode::{self, BankError};

/// Every blob is a file.
const ALL: usize = 1;
/// None is.
const NONE: usize = usize::MAX;

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn open(dir: &Path, file_bytes: usize) -> Ledger {
    Ledger::open_with_files_from(dir, file_bytes).expect("opens")
}

fn adopted(dir: &Path, file_bytes: usize) -> Ledger {
    let mut ledger = open(dir, file_bytes);
    ledger.adopt(BRANCH).expect("adopts");
    ledger
}

fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(dir.join("bulk")).expect("lists");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// All that the ledger holds, read back from the disk.
fn content(dir: &Path) -> Result<(Kept, Option<Digest>), StorageError> {
    let ledger = Ledger::open(dir)?;
    Ok((ledger.kept()?, ledger.residual().map(Digest::of_f32)))
}

/// A shelf of a process that is killed in the operation after `left` others; of a blob, half is written.
#[derive(Debug)]
struct Mortal {
    shelf: SledShelf,
    left: Cell<u64>,
}

impl Mortal {
    fn lives(&self) -> Result<(), StorageError> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| corrupt(self.path(), "killed"))?;
        self.left.set(left);
        Ok(())
    }
}

impl Shelf for Mortal {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.shelf.get(key)
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.lives()?;
        self.shelf.insert(key, value)
    }

    fn remove(&self, key: &[u8]) -> Result<(), StorageError> {
        self.lives()?;
        self.shelf.remove(key)
    }

    fn put(&self, prefix: &[u8], content: Content<'_>) -> Result<Digest, StorageError> {
        let half = match content {
            Content::Bytes(bytes) => Content::Bytes(&bytes[..bytes.len() / 2]),
            Content::Floats(values) => Content::Floats(&values[..values.len() / 2]),
        };
        match self.lives() {
            Ok(()) => self.shelf.put(prefix, content),
            Err(error) => self.shelf.put(prefix, half).and(Err(error)),
        }
    }

    fn read(&self, prefix: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.shelf.read(prefix)
    }

    fn delete(&self, prefix: &[u8]) -> Result<(), StorageError> {
        self.lives()?;
        self.shelf.delete(prefix)
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StorageError> {
        self.shelf.keys(prefix)
    }

    fn commit(&self) -> Result<(), StorageError> {
        self.lives()?;
        self.shelf.commit()
    }

    fn path(&self) -> &Path {
        self.shelf.path()
    }

    fn place(&self, prefix: &[u8]) -> PathBuf {
        self.shelf.place(prefix)
    }
}

/// A change is there or not, wherever the process was killed in it, and nothing stays that is in nobody's name.
#[test]
fn a_kill_at_any_step_of_a_change_leaves_the_state_before_or_the_one_after() {
    let mut seen = Vec::new();
    for step in 0.. {
        let dir = temp();
        encode::bank(&mut adopted(dir.path(), ALL), RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
        let before = content(dir.path()).expect("reads");
        let shelf = SledShelf::open(dir.path(), ALL).expect("opens");
        let mut ledger = Ledger::over(Box::new(Mortal { shelf, left: Cell::new(step) })).expect("reads");
        let done = encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(1, delta()));
        drop(ledger);
        let after = content(dir.path()).expect("reads");
        let named = open(dir.path(), ALL).head.blobs().len();
        assert_eq!(files(dir.path()).len(), named, "step {step} left something behind");
        seen.push((after != before, after.0.outbox.len()));
        let mut ledger = open(dir.path(), ALL);
        close_to(sum(&ledger), after.0.outbox.len() as f64 * total(&delta()));
        encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(2, delta())).expect("goes on");
        close_to(sum(&ledger), (after.0.outbox.len() + 1) as f64 * total(&delta()));
        drop(ledger);
        content(dir.path()).expect("is whole");
        if done.is_ok() {
            break;
        }
    }
    // Payload, residual, commit, head; then the head is there: commit, and the old residual's removal.
    assert_eq!(seen, [[(false, 1); 4].as_slice(), &[(true, 2); 3]].concat());
}

/// A bad disk under a file that counts is damage, by its name; and never another content.
#[test]
fn a_torn_changed_or_lost_file_that_the_head_names_is_damage() {
    let dir = temp();
    encode::bank(&mut adopted(dir.path(), ALL), RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
    let before = content(dir.path()).expect("reads");
    let files = files(dir.path());
    assert_eq!(files.len(), 3, "manifest, payload, residual");
    for path in files {
        let whole = fs::read(&path).expect("reads");
        let damaged = |what: &str| {
            let error = content(dir.path()).expect_err(what);
            assert!(matches!(&error, StorageError::Corrupt { path: found, .. } if *found == path), "{what}: {error}");
            error.to_string()
        };
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).expect("writes");
            assert!(damaged("cut").contains("does not match its digest"));
        }
        for at in [0, whole.len() / 3, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 4;
            fs::write(&path, &changed).expect("writes");
            damaged("changed");
        }
        fs::write(&path, [&whole[..], b"more"].concat()).expect("writes");
        damaged("longer");
        fs::remove_file(&path).expect("removes");
        assert!(damaged("lost").contains("is missing"));
        fs::write(&path, &whole).expect("writes");
        assert_eq!(content(dir.path()).expect("mended"), before);
    }
}

/// Until a sync a power loss can bring a removed file back: it must never be taken for what was written since.
#[test]
fn a_file_that_comes_back_is_nobodys() {
    let dir = temp();
    encode::bank(&mut adopted(dir.path(), ALL), RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
    let ledger = open(dir.path(), ALL);
    let before = files(dir.path());
    for number in [ledger.head.next_blob, ledger.head.next_blob + 1] {
        ledger.shelf.put(&blob_key(number), Content::Floats(&[1.5; 40_000])).expect("written");
    }
    drop(ledger);
    let orphans: Vec<PathBuf> = files(dir.path()).difference(&before).cloned().collect();
    let mut ledger = open(dir.path(), NONE);
    assert_eq!(files(dir.path()), before);
    encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(1, delta())).expect("banks");
    drop(ledger);
    for orphan in &orphans {
        fs::write(orphan, b"back again").expect("written");
    }
    close_to(sum(&open(dir.path(), ALL)), 2.0 * total(&delta()));
    assert!(orphans.iter().all(|orphan| !orphan.exists()));
}

/// Ledgers of earlier versions have everything in sled, with larger segments.
#[test]
fn a_ledger_without_files_is_read_and_moves_into_files() {
    let dir = temp();
    drop(DurableDb::open(dir.path(), DbOptions::default()).expect("creates"));
    let mut ledger = adopted(dir.path(), NONE);
    for seq in 0..2 {
        encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(seq, delta())).expect("banks");
    }
    drop(ledger);
    assert!(files(dir.path()).is_empty());
    let before = content(dir.path()).expect("reads");
    assert_eq!((before.0.outbox.len(), before.1.is_some()), (2, true));

    let mut ledger = open(dir.path(), FILE_BYTES);
    encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(2, delta())).expect("banks");
    close_to(sum(&ledger), 3.0 * total(&delta()));
    let chunks = ledger.shelf.keys(&blob_key(ledger.head.residual.expect("is there").number)).expect("reads");
    assert_eq!((files(dir.path()).len(), chunks.len()), (1, 1), "the residual is a file, and its key alone");
    ledger.settle(key(0), Settlement::Return).expect("settles");
    drop(ledger);
    close_to(sum(&open(dir.path(), FILE_BYTES)), 3.0 * total(&delta()));
    assert_eq!(files(dir.path()).len(), 1, "the one before is gone");
}

/// After a failed sync nobody knows what the disk holds.
#[test]
fn a_failed_sync_of_the_files_is_the_end_of_the_process() {
    let dir = temp();
    let mut ledger = adopted(dir.path(), ALL);
    encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
    ledger.shelf.put(&blob_key(1_000), Content::Bytes(&[7; 1_000])).expect("written");
    let (bulk, away) = (dir.path().join("bulk"), dir.path().join("away"));
    fs::rename(&bulk, &away).expect("renames");
    ledger.shelf.commit().expect_err("the directory cannot be synced");
    fs::rename(&away, &bulk).expect("renames");
    let error = encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(1, delta()));
    assert!(matches!(error, Err(BankError::Storage(StorageError::Poisoned { .. }))), "{error:?}");
    drop(ledger);
    assert_eq!(content(dir.path()).expect("reads").0.outbox.len(), 1);
    assert_eq!(files(dir.path()).len(), 3);
}

#[test]
fn files_are_the_owners_and_are_never_written_over() {
    let dir = temp();
    let ledger = adopted(dir.path(), ALL);
    ledger.shelf.put(b"b12345678", Content::Bytes(b"first")).expect("written");
    assert!(ledger.shelf.put(b"b12345678", Content::Bytes(b"second")).is_err());
    assert_eq!(ledger.shelf.read(b"b12345678").expect("reads").as_deref(), Some(&b"first"[..]));
    let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("bulk")), 0o700);
    assert_eq!(files(dir.path()).iter().map(|path| mode(path)).collect::<Vec<_>>(), [0o600]);
    fs::write(dir.path().join("bulk/README"), b"not ours").expect("writes");
    drop(ledger);
    drop(open(dir.path(), ALL));
    let left: Vec<PathBuf> = files(dir.path()).into_iter().collect();
    assert_eq!(left, [dir.path().join("bulk/README")], "the rest is in nobody's name");
}

#[test]
fn floats_are_stored_as_their_bytes_whatever_their_number() {
    let dir = temp();
    let ledger = adopted(dir.path(), 2);
    for len in [0, 1, 16_383, 16_384, 16_385, 40_000] {
        let values: Vec<f32> = (0u16..).map(|i| f32::from(i) - 0.5).take(len).collect();
        let (prefix, bytes) = (blob_key(len as u64), Content::Floats(&values).to_bytes());
        let digest = ledger.shelf.put(&prefix, Content::Floats(&values)).expect("written");
        assert_eq!((digest, bytes.len()), (Digest::of_f32(&values), 4 * len));
        assert_eq!(ledger.shelf.read(&prefix).expect("reads").as_deref(), Some(&*bytes));
    }
}
