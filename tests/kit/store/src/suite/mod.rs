//! What every store must do. A new implementation calls [`conformance`] in its tests, or the suite
//! of the one seam that it implements.

pub mod blobs;
pub mod catalogue;
pub mod journal;

use anabranch_common::ids::{Digest, Position};

use anabranch_coordinator::store::layout::{CHUNK_BYTES, INLINE_BYTES, SMALL_BYTES};
use anabranch_coordinator::store::{StorageError, Store};

/// Runs the suites of all three seams, and what a store must do on top. `open(None)` gives a store
/// that is empty and independent of all others; `open(Some(store))` closes `store` and opens what
/// of it was synced.
///
/// # Panics
/// When the store does not do what it must.
pub fn conformance<S: Store>(mut open: impl FnMut(Option<S>) -> S) {
    journal::conformance(&mut open, Store::journal);
    blobs::conformance(&mut open, Store::blobs);
    catalogue::conformance(&mut open, Store::catalogue);
    live_bytes_follow_what_is_stored(&mut open);
}

type Outcome = Result<(), StorageError>;

fn run(what: &str, test: impl FnOnce() -> Outcome) {
    if let Err(error) = test() {
        panic!("{what}: {error}");
    }
}

/// Contents of every length at which the layout changes.
fn contents() -> Vec<Vec<u8>> {
    let lengths =
        [0, 1, INLINE_BYTES, INLINE_BYTES + 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7];
    lengths.iter().map(|len| (0..*len).map(|i| (i * 31 + len).to_le_bytes()[0]).collect()).collect()
}

/// Values that replace one another: longer and shorter, and as long as before.
fn replacements() -> Vec<Vec<u8>> {
    let lengths = [10, INLINE_BYTES + 1, SMALL_BYTES, SMALL_BYTES, 5, SMALL_BYTES - 9];
    let value = |(round, len): (usize, usize)| (0..len).map(|i| (i * 7 + round).to_le_bytes()[0]).collect();
    lengths.into_iter().enumerate().map(value).collect()
}

fn live_bytes_follow_what_is_stored<S: Store>(open: &mut impl FnMut(Option<S>) -> S) {
    let mut store = open(None);
    let blob = vec![1; CHUNK_BYTES + 5];
    run("usage", || {
        store.journal().append(&[
            (Position(0), vec![0; 10]),
            (Position(1), vec![0; 4000]),
            (Position(2), vec![0; 30]),
        ])?;
        store.blobs().put(Digest::of(&blob), &blob)?;
        store.catalogue().put("a", &[0; 100])?;
        store.catalogue().put("a", &[0; 7])?;
        assert_eq!(store.usage()?.live_bytes, 10 + 4000 + 30 + blob.len() as u64 + 7);
        store.blobs().delete(Digest::of(&blob))?;
        store.journal().sync()?;
        store.blobs().sync()?;
        store.catalogue().sync()
    });
    store = open(Some(store));
    run("usage", || {
        assert_eq!(store.usage()?.live_bytes, 10 + 4000 + 30 + 7, "counted anew when it is opened");
        store.journal().prune(Position(2))?;
        assert_eq!(store.usage()?.live_bytes, 10 + 30 + 7 + 8, "and the mark of the pruning");
        Ok(())
    });
    for value in replacements() {
        let mut store = open(None);
        run("usage", || {
            store.catalogue().put("book", &[1; SMALL_BYTES / 2])?;
            store.catalogue().put("book", &value)?;
            assert_eq!(store.usage()?.live_bytes, value.len() as u64);
            store.catalogue().sync()
        });
        store = open(Some(store));
        run("usage", || {
            assert_eq!(store.usage()?.live_bytes, value.len() as u64, "counted anew");
            store.catalogue().put("book", b"short")?;
            assert_eq!(store.usage()?.live_bytes, 5);
            Ok(())
        });
    }
}
