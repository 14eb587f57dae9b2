//! Worlds with a search, drawn from seeds.

use std::collections::BTreeMap;

use anabranch_common::rng::SplitMix64;
use anabranch_coordinator::search::spec::Method;

use crate::sim::schedule::Machine;

use super::plan::{Disturbance, Divergence, Kill, KillAt, Merge, Order, SearchAgent, SearchPlan, Trouble};

/// Agents of a world, at most.
const AGENTS: u64 = 4;
/// Steps among which kills are drawn: about as many as a small search takes.
const STEPS: u64 = 160;

/// Draws a world. The same seed gives the same world.
#[must_use]
pub fn draw(seed: u64) -> SearchPlan {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0301);
    let mut between = |low: u64, high: u64| low + rng.below(high - low + 1);
    let length_ms = between(10_000, 40_000);
    let agents = between(2, AGENTS);
    let plans = (0..agents).map(|number| SearchAgent {
        start_ms: if number > 0 && between(0, 2) == 0 { between(0, length_ms) } else { between(0, 500) },
        round_ms: between(50, 900),
        trains: number == 0 || between(0, 4) > 0,
        eval_examples: if number == 0 || between(0, 1) == 0 { 10 * (1 + number) } else { 0 },
        evaluation_fails_every: if between(0, 3) == 0 { between(2, 4) } else { 0 },
        delay_ms: between(1, 60),
    });
    let agents: Vec<SearchAgent> = plans.collect();
    let r = between(1, 2);
    let trials = between(3, 5);
    let merges = [Merge::FedAsync, Merge::FedBuff, Merge::Recall];
    let mut plan = SearchPlan {
        method: if between(0, 4) == 0 { Method::Random } else { Method::Asha },
        trials: u32::try_from(trials).unwrap_or(3),
        eta: 2,
        r,
        max: 4 * r,
        parallel: u32::try_from(between(1, 3)).unwrap_or(1),
        search_seed: between(0, 1_000),
        merge: merges[usize::try_from(between(0, 2)).unwrap_or(0)],
        own_versions: between(1, 4),
        diverging: BTreeMap::new(),
        agents,
        kills: draw_kills(seed, length_ms),
        troubles: Vec::new(),
        orders: Vec::new(),
        length_ms,
    };
    plan.diverging = draw_diverging(seed, plan.trials);
    plan.troubles = draw_troubles(seed, &plan);
    plan.orders = draw_orders(seed, &plan);
    plan
}

/// Half of the worlds have a trial that comes to nothing.
fn draw_diverging(seed: u64, trials: u32) -> BTreeMap<u32, Divergence> {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0302);
    let kinds = [Divergence::Overflows, Divergence::GivesNoUpdate, Divergence::CannotBeEvaluated];
    let (trial, kind) = (rng.below(2 * u64::from(trials)), kinds[usize::try_from(rng.below(3)).unwrap_or(0)]);
    let trial = u32::try_from(trial).ok().filter(|trial| *trial < trials);
    trial.map(|trial| (trial, kind)).into_iter().collect()
}

/// Most kills come at a step of the search.
fn draw_kills(seed: u64, length_ms: u64) -> Vec<Kill> {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0303);
    let kills = rng.below(6);
    let mut drawn: Vec<Kill> = (0..kills)
        .map(|_| Kill {
            at: if rng.below(4) == 0 { KillAt::Ms(rng.below(length_ms)) } else { KillAt::Step(rng.below(STEPS)) },
            power: rng.below(2) == 0,
            down_ms: if rng.below(3) == 0 { 0 } else { 100 + rng.below(3_000) },
        })
        .collect();
    drawn.sort_by_key(|kill| kill.at);
    drawn
}

/// Agents die, are cut off, and leave, but for the first one, which comes back.
fn draw_troubles(seed: u64, plan: &SearchPlan) -> Vec<Trouble> {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0304);
    let agents = plan.agents.len() as u64;
    let mut troubles = Vec::new();
    for _ in 0..rng.below(5) {
        let machine = Machine::try_from(1 + rng.below(agents)).unwrap_or(1);
        let at_ms = rng.below(plan.length_ms);
        let what = match rng.below(5) {
            0 if machine > 1 => Disturbance::Leave,
            0..=2 => Disturbance::Kill { down_ms: 100 + rng.below(4_000) },
            _ => Disturbance::Cut { for_ms: 100 + rng.below(8_000) },
        };
        troubles.push(Trouble { at_ms, machine, what });
    }
    troubles
}

/// An operator stops a trial in one world of six, and the search in one of twelve.
fn draw_orders(seed: u64, plan: &SearchPlan) -> Vec<(u64, Order)> {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0305);
    let mut orders = Vec::new();
    if rng.below(6) == 0 {
        let trial = u32::try_from(rng.below(u64::from(plan.trials))).unwrap_or(0);
        orders.push((rng.below(plan.length_ms), Order::StopTrial(trial)));
    }
    if rng.below(12) == 0 {
        orders.push((rng.below(plan.length_ms), Order::StopSearch));
    }
    orders
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a plan is of a kind.
    type Holds<'a> = &'a dyn Fn(&SearchPlan) -> bool;

    #[test]
    fn every_kind_of_trouble_occurs_and_none_everywhere() {
        let worlds: Vec<SearchPlan> = (0..200).map(draw).collect();
        let count = |holds: &dyn Fn(&SearchPlan) -> bool| worlds.iter().filter(|world| holds(world)).count();
        let kinds: [(&str, Holds<'_>); 11] = [
            ("overflows", &|world| world.diverging.values().any(|kind| *kind == Divergence::Overflows)),
            ("no updates", &|world| world.diverging.values().any(|kind| *kind == Divergence::GivesNoUpdate)),
            ("no evaluation", &|world| world.diverging.values().any(|kind| *kind == Divergence::CannotBeEvaluated)),
            ("kills", &|world| !world.kills.is_empty()),
            ("instant kills", &|world| world.kills.iter().any(|kill| kill.down_ms == 0)),
            ("power", &|world| world.kills.iter().any(|kill| kill.power)),
            ("agents leave", &|world| world.troubles.iter().any(|trouble| trouble.what == Disturbance::Leave)),
            ("a trial is stopped", &|world| world.orders.iter().any(|(_, order)| matches!(order, Order::StopTrial(_)))),
            ("the search is stopped", &|world| world.orders.iter().any(|(_, order)| *order == Order::StopSearch)),
            ("random", &|world| world.method == Method::Random),
            ("buffers", &|world| world.merge == Merge::FedBuff),
        ];
        for (name, holds) in kinds {
            let found = count(holds);
            assert!((5..195).contains(&found), "{name}: {found} worlds of 200");
        }
    }
}
