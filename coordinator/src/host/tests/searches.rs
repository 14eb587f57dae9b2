//! Searches over runs whose agents, disks and workers are this test: every job and every message is one step.

mod copies;
mod fleet;

use anabranch_common::ids::Position;
use anabranch_common::wire::operator::SearchRequest;

use super::world::REQUEST;
use super::*;
use crate::search::record::{CloseReason, Record, RecordBody};
use crate::search::report::{SearchPhase, SearchReport, SearchResult, SearchStanding, SearchStarted, SearchSummary};
use crate::search::verify::verify;

use fleet::{BASE, Fleet, Habit, search_text};

/// Most steps of a search in here.
const STEPS: usize = 20_000;

fn finished(records: &[Record]) -> Option<TrialNumber> {
    match records.last()?.body {
        RecordBody::Finished { winner, .. } => winner.map(|winner| winner.0),
        _ => None,
    }
}

type TrialNumber = u32;

fn bodies(records: &[Record]) -> Vec<RecordBody> {
    records.iter().map(|record| record.body.clone()).collect()
}

/// Takes steps until the search has ended.
fn run_to_the_end(fleet: &mut Fleet) -> Vec<Record> {
    for _ in 0..STEPS {
        let records = fleet.journal("lr");
        if matches!(records.last(), Some(Record { body: RecordBody::Finished { .. }, .. })) {
            assert_eq!(verify(&records), Ok(None), "{records:#?}");
            return records;
        }
        fleet.step();
    }
    panic!("the search does not end: {:#?}", fleet.journal("lr"));
}

fn whole(parallel: u32, habit: Habit) -> (Fleet, Vec<Record>) {
    let mut fleet = Fleet::new(habit);
    fleet.start_search(&search_text(parallel));
    let records = run_to_the_end(&mut fleet);
    (fleet, records)
}

#[test]
fn a_search_of_four_trials_runs_to_its_winner_and_its_runs_end() {
    let (mut fleet, records) = whole(2, Habit::Trains);
    let SearchStarted { name, trials, price } = fleet.json();
    assert_eq!((name.as_str(), trials, price.full_run), ("lr", 4, 8));
    let winner = finished(&records).expect("a winner");
    let report: SearchReport = fleet.search(SearchRequest::Status { name: None });
    assert_eq!((report.state, report.leader.map(|leader| leader.0)), (SearchPhase::Finished, Some(winner)));
    let best = &report.trials[usize::try_from(winner).expect("small")];
    let last = best.measured.last().expect("measured");
    assert_eq!((last.rung, last.contributions, last.version.0), (2, 8, 8));
    let result: SearchResult = fleet.search(SearchRequest::Export { name: Some("lr".into()) });
    assert_eq!((result.run.as_str(), result.version, result.is_over), (best.run.as_str(), last.version, true));
    assert!(result.config.contains(&format!("name = \"{}\"", best.run)), "{}", result.config);
    let searches: Vec<SearchSummary> = fleet.search(SearchRequest::List);
    assert_eq!((searches.len(), searches[0].state), (1, SearchStanding::Finished));
    fleet.settle();
    for trial in &report.trials {
        let state = fleet.run_state(&trial.run);
        let rung = trial.measured.last().expect("measured");
        assert_eq!(state.totals.accepted, rung.contributions, "no lease beyond its rung: {}", trial.run);
        let (_, of) = state.finished.expect("the search has ended it");
        assert_eq!(of, rung.version, "{}", trial.run);
    }
}

/// Whenever the process is killed, the next one decides the same.
#[test]
fn a_search_that_is_killed_at_any_step_has_the_same_journal() {
    let (_, expected) = whole(1, Habit::Trains);
    let expected = bodies(&expected);
    let mut kills = 0;
    for at in 1.. {
        let mut fleet = Fleet::new(Habit::Trains);
        fleet.start_search(&search_text(1));
        let steps = at * 7;
        (0..steps).for_each(|_| fleet.step());
        let records = fleet.journal("lr");
        if matches!(records.last(), Some(Record { body: RecordBody::Finished { .. }, .. })) {
            break;
        }
        fleet.kill();
        if records.is_empty() {
            assert_eq!(fleet.searches(), 0, "a start that was never answered is removed after {steps} steps");
            continue;
        }
        assert_eq!(bodies(&run_to_the_end(&mut fleet)), expected, "killed after {steps} steps");
        kills += 1;
    }
    assert!(kills > 20, "{kills} kills");
}

#[test]
fn a_trial_that_diverges_is_closed_and_the_others_go_on() {
    let (mut fleet, records) = whole(2, Habit::Diverges("lr-1"));
    let closed = records.iter().find_map(|record| match &record.body {
        RecordBody::Closed { trial, why, reason } => Some((trial.0, *why, reason.clone())),
        _ => None,
    });
    let reason = "its model stopped being finite".to_owned();
    assert_eq!(closed, Some((1, CloseReason::Diverged, reason)));
    assert!(finished(&records).is_some_and(|winner| winner != 1));
    fleet.settle();
    assert!(fleet.run_state("lr-1").finished.is_some());
}

#[test]
fn a_trial_that_an_operator_stops_is_closed_and_none_is_paused() {
    let mut fleet = Fleet::new(Habit::Trains);
    fleet.start_search(&search_text(2));
    while fleet.host.listed().iter().all(|run| run.name != "lr-0") || !fleet.has_model("lr-0") {
        fleet.step();
    }
    for request in [RunRequest::Pause, RunRequest::Resume] {
        let response = fleet.ask(OperatorRequest::Run { run: Some("lr-0".into()), request });
        let OperatorResponse::Conflict(why) = response else { panic!("{response:?}") };
        assert!(why.contains("trial of search lr") && why.contains("runs stop lr-0"), "{why}");
    }
    let response = fleet.ask(OperatorRequest::Run { run: Some("lr-0".into()), request: RunRequest::Stop });
    assert!(matches!(response, OperatorResponse::Done(_)), "{response:?}");
    let records = run_to_the_end(&mut fleet);
    let gone = |record: &Record| matches!(&record.body, RecordBody::Closed { trial, why: CloseReason::Gone, .. } if trial.0 == 0);
    assert!(records.iter().any(gone), "{records:#?}");
    assert!(finished(&records).is_some_and(|winner| winner != 0));
}

/// A run that was deleted while no process served it is not there: its trial is closed.
#[test]
fn a_trial_whose_run_is_gone_after_a_restart_is_closed() {
    let mut fleet = Fleet::new(Habit::Trains);
    fleet.start_search(&search_text(1));
    while !fleet.journal("lr").iter().any(|record| matches!(record.body, RecordBody::Measured { .. })) {
        fleet.step();
    }
    fleet.delete("lr-0");
    fleet.kill();
    let records = run_to_the_end(&mut fleet);
    let closed = records.iter().find_map(|record| match &record.body {
        RecordBody::Closed { trial, why, .. } => Some((trial.0, *why)),
        _ => None,
    });
    assert_eq!(closed, Some((0, CloseReason::Gone)));
}

#[test]
fn a_search_that_is_stopped_has_the_leader_as_its_result_and_gives_no_more_leases() {
    let mut fleet = Fleet::new(Habit::Trains);
    fleet.start_search(&search_text(2));
    while !fleet.journal("lr").iter().any(|record| matches!(record.body, RecordBody::Measured { .. })) {
        fleet.step();
    }
    let response = fleet.ask(SearchRequest::Stop { name: "lr".into() }.into());
    assert!(matches!(response, OperatorResponse::Done(_)), "{response:?}");
    let records = run_to_the_end(&mut fleet);
    assert!(matches!(records.last().expect("records").body, RecordBody::Finished { stopped: true, winner: Some(_) }));
    fleet.settle();
    let runs: Vec<String> = fleet.host.listed().into_iter().map(|run| run.name).collect();
    assert_eq!(runs, [""; 0], "its runs have ended");
    let response = fleet.ask(SearchRequest::Stop { name: "lr".into() }.into());
    assert!(matches!(response, OperatorResponse::Done(why) if why.contains("had ended already")));
}

#[test]
fn what_cannot_be_searched_is_refused_with_what_to_do() {
    let mut fleet = Fleet::new(Habit::Trains);
    let start =
        |search: &str| SearchRequest::Start { path: "lr.toml".into(), search: search.into(), base: BASE.into() };
    let response = fleet.ask(start("[search]").into());
    let says = |why: &str| why.contains("config is missing");
    assert!(matches!(&response, OperatorResponse::Failed(why) if says(why)), "{response:?}");
    let response = fleet.ask(SearchRequest::Status { name: None }.into());
    assert!(matches!(&response, OperatorResponse::NotFound(why) if why.contains("there is no search")), "{response:?}");
    fleet.start_search(&search_text(1));
    while fleet.journal("lr").is_empty() {
        fleet.step();
    }
    let again: SearchStarted = fleet.search(start(&search_text(1)));
    assert_eq!((again.name.as_str(), again.trials), ("lr", 4), "a repeated request has the same answer");
    let response = fleet.ask(start(&search_text(2)).into());
    assert!(matches!(&response, OperatorResponse::Conflict(why) if why.contains("search lr already")), "{response:?}");
    let response = fleet.ask(SearchRequest::Stop { name: "other".into() }.into());
    assert!(matches!(&response, OperatorResponse::NotFound(why) if why.contains("name one of: lr")), "{response:?}");
}

/// A disk that fails ends the search and holds its runs; the process goes on.
#[test]
fn a_search_whose_store_fails_holds_its_runs() {
    let mut fleet = Fleet::new(Habit::Trains);
    fleet.start_search(&search_text(1));
    while !fleet.has_model("lr-0") {
        fleet.step();
    }
    let result = Err("no space".to_owned());
    fleet.handle(Input::Searches(SearchesDone::Written { name: "lr".into(), result }));
    let searches: Vec<SearchSummary> = fleet.search(SearchRequest::List);
    assert_eq!((searches[0].state, searches[0].problem.as_deref()), (SearchStanding::Failed, Some("no space")));
    let summary = fleet.host.summaries().into_iter().find(|run| run.name == "lr-0").expect("it is served");
    assert_eq!(summary.state, anabranch_common::status::RunStanding::Paused);
    let response = fleet.ask(SearchRequest::Status { name: None }.into());
    assert!(matches!(response, OperatorResponse::Conflict(why) if why.contains("no space")));
    assert_eq!(fleet.journal("lr").first().map(|record| record.position), Some(Position(0)));
    assert_eq!(fleet.answers.iter().filter(|(request, _)| *request == REQUEST).count(), 1);
}
