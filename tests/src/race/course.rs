//! A workload as a world's schedule: rounds, lines, and the kills that a seed draws.

use anabranch_common::rng::SplitMix64;
use anabranch_coordinator::config::{Config, Retention};

use crate::sim::schedule::{AgentPlan, Fault, LinkPlan, Machine, Planned, Schedule, Task};

use super::workload::{LinePlan, RandomKills, TimedKills, Way, Workload};

/// What becomes of a process whose workload kills it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kills {
    /// It is killed, and another one starts after a while.
    Kill,
    /// It stands still for as long.
    Pause,
}

/// Returns the schedule of a race.
pub(super) fn schedule(workload: &Workload, config: &Config, params: usize, seed: u64, kills: Kills) -> Schedule {
    let agent = |group: &super::workload::AgentGroup| {
        let LinePlan { up, down } = group.line.as_ref().unwrap_or(&workload.line);
        let plain = AgentPlan::plain(ms(group.round_s), link(up));
        AgentPlan { hostile: group.hostile, link_down: Some(link(down)), ..plain }
    };
    Schedule {
        task: Task::Native,
        params: u32::try_from(params).unwrap_or(u32::MAX),
        buffer: 1,
        rule: None,
        track: None,
        share_updates: config.spec.downlink.share_updates,
        lossy: false,
        adaptive: false,
        max_staleness: config.spec.admit.max_staleness,
        lease_ttl_ms: ms(config.schedule.lease_ttl_s),
        checkpoint_every: config.checkpoint.every_versions,
        keep_journal: config.checkpoint.retention == Retention::All,
        target_round_ms: 0,
        round_deadline_ms: 0,
        pods: None,
        agents: workload.each_agent().map(agent).collect(),
        length_ms: ms(workload.seconds),
        faults: faults(workload, seed, kills),
    }
}

/// Seconds as whole milliseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates; seconds are checked to be above 0"
)]
pub(super) fn ms(seconds: f64) -> u64 {
    (seconds * 1_000.0).round() as u64
}

/// Bytes in a millisecond are an eighth of kbit/s.
fn link(way: &Way) -> LinkPlan {
    let bandwidth = way.kbit_s.map_or(f64::INFINITY, |kbit_s| kbit_s / 8.0);
    LinkPlan { delay_ms: way.delay_ms, jitter_ms: 0, loss: way.loss, bandwidth }
}

/// The same seed gives the same times, whatever becomes of the processes.
fn faults(workload: &Workload, seed: u64, kills: Kills) -> Vec<Planned> {
    let fault = |hit: &Hit| {
        let (machine, ms) = (hit.machine, ms(hit.down_s));
        let fault = match hit.kills {
            Kills::Kill => Fault::Kill { machine, power: false, down_ms: ms },
            Kills::Pause => Fault::Stop { machine, for_ms: ms },
        };
        Planned { at_ms: self::ms(hit.at_s), fault }
    };
    hits(workload, seed, kills).iter().map(fault).collect()
}

/// A process is killed or stopped, and works again after a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Hit {
    /// 0 is the coordinator's; that of agent n is n + 1.
    pub(crate) machine: Machine,
    pub(crate) at_s: f64,
    pub(crate) down_s: f64,
    /// What becomes of it meanwhile.
    pub(crate) kills: Kills,
}

/// Returns every kill of the workload: those that a benchmark has planned, the coordinator's, then those of each agent in
/// the order of time. `kills`: what becomes of processes whose kills are not planned.
pub(super) fn hits(workload: &Workload, seed: u64, kills: Kills) -> Vec<Hit> {
    let mut hits = workload.faults.planned.clone();
    if let Some(TimedKills { at_s, down_s }) = &workload.faults.coordinator {
        hits.extend(at_s.iter().map(|at_s| Hit { machine: 0, at_s: *at_s, down_s: *down_s, kills }));
    }
    if let Some(random) = &workload.faults.agents {
        let mut rng = SplitMix64::new(seed ^ 0x5EED_0202);
        for machine in 1..=workload.agent_count() {
            let drawn = random_kills(&mut rng, random, workload.seconds);
            hits.extend(drawn.iter().map(|(at_s, down_s)| Hit { machine, at_s: *at_s, down_s: *down_s, kills }));
        }
    }
    hits
}

/// When, and for how long, in seconds.
fn random_kills(rng: &mut SplitMix64, kills: &RandomKills, seconds: f64) -> Vec<(f64, f64)> {
    let mut found = Vec::new();
    let mut started_s = 0.0;
    loop {
        let at_s = started_s - kills.mean_s * (1.0 - rng.next_f64()).ln();
        if at_s >= seconds {
            return found;
        }
        found.push((at_s, kills.down_s));
        started_s = at_s + kills.down_s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_come_after_their_mean_and_never_to_a_process_that_is_gone() {
        let (mut rng, kills) = (SplitMix64::new(1), RandomKills { mean_s: 20.0, down_s: 5.0 });
        let found = random_kills(&mut rng, &kills, 250_000.0);
        let times: Vec<u64> = found.iter().map(|(at_s, _)| ms(*at_s)).collect();
        assert!((9_500..10_500).contains(&times.len()), "{} kills, one in 25 s", times.len());
        assert!(times.windows(2).all(|pair| pair[1] >= pair[0] + 5_000));
    }

    #[test]
    fn rates_are_bytes_in_a_millisecond() {
        let way = |kbit_s| Way { kbit_s, delay_ms: 40, loss: 0.02 };
        assert_eq!(link(&way(Some(5_000.0))).bandwidth, 625.0);
        assert_eq!(link(&way(Some(100.0))).bandwidth, 12.5);
        assert_eq!(link(&way(None)).bandwidth, f64::INFINITY);
    }
}
