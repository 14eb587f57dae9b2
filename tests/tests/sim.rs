//! The simulation: P1 to P8 in drawn worlds, and that it is deterministic.

use anabranch_tests::sim::draw;
use anabranch_tests::sim::schedule::Schedule;
use anabranch_tests::sim::{Outcome, run, scenario};

/// Seeds that every run of the tests tries.
const SEEDS: std::ops::Range<u64> = 1_000_000..1_000_300;

fn must_hold(outcome: &Outcome) {
    if let Some((at_ms, violation)) = &outcome.violation {
        panic!("seed {}: {violation} at {at_ms} ms; anabranch-lab replay {} --trace", outcome.seed, outcome.seed);
    }
}

#[test]
fn every_promise_is_kept_in_drawn_worlds() {
    let (mut acknowledged, mut recoveries, mut faults) = (0, 0, 0);
    for seed in SEEDS {
        let outcome = run(seed, &draw(seed), false);
        must_hold(&outcome);
        assert_eq!((outcome.lost, outcome.duplicated), (0, 0), "seed {seed}");
        acknowledged += outcome.acknowledged;
        recoveries += outcome.recoveries;
        faults += outcome.faults;
    }
    assert!(acknowledged > 3_000 && recoveries > 300 && faults > 1_000, "{acknowledged} {recoveries} {faults}");
}

/// One seed decides everything: the same seed gives the same bytes, another seed others.
#[test]
fn the_same_seed_twice_is_the_same_world() {
    let mut traces = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let [first, second] = [run(seed, &draw(seed), true), run(seed, &draw(seed), true)];
        assert!(first.trace == second.trace, "seed {seed} gives two traces");
        assert!(first == second, "seed {seed} gives two outcomes");
        traces.insert(first.trace);
    }
    assert_eq!(traces.len(), 20);
}

/// The same with the native trainer, whose arithmetic is the product's own.
#[test]
fn the_native_trainer_gives_the_same_world_twice() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim/native-trainer.toml");
    let schedule = scenario::read(&file).expect("a scenario");
    let [first, second] = [run(1, &schedule, true), run(1, &schedule, true)];
    must_hold(&first);
    assert!(first.versions >= 40, "{} versions: too few to have learned", first.versions);
    assert!(first == second, "two outcomes, or two traces");
}

/// One agent is ten times as fast as another: with leases sized by speed both are heard about as often, also after the
/// coordinator was killed.
#[test]
fn leases_sized_by_speed_make_agents_report_at_similar_periods() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim/sized-leases.toml");
    let sized = scenario::read(&file).expect("a scenario");
    let spread = |schedule: &Schedule| {
        let outcome = run(1, schedule, false);
        must_hold(&outcome);
        assert!(outcome.recoveries > 0, "the coordinator was killed");
        let (most, least) = (outcome.rounds.iter().max().copied(), outcome.rounds.iter().min().copied());
        most.unwrap_or(0) as f64 / least.unwrap_or(0).max(1) as f64
    };
    let (with, without) = (spread(&sized), spread(&Schedule { target_round_ms: 0, ..sized.clone() }));
    println!("most rounds of an agent over the least: {with:.2} with sized leases, {without:.2} without");
    assert!(with < 1.5 && without > 5.0, "most rounds of an agent over the least: {with}, and {without} without sizes");
}

/// Every tenth version is due for an evaluation by one agent, and here it takes two or three. One that fails costs a moment, not the time-out of a silent agent.
#[test]
fn evaluation_goes_on_while_evaluators_fail() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim/failing-evaluators.toml");
    let schedule = scenario::read(&file).expect("a scenario");
    for seed in 0..5 {
        let outcome = run(seed, &schedule, false);
        must_hold(&outcome);
        let due = outcome.versions / 10;
        println!("seed {seed}: {} measurements of {due} due", outcome.measured);
        assert!(due >= 20 && outcome.measured >= due / 4, "{} measurements of {due} due", outcome.measured);
    }
}

/// A changed bit is refused where it is read, and the run goes on once it is put back.
#[test]
fn changed_bits_are_refused_in_some_worlds_and_never_believed() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim/changed-bits.toml");
    let schedule = scenario::read(&file).expect("a scenario");
    let outcomes: Vec<Outcome> = (0..10).map(|seed| run(seed, &schedule, true)).collect();
    outcomes.iter().for_each(must_hold);
    let refusals = outcomes.iter().filter(|outcome| outcome.trace.contains("what is damaged is refused")).count();
    assert!(refusals >= 3, "only {refusals} worlds of 10 noticed anything");
}

/// Seeds that found something once stay.
#[test]
fn what_was_found_once_is_not_found_again() {
    let kept = include_str!("../seeds/regressions.txt");
    for line in kept.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if !line.is_empty() {
            let seed = line.parse().expect("a seed");
            must_hold(&run(seed, &draw(seed), false));
        }
    }
}

#[test]
fn every_scenario_that_ships_holds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("scenarios").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    for file in files {
        let schedule: Schedule = scenario::read(&file).expect("a scenario");
        for seed in 0..5 {
            let outcome = run(seed, &schedule, false);
            assert!(outcome.violation.is_none(), "{}: {:?}", file.display(), outcome.violation);
            assert!(outcome.acknowledged > 0, "{}: nothing was merged", file.display());
        }
    }
}

#[test]
fn a_scenario_that_says_something_else_is_refused_by_its_line() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("wrong.toml");
    let good = scenario::to_toml(&draw(1)).expect("plain values");
    std::fs::write(&file, good.replace("params", "parms")).expect("written");
    let error = format!("{:#}", scenario::read(&file).expect_err("an unknown key"));
    assert!(error.contains("wrong.toml is not a scenario") && error.contains("parms"), "{error}");
}
