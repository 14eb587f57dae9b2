//! Trials that go on from copies of others, and kills at every step of that.

use anabranch_common::ids::Digest;
use anabranch_common::journal::{CopyMark, RecordBody as RunBody};
use anabranch_common::status::RunStanding;

use super::*;
use crate::config::Retention;
use crate::search::run_name;

/// Four trials with rungs of 2, 4 and 6 contributions.
const POPULATION: &str = "config = \"run.toml\"\n[search]\nmethod = \"pbt\"\ntrials = 4\nr = 2\nmax = 6\n\
                          parallel = 1\n[space]\n\"train.optimizer.lr\" = { log = [1e-3, 1] }\n";
/// Trials of the bottom quarter at the two rungs before the last one.
const COPIES: usize = 2;

fn population() -> Fleet {
    let mut fleet = Fleet::new(Habit::Trains);
    fleet.retention = Retention::All;
    fleet.start_search(POPULATION);
    fleet
}

/// The trials that go on from copies, each with the mark that its run's journal shall have.
fn marks(fleet: &Fleet, records: &[Record]) -> Vec<(String, CopyMark)> {
    let mark = |record: &Record| match &record.body {
        RecordBody::Exploited { trial, rung, from, version, .. } => {
            let from = fleet.run_id(&run_name("lr", *from));
            Some((run_name("lr", *trial), CopyMark { rung: *rung, from, version: *version }))
        }
        _ => None,
    };
    records.iter().filter_map(mark).collect()
}

/// The copies in the journals of all runs, by run: the digest of each, and whether the configuration was changed before it.
fn copied(fleet: &Fleet) -> Vec<(String, CopyMark, Digest, bool)> {
    let mut copies = Vec::new();
    for number in 0..4 {
        let name = format!("lr-{number}");
        let mut changed = false;
        for record in fleet.run_journal(&name) {
            match record.body {
                RunBody::ConfigChanged { .. } => changed = true,
                RunBody::Imported { model, copied: Some(mark), .. } => {
                    copies.push((name.clone(), mark, model, std::mem::take(&mut changed)));
                }
                _ => {}
            }
        }
    }
    copies.sort_by_key(|(_, mark, ..)| mark.rung);
    copies
}

#[test]
fn the_worst_trial_goes_on_from_a_copy_of_the_best_one() {
    let mut fleet = population();
    let records = run_to_the_end(&mut fleet);
    let expected = marks(&fleet, &records);
    assert_eq!(expected.len(), COPIES, "{records:#?}");
    let copies = copied(&fleet);
    assert_eq!(copies.iter().map(|(name, mark, ..)| (name.clone(), *mark)).collect::<Vec<_>>(), expected);
    for (name, mark, digest, changed) in copies {
        let origin = (0..4).map(|number| format!("lr-{number}")).find(|name| fleet.run_id(name) == mark.from);
        assert_eq!(fleet.digest(&origin.expect("a trial"), mark.version), digest, "the copy of {name}");
        assert!(changed, "{name} has the perturbed keys");
    }
    fleet.settle();
    let report: SearchReport = fleet.search(SearchRequest::Status { name: None });
    for trial in &report.trials {
        let state = fleet.run_state(&trial.run);
        assert_eq!(state.copied, trial.copies.last().map(|copy| copy.rung), "{}", trial.run);
        assert_eq!(state.totals.accepted, 6, "the contributions of a copy are not its own: {}", trial.run);
        // Its configuration is the one that the search says, and its run.toml too.
        let lr = trial.overrides["train.optimizer.lr"].as_f64().expect("a number");
        let spec = fleet.run_spec(&trial.run);
        assert_eq!(state.spec, spec, "{}", trial.run);
        assert!(format!("{:?}", spec.train.optimizer).contains(&format!("lr: {lr}")), "{spec:?}");
    }
}

/// Whenever the process is killed, the next one decides the same, and no trial takes up a copy twice.
#[test]
fn a_population_that_is_killed_at_any_step_has_the_same_journals() {
    let mut whole = population();
    let expected = run_to_the_end(&mut whole);
    let copies = copied(&whole);
    let exploits = |records: &[Record]| marks(&whole, records).len();
    let mut kills = 0;
    for steps in 1.. {
        let mut fleet = population();
        (0..steps).for_each(|_| fleet.step());
        let records = fleet.journal("lr");
        if matches!(records.last(), Some(Record { body: RecordBody::Finished { .. }, .. })) {
            break;
        }
        // Each step of a copy, and some of the others since the first one was decided.
        let exploits = exploits(&records);
        if exploits == 0 || (copied(&fleet).len() == exploits && steps % 10 > 0) {
            continue;
        }
        fleet.kill();
        assert_eq!(bodies(&run_to_the_end(&mut fleet)), bodies(&expected), "killed after {steps} steps");
        assert_eq!(copied(&fleet), copies, "killed after {steps} steps");
        kills += 1;
    }
    assert!(kills > 20, "{kills} kills");
}

#[test]
fn a_kill_between_the_configuration_and_the_model_changes_nothing() {
    let mut whole = population();
    let expected = run_to_the_end(&mut whole);
    let copies = copied(&whole);
    let mut fleet = population();
    while !fleet.reopens() {
        fleet.step();
    }
    fleet.half_reopen();
    fleet.kill();
    assert_eq!(bodies(&run_to_the_end(&mut fleet)), bodies(&expected));
    assert_eq!(copied(&fleet), copies);
}

#[test]
fn a_trial_that_cannot_be_given_its_copy_is_closed_and_the_others_go_on() {
    let mut fleet = population();
    fleet.fail_copy();
    let records = run_to_the_end(&mut fleet);
    let closed: Vec<_> = records
        .iter()
        .filter_map(|record| match &record.body {
            RecordBody::Closed { trial, why, reason } => Some((trial.0, *why, reason.clone())),
            _ => None,
        })
        .collect();
    let [(number, CloseReason::Failed, reason)] = &closed[..] else { panic!("{closed:?}") };
    assert!(reason.contains("the disk is gone"), "{reason}");
    assert!(finished(&records).is_some_and(|winner| winner != *number));
    fleet.settle();
    assert!(fleet.run_state(&format!("lr-{number}")).finished.is_some(), "its run has ended");
}

/// While its run is opened again, a trial is not listed as gone, and what is asked of it can be asked again.
#[test]
fn a_run_that_is_opened_again_says_so() {
    let mut fleet = population();
    while !fleet.reopens() {
        fleet.step();
    }
    let opening = fleet.host.summaries().into_iter().filter(|run| run.state == RunStanding::Opening);
    let names: Vec<String> = opening.map(|run| run.name).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let response = fleet.ask(OperatorRequest::Run { run: Some(names[0].clone()), request: RunRequest::Status });
    assert!(matches!(&response, OperatorResponse::Conflict(why) if why.contains("being opened")), "{response:?}");
    run_to_the_end(&mut fleet);
}
