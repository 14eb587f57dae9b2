//! Random worlds: events in any order, twice and late, kills with any part of the journal, deleted runs.

use anabranch_common::ids::ModelVersion;
use anabranch_common::rng::SplitMix64;

use super::world::{self, Step, World};
use super::*;
use crate::search::price::Price;
use crate::search::record::TrialId;
use crate::search::state::SearchState;
use crate::search::verify::verify;

/// Seeds of each search.
const SEEDS: u64 = 20;

/// Fewer trials than this diverge, and one in how many steps is something unusual; 0: none.
struct Faults {
    diverge: u64,
    kill: u64,
    delete: u64,
    stray: u64,
}

const NONE: Faults = Faults { diverge: 0, kill: 0, delete: 0, stray: 0 };

fn pick<'a, T>(rng: &mut SplitMix64, of: &'a [T]) -> &'a T {
    &of[usize::try_from(rng.below(of.len() as u64)).expect("few")]
}

/// Something that an input may say again, too late or of nobody.
fn stray(rng: &mut SplitMix64) -> Input {
    let trial = TrialId(u32::try_from(rng.below(12)).expect("few"));
    let (version, contributions) = (ModelVersion(rng.below(9)), 0);
    match rng.below(2) {
        0 => Input::Reached { trial, contributions, version },
        // No run is ever at version 1000.
        _ => Input::Measured { trial, version: ModelVersion(1_000), accuracy: rng.next_f64(), loss: 0.0 },
    }
}

/// Lives a whole search, and returns the world at its end.
fn live(text: &str, seed: u64, faults: &Faults) -> World {
    let mut rng = SplitMix64::new(seed);
    let mut world = World::new(text);
    let planned = world.state().plan.spec.trials;
    for _ in 0..rng.below(faults.diverge) {
        let trial = u32::try_from(rng.below(u64::from(planned))).expect("few");
        world.diverging.insert((TrialId(trial), u32::try_from(rng.below(3)).expect("few")));
    }
    let mut taken = 0;
    while !world.is_over() {
        taken += 1;
        assert!(taken < 100_000, "seed {seed}: the search does not end");
        let is = |rng: &mut SplitMix64, one_in: u64| one_in > 0 && rng.below(one_in) == 0;
        if is(&mut rng, faults.kill) {
            // Whatever of the journal is there after the crash, it is one of a search.
            let kept = usize::try_from(rng.below(4)).expect("few");
            world.kill(kept);
            verify(&world.records).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        }
        if is(&mut rng, faults.stray) {
            let input = stray(&mut rng);
            world.input(input);
        }
        let trials = world.state().trials.len() as u64;
        if trials > 0 && is(&mut rng, faults.delete) {
            world.delete(TrialId(u32::try_from(rng.below(trials)).expect("few")));
        }
        let steps = world.steps();
        assert!(!steps.is_empty() || world.is_over(), "seed {seed}: the search waits for nothing");
        if !steps.is_empty() {
            world.step(*pick(&mut rng, &steps));
        }
    }
    world
}

/// The rules allow every record of a journal, and its fold is the search's state. The world compares the fold after each
/// record.
fn holds(world: &World, seed: u64) {
    let due = verify(&world.records).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    assert_eq!(due, None, "seed {seed}");
    let fold = SearchState::fold(&world.records).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert_eq!(fold, *world.state(), "seed {seed}");
}

fn searches() -> [String; 4] {
    [
        text("trials = 9\neta = 3\nr = 1\nmax = 9\nparallel = 3\nseed = 5"),
        text("trials = 7\neta = 2\nr = 2\nmax = 8\nparallel = 2\nmetric = \"loss\""),
        text("method = \"random\"\ntrials = 5\nmax = 4\nparallel = 2"),
        text("method = \"pbt\"\ntrials = 8\nr = 2\nmax = 8\nparallel = 5"),
    ]
}

#[test]
fn both_implementations_agree_in_random_worlds() {
    for text in searches() {
        for seed in 0..SEEDS {
            let world = live(&text, seed, &Faults { diverge: 3, stray: 10, ..NONE });
            holds(&world, seed);
            let outcome = world.outcome.expect("over");
            let state = world.state();
            if let Some(winner) = outcome.winner {
                let winner = state.trial(winner).expect("a trial");
                assert_eq!(winner.newest().map(|newest| newest.rung), Some(state.plan.spec.last_rung()), "seed {seed}");
            }
            if world.diverging.is_empty() {
                assert!(outcome.winner.is_some(), "seed {seed}: no winner, and no trial was closed");
                let price = Price::of(&state.plan.spec);
                assert!(
                    (price.least..=price.most).contains(&world.spent()),
                    "seed {seed}: {} {price:?}",
                    world.spent()
                );
            }
        }
    }
}

#[test]
fn both_implementations_agree_with_kills_and_deleted_runs() {
    for text in searches() {
        for seed in 0..SEEDS {
            holds(&live(&text, seed, &Faults { diverge: 3, kill: 12, delete: 60, stray: 10 }), seed);
        }
    }
}

/// Sixteen configurations at the price of at most one and a half full runs in the mean and two at most. The winner is nearly
/// the best of sixteen.
#[test]
fn sixteen_trials_cost_less_than_two_full_runs_and_find_a_good_one() {
    let (mut spent, mut regret) = (0, 0.0);
    for seed in 0..20u64 {
        let world = live(&text(&format!("trials = 16\neta = 4\nr = 2\nmax = 128\nseed = {seed}")), seed, &NONE);
        let state = world.state();
        let at_the_end = |trial: TrialId| {
            let overrides = &state.trial(trial).expect("a trial").overrides;
            world::curve(&base().trial("x", overrides).expect("valid"), 128)
        };
        let best = (0..16).map(|trial| at_the_end(TrialId(trial))).fold(0.0, f64::max);
        regret += best - at_the_end(world.outcome.and_then(|outcome| outcome.winner).expect("a winner"));
        assert!(world.spent() <= 2 * 128, "seed {seed}: {} contributions, a full run has 128", world.spent());
        spent += world.spent();
    }
    assert!(spent * 2 <= 20 * 3 * 128, "{} contributions a search, a full run has 128", spent / 20);
    assert!(regret / 20.0 < 0.05, "the winners are {} worse than the best", regret / 20.0);
}

/// The order of steps is all that a winner depends on beside the search itself.
#[test]
fn the_same_order_of_events_gives_the_same_journal() {
    for text in searches() {
        for seed in 0..5 {
            let [one, other] = [(); 2].map(|()| live(&text, seed, &NONE));
            assert_eq!(one.records, other.records);
        }
    }
}

/// Two steps at a time: none of them is lost where both are due.
#[test]
fn a_world_waits_for_steps_of_every_kind() {
    let mut world = World::new(&searches()[0]);
    let mut seen = [false; 4];
    while !world.is_over() {
        for step in world.steps() {
            let kind = match step {
                Step::Write => 0,
                Step::CarryOut => 1,
                Step::Measure(_) => 2,
                Step::Train(_) => 3,
            };
            seen[kind] = true;
        }
        let last = *world.steps().last().expect("a step");
        world.step(last);
    }
    assert_eq!(seen, [true; 4]);
}
