//! Worlds drawn from seeds.

use anabranch_common::rng::SplitMix64;

use super::disk::Failure;
use super::schedule::{AgentPlan, Fault, Hostile, LinkPlan, Machine, Planned, Rule, Schedule, Task, TrackPlan};

/// Agents of a drawn world, at most.
const AGENTS: u64 = 5;
/// Length of the part with faults, in milliseconds.
const LENGTH_MS: (u64, u64) = (30_000, 180_000);

/// Draws a world. The same seed gives the same world.
#[must_use]
pub fn draw(seed: u64) -> Schedule {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0001);
    let mut between = |low: u64, high: u64| low + rng.below(high - low + 1);
    let ledger = between(0, 1) == 0;
    let agents = between(1, AGENTS);
    let length_ms = between(LENGTH_MS.0, LENGTH_MS.1);
    let (slow_links, lossy_links) = (between(0, 2) == 0, between(0, 1) == 0);
    let plans = (0..agents).map(|_| AgentPlan {
        start_ms: if between(0, 3) == 0 { between(0, length_ms / 2) } else { between(0, 2_000) },
        round_ms: if between(0, 5) == 0 { between(10_000, 50_000) } else { between(300, 4_000) },
        round_fails_every: if between(0, 4) == 0 { between(2, 8) } else { 0 },
        eval_examples: if between(0, 2) == 0 { 10 } else { 0 },
        evaluation_fails_every: 0,
        pod: false,
        helper: false,
        lie: None,
        hostile: None,
        link: LinkPlan {
            delay_ms: if slow_links { between(50, 2_000) } else { between(1, 60) },
            jitter_ms: if between(0, 1) == 0 { 0 } else { between(1, 500) },
            loss: if lossy_links { between(1, 30) as f64 / 100.0 } else { 0.0 },
            bandwidth: if slow_links { between(1, 32) as f64 } else { 10_000.0 },
        },
        link_down: None,
    });
    let agents: Vec<AgentPlan> = plans.collect();
    let buffer = if ledger { 1 } else { between(1, 4) };
    let mut schedule = Schedule {
        task: if ledger { Task::Ledger } else { Task::Quadratic },
        params: if ledger { 1024 } else { 16 },
        buffer: u32::try_from(buffer).unwrap_or(1),
        rule: None,
        track: None,
        share_updates: SplitMix64::new(seed ^ 0x5EED_0015).below(2) == 0,
        lossy: !ledger && between(0, 1) == 0,
        adaptive: false,
        max_staleness: if between(0, 2) == 0 { between(0, 4) } else { 1_000 },
        lease_ttl_ms: if between(0, 2) == 0 { between(2_000, 10_000) } else { 60_000 },
        checkpoint_every: between(1, 12),
        keep_journal: between(0, 3) == 0,
        target_round_ms: draw_target(seed),
        round_deadline_ms: 0,
        pods: None,
        agents,
        length_ms,
        faults: Vec::new(),
    };
    schedule.adaptive = schedule.lossy && SplitMix64::new(seed ^ 0x5EED_0012).below(2) == 0;
    draw_attacker(seed, &mut schedule);
    draw_rule(seed, &mut schedule);
    draw_track(seed, &mut schedule);
    draw_failing_evaluators(seed, &mut schedule);
    schedule.faults = draw_faults(seed, &schedule);
    schedule
}

/// Leases have sizes of their own in one world of four.
fn draw_target(seed: u64) -> u64 {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0005);
    if rng.below(4) == 0 { 300 + rng.below(4_000) } else { 0 }
}

/// The evaluations of some agents fail, always or now and then.
fn draw_failing_evaluators(seed: u64, world: &mut Schedule) {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0006);
    for agent in world.agents.iter_mut().filter(|agent| agent.eval_examples > 0) {
        agent.evaluation_fails_every = if rng.below(3) == 0 { 1 + rng.below(3) } else { 0 };
    }
}

/// One attacker among at least four agents, in some worlds: as slow as the slowest, so that its updates are no larger a
/// share than it is of the agents.
fn draw_attacker(seed: u64, world: &mut Schedule) {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0004);
    if world.task != Task::Quadratic || world.lossy || world.agents.len() < 4 || rng.below(2) == 0 {
        return;
    }
    let kinds = [Hostile::NotANumber, Hostile::Huge, Hostile::SignFlip];
    let slowest_ms = world.agents.iter().map(|agent| agent.round_ms).max().unwrap_or(1);
    let attackers = world.agents.len() as u64;
    if let (Ok(which), Ok(kind)) = (usize::try_from(rng.below(attackers)), usize::try_from(rng.below(3))) {
        world.agents[which].hostile = Some(kinds[kind]);
        world.agents[which].round_ms = slowest_ms;
    }
}

/// Of the worlds that learn and have no attacker, half are merged by the recall rule, a quarter of the others by EF21, half
/// of the rest by a published one beside `FedAsync` and `FedBuff`, and half of what is left by a rule behind a barrier, which
/// has a deadline in half of them.
fn draw_rule(seed: u64, world: &mut Schedule) {
    let salts = [0x5EED_0009, 0x5EED_0021, 0x5EED_0011, 0x5EED_0013];
    let [mut recall, mut memory, mut published, mut barrier] = salts.map(|salt| SplitMix64::new(seed ^ salt));
    let honest = world.agents.iter().all(|agent| agent.hostile.is_none());
    if world.task != Task::Quadratic || !honest {
        return;
    }
    world.rule = if recall.below(2) == 0 {
        Some(Rule::Recall)
    } else if memory.below(4) == 0 {
        Some(Rule::Ef21)
    } else if published.below(2) == 0 {
        let rules = [Rule::DelayedNesterov, Rule::Fadas, Rule::Rescaled];
        usize::try_from(published.below(3)).ok().map(|which| rules[which])
    } else if barrier.below(2) == 0 {
        let rules = [Rule::FedAvg, Rule::FedAvgM, Rule::FedAdam];
        world.round_deadline_ms = if barrier.below(2) == 0 { 500 + barrier.below(10_000) } else { 0 };
        usize::try_from(barrier.below(3)).ok().map(|which| rules[which])
    } else {
        None
    };
}

/// Half of the worlds have a published track. Its records come before updates are stale, and in rounds at every version.
fn draw_track(seed: u64, world: &mut Schedule) {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0014);
    let rounds = matches!(world.rule, Some(Rule::FedAvg | Rule::FedAvgM | Rule::FedAdam));
    let most = if rounds { 1 } else { world.max_staleness.saturating_add(1).min(4) };
    world.track = (rng.below(2) == 0).then(|| {
        let every = Some(rng.below(most + 1)).filter(|every| *every > 0);
        TrackPlan { every, sparse: rng.below(2) == 0 }
    });
}

/// Each kind has a generator of its own, so that another kind changes nothing about this one; each is off in half of all
/// worlds.
fn draw_faults(seed: u64, world: &Schedule) -> Vec<Planned> {
    let machines = world.agents.len() as u64;
    let mut faults = Vec::new();
    for kind in 0..15_u64 {
        let mut rng = SplitMix64::new((seed ^ 0x5EED_0002).wrapping_mul(kind + 1));
        rng.next_u64();
        if rng.below(2) == 0 {
            continue;
        }
        let rare = kind >= 6;
        for _ in 0..=rng.below(if rare { 2 } else { 6 }) {
            let at_ms = rng.below(world.length_ms);
            let fault = draw_fault(kind, machines, &mut rng);
            faults.push(Planned { at_ms, fault });
        }
    }
    draw_struck(seed, &mut faults);
    faults.sort_by_key(|planned| planned.at_ms);
    faults
}

/// The coordinator is often killed right after it was asked to revoke an agent: what it saves for that is saved in a moment.
fn draw_struck(seed: u64, faults: &mut Vec<Planned>) {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0008);
    let revocations = faults.iter().filter(|planned| matches!(planned.fault, Fault::Revoke { .. }));
    let at_ms: Vec<u64> = revocations.map(|planned| planned.at_ms).collect();
    for at_ms in at_ms {
        if rng.below(2) == 0 {
            let fault = Fault::Kill { machine: 0, power: rng.below(2) == 0, down_ms: 100 + rng.below(5_000) };
            faults.push(Planned { at_ms: at_ms + 1 + rng.below(60), fault });
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "small numbers of machines")]
fn draw_fault(kind: u64, agents: u64, rng: &mut SplitMix64) -> Fault {
    let agent = 1 + rng.below(agents) as Machine;
    let any = if rng.below(2) == 0 { 0 } else { agent };
    let down_ms = 100 + rng.below(15_000);
    match kind {
        0 => Fault::Kill { machine: any, power: false, down_ms },
        1 => Fault::Kill { machine: any, power: true, down_ms },
        2 => Fault::Disk { machine: any, operations: rng.below(60), failure: draw_failure(rng), down_ms },
        3 => Fault::Cut {
            machine: agent,
            up: rng.below(3) > 0,
            down: rng.below(3) > 0,
            for_ms: if rng.below(2) == 0 { rng.below(5_000) } else { rng.below(60_000) },
        },
        4 => Fault::Rebind { machine: agent },
        5 => Fault::Terminate { machine: any, down_ms },
        6 => Fault::Wipe { machine: agent },
        7 => Fault::Pause { for_ms: rng.below(30_000) },
        8 => Fault::Rollback { versions: rng.below(8) },
        9 => match rng.below(2) {
            0 => Fault::Leave { machine: agent },
            _ => Fault::Revoke { machine: agent },
        },
        10 => Fault::Clock { by_ms: rng.below(7_200_000) as i64 - 3_600_000 },
        11 => Fault::Flip { machine: any, seed: rng.next_u64() >> 1 },
        12 => Fault::SlowDisk { machine: any, extra_ms: 10 + rng.below(2_000), for_ms: rng.below(30_000) },
        13 => {
            Fault::Stop { machine: any, for_ms: if rng.below(2) == 0 { rng.below(5_000) } else { rng.below(60_000) } }
        }
        _ => Fault::Hang { machine: agent, for_ms: rng.below(40_000) },
    }
}

fn draw_failure(rng: &mut SplitMix64) -> Failure {
    match rng.below(4) {
        0 => Failure::NoSpace,
        1 => Failure::Io,
        2 => Failure::Killed,
        _ => Failure::KilledInSync,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_survives_being_written_down() {
        for seed in 0..50 {
            let schedule = draw(seed);
            let text = toml::to_string(&schedule).expect("plain values");
            assert_eq!(toml::from_str::<Schedule>(&text).expect(&text), schedule);
        }
    }

    #[test]
    fn attackers_occur_of_every_kind_and_are_few() {
        let mut seen = [0_u32; 3];
        for world in (0..600).map(draw) {
            let attackers: Vec<Hostile> = world.agents.iter().filter_map(|agent| agent.hostile).collect();
            assert!(attackers.len() * 10 <= world.agents.len() * 3, "more than 30 %");
            attackers.iter().for_each(|kind| seen[*kind as usize] += 1);
        }
        assert!(seen.iter().all(|worlds| *worlds >= 3), "{seen:?}");
    }

    #[test]
    fn every_fault_occurs_in_some_world_and_none_in_all() {
        let worlds: Vec<Schedule> = (0..400).map(draw).collect();
        let mut seen = std::collections::BTreeMap::new();
        for world in &worlds {
            let kinds: std::collections::BTreeSet<_> =
                world.faults.iter().map(|planned| planned.fault.kind()).collect();
            kinds.into_iter().for_each(|kind| *seen.entry(kind).or_insert(0) += 1);
        }
        assert_eq!(seen.len(), 16, "{seen:?}");
        assert!(seen.values().all(|worlds| (20..350).contains(worlds)), "{seen:?}");
    }
}
