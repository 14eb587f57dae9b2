//! A search is killed at every step of its life. With the same order of events it makes the same records.

use super::world::World;
use super::*;
use crate::search::verify::verify;

/// Runs the first step that may happen until the search is over, and is killed after `killed_after` steps.
fn life(text: &str, diverging: &[(u32, u32)], killed_after: Option<usize>, kept: usize) -> (World, usize) {
    let mut world = World::new(text);
    world.diverging = diverging.iter().map(|(trial, rung)| (TrialId(*trial), *rung)).collect();
    let mut steps = 0;
    while !world.is_over() {
        if killed_after == Some(steps) {
            world.kill(kept);
        }
        let step = *world.steps().first().unwrap_or_else(|| panic!("the search waits for nothing after {steps} steps"));
        world.step(step);
        steps += 1;
    }
    (world, steps)
}

fn survives(text: &str, diverging: &[(u32, u32)]) {
    let (whole, steps) = life(text, diverging, None, 0);
    assert!(steps > 20, "only {steps} steps");
    assert_eq!(verify(&whole.records), Ok(None));
    for killed_after in 0..steps {
        for kept in [0, 1, usize::MAX] {
            let (world, _) = life(text, diverging, Some(killed_after), kept);
            assert_eq!(world.bodies(), whole.bodies(), "killed after {killed_after} steps, {kept} records kept");
            assert_eq!((world.outcome, world.spent()), (whole.outcome, whole.spent()));
        }
    }
}

#[test]
fn asha_survives_a_kill_at_every_step() {
    survives(&text("trials = 5\neta = 2\nr = 1\nmax = 4\nparallel = 2\nseed = 1"), &[(3, 0), (1, 1)]);
}

#[test]
fn a_population_survives_a_kill_at_every_step() {
    survives(&text("method = \"pbt\"\ntrials = 4\nr = 2\nmax = 4\nparallel = 3\nseed = 2"), &[(2, 1)]);
}

#[test]
fn a_grid_with_an_impossible_point_survives_a_kill_at_every_step() {
    let grid = "config = \"run.toml\"\n[search]\nmethod = \"grid\"\nmax = 4\nname = \"lr\"\n[space]\n\
                \"train.batch_size\" = { choice = [8, 0, 16] }\n\"train.local_steps\" = { int = [5, 6] }\n";
    survives(grid, &[]);
}
