//! The second implementation of the rules notices journals that no search has written.

use anabranch_common::ids::Position;

use super::world::World;
use super::*;
use crate::search::record::{CloseReason, Record};
use crate::search::verify::{Due, verify};

/// The records of a whole search, whose steps come in order.
fn whole(search: &str) -> Vec<Record> {
    let mut world = World::new(&text(search));
    while !world.is_over() {
        let step = world.steps()[0];
        world.step(step);
    }
    world.records
}

fn numbered(bodies: Vec<RecordBody>) -> Vec<Record> {
    let record = |(position, body)| Record { position: Position(position), at_ms: 0, body };
    (0..).zip(bodies).map(record).collect()
}

#[test]
fn a_journal_that_was_cut_short_says_what_is_due() {
    let records = whole("trials = 2\neta = 2\nr = 1\nmax = 2\nparallel = 2");
    assert_eq!(verify(&records), Ok(None));
    assert_eq!(verify(&records[..1]), Ok(Some(Due::New(TrialId(0)))));
    assert_eq!(verify(&records[..2]), Ok(Some(Due::New(TrialId(1)))));
    assert_eq!(verify(&records[..3]), Ok(None));
    let finished = records.len() - 1;
    let Ok(Some(Due::Finished(Some(_)))) = verify(&records[..finished]) else { panic!("{:?}", records[finished]) };
    assert!(verify(&[]).is_err() && verify(&records[1..]).is_err());
}

/// Every change of a decision is noticed at the record that was changed or where a later one contradicts it.
#[test]
fn other_decisions_are_violations() {
    for search in ["trials = 5\neta = 2\nr = 1\nmax = 4", "method = \"pbt\"\ntrials = 5\nr = 1\nmax = 3\nparallel = 5"]
    {
        let records = whole(search);
        let mut changes = 0;
        for index in 1..records.len() {
            let mut changed = records.clone();
            match &mut changed[index].body {
                RecordBody::Trial { trial, .. }
                | RecordBody::Promoted { trial, .. }
                | RecordBody::Reached { trial, .. }
                | RecordBody::Exploited { trial, .. } => trial.0 += 1,
                RecordBody::Measured { version, .. } => version.0 += 1,
                RecordBody::Finished { winner, .. } => *winner = winner.map(|winner| TrialId(winner.0 ^ 1)),
                body => panic!("{body:?}"),
            }
            assert!(verify(&changed).is_err(), "{:?} in place of {:?}", changed[index], records[index]);
            let is_decision = !matches!(records[index].body, RecordBody::Reached { .. } | RecordBody::Measured { .. });
            if is_decision && index + 1 < records.len() {
                let mut missing: Vec<RecordBody> = records.iter().map(|record| record.body.clone()).collect();
                missing.remove(index);
                let missing = verify(&numbered(missing));
                assert!(missing.is_err(), "without {:?}", records[index]);
            }
            changes += 1;
        }
        assert!(changes > 15, "{changes} changes");
    }
}

#[test]
fn values_out_of_the_space_and_late_reasons_are_violations() {
    let records = whole("trials = 2\neta = 2\nr = 1\nmax = 2\nparallel = 1");
    for (key, value) in [("train.optimizer.lr", "2.0"), ("train.optimizer.lr", "1"), ("train.batch_size", "0.5")] {
        let mut changed = records.clone();
        let RecordBody::Trial { overrides: values, .. } = &mut changed[1].body else { panic!("{:?}", changed[1]) };
        *values = overrides(&[(key, value)]);
        assert_eq!(verify(&changed).expect_err(value).position, Position(1));
    }
    // Its configuration was found impossible after it ran.
    let closed = RecordBody::Closed { trial: TrialId(0), why: CloseReason::Impossible, reason: "late".to_owned() };
    let bodies = [records[0].body.clone(), records[1].body.clone(), records[2].body.clone(), closed];
    assert_eq!(verify(&numbered(bodies.to_vec())).expect_err("late").position, Position(3));
}
