//! The simulation bites: every deliberate bug is found, by a promise that it breaks, within so many seeds. Part of the
//! copy of the tree in which the bugs are made (`anabranch-lab bites`).

use anabranch_common::bugs::plant;
use anabranch_tests::bugs;
use anabranch_tests::sim::swarm::Worlds;
use anabranch_tests::sim::{draw, quiet_panics, run, shrink};

/// Seeds that are tried for each bug, at most.
const SEEDS: u64 = 3_000;
/// Seeds that are quiet without a bug.
const QUIET: u64 = 600;
/// The same of worlds with pods.
const QUIET_PODS: u64 = 60;
/// The same of worlds with a search.
const QUIET_SEARCHES: u64 = 100;

#[test]
fn every_deliberate_bug_is_found() {
    quiet_panics();
    println!("| bug | found by | seeds |\n|---|---|---|");
    let mut missed = Vec::new();
    for bug in bugs::all().expect("well-formed") {
        let worlds = match (bug.pods, bug.searches) {
            (true, _) => Worlds::WithPods,
            (_, true) => Worlds::WithSearch,
            _ => Worlds::Drawn,
        };
        let bug: &'static str = bug.name.leak();
        let _planted = plant(bug);
        let found = (0..SEEDS).find_map(|seed| Some((seed, worlds.run(seed, false).violation?.1)));
        match found {
            Some((seed, violation)) => println!("| `{bug}` | {} | {} |", violation.invariant, seed + 1),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}

/// The same seeds are quiet without a bug: what is found above is the bug.
#[test]
fn without_a_bug_nothing_is_found() {
    for seed in 0..QUIET {
        let outcome = run(seed, &draw(seed), false);
        assert!(outcome.violation.is_none(), "seed {seed}: {:?}", outcome.violation);
    }
    for (worlds, seeds) in [(Worlds::WithPods, QUIET_PODS), (Worlds::WithSearch, QUIET_SEARCHES)] {
        for seed in 0..seeds {
            let outcome = worlds.run(seed, false);
            assert!(outcome.violation.is_none(), "seed {seed}, {worlds:?}: {:?}", outcome.violation);
        }
    }
}

/// A world that fails is made smaller, and fails in the same way.
#[test]
fn a_failing_world_shrinks() {
    quiet_panics();
    let _planted = plant("VerdictsLost");
    let mut shrunk = 0;
    for seed in 0..SEEDS {
        let whole = draw(seed);
        let Some((_, violation)) = run(seed, &whole, false).violation else { continue };
        let found = shrink::shrink(seed, &whole).expect("it fails");
        let (_, still) = found.outcome.violation.expect("it fails still");
        assert_eq!(still.invariant, violation.invariant);
        assert!(found.schedule.faults.len() <= whole.faults.len());
        shrunk += u64::from(found.schedule.faults.len() * 2 < whole.faults.len());
        if shrunk >= 3 {
            return;
        }
    }
    panic!("only {shrunk} worlds were halved");
}
