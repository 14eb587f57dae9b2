//! What every [`Store`] must do. A new store calls [`conformance`] in its tests.

use anabranch_common::ids::{Digest, Position};

use super::layout::{CHUNK_BYTES, INLINE_BYTES, SMALL_BYTES};
use super::{StorageError, Store};

/// Runs the whole suite. `open(None)` gives a store that is empty and independent of all others; `open(Some(store))`
/// closes `store` and opens what it held.
///
/// # Panics
/// When the store does not do what it must.
pub fn conformance<S: Store>(mut open: impl FnMut(Option<S>) -> S) {
    empty_store_is_empty(&open(None));
    records_keep_their_bytes_and_order(&mut open);
    appending_refuses_gaps(&open(None));
    pruning_keeps_record_0_and_the_newest(&mut open);
    blobs_are_named_by_content(&mut open);
    checkpoints_come_in_ascending_order(&mut open);
    items_are_replaced_and_listed(&mut open);
    live_bytes_follow_what_is_stored(&mut open);
    readers_see_whole_records_while_others_append(&open(None));
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

fn numbered(records: &[Vec<u8>]) -> Vec<(Position, Vec<u8>)> {
    (0..).map(Position).zip(records.iter().cloned()).collect()
}

fn empty_store_is_empty<S: Store>(store: &S) {
    run("an empty store", || {
        assert_eq!(store.last_position()?, None);
        assert_eq!(store.first_position()?, None);
        assert_eq!(store.record(Position(0))?, None);
        assert_eq!(store.prune_records(Position(9))?, 0);
        assert_eq!(store.blobs()?, []);
        assert_eq!(store.blob(Digest::of(b"absent"))?, None);
        store.delete_blob(Digest::of(b"absent"))?;
        assert_eq!(store.checkpoints()?, []);
        store.delete_checkpoint(Position(3))?;
        assert_eq!(store.item("absent")?, None);
        store.delete_item("absent")?;
        assert_eq!(store.items("")?, Vec::<String>::new());
        assert_eq!(store.usage()?.live_bytes, 0);
        store.commit()
    });
}

fn records_keep_their_bytes_and_order<S: Store>(open: &mut impl FnMut(Option<S>) -> S) {
    let mut store = open(None);
    let records = numbered(&contents());
    run("records", || {
        store.append(&records[..3])?;
        store.append(&[])?;
        store.append(&records[3..])?;
        store.commit()
    });
    for _ in 0..2 {
        run("records", || {
            for (position, bytes) in &records {
                assert_eq!(store.record(*position)?.as_ref(), Some(bytes), "record {position}");
            }
            let end = Position(records.len() as u64);
            assert_eq!(store.record(end)?, None, "there is no record after the last one");
            assert_eq!(store.first_position()?, Some(Position(0)));
            assert_eq!(store.last_position()?.map(Position::next), Some(end));
            Ok(())
        });
        store = open(Some(store));
    }
}

fn appending_refuses_gaps<S: Store>(store: &S) {
    run("gaps", || {
        let record = |position| (Position(position), vec![7; 10]);
        assert!(store.append(&[record(1)]).is_err(), "the first record has position 0");
        store.append(&[record(0), record(1)])?;
        for batch in [vec![record(1)], vec![record(3)], vec![record(2), record(4)], vec![record(2), record(2)]] {
            assert!(store.append(&batch).is_err(), "{batch:?} does not follow record 1");
            assert_eq!(store.last_position()?, Some(Position(1)), "a refused batch changes nothing");
        }
        store.append(&[record(2)])
    });
}

fn pruning_keeps_record_0_and_the_newest<S: Store>(open: &mut impl FnMut(Option<S>) -> S) {
    let mut store = open(None);
    let record = |position: u64| (Position(position), vec![position.to_le_bytes()[0]; 2 * INLINE_BYTES]);
    run("pruning", || {
        store.append(&(0..10).map(record).collect::<Vec<_>>())?;
        store.commit()?;
        assert_eq!(store.prune_records(Position(1))?, 0, "only record 0 is below 1");
        assert_eq!(store.first_position()?, Some(Position(0)));
        assert_eq!(store.prune_records(Position(6))?, 5);
        assert_eq!(store.prune_records(Position(4))?, 0, "pruned before");
        Ok(())
    });
    for _ in 0..2 {
        run("pruning", || {
            assert_eq!(store.first_position()?, Some(Position(6)));
            assert_eq!(store.record(Position(0))?, Some(record(0).1), "record 0 is always kept");
            assert_eq!(store.record(Position(5))?, None);
            assert_eq!(store.record(Position(6))?, Some(record(6).1));
            Ok(())
        });
        store = open(Some(store));
    }
    run("pruning", || {
        assert_eq!(store.prune_records(Position(100))?, 3, "the newest record is kept");
        assert_eq!(store.first_position()?, Some(Position(9)));
        store.append(&[record(10)])?;
        store.commit()?;
        assert_eq!(store.last_position()?, Some(Position(10)));
        Ok(())
    });
}

fn blobs_are_named_by_content<S: Store>(open: &mut impl FnMut(Option<S>) -> S) {
    let mut store = open(None);
    let mut blobs: Vec<(Digest, Vec<u8>)> = contents().into_iter().map(|bytes| (Digest::of(&bytes), bytes)).collect();
    blobs.sort();
    run("blobs", || {
        for (id, bytes) in blobs.iter().chain(&blobs) {
            store.put_blob(*id, bytes)?;
        }
        store.commit()
    });
    store = open(Some(store));
    run("blobs", || {
        assert_eq!(store.blobs()?, blobs.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        for (id, bytes) in &blobs {
            assert_eq!(store.blob(*id)?.as_ref(), Some(bytes));
            assert_eq!(store.blob_bytes(*id)?, Some(bytes.len() as u64));
        }
        Ok(())
    });
    store = open(Some(store));
    run("blobs", || {
        // None has been read since the store was opened.
        for (id, _) in blobs.iter().chain(&blobs) {
            assert!(store.holds_blob(*id)?);
        }
        assert!(!store.holds_blob(Digest::of(b"absent"))?);
        let (first, rest) = blobs.split_first().expect("there are contents");
        store.delete_blob(first.0)?;
        assert!(!store.holds_blob(first.0)?, "it has been deleted");
        assert_eq!(store.blob(first.0)?, None);
        assert_eq!(store.blobs()?, rest.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        store.put_blob(first.0, &first.1)?;
        assert_eq!(store.blob(first.0)?.as_ref(), Some(&first.1), "a deleted blob can be stored again");
        assert!(store.holds_blob(first.0)?);
        Ok(())
    });
}

fn checkpoints_come_in_ascending_order<S: Store>(open: &mut impl FnMut(Option<S>) -> S) {
    let mut store = open(None);
    run("checkpoints", || {
        for position in [300, 2, 70_000] {
            store.put_checkpoint(Position(position), &position.to_le_bytes())?;
        }
        store.commit()
    });
    store = open(Some(store));
    run("checkpoints", || {
        let expected = |positions: &[u64]| -> Vec<(Position, Vec<u8>)> {
            positions.iter().map(|position| (Position(*position), position.to_le_bytes().to_vec())).collect()
        };
        assert_eq!(store.checkpoints()?, expected(&[2, 300, 70_000]));
        store.delete_checkpoint(Position(300))?;
        assert_eq!(store.checkpoints()?, expected(&[2, 70_000]));
        assert!(store.put_checkpoint(Position(3), &vec![0; SMALL_BYTES + 1]).is_err());
        Ok(())
    });
}

fn items_are_replaced_and_listed<S: Store>(open: &mut impl FnMut(Option<S>) -> S) {
    let mut store = open(None);
    let longest = vec![3; SMALL_BYTES];
    run("items", || {
        store.put_item("token/b", b"1")?;
        store.put_item("token/b", b"2")?;
        store.put_item("token/a", &longest)?;
        store.put_item("tokens", b"")?;
        store.commit()
    });
    store = open(Some(store));
    run("items", || {
        assert_eq!(store.item("token/b")?, Some(b"2".to_vec()));
        assert_eq!(store.item("token/a")?, Some(longest.clone()));
        assert_eq!(store.item("tokens")?, Some(Vec::new()));
        assert_eq!(store.items("token/")?, ["token/a", "token/b"]);
        store.delete_item("token/a")?;
        assert_eq!(store.items("")?, ["token/b", "tokens"]);
        assert!(store.put_item("long", &vec![0; SMALL_BYTES + 1]).is_err());
        assert_eq!(store.item("long")?, None, "a refused value is not stored");
        Ok(())
    });
    // Longer and shorter, and as long as before.
    let lengths = [10, INLINE_BYTES + 1, SMALL_BYTES, SMALL_BYTES, 5, SMALL_BYTES - 9];
    for (round, len) in lengths.into_iter().enumerate() {
        let value: Vec<u8> = (0..len).map(|i| (i * 7 + round).to_le_bytes()[0]).collect();
        run("replaced items", || {
            store.put_item("book", &value)?;
            assert_eq!(store.item("book")?.as_ref(), Some(&value), "round {round}");
            store.commit()
        });
        store = open(Some(store));
        run("replaced items", || {
            assert_eq!(store.item("book")?.as_ref(), Some(&value), "round {round}, reopened");
            assert_eq!(store.usage()?.live_bytes, (1 + value.len()) as u64, "round {round}");
            Ok(())
        });
    }
    run("replaced items", || {
        store.delete_item("book")?;
        assert_eq!(store.item("book")?, None);
        store.commit()
    });
}

fn live_bytes_follow_what_is_stored<S: Store>(open: &mut impl FnMut(Option<S>) -> S) {
    let mut store = open(None);
    let blob = vec![1; CHUNK_BYTES + 5];
    run("usage", || {
        store.append(&[(Position(0), vec![0; 10]), (Position(1), vec![0; 4000]), (Position(2), vec![0; 30])])?;
        store.put_blob(Digest::of(&blob), &blob)?;
        store.put_item("a", &[0; 100])?;
        store.put_item("a", &[0; 7])?;
        assert_eq!(store.usage()?.live_bytes, 10 + 4000 + 30 + blob.len() as u64 + 7);
        store.delete_blob(Digest::of(&blob))?;
        store.commit()
    });
    store = open(Some(store));
    run("usage", || {
        assert_eq!(store.usage()?.live_bytes, 10 + 4000 + 30 + 7, "counted anew when it is opened");
        store.prune_records(Position(2))?;
        assert_eq!(store.usage()?.live_bytes, 10 + 30 + 7 + 8, "and the mark of the pruning");
        Ok(())
    });
}

fn readers_see_whole_records_while_others_append<S: Store>(store: &S) {
    const RECORDS: u64 = 40;
    let bytes = |position: u64| vec![position.to_le_bytes()[0]; CHUNK_BYTES + usize::try_from(position).unwrap_or(0)];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            run("appending", || {
                for position in 0..RECORDS {
                    store.append(&[(Position(position), bytes(position))])?;
                    store.commit()?;
                }
                Ok(())
            });
        });
        run("reading", || {
            let mut next = 0;
            while next < RECORDS {
                match store.record(Position(next))? {
                    Some(found) => {
                        assert_eq!(found, bytes(next), "record {next} was seen before it was whole");
                        next += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
            Ok(())
        });
    });
}
