//! The bytes of records, as they were when the layout was fixed, and a journal on a real disk.

use std::fmt::Write as _;

use anabranch_common::ids::{ModelVersion, Position};
use anabranch_common::limits;

use super::*;
use crate::search::journal;
use crate::search::record::{CloseReason, Record, RecordError};
use crate::store::{SledStore, Store as _};

/// One of each kind.
fn samples() -> Vec<Record> {
    let trial = TrialId(7);
    let values = overrides(&[("train.optimizer.lr", "0.05")]);
    let version = ModelVersion(32);
    let closed = |why| RecordBody::Closed { trial, why, reason: "why".into() };
    let bodies = [
        RecordBody::Started { path: "p".into(), search: "s".into(), base: "b".into() },
        RecordBody::Trial { trial, overrides: values.clone() },
        RecordBody::Reached { trial, rung: 1, contributions: 33, version },
        RecordBody::Measured { trial, rung: 1, version, metric: 0.75 },
        RecordBody::Promoted { trial, rung: 2 },
        RecordBody::Exploited { trial, rung: 1, from: TrialId(3), version, overrides: values },
        closed(CloseReason::Impossible),
        closed(CloseReason::Diverged),
        closed(CloseReason::Failed),
        closed(CloseReason::Gone),
        RecordBody::Finished { winner: Some(trial), stopped: false },
        RecordBody::Finished { winner: None, stopped: true },
    ];
    let record = |(position, body)| Record { position: Position(position), at_ms: 0x1122, body };
    (0..).zip(bodies).map(record).collect()
}

/// A difference means that searches of older programs cannot be read: raise the schema's version instead (CONTRIBUTING.md).
#[test]
fn the_bytes_of_every_record() {
    let lines = samples().iter().fold(String::new(), |mut lines, record| {
        let bytes = record.to_bytes().expect("small");
        assert_eq!(Record::from_bytes(&bytes).as_ref(), Ok(record));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(lines, "{hex}").expect("memory");
        lines
    });
    assert_eq!(lines, include_str!("records.hex"));
}

#[test]
fn damaged_records_are_refused() {
    for record in samples() {
        let bytes = record.to_bytes().expect("small");
        for len in 0..bytes.len() {
            assert!(Record::from_bytes(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Record::from_bytes(&damaged).is_err(), "byte {at} of {record:?} does not matter");
        }
    }
    let mut newer = samples()[0].to_bytes().expect("small");
    newer[4] = 0xFF;
    assert_eq!(Record::from_bytes(&newer), Err(RecordError::Schema { found: 0xFF }));
    let long = "x".repeat(limits::SEARCH_RECORD_BYTES);
    let body = RecordBody::Started { path: String::new(), search: long, base: String::new() };
    let record = Record { position: Position(0), at_ms: 0, body };
    assert!(matches!(record.to_bytes(), Err(RecordError::Body(_))));
}

#[test]
fn a_journal_on_disk_is_read_as_it_was_written() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let samples = samples();
    let store = SledStore::open_dir(root.path()).expect("opens");
    assert_eq!(journal::read(store.journal()).expect("reads"), []);
    assert_eq!(journal::write(store.journal(), &samples[..5]).expect("writes"), Some(Position(4)));
    assert!(journal::write(store.journal(), &samples[6..]).is_err(), "a gap");
    drop(store);
    let store = SledStore::open_dir(root.path()).expect("opens");
    assert_eq!(journal::read(store.journal()).expect("reads"), samples[..5]);
    assert_eq!(journal::write(store.journal(), &[]).expect("writes"), None);
    // A record that lies where another one belongs.
    let moved = Record { position: Position(9), ..samples[5].clone() };
    store.journal().append(&[(Position(5), moved.to_bytes().expect("small"))]).expect("appends");
    let error = journal::read(store.journal()).expect_err("another record").to_string();
    assert!(error.contains("record 5 of the search's journal says that it is record 9"), "{error}");
}

#[test]
fn records_that_do_not_follow_from_each_other_are_no_search() {
    let (search, records, _) = AtOnce::begin(&text("trials = 2\nr = 1\nmax = 4\nparallel = 1"));
    let record = |(position, body)| Record { position: Position(position), at_ms: 0, body };
    let records: Vec<Record> = (0..).zip(records).map(record).collect();
    assert_eq!(Search::restore(&records).expect("its own").state().trials, search.0.state().trials);
    let trial = TrialId(0);
    for wrong in [
        RecordBody::Trial { trial: TrialId(3), overrides: overrides(&[]) },
        RecordBody::Reached { trial, rung: 1, contributions: 1, version: ModelVersion(1) },
        RecordBody::Measured { trial, rung: 0, version: ModelVersion(1), metric: 0.5 },
        RecordBody::Promoted { trial, rung: 1 },
        RecordBody::Promoted { trial, rung: 0 },
        RecordBody::Exploited { trial, rung: 0, from: TrialId(0), version: ModelVersion(1), overrides: overrides(&[]) },
        RecordBody::Closed { trial: TrialId(1), why: CloseReason::Gone, reason: String::new() },
        RecordBody::Finished { winner: Some(TrialId(5)), stopped: false },
        records[0].body.clone(),
    ] {
        let all = [&records[..], &[record((2, wrong.clone()))]].concat();
        let error = Search::restore(&all).expect_err("no search").to_string();
        assert!(error.starts_with("record 2 of the search's journal: "), "{error}");
    }
    assert!(Search::restore(&records[1..]).is_err() && Search::restore(&[]).is_err());
    let gap = Record { position: Position(3), ..records[1].clone() };
    assert!(Search::restore(&[records[0].clone(), gap]).is_err());
}
