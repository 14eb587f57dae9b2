//! The simulation: P1 to P8 in drawn worlds, with pods, with a search and without, and that it is deterministic.

use anabranch_coordinator::search::spec::Method;
use anabranch_tests::sim::schedule::{Fault, Planned, PodPlan, Schedule};
use anabranch_tests::sim::search::{Divergence, Kill, KillAt, Merge, SearchAgent, SearchPlan, Searched};
use anabranch_tests::sim::{Outcome, draw, draw_pods, run, scenario, search};

/// Seeds that every run of the tests tries.
const SEEDS: std::ops::Range<u64> = 1_000_000..1_000_300;
/// The same of worlds with pods.
const SEEDS_OF_PODS: std::ops::Range<u64> = 2_000_000..2_000_040;
/// The same of worlds with a search.
const SEEDS_OF_SEARCHES: std::ops::Range<u64> = 3_000_000..3_000_060;

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

#[test]
fn every_promise_is_kept_in_worlds_with_pods() {
    let (mut acknowledged, mut recoveries, mut compared, mut later) = (0, 0, 0, 0);
    let mut replicas = (0, 0);
    for seed in SEEDS_OF_PODS {
        let world = draw_pods(seed);
        let outcome = run(seed, &world, false);
        if let Some((at_ms, violation)) = &outcome.violation {
            panic!("seed {seed}: {violation} at {at_ms} ms; anabranch-lab replay {seed} --pods --trace");
        }
        assert_eq!((outcome.lost, outcome.duplicated), (0, 0), "seed {seed}");
        acknowledged += outcome.acknowledged;
        recoveries += outcome.recoveries;
        compared += outcome.pod_rounds.0;
        later += outcome.pod_rounds.1;
        if matches!(world.pods, Some(PodPlan::Replicas(_))) {
            replicas = (replicas.0 + outcome.pod_rounds.0, replicas.1 + outcome.pod_rounds.1);
        }
    }
    println!("of replicas {} rounds compared, {} of later attempts", replicas.0, replicas.1);
    assert!(replicas.0 > 50 && replicas.1 > 5, "{replicas:?}");
    assert!(compared - replicas.0 > 50 && later - replicas.1 > 5, "{replicas:?} of {compared}, {later}");
    println!(
        "{acknowledged} updates, {recoveries} recoveries, {compared} rounds of pods compared, {later} of later attempts"
    );
    assert!(acknowledged > 300 && recoveries > 40, "{acknowledged} updates, {recoveries} recoveries");
    assert!(compared > 100 && later > 15, "{compared} rounds of pods, {later} of later attempts");
}

fn one_pod() -> Schedule {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim/one-pod.toml");
    scenario::read(&file).expect("a scenario")
}

/// The model of a run of one pod has the bits of the undisturbed run, version by version. Returns how many were compared.
fn has_the_bits(disturbed: &Outcome, undisturbed: &Outcome) -> usize {
    must_hold(disturbed);
    let both =
        disturbed.models.iter().filter_map(|(version, model)| Some((version, model, undisturbed.models.get(version)?)));
    both.map(|(version, model, calm)| assert_eq!(model, calm, "version {version}")).count()
}

#[test]
fn the_model_of_a_run_of_one_pod_does_not_depend_on_faults() {
    let schedule = one_pod();
    let calm = run(1, &Schedule { faults: Vec::new(), ..schedule.clone() }, false);
    must_hold(&calm);
    let (mut compared, mut again) = (0, 0);
    for seed in 0..6 {
        let mut schedule = schedule.clone();
        // Each time in another place of a round.
        schedule.faults.iter_mut().for_each(|planned| planned.at_ms += 150 * seed);
        let disturbed = run(seed, &schedule, false);
        compared += has_the_bits(&disturbed, &calm);
        again += disturbed.pod_rounds.1;
    }
    println!("{compared} versions compared, {again} rounds took more than one attempt");
    assert!(compared >= 60 && again >= 20, "{compared} versions, {again} rounds of later attempts");
}

/// A member dies, or the coordinator does, at any step of a round.
#[test]
fn a_death_at_any_step_of_a_pods_round_changes_no_bit() {
    let schedule = Schedule { length_ms: 9_000, ..one_pod() };
    let calm = run(1, &Schedule { faults: Vec::new(), length_ms: 20_000, ..schedule.clone() }, false);
    must_hold(&calm);
    let mut again = 0;
    for (step, at_ms) in (2_500..5_500).step_by(250).enumerate() {
        for machine in 0..=3 {
            let power = (step + machine) % 2 == 0;
            let fault = Fault::Kill { machine, power, down_ms: 300 + 400 * (step as u64 % 3) };
            let schedule = Schedule { faults: vec![Planned { at_ms, fault }], ..schedule.clone() };
            let disturbed = run(1, &schedule, false);
            assert!(
                has_the_bits(&disturbed, &calm) >= 2,
                "too few versions with machine {machine} killed at {at_ms} ms"
            );
            again += disturbed.pod_rounds.1;
        }
    }
    println!("{again} rounds took more than one attempt");
    assert!(again >= 20, "{again} rounds of later attempts");
}

/// A replica dies, or the coordinator does, or two replicas lose each other, at any step of a round. What comes to its end is what the
/// ring of that attempt computes without links, and each member that has helped has told the owner of the same model.
#[test]
fn a_death_at_any_step_of_replicas_leaves_rounds_whole() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sim/replicas.toml");
    let calm = scenario::read(&file).expect("a scenario");
    let (mut whole, mut again) = (0, 0);
    for (step, at_ms) in (2_500..5_500).step_by(250).enumerate() {
        let deaths = (0..=3).map(|machine| {
            let power = (step + machine) % 2 == 0;
            Fault::Kill { machine, power, down_ms: 300 + 400 * (step as u64 % 3) }
        });
        let cuts = [(1, 2), (2, 3), (3, 1)].map(|(machine, other)| Fault::Sever { machine, other, for_ms: 6_000 });
        for fault in deaths.chain(cuts) {
            let schedule = Schedule { faults: vec![Planned { at_ms, fault: fault.clone() }], ..calm.clone() };
            let outcome = run(1, &schedule, false);
            must_hold(&outcome);
            assert!(outcome.pod_rounds.0 >= 6, "{} rounds with {fault:?} at {at_ms} ms", outcome.pod_rounds.0);
            whole += outcome.pod_rounds.0;
            again += outcome.pod_rounds.1;
        }
    }
    println!("{whole} rounds compared, {again} of them took more than one attempt");
    assert!(again >= 40, "{again} rounds of later attempts");
}

/// One seed decides everything: the same seed gives the same bytes, another seed others.
#[test]
fn the_same_seed_twice_is_the_same_world() {
    let mut traces = std::collections::BTreeSet::new();
    for (seed, worlds) in
        (0..20).map(|seed| (seed, draw as fn(u64) -> Schedule)).chain((0..4).map(|seed| (seed, draw_pods as _)))
    {
        let [first, second] = [run(seed, &worlds(seed), true), run(seed, &worlds(seed), true)];
        assert!(first.trace == second.trace, "seed {seed} gives two traces");
        assert!(first == second, "seed {seed} gives two outcomes");
        traces.insert(first.trace);
    }
    assert_eq!(traces.len(), 24);
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

/// A small search on two agents, which takes every kind of step.
fn small_search() -> SearchPlan {
    let agent = |round_ms, eval_examples| SearchAgent {
        start_ms: 0,
        round_ms,
        trains: true,
        eval_examples,
        evaluation_fails_every: 0,
        delay_ms: 3,
    };
    SearchPlan {
        method: Method::Asha,
        trials: 3,
        eta: 2,
        r: 1,
        max: 4,
        parallel: 2,
        search_seed: 1,
        merge: Merge::FedAsync,
        own_versions: 2,
        diverging: [(1, Divergence::Overflows)].into(),
        agents: vec![agent(100, 10), agent(230, 0)],
        kills: Vec::new(),
        troubles: Vec::new(),
        orders: Vec::new(),
        length_ms: 1_000,
    }
}

/// What became of the search, and how often the coordinator was started again.
fn searched(seed: u64, plan: &SearchPlan) -> (Searched, u64) {
    let outcome = search::run(seed, plan, false);
    if let Some((at_ms, violation)) = &outcome.violation {
        panic!("seed {seed}: {violation} at {at_ms} ms; {plan:?}");
    }
    assert_eq!((outcome.lost, outcome.duplicated), (0, 0), "{plan:?}");
    (outcome.searched.expect("a world with a search"), outcome.recoveries)
}

/// The coordinator is killed before and after each record of the search is durable, at each output for it, and when an
/// answer was heard: with its memory alone, and with what was not synced.
fn kill_at_every_step(plan: &SearchPlan) {
    let (calm, _) = searched(1, plan);
    assert!(calm.steps > 60, "{} steps", calm.steps);
    let mut same = 0;
    for step in 0..calm.steps {
        let kill = Kill { at: KillAt::Step(step), power: step % 2 == 0, down_ms: if step % 3 == 0 { 400 } else { 0 } };
        let (found, recoveries) = searched(1, &SearchPlan { kills: vec![kill], ..plan.clone() });
        assert!(recoveries > 0 && found.winner.is_some(), "killed at step {step}");
        same += u64::from(found.winner == calm.winner);
    }
    println!("{} kills, of which {same} leave the winner as it was", calm.steps);
}

#[test]
fn a_search_whose_coordinator_is_killed_at_any_step_keeps_every_promise() {
    kill_at_every_step(&small_search());
}

/// A trial overflows with the contribution that it comes to its rung with.
#[test]
fn a_search_with_a_trial_that_diverges_at_its_rung_is_killed_at_any_step() {
    kill_at_every_step(&SearchPlan { r: 2, ..small_search() });
}

#[test]
fn every_promise_is_kept_in_worlds_with_a_search() {
    let (mut trials, mut closed, mut winners, mut recoveries) = (0, 0, 0, 0);
    for seed in SEEDS_OF_SEARCHES {
        let outcome = search::run(seed, &search::draw(seed), false);
        if let Some((at_ms, violation)) = &outcome.violation {
            panic!("seed {seed}: {violation} at {at_ms} ms; anabranch-lab replay {seed} --searches --trace");
        }
        assert_eq!((outcome.lost, outcome.duplicated), (0, 0), "seed {seed}");
        recoveries += outcome.recoveries;
        let searched = outcome.searched.expect("a world with a search");
        trials += searched.trials;
        closed += searched.closed;
        winners += u64::from(searched.winner.is_some());
    }
    println!("{trials} trials, {closed} closed, {winners} winners, {recoveries} recoveries");
    assert!(trials > 150 && closed > 10 && winners > 40 && recoveries > 60, "{trials} {closed} {winners} {recoveries}");
}

#[test]
fn the_same_search_twice_is_the_same_world() {
    for seed in 0..8 {
        let [first, second] =
            [search::run(seed, &search::draw(seed), true), search::run(seed, &search::draw(seed), true)];
        assert!(first.trace == second.trace, "seed {seed} gives two traces");
        assert!(first == second && !first.trace.is_empty(), "seed {seed} gives two outcomes");
    }
}
