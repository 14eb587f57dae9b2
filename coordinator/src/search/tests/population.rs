//! A small population with its exact decisions.

use anabranch_common::ids::ModelVersion;

use super::*;

const FOUR: &str = "method = \"pbt\"\ntrials = 4\nr = 2\nmax = 4\nparallel = 2";

#[test]
fn the_worst_continues_from_a_copy_of_the_best() {
    let (mut search, records, _) = AtOnce::begin(&text(FOUR));
    assert_eq!(records.len(), 3, "two trials at a time");
    search.measured(0, 0.5);
    search.measured(1, 0.9);
    search.measured(2, 0.2);
    let (records, outputs) = search.measured(3, 0.6);
    let (trial, from) = (TrialId(2), TrialId(1));
    let [_, RecordBody::Exploited { overrides, .. }, ..] = &records[..] else { panic!("{records:?}") };
    let state = search.0.state();
    assert_eq!(state.trial(trial).expect("a trial").overrides, *overrides);
    assert_ne!(state.trial(from).expect("a trial").overrides, *overrides, "nothing was perturbed");
    let version = ModelVersion(2);
    let promoted = |trial| RecordBody::Promoted { trial: TrialId(trial), rung: 1 };
    let exploited = RecordBody::Exploited { trial, rung: 0, from, version, overrides: overrides.clone() };
    assert_eq!(records[1..], [exploited, promoted(0), promoted(1)], "then two go on at a time");
    let config = base().trial("lr-2", overrides).expect("valid");
    let copy = Output::Copy { trial, rung: 0, from, version, config };
    let on = |trial| Output::Continue { trial: TrialId(trial), until: 4 };
    assert_eq!(outputs, [copy, on(0), on(1)]);
    // What is left of the generation goes on, and nobody is copied a second time.
    assert_eq!(search.measured(1, 0.9).0[1..], [promoted(2)]);
    assert_eq!(search.measured(0, 0.1).0[1..], [promoted(3)]);
    search.measured(2, 0.95);
    let (records, _) = search.measured(3, 0.3);
    assert_eq!(records[1..], [RecordBody::Finished { winner: Some(trial), stopped: false }]);
}

/// Of fewer than four trials nobody is in a quarter.
#[test]
fn what_is_closed_is_not_copied_and_does_not_hold_up_the_others() {
    let (mut search, _, _) = AtOnce::begin(&text(FOUR));
    search.measured(0, 0.5);
    search.measured(1, 0.9);
    let gone = |trial| Input::Gone { trial: TrialId(trial), reason: "its run was deleted".to_owned() };
    search.handle(gone(1));
    search.measured(2, 0.2);
    let (records, _) = search.measured(3, 0.6);
    let promoted = |trial| RecordBody::Promoted { trial: TrialId(trial), rung: 1 };
    assert_eq!(records[1..], [promoted(0), promoted(2)]);
    search.handle(gone(0));
    search.handle(gone(2));
    let (records, _) = search.handle(gone(3));
    assert_eq!(records[1..], [RecordBody::Finished { winner: None, stopped: false }]);
}
