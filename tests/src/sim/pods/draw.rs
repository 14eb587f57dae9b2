//! Worlds with pods, drawn from seeds.

use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{Labels, ScheduleKind};

use crate::sim::schedule::{
    AgentPlan, Fault, Lie, LinkPlan, Machine, Planned, PodPlan, ReplicasPlan, Schedule, StagesPlan, Task,
};

/// Length of the part with faults, in milliseconds.
const LENGTH_MS: (u64, u64) = (20_000, 60_000);
/// Kinds of faults that are drawn.
const KINDS: u64 = 14;

/// One world in so many has pods of replicas.
const REPLICAS: u64 = 3;

/// Draws a world with pods, of stages or of replicas. The same seed gives the same world.
#[must_use]
pub fn draw(seed: u64) -> Schedule {
    if SplitMix64::new(seed ^ 0x5EED_0037).below(REPLICAS) == 0 { draw_replicas(seed) } else { draw_stages(seed) }
}

/// Draws numbers of a world.
struct Dice(SplitMix64);

impl Dice {
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.below(high - low + 1)
    }

    fn agent(&mut self, length_ms: u64, slow_links: bool, (pod, helper): (bool, bool)) -> AgentPlan {
        let mut between = |low, high| self.between(low, high);
        AgentPlan {
            start_ms: if between(0, 3) == 0 { between(0, length_ms / 2) } else { between(0, 2_000) },
            round_ms: between(200, 3_000),
            round_fails_every: 0,
            eval_examples: if between(0, 3) == 0 { 10 } else { 0 },
            evaluation_fails_every: 0,
            pod,
            helper,
            lie: None,
            hostile: None,
            link: LinkPlan {
                delay_ms: if slow_links { between(20, 200) } else { between(1, 10) },
                jitter_ms: if between(0, 2) > 0 { 0 } else { between(1, 60) },
                loss: if between(0, 3) == 0 { between(1, 10) as f64 / 100.0 } else { 0.0 },
                bandwidth: 10_000.0,
            },
            link_down: None,
        }
    }

    /// A world without faults.
    fn world(&mut self, pods: PodPlan, lease_ttl_ms: u64, length_ms: u64, agents: Vec<AgentPlan>) -> Schedule {
        let mut between = |low, high| self.between(low, high);
        Schedule {
            task: Task::Native,
            params: 1,
            buffer: u32::try_from(between(1, 2)).unwrap_or(1),
            rule: None,
            track: None,
            share_updates: false,
            lossy: between(0, 2) == 0,
            adaptive: false,
            max_staleness: if between(0, 3) == 0 { between(0, 3) } else { 1_000 },
            lease_ttl_ms,
            checkpoint_every: between(1, 8),
            keep_journal: between(0, 1) == 0,
            target_round_ms: 0,
            round_deadline_ms: 0,
            pods: Some(pods),
            agents,
            length_ms,
            faults: Vec::new(),
        }
    }
}

/// Draws a world with pods of stages: owners of rounds, helpers, some of which may be spare, and sometimes an agent that trains
/// alone.
fn draw_stages(seed: u64) -> Schedule {
    let mut dice = Dice(SplitMix64::new(seed ^ 0x5EED_0033));
    let length_ms = dice.between(LENGTH_MS.0, LENGTH_MS.1);
    let stages = dice.between(2, 3);
    let schedules = [ScheduleKind::Flush, ScheduleKind::Flush, ScheduleKind::Sequential, ScheduleKind::Pipelined];
    let schedule = schedules[usize::try_from(dice.between(0, 3)).unwrap_or(0)];
    let labels = if dice.between(0, 1) == 0 { Labels::Stay } else { Labels::Travel };
    let deadline_ms = dice.between(1, 5) * 1_000;
    let lease_ttl_ms = if dice.between(0, 2) == 0 { dice.between(6_000, 12_000) } else { 60_000 };
    let (owners, spares, singles) = (dice.between(1, 2), dice.between(0, 2), dice.between(0, 1));
    let helpers = stages - 1 + spares;
    let slow_links = dice.between(0, 3) == 0;
    let mut of = |count: u64, joins| -> Vec<AgentPlan> {
        (0..count).map(|_| dice.agent(length_ms, slow_links, joins)).collect()
    };
    let mut agents = of(owners, (true, false));
    agents.extend(of(helpers, (true, true)));
    agents.extend(of(singles, (false, false)));
    let stages = u32::try_from(stages).unwrap_or(2);
    let pods = PodPlan::Stages(StagesPlan { stages, schedule, labels, deadline_ms });
    let mut world = dice.world(pods, lease_ttl_ms, length_ms, agents);
    draw_liar(seed, &mut world, owners, helpers);
    world.faults = draw_faults(seed, &world, (owners, helpers, spares));
    world
}

/// Draws a world with pods of replicas: at least two agents with data at each site, some more that may leave, and sometimes an agent
/// that trains alone, and one without data, which is never a replica.
fn draw_replicas(seed: u64) -> Schedule {
    let mut dice = Dice(SplitMix64::new(seed ^ 0x5EED_0036));
    let length_ms = dice.between(LENGTH_MS.0, LENGTH_MS.1);
    let (members, sites, each, spares) =
        (dice.between(2, 4), dice.between(1, 2), dice.between(2, 3), dice.between(0, 2));
    let deadline_ms = dice.between(1, 5) * 1_000;
    let lease_ttl_ms = if dice.between(0, 2) == 0 { dice.between(6_000, 12_000) } else { 60_000 };
    let (singles, idle, slow_links) = (dice.between(0, 1), dice.between(0, 1), dice.between(0, 3) == 0);
    let owners = sites * each;
    let mut of = |count: u64, joins| -> Vec<AgentPlan> {
        (0..count).map(|_| dice.agent(length_ms, slow_links, joins)).collect()
    };
    let mut agents = of(owners + spares, (true, false));
    agents.extend(of(singles, (false, false)));
    agents.extend(of(idle, (true, true)));
    let (members, sites) = (u32::try_from(members).unwrap_or(2), usize::try_from(sites).unwrap_or(1));
    let pods = PodPlan::Replicas(ReplicasPlan { members, sites, deadline_ms });
    let mut world = dice.world(pods, lease_ttl_ms, length_ms, agents);
    draw_lying_replica(seed, &mut world, owners + spares);
    world.faults = draw_faults(seed, &world, (owners, spares, spares));
    world
}

/// One replica lies in two worlds of five: each of them owns rounds, so that its words to the coordinator are its own affair.
fn draw_lying_replica(seed: u64, world: &mut Schedule, replicas: u64) {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0038);
    if rng.below(5) > 1 {
        return;
    }
    let lies = [Lie::Shape, Lie::Route, Lie::Range, Lie::Twice];
    let lie = usize::try_from(rng.below(lies.len() as u64)).unwrap_or(0);
    let liar = usize::try_from(rng.below(replicas)).unwrap_or(0);
    if let Some(agent) = world.agents.get_mut(liar) {
        agent.lie = Some(lies[lie]);
    }
}

/// One helper lies in two worlds of five.
fn draw_liar(seed: u64, world: &mut Schedule, owners: u64, helpers: u64) {
    let mut rng = SplitMix64::new(seed ^ 0x5EED_0034);
    if rng.below(5) > 1 {
        return;
    }
    let lies = [Lie::Shape, Lie::Route, Lie::NotANumber, Lie::Range, Lie::Twice, Lie::Words, Lie::Words];
    let lie = usize::try_from(rng.below(lies.len() as u64)).unwrap_or(0);
    let liar = usize::try_from(owners + rng.below(helpers)).unwrap_or(0);
    if let Some(agent) = world.agents.get_mut(liar) {
        agent.lie = Some(lies[lie]);
    }
}

/// Each kind has a generator of its own, and is off in half of all worlds.
fn draw_faults(seed: u64, world: &Schedule, (owners, helpers, spares): (u64, u64, u64)) -> Vec<Planned> {
    let mut faults = Vec::new();
    for kind in 0..KINDS {
        let mut rng = SplitMix64::new((seed ^ 0x5EED_0035).wrapping_mul(kind + 1));
        rng.next_u64();
        if rng.below(2) == 0 {
            continue;
        }
        let rare = kind >= 7;
        for _ in 0..=rng.below(if rare { 2 } else { 5 }) {
            let at_ms = rng.below(world.length_ms);
            let machines = (world.agents.len() as u64, owners, helpers);
            faults.extend(draw_fault(kind, machines, spares, &mut rng).map(|fault| Planned { at_ms, fault }));
        }
    }
    faults.sort_by_key(|planned| planned.at_ms);
    faults
}

#[expect(clippy::cast_possible_truncation, reason = "small numbers of machines")]
fn draw_fault(
    kind: u64,
    (agents, owners, helpers): (u64, u64, u64),
    spares: u64,
    rng: &mut SplitMix64,
) -> Option<Fault> {
    let machine = 1 + rng.below(agents) as Machine;
    let other = 1 + rng.below(owners + helpers) as Machine;
    let down_ms = 100 + rng.below(8_000);
    let for_ms = if rng.below(2) == 0 { rng.below(3_000) } else { rng.below(20_000) };
    Some(match kind {
        0 | 1 => Fault::Kill { machine, power: kind == 1, down_ms },
        2 => Fault::Kill { machine: 0, power: false, down_ms },
        3 => Fault::Sever { machine: 1 + rng.below(owners + helpers) as Machine, other, for_ms },
        4 => Fault::Stop { machine, for_ms },
        5 => Fault::Hang { machine, for_ms },
        6 => Fault::Cut { machine, up: rng.below(3) > 0, down: rng.below(3) > 0, for_ms },
        7 => Fault::Kill { machine: 0, power: true, down_ms },
        8 => Fault::Terminate { machine: if rng.below(3) == 0 { 0 } else { machine }, down_ms },
        9 => Fault::Pause { for_ms },
        10 => Fault::Rollback { versions: rng.below(4) },
        11 => Fault::Wipe { machine },
        13 => Fault::Clock { by_ms: rng.below(7_200_000) as i64 - 3_600_000 },
        // The last helpers, which are not missed.
        _ => {
            let machine = (owners + helpers - rng.below(spares.max(1))) as Machine;
            match rng.below(2) {
                _ if spares == 0 => return None,
                0 => Fault::Leave { machine },
                _ => Fault::Revoke { machine },
            }
        }
    })
}
