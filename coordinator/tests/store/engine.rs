//! What the engine makes of its medium: torn tails, prunings that are cut short, damage, replaced entries.

use anabranch_common::ids::{Digest, Position};
use anabranch_coordinator::store::layout::Name;
use anabranch_coordinator::store::{Area, StorageError, Store};
use anabranch_testkit_store::memory::{Fault, FaultKind, FaultSite, Survivors};
use anabranch_testkit_store::{MemoryStore, suite};

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
    let id = Digest::of(&bytes);
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
    let id = Digest::of(&bytes);
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
            let stored = after.usage().expect("memory").disk_bytes;
            assert!(stored < found.len() as u64 + 100, "{stored} bytes for one of {}", found.len());
        }
    }
}
