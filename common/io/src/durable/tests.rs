use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

use anabranch_common::limits;

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn open(dir: &Path) -> Result<DurableDb, StorageError> {
    DurableDb::open(&dir.join("store"), DbOptions { cache_bytes: 8 << 20 })
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Two coordinators on one directory would both acknowledge (P1). The message must name the process to stop.
#[test]
fn a_second_open_is_refused_and_names_the_process() {
    let dir = temp();
    let first = open(dir.path()).expect("opens");
    let error = open(dir.path()).expect_err("locked");
    let own = LockHolder::Process(std::process::id());
    assert!(matches!(&error, StorageError::Locked { holder, .. } if *holder == own), "{error}");
    drop(first);
    open(dir.path()).expect("free again");
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let dir = temp();
    let db = open(dir.path()).expect("opens");
    let tree = db.tree("journal").expect("tree");
    for position in 0..300u64 {
        tree.insert(position.to_be_bytes(), &noise(1000)).expect("inserts");
    }
    db.commit().expect("commits");
    assert!(db.disk_bytes().expect("counts") > 300_000);
    drop((tree, db));
    let db = open(dir.path()).expect("reopens");
    let tree = db.tree("journal").expect("tree");
    assert_eq!(tree.len(), 300);
    let (key, value) = tree.last().expect("reads").expect("not empty");
    assert_eq!((&*key, &*value), (&299u64.to_be_bytes()[..], &noise(1000)[..]));
    let back: Vec<_> =
        tree.range(10u64.to_be_bytes()..12u64.to_be_bytes()).rev().map(|e| e.expect("reads").0).collect();
    assert_eq!(back, [&11u64.to_be_bytes()[..], &10u64.to_be_bytes()[..]]);
}

/// An agent's store of an earlier version has segments of another size than one that it would create now.
#[test]
fn a_store_keeps_the_segments_that_it_was_created_with() {
    let dir = temp();
    let at = dir.path().join("store");
    for segment_bytes in [limits::STORE_SEGMENT_MAX_BYTES, 2 << 20] {
        let db = DurableDb::open_with_segments(&at, DbOptions::default(), segment_bytes).expect("opens");
        assert_eq!(stored_segment_bytes(&at), Some(limits::STORE_SEGMENT_MAX_BYTES));
        assert_eq!(db.shared.barrier_bytes, limits::STORE_SEGMENT_MAX_BYTES as u64 / SEGMENT_SHARE);
        db.tree("journal").expect("tree").insert(segment_bytes.to_be_bytes(), b"value").expect("inserts");
        db.commit().expect("commits");
    }
    assert_eq!(open(dir.path()).expect("opens").tree("journal").expect("tree").len(), 2);
}

/// Guards fault 9: a kill while the store opens leaves a partial snapshot, which sled alone refuses to open with.
#[test]
fn a_partial_snapshot_is_swept_and_the_store_opens() {
    let dir = temp();
    let db = open(dir.path()).expect("opens");
    db.tree("t").expect("tree").insert(b"k", b"v").expect("inserts");
    db.commit().expect("commits");
    drop(db);
    let partial = dir.path().join("store/snap.7FFFFFFFFFFFFFFF.generating");
    std::fs::write(&partial, b"half").expect("writes");
    let alone = sled::Config::new().path(dir.path().join("store")).segment_size(limits::STORE_SEGMENT_MAX_BYTES).open();
    assert!(alone.is_err(), "sled opens with a partial snapshot by itself now: the sweep can go");
    let db = open(dir.path()).expect("opens after sweeping");
    assert!(!partial.exists());
    assert_eq!(db.tree("t").expect("tree").get(b"k").expect("reads").as_deref(), Some(&b"v"[..]));
}

#[test]
fn large_values_come_back_whole_or_not_at_all() {
    let dir = temp();
    let db = open(dir.path()).expect("opens");
    let tree = db.tree("t").expect("tree");
    for len in [0, 1, STORE_VALUE_BYTES, STORE_VALUE_BYTES * 3 + 5] {
        let (key, bytes) = (format!("{len:08}"), noise(len));
        assert_eq!(tree.get_chunked(key.as_bytes()).expect("reads"), None);
        tree.put_chunked(key.as_bytes(), &bytes).expect("writes");
        assert_eq!(tree.get_chunked(key.as_bytes()).expect("reads"), Some(bytes));
    }
    let key = format!("{:08}", STORE_VALUE_BYTES * 3 + 5);
    tree.remove([key.as_bytes(), &3u32.to_be_bytes()].concat()).expect("removes");
    assert!(matches!(tree.get_chunked(key.as_bytes()), Err(StorageError::Corrupt { .. })), "a lost chunk is noticed");
    tree.delete_chunked(key.as_bytes()).expect("deletes");
    assert_eq!(tree.get_chunked(key.as_bytes()).expect("reads"), None);
    assert_eq!(tree.scan_prefix(key.as_bytes()).count(), 0);
    assert_eq!(tree.get_chunked(b"00000001").expect("reads"), Some(noise(1)), "others are untouched");
    assert!(tree.insert(b"k", &vec![0; STORE_VALUE_BYTES + 1]).is_err(), "the bound on values holds");
}

/// P7: after one failed sync nothing is acknowledged, even if the disk says yes the next time (fsyncgate).
#[test]
fn the_first_failed_sync_poisons_the_store() {
    let dir = temp();
    let db = open(dir.path()).expect("opens");
    let calls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&calls);
    db.replace_sync(move || match counter.fetch_add(1, Ordering::Relaxed) {
        0 => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    });
    db.tree("t").expect("tree").insert(b"k", b"v").expect("inserts");
    assert!(matches!(db.commit(), Err(StorageError::NoSpace { .. })));
    let again = db.commit().expect_err("poisoned");
    assert!(matches!(&again, StorageError::Poisoned { reason, .. } if reason.contains("no space")), "{again}");
    assert_eq!(calls.load(Ordering::Relaxed), 1, "the disk is not asked again");
}

/// sled writes over a segment once its content lies elsewhere, synced or not: a sync must come before it can be so far.
#[test]
fn a_commit_comes_by_itself_long_before_a_segment_is_full() {
    let dir = temp();
    let db = open(dir.path()).expect("opens");
    let tree = db.tree("t").expect("tree");
    let calls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&calls);
    db.replace_sync(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    for key in 0..15u32 {
        tree.insert(key.to_be_bytes(), &noise(STORE_VALUE_BYTES)).expect("inserts");
    }
    assert_eq!(calls.load(Ordering::Relaxed), 0, "a group commit is not cut up");
    tree.insert(b"k", &noise(STORE_VALUE_BYTES)).expect("inserts");
    assert_eq!(calls.load(Ordering::Relaxed), 1, "2 MiB, an eighth of a segment, were written");
}

/// Power loss while a store is created leaves files that sled refuses: without `db` they are no store.
#[test]
fn a_store_whose_creation_was_cut_short_is_created_anew() {
    let dir = temp();
    let store = dir.path().join("store");
    std::fs::create_dir_all(store.join("new/blobs")).expect("creates");
    for torn in ["conf", "new/conf", "new/db"] {
        std::fs::write(store.join(torn), b"torn").expect("writes");
    }
    let db = open(dir.path()).expect("opens");
    db.tree("t").expect("tree").insert(b"k", b"v").expect("inserts");
    db.commit().expect("commits");
    drop(db);
    let db = open(dir.path()).expect("reopens");
    assert_eq!(db.tree("t").expect("tree").get(b"k").expect("reads").as_deref(), Some(&b"v"[..]));
    assert!(!store.join("new").exists());
}

#[test]
fn a_damaged_store_is_reported_with_what_to_do() {
    let dir = temp();
    let db = open(dir.path()).expect("opens");
    let tree = db.tree("t").expect("tree");
    for key in 0..64u32 {
        tree.insert(key.to_be_bytes(), &noise(STORE_VALUE_BYTES)).expect("inserts");
    }
    db.commit().expect("commits");
    drop((tree, db));
    drop(open(dir.path()).expect("reopens"));
    let snapshot = std::fs::read_dir(dir.path().join("store"))
        .expect("lists")
        .map(|entry| entry.expect("entry").path())
        .find(|path| path.to_string_lossy().contains("snap."))
        .expect("sled writes a snapshot when it recovers");
    let mut bytes = std::fs::read(&snapshot).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&snapshot, bytes).expect("writes");
    let error = open(dir.path()).expect_err("damaged");
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    assert!(error.help().expect("help").contains("restore"));
}

/// A store that was committed value by value, and has lost half of its file.
fn half_a_store() -> tempfile::TempDir {
    let dir = temp();
    let db = open(dir.path()).expect("opens");
    let tree = db.tree("t").expect("tree");
    for key in 0..64u32 {
        tree.insert(key.to_be_bytes(), &noise(STORE_VALUE_BYTES)).expect("inserts");
        db.commit().expect("commits");
    }
    drop((tree, db));
    let file = File::options().write(true).open(dir.path().join("store/db")).expect("opens");
    file.set_len(file.metadata().expect("reads").len() / 2).expect("cuts");
    dir
}

/// Faults 15 and 16: sled alone opens these with entries missing and no error.
#[test]
fn a_store_that_lost_committed_writes_is_refused() {
    let dir = half_a_store();
    let error = open(dir.path()).expect_err("half of it is gone");
    assert!(matches!(&error, StorageError::Corrupt { .. }), "{error}");
}

#[test]
fn a_file_in_place_of_the_directory_is_an_error_of_its_path() {
    let dir = temp();
    std::fs::write(dir.path().join("store"), b"").expect("writes");
    let error = open(dir.path()).expect_err("a file");
    assert!(error.to_string().contains("store"), "{error}");
}

#[cfg(unix)]
#[test]
fn the_directory_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = temp();
    let db = open(dir.path()).expect("opens");
    let mode = std::fs::metadata(db.dir()).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// Looking changes nothing, not even for a moment that a lock would need; and what is written into the copy is lost.
#[test]
fn a_copy_is_read_and_the_store_stays_as_it_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("store");
    {
        let db = DurableDb::open(&path, DbOptions::default()).expect("opens");
        db.tree("t").expect("a tree").insert(b"k", b"stored").expect("inserts");
        db.commit().expect("commits");
        assert!(matches!(
            DurableDb::open_copy(&path, DbOptions::default(), limits::STORE_SEGMENT_BYTES),
            Err(StorageError::Locked { .. })
        ));
    }
    let listing = || {
        let entries = std::fs::read_dir(&path).expect("listed").map(|entry| {
            let entry = entry.expect("an entry");
            let metadata = entry.metadata().expect("there");
            (entry.file_name(), metadata.len(), metadata.modified().expect("a time"))
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort();
        entries
    };
    // The last of sled's threads lets go of the files.
    drop(DurableDb::open(&path, DbOptions::default()).expect("opens"));
    let before = listing();
    let real = {
        let copy = DurableDb::open_copy(&path, DbOptions::default(), limits::STORE_SEGMENT_BYTES).expect("opens");
        let tree = copy.tree("t").expect("a tree");
        assert_eq!(tree.get(b"k").expect("reads").as_deref(), Some(&b"stored"[..]));
        tree.insert(b"k", b"lost").expect("inserts");
        copy.commit().expect("commits");
        assert_eq!(copy.dir(), path);
        // Files beside the database are read in place, so a coordinator must not prune them meanwhile.
        let error = DurableDb::open(&path, DbOptions::default()).expect_err("a reader holds it");
        assert!(matches!(&error, StorageError::Locked { holder: LockHolder::Readers, .. }), "{error}");
        let again =
            DurableDb::open_copy(&path, DbOptions::default(), limits::STORE_SEGMENT_BYTES).expect("readers share");
        assert_eq!(again.tree("t").expect("a tree").get(b"k").expect("reads").as_deref(), Some(&b"stored"[..]));
        copy.shared._copy.as_ref().expect("a copy").path().to_owned()
    };
    assert_eq!(listing(), before);
    assert!(!real.exists(), "the copy is removed");
    drop(DurableDb::open(&path, DbOptions::default()).expect("free again"));
    let missing = dir.path().join("missing");
    let empty =
        DurableDb::open_copy(&missing, DbOptions::default(), limits::STORE_SEGMENT_BYTES).expect("an empty store");
    assert!(empty.tree("t").expect("a tree").is_empty());
    assert!(!missing.exists());
}

#[test]
fn damage_in_a_copy_is_told_of_the_store() {
    let dir = half_a_store();
    let path = dir.path().join("store");
    let error = DurableDb::open_copy(&path, DbOptions::default(), limits::STORE_SEGMENT_BYTES).expect_err("damaged");
    assert!(matches!(&error, StorageError::Corrupt { path: of, .. } if *of == path), "{error}");
}
