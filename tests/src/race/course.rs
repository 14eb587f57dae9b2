//! A workload as a world's schedule: rounds, lines, and the kills that a seed draws.

use anabranch_common::rng::SplitMix64;
use anabranch_coordinator::config::{Config, Retention};

use crate::sim::schedule::{AgentPlan, Fault, LinkPlan, Machine, Planned, Schedule, Task};

use super::workload::{LinePlan, RandomKills, TimedKills, Way, Workload};

/// Returns the schedule of a race.
pub(super) fn schedule(workload: &Workload, config: &Config, params: usize, seed: u64) -> Schedule {
    let agent = |group: &super::workload::AgentGroup| {
        let LinePlan { up, down } = group.line.as_ref().unwrap_or(&workload.line);
        AgentPlan {
            start_ms: 0,
            round_ms: ms(group.round_s),
            round_fails_every: 0,
            eval_examples: 0,
            evaluation_fails_every: 0,
            hostile: None,
            link: link(up),
            link_down: Some(link(down)),
        }
    };
    Schedule {
        task: Task::Native,
        params: u32::try_from(params).unwrap_or(u32::MAX),
        buffer: config.spec.merge.updates_per_version(),
        rule: None,
        lossy: false,
        max_staleness: config.spec.admit.max_staleness,
        lease_ttl_ms: ms(config.schedule.lease_ttl_s),
        checkpoint_every: config.checkpoint.every_versions,
        keep_journal: config.checkpoint.retention == Retention::All,
        target_round_ms: 0,
        agents: workload.each_agent().map(agent).collect(),
        length_ms: ms(workload.seconds),
        faults: faults(workload, seed),
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
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is checked to be above 0")]
fn link(way: &Way) -> LinkPlan {
    let bandwidth = way.kbit_s.map_or(u64::MAX, |kbit_s| (kbit_s / 8.0) as u64);
    LinkPlan { delay_ms: way.delay_ms, jitter_ms: 0, loss: way.loss, bandwidth }
}

fn faults(workload: &Workload, seed: u64) -> Vec<Planned> {
    let mut faults = Vec::new();
    if let Some(TimedKills { at_s, down_s }) = &workload.faults.coordinator {
        faults.extend(at_s.iter().map(|at_s| kill(0, *at_s, *down_s)));
    }
    if let Some(kills) = &workload.faults.agents {
        let mut rng = SplitMix64::new(seed ^ 0x5EED_0202);
        for machine in 1..=workload.agent_count() {
            faults.append(&mut random_kills(&mut rng, machine, kills, workload.seconds));
        }
    }
    faults
}

fn random_kills(rng: &mut SplitMix64, machine: Machine, kills: &RandomKills, seconds: f64) -> Vec<Planned> {
    let mut found = Vec::new();
    let mut started_s = 0.0;
    loop {
        let at_s = started_s - kills.mean_s * (1.0 - rng.next_f64()).ln();
        if at_s >= seconds {
            return found;
        }
        found.push(kill(machine, at_s, kills.down_s));
        started_s = at_s + kills.down_s;
    }
}

fn kill(machine: Machine, at_s: f64, down_s: f64) -> Planned {
    Planned { at_ms: ms(at_s), fault: Fault::Kill { machine, power: false, down_ms: ms(down_s) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_come_after_their_mean_and_never_to_a_process_that_is_gone() {
        let (mut rng, kills) = (SplitMix64::new(1), RandomKills { mean_s: 20.0, down_s: 5.0 });
        let found = random_kills(&mut rng, 1, &kills, 250_000.0);
        let times: Vec<u64> = found.iter().map(|planned| planned.at_ms).collect();
        assert!((9_500..10_500).contains(&times.len()), "{} kills, one in 25 s", times.len());
        assert!(times.windows(2).all(|pair| pair[1] >= pair[0] + 5_000));
    }

    #[test]
    fn rates_are_bytes_in_a_millisecond() {
        let way = |kbit_s| Way { kbit_s, delay_ms: 40, loss: 0.02 };
        assert_eq!(link(&way(Some(5_000.0))).bandwidth, 625);
        assert_eq!(link(&way(Some(256.0))).bandwidth, 32);
        assert_eq!(link(&way(None)).bandwidth, u64::MAX);
    }
}
