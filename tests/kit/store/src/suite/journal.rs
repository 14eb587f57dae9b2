//! What every [`Journal`] must do.

use anabranch_common::ids::Position;

use super::{contents, run};
use anabranch_coordinator::store::Journal;
use anabranch_coordinator::store::layout::{CHUNK_BYTES, INLINE_BYTES};

/// Runs the suite of the journal. `open(None)` gives an empty one; `open(Some(store))` closes
/// `store` and opens what of it was synced.
///
/// # Panics
/// When the journal does not do what it must.
pub fn conformance<S>(open: &mut impl FnMut(Option<S>) -> S, seam: fn(&S) -> &dyn Journal) {
    empty_journal_is_empty(seam(&open(None)));
    records_keep_their_bytes_and_order(open, seam);
    appending_refuses_gaps(seam(&open(None)));
    pruning_keeps_record_0_and_the_newest(open, seam);
    readers_see_whole_records_while_others_append(seam(&open(None)));
}

fn empty_journal_is_empty(journal: &dyn Journal) {
    run("an empty journal", || {
        assert_eq!(journal.last_position()?, None);
        assert_eq!(journal.first_position()?, None);
        assert_eq!(journal.record(Position(0))?, None);
        assert_eq!(journal.prune(Position(9))?, 0);
        journal.sync()
    });
}

fn numbered(records: &[Vec<u8>]) -> Vec<(Position, Vec<u8>)> {
    (0..).map(Position).zip(records.iter().cloned()).collect()
}

fn records_keep_their_bytes_and_order<S>(open: &mut impl FnMut(Option<S>) -> S, seam: fn(&S) -> &dyn Journal) {
    let mut store = open(None);
    let records = numbered(&contents());
    run("records", || {
        seam(&store).append(&records[..3])?;
        seam(&store).append(&[])?;
        seam(&store).append(&records[3..])?;
        seam(&store).sync()
    });
    for _ in 0..2 {
        run("records", || {
            for (position, bytes) in &records {
                assert_eq!(seam(&store).record(*position)?.as_ref(), Some(bytes), "record {position}");
            }
            let end = Position(records.len() as u64);
            assert_eq!(seam(&store).record(end)?, None, "there is no record after the last one");
            assert_eq!(seam(&store).first_position()?, Some(Position(0)));
            assert_eq!(seam(&store).last_position()?.map(Position::next), Some(end));
            Ok(())
        });
        store = open(Some(store));
    }
}

fn appending_refuses_gaps(journal: &dyn Journal) {
    run("gaps", || {
        let record = |position| (Position(position), vec![7; 10]);
        assert!(journal.append(&[record(1)]).is_err(), "the first record has position 0");
        journal.append(&[record(0), record(1)])?;
        for batch in [vec![record(1)], vec![record(3)], vec![record(2), record(4)], vec![record(2), record(2)]] {
            assert!(journal.append(&batch).is_err(), "{batch:?} does not follow record 1");
            assert_eq!(journal.last_position()?, Some(Position(1)), "a refused batch changes nothing");
        }
        journal.append(&[record(2)])
    });
}

fn pruning_keeps_record_0_and_the_newest<S>(open: &mut impl FnMut(Option<S>) -> S, seam: fn(&S) -> &dyn Journal) {
    let mut store = open(None);
    let record = |position: u64| (Position(position), vec![position.to_le_bytes()[0]; 2 * INLINE_BYTES]);
    run("pruning", || {
        seam(&store).append(&(0..10).map(record).collect::<Vec<_>>())?;
        seam(&store).sync()?;
        assert_eq!(seam(&store).prune(Position(1))?, 0, "only record 0 is below 1");
        assert_eq!(seam(&store).first_position()?, Some(Position(0)));
        assert_eq!(seam(&store).prune(Position(6))?, 5);
        assert_eq!(seam(&store).prune(Position(4))?, 0, "pruned before");
        Ok(())
    });
    for _ in 0..2 {
        run("pruning", || {
            assert_eq!(seam(&store).first_position()?, Some(Position(6)));
            assert_eq!(seam(&store).record(Position(0))?, Some(record(0).1), "record 0 is always kept");
            assert_eq!(seam(&store).record(Position(5))?, None);
            assert_eq!(seam(&store).record(Position(6))?, Some(record(6).1));
            Ok(())
        });
        store = open(Some(store));
    }
    run("pruning", || {
        assert_eq!(seam(&store).prune(Position(100))?, 3, "the newest record is kept");
        assert_eq!(seam(&store).first_position()?, Some(Position(9)));
        seam(&store).append(&[record(10)])?;
        seam(&store).sync()?;
        assert_eq!(seam(&store).last_position()?, Some(Position(10)));
        Ok(())
    });
}

fn readers_see_whole_records_while_others_append(journal: &dyn Journal) {
    const RECORDS: u64 = 40;
    let bytes = |position: u64| vec![position.to_le_bytes()[0]; CHUNK_BYTES + usize::try_from(position).unwrap_or(0)];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            run("appending", || {
                for position in 0..RECORDS {
                    journal.append(&[(Position(position), bytes(position))])?;
                    journal.sync()?;
                }
                Ok(())
            });
        });
        run("reading", || {
            let mut next = 0;
            while next < RECORDS {
                match journal.record(Position(next))? {
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
