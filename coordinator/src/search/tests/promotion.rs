//! Small searches with their exact records and outputs.

use anabranch_common::ids::ModelVersion;

use super::*;
use crate::search::record::CloseReason;
use crate::search::{EndReason, Outcome};

/// Four trials, one at a time, rungs at 1, 2 and 4 contributions.
const SMALL: &str = "trials = 4\neta = 2\nr = 1\nmax = 4\nparallel = 1";

fn promoted(trial: u32, rung: u32) -> RecordBody {
    RecordBody::Promoted { trial: TrialId(trial), rung }
}

/// The numbers of the trials and rungs that records decide on, in order.
fn decisions(records: &[RecordBody]) -> Vec<(&'static str, u32, u32)> {
    let decision = |record: &RecordBody| match record {
        RecordBody::Trial { trial, .. } => Some(("new", trial.0, 0)),
        RecordBody::Promoted { trial, rung } => Some(("promoted", trial.0, *rung)),
        RecordBody::Closed { trial, .. } => Some(("closed", trial.0, 0)),
        RecordBody::Finished { winner, .. } => Some(("finished", winner.map_or(u32::MAX, |winner| winner.0), 0)),
        _ => None,
    };
    records.iter().filter_map(decision).collect()
}

#[test]
fn a_trial_is_made_and_runs_to_the_first_rung() {
    let (search, records, outputs) = AtOnce::begin(&text(SMALL));
    assert!(matches!(&records[..], [RecordBody::Started { .. }, RecordBody::Trial { .. }]), "{records:?}");
    let trial = search.0.state().trial(TrialId(0)).expect("made").clone();
    let config = base().trial("lr-0", &trial.overrides).expect("valid");
    let make = Output::Make { trial: TrialId(0), name: "lr-0".to_owned(), config };
    assert_eq!(outputs, [make, Output::Continue { trial: TrialId(0), until: 1 }]);
}

/// As algorithm 2 of the paper has it, with the end that it lacks.
#[test]
fn the_highest_promotable_trial_goes_first_then_a_new_one() {
    let (mut search, _, _) = AtOnce::begin(&text(SMALL));
    assert_eq!(decisions(&search.measured(0, 0.5).0), [("new", 1, 0)], "one of one is no half");
    let (records, outputs) = search.measured(1, 0.6);
    assert_eq!(records[1..], [promoted(1, 1)], "the best of two");
    assert_eq!(outputs, [Output::Continue { trial: TrialId(1), until: 2 }]);
    assert_eq!(decisions(&search.measured(1, 0.7).0), [("new", 2, 0)]);
    assert_eq!(decisions(&search.measured(2, 0.55).0), [("new", 3, 0)], "second of three");
    assert_eq!(decisions(&search.measured(3, 0.4).0), [("promoted", 2, 1)], "two of four are promoted");
    assert_eq!(decisions(&search.measured(2, 0.8).0), [("promoted", 2, 2)], "the best of two at the next rung");
    let (records, outputs) = search.measured(2, 0.9);
    assert_eq!(records[1..], [RecordBody::Finished { winner: Some(TrialId(2)), stopped: false }]);
    let end = |trial, why| Output::End { trial: TrialId(trial), why };
    let outcome = Outcome { winner: Some(TrialId(2)), stopped: false };
    let ends = [end(0, EndReason::Lost), end(1, EndReason::Lost), end(2, EndReason::Won), end(3, EndReason::Lost)];
    assert_eq!(outputs, [&ends[..], &[Output::Finished(outcome)]].concat());
    assert_eq!(search.handle(Input::Stop), (vec![], vec![]), "it is over");
}

/// Three trials of which a quarter are none: the best one goes on when no other is at work.
#[test]
fn when_all_trials_wait_the_best_one_goes_on_to_the_last_rung() {
    let (mut search, _, _) = AtOnce::begin(&text("trials = 3\nr = 1\nmax = 16\nparallel = 2"));
    assert_eq!(decisions(&search.measured(1, 0.5).0), [("new", 2, 0)]);
    assert_eq!(decisions(&search.measured(0, 0.5).0), [], "another trial is at work");
    assert_eq!(decisions(&search.measured(2, 0.4).0), [("promoted", 0, 1)], "of equals the lower number");
    assert_eq!(decisions(&search.measured(0, 0.3).0), [("promoted", 0, 2)], "nobody else is at that rung");
    assert_eq!(decisions(&search.measured(0, 0.2).0), [("finished", 0, 0)], "the highest rung counts");
}

#[test]
fn a_measurement_of_another_version_does_not_count() {
    let (mut search, _, _) = AtOnce::begin(&text(SMALL));
    let trial = TrialId(0);
    let measured = |version, accuracy| Input::Measured { trial, version: ModelVersion(version), accuracy, loss: 0.0 };
    assert_eq!(search.handle(measured(1, 0.5)), (vec![], vec![]), "it has not come to its rung");
    let reached = |contributions, version| Input::Reached { trial, contributions, version: ModelVersion(version) };
    assert_eq!(search.handle(reached(0, 0)), (vec![], vec![]), "too few contributions");
    assert_eq!(search.handle(reached(1, 1)).0.len(), 1);
    assert_eq!(search.handle(reached(1, 1)), (vec![], vec![]), "told again");
    assert_eq!(search.handle(reached(2, 2)), (vec![], vec![]), "updates that were on their way");
    assert_eq!(search.handle(measured(2, 0.9)), (vec![], vec![]), "another version");
    let (records, _) = search.handle(measured(1, 0.5));
    assert_eq!(decisions(&records), [("new", 1, 0)]);
    assert_eq!(search.handle(measured(1, 0.6)), (vec![], vec![]), "told again");
    assert_eq!(search.handle(Input::Gone { trial: TrialId(9), reason: String::new() }), (vec![], vec![]), "no trial");
}

#[test]
fn a_trial_that_diverges_is_the_worst_of_its_rung_and_ends_alone() {
    let (mut search, _, _) = AtOnce::begin(&text(SMALL));
    let reason = "the model stopped\nbeing finite".to_owned();
    let (records, outputs) = search.handle(Input::Diverged { trial: TrialId(0), reason });
    let (why, reason) = (CloseReason::Diverged, "the model stopped being finite".to_owned());
    assert_eq!(records[0], RecordBody::Closed { trial: TrialId(0), why, reason });
    assert_eq!(outputs[0], Output::End { trial: TrialId(0), why: EndReason::Closed });
    assert_eq!(decisions(&records), [("closed", 0, 0), ("new", 1, 0)]);
    assert_eq!(decisions(&search.measured(1, 0.1).0), [("promoted", 1, 1)], "the better one of two");
    // A metric that is no number.
    let (trial, version) = (TrialId(1), ModelVersion(2));
    search.handle(Input::Reached { trial, contributions: 2, version });
    let (records, _) = search.handle(Input::Measured { trial, version, accuracy: f64::NAN, loss: 0.0 });
    assert_eq!(decisions(&records), [("closed", 1, 0), ("new", 2, 0)]);
    let gone = |trial| Input::Gone { trial: TrialId(trial), reason: "its run was deleted".to_owned() };
    let (records, outputs) = search.handle(gone(2));
    assert_eq!(decisions(&records), [("closed", 2, 0), ("new", 3, 0)]);
    assert!(!outputs.iter().any(|output| matches!(output, Output::End { .. })), "no run is left to end: {outputs:?}");
    let (records, outputs) = search.handle(gone(3));
    assert_eq!(decisions(&records), [("closed", 3, 0), ("finished", u32::MAX, 0)]);
    assert_eq!(outputs.last(), Some(&Output::Finished(Outcome { winner: None, stopped: false })));
}

/// A finalist that is lost is replaced by the next best.
#[test]
fn a_waiting_trial_that_is_deleted_is_not_promoted() {
    let (mut search, _, _) = AtOnce::begin(&text("trials = 2\nr = 1\nmax = 4\nparallel = 2"));
    search.measured(0, 0.9);
    let gone = |trial| Input::Gone { trial: TrialId(trial), reason: "its run was deleted".to_owned() };
    assert_eq!(decisions(&search.handle(gone(0)).0), [("closed", 0, 0)]);
    assert_eq!(decisions(&search.measured(1, 0.1).0), [("promoted", 1, 1)]);
    assert_eq!(decisions(&search.measured(1, 0.2).0), [("finished", 1, 0)]);
}

#[test]
fn an_impossible_trial_is_closed_with_its_reason() {
    let search = "config = \"run.toml\"\n[search]\nmethod = \"grid\"\nmax = 1\n[space]\n\
                  \"train.batch_size\" = { choice = [0, 8] }\n";
    let (_, records, outputs) = AtOnce::begin(search);
    assert_eq!(decisions(&records), [("new", 0, 0), ("closed", 0, 0), ("new", 1, 0)]);
    let RecordBody::Closed { why: CloseReason::Impossible, reason, .. } = &records[2] else { panic!("{records:?}") };
    assert_eq!(reason, "train.batch_size must be at least 1, but is 0");
    assert!(matches!(&outputs[..], [Output::Make { trial: TrialId(1), .. }, Output::Continue { .. }]), "{outputs:?}");
}

#[test]
fn an_operator_ends_a_search_and_the_best_so_far_wins() {
    let (mut search, _, _) = AtOnce::begin(&text(SMALL));
    search.measured(0, 0.5);
    search.measured(1, 0.6);
    let (records, outputs) = search.handle(Input::Stop);
    assert_eq!(records, [RecordBody::Finished { winner: Some(TrialId(1)), stopped: true }]);
    let end = |trial, why| Output::End { trial: TrialId(trial), why };
    let outcome = Output::Finished(Outcome { winner: Some(TrialId(1)), stopped: true });
    assert_eq!(outputs, [end(0, EndReason::Lost), end(1, EndReason::Won), outcome]);
}

/// With a loss less is better.
#[test]
fn the_direction_follows_from_the_metric() {
    let (mut search, _, _) = AtOnce::begin(&text(&format!("{SMALL}\nmetric = \"loss\"")));
    // `measured` says a loss of 1 - accuracy.
    search.measured(0, 0.9);
    assert_eq!(decisions(&search.measured(1, 0.1).0), [("promoted", 0, 1)]);
}

/// `parallel` trials at a time, each to the end.
#[test]
fn random_trials_run_to_the_end() {
    let (mut search, records, _) = AtOnce::begin(&text("method = \"random\"\ntrials = 3\nmax = 4\nparallel = 2"));
    assert_eq!(decisions(&records), [("new", 0, 0), ("new", 1, 0)]);
    assert_eq!(decisions(&search.measured(1, 0.5).0), [("new", 2, 0)]);
    assert_eq!(decisions(&search.measured(2, 0.7).0), []);
    assert_eq!(decisions(&search.measured(0, 0.6).0), [("finished", 2, 0)]);
}
