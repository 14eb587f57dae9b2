//! What happens to a world, drawn from its seed or written down: a plain value that can be printed, kept and reduced.

use anabranch_common::rng::SplitMix64;
use serde::{Deserialize, Serialize};

use super::disk::Failure;

/// Agents of a drawn world, at most.
const AGENTS: u64 = 5;
/// Length of the part with faults, in milliseconds.
const LENGTH_MS: (u64, u64) = (30_000, 180_000);

/// A world and everything that will happen to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// What is trained.
    pub task: Task,
    /// Length of the flat model.
    pub params: u32,
    /// Updates that make a version; 1 is `FedAsync`, more is `FedBuff`.
    pub buffer: u32,
    /// Staleness decay, participation weights, top-k with error feedback: not for the ledger, whose updates must be
    /// merged as they are.
    pub lossy: bool,
    /// Versions an update's base may be behind.
    pub max_staleness: u64,
    /// How long a lease counts.
    pub lease_ttl_ms: u64,
    /// A checkpoint after this many versions.
    pub checkpoint_every: u64,
    /// Keep the whole journal.
    pub keep_journal: bool,
    /// The agents.
    pub agents: Vec<AgentPlan>,
    /// How long faults go on, in milliseconds.
    pub length_ms: u64,
    /// Faults, in any order.
    pub faults: Vec<Planned>,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Each update adds 1 to a coordinate of its own: what was merged, and how often, can be read off the model.
    Ledger,
    /// Each update goes part of the way to a point that the agent knows; the best model is the mean of the points.
    Quadratic,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentPlan {
    /// When it first starts.
    pub start_ms: u64,
    /// How long its local round takes.
    pub round_ms: u64,
    /// One round in so many fails (0: none).
    pub round_fails_every: u64,
    /// Examples that it holds to evaluate on.
    pub eval_examples: u64,
    /// What it sends instead of what it computed, if it is an attacker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostile: Option<Hostile>,
    /// Its line.
    pub link: LinkPlan,
}

/// What an attacker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hostile {
    /// A payload with a value that is not a number.
    NotANumber,
    /// A million times its delta.
    Huge,
    /// Its delta with the other sign.
    SignFlip,
}

/// A line between an agent and the coordinator, the same both ways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkPlan {
    /// One way, in milliseconds.
    pub delay_ms: u64,
    /// Up to so much more.
    pub jitter_ms: u64,
    /// Share of packets that are lost, 0..1: each costs a retransmission.
    pub loss: f64,
    /// Bytes a millisecond.
    pub bandwidth: u64,
}

/// A fault and its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// When.
    pub at_ms: u64,
    /// What.
    pub fault: Fault,
}

/// A machine: the coordinator's is 0, the agents' follow.
pub type Machine = usize;

/// What can be done to a world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// kill -9; the process starts again after a while.
    Kill {
        /// Whose process.
        machine: Machine,
        /// Whether the machine loses its power with it, and so what was not synced.
        power: bool,
        /// Until it starts again.
        down_ms: u64,
    },
    /// The storage fails in an operation to come.
    Disk {
        /// Whose.
        machine: Machine,
        /// After this many operations more.
        operations: u64,
        /// How.
        failure: Failure,
        /// Until the cause is gone and the process starts again.
        down_ms: u64,
    },
    /// SIGTERM; the process starts again after a while.
    Terminate {
        /// Whose process.
        machine: Machine,
        /// Until it starts again.
        down_ms: u64,
    },
    /// An agent's disk is empty from now on; its key is kept elsewhere.
    Wipe {
        /// Whose.
        machine: Machine,
    },
    /// An agent is killed and never comes back.
    Leave {
        /// Which.
        machine: Machine,
    },
    /// Nothing passes, one way or both.
    Cut {
        /// Whose line.
        machine: Machine,
        /// From the agent.
        up: bool,
        /// To the agent.
        down: bool,
        /// For how long.
        for_ms: u64,
    },
    /// The line's address changes: what is under way arrives late.
    Rebind {
        /// Whose.
        machine: Machine,
    },
    /// A machine's wall clock jumps.
    Clock {
        /// By so much, in milliseconds.
        by_ms: i64,
    },
    /// The operator pauses the run, and resumes it later.
    Pause {
        /// For how long.
        for_ms: u64,
    },
    /// The coordinator is parked, rolled back by so many versions and started again.
    Rollback {
        /// By so many.
        versions: u64,
    },
    /// An agent's certificate is revoked.
    Revoke {
        /// Whose.
        machine: Machine,
    },
}

impl Fault {
    /// Whose it is.
    #[must_use]
    pub fn machine(&self) -> Machine {
        match self {
            Self::Kill { machine, .. }
            | Self::Disk { machine, .. }
            | Self::Terminate { machine, .. }
            | Self::Wipe { machine }
            | Self::Leave { machine }
            | Self::Cut { machine, .. }
            | Self::Rebind { machine }
            | Self::Revoke { machine } => *machine,
            Self::Clock { .. } | Self::Pause { .. } | Self::Rollback { .. } => 0,
        }
    }

    /// Its name, as in a scenario.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill { power: false, .. } => "kill",
            Self::Kill { power: true, .. } => "power",
            Self::Disk { .. } => "disk",
            Self::Terminate { .. } => "terminate",
            Self::Wipe { .. } => "wipe",
            Self::Leave { .. } => "leave",
            Self::Cut { .. } => "cut",
            Self::Rebind { .. } => "rebind",
            Self::Clock { .. } => "clock",
            Self::Pause { .. } => "pause",
            Self::Rollback { .. } => "rollback",
            Self::Revoke { .. } => "revoke",
        }
    }
}

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
        hostile: None,
        link: LinkPlan {
            delay_ms: if slow_links { between(50, 2_000) } else { between(1, 60) },
            jitter_ms: if between(0, 1) == 0 { 0 } else { between(1, 500) },
            loss: if lossy_links { between(1, 30) as f64 / 100.0 } else { 0.0 },
            bandwidth: if slow_links { between(1, 32) } else { 10_000 },
        },
    });
    let agents: Vec<AgentPlan> = plans.collect();
    let buffer = if ledger { 1 } else { between(1, 4) };
    let mut schedule = Schedule {
        task: if ledger { Task::Ledger } else { Task::Quadratic },
        params: if ledger { 1024 } else { 16 },
        buffer: u32::try_from(buffer).unwrap_or(1),
        lossy: !ledger && between(0, 1) == 0,
        max_staleness: if between(0, 2) == 0 { between(0, 4) } else { 1_000 },
        lease_ttl_ms: if between(0, 2) == 0 { between(2_000, 10_000) } else { 60_000 },
        checkpoint_every: between(1, 12),
        keep_journal: between(0, 3) == 0,
        agents,
        length_ms,
        faults: Vec::new(),
    };
    draw_attacker(seed, &mut schedule);
    schedule.faults = draw_faults(seed, &schedule);
    schedule
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

/// Each kind has a generator of its own, so that another kind changes nothing about this one; each is off in half of all
/// worlds.
fn draw_faults(seed: u64, world: &Schedule) -> Vec<Planned> {
    let machines = world.agents.len() as u64;
    let mut faults = Vec::new();
    for kind in 0..11_u64 {
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
    faults.sort_by_key(|planned| planned.at_ms);
    faults
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
        _ => Fault::Clock { by_ms: rng.below(7_200_000) as i64 - 3_600_000 },
    }
}

fn draw_failure(rng: &mut SplitMix64) -> Failure {
    match rng.below(4) {
        0 => Failure::NoSpace,
        1 => Failure::Io,
        _ => Failure::Killed,
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
        assert_eq!(seen.len(), 12, "{seen:?}");
        assert!(seen.values().all(|worlds| (20..350).contains(worlds)), "{seen:?}");
    }
}
