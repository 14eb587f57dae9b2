//! `anabranch-lab bench w1`: workload W1 with real processes, as `race --real` runs it (docs/race.md), next to the same in
//! virtual time.
//!
//! Ten agents train a small network on MNIST, cut one-sidedly; one of them is 10 times slower than the others and one 50
//! times. One agent evaluates as agents of users do, and a fault may hit one process.
//!
//! | race with the same configuration, seeds and fault | what it has |
//! |---|---|
//! | real | start-up, computation, evaluation, connections |
//! | virtual | rounds of exactly 0.25 s, and nothing else takes time: the quick agents end their rounds together |
//! | virtual, apart | rounds as long as the real race had from one update of a quick agent to the next, which differ a little: the quick agents end them at different times, and their updates are staler |

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::race::{self, AgentGroup, Clock, Finish, Hit, Kills, Override, RaceReport, Strategy, Workload};
use crate::report::{Report, quantile};

/// Data, split, model and rounds.
const WORKLOAD: &str = include_str!("../../workloads/w1.toml");
/// Where its split file is, when this was built.
const WORKLOAD_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/w1.toml");
/// The agent that also holds the test set.
const EVALUATOR: usize = 0;
/// The agent that faults hit: neither the evaluator nor one of the slow ones.
const VICTIM: usize = 1;
/// The agents that are as quick as the evaluator and hit by nothing.
const PEERS: std::ops::Range<usize> = 2..8;
/// How far the rounds of quick agents differ from their mean in the race whose agents are apart, as a share of it.
const SPREAD: f64 = 0.04;
/// When the fault comes, in seconds after the start of all processes, and how long it lasts unless it is for good.
const FAULT_AT_S: f64 = 3.0;
const FAULT_S: f64 = 2.0;

/// Seconds between two looks until 90 % is reached, and afterwards: a race looks more rarely, and a ratio of two short times
/// would be coarse.
const LOOK_S: [f64; 2] = [0.05, 0.5];

/// What goes wrong while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Nothing
    None,
    /// An agent is killed (SIGKILL) after 3 s, and started again 2 s later
    KillAgent,
    /// An agent hangs (SIGSTOP) after 3 s, for good
    HangAgent,
    /// The coordinator is killed after 3 s, and started again 2 s later
    KillCoordinator,
}

impl Fault {
    /// Returns what it does in a race of so many seconds.
    fn hit(self, seconds: f64) -> Option<Hit> {
        let (agent, at_s) = (VICTIM + 1, FAULT_AT_S);
        match self {
            Self::None => None,
            Self::KillAgent => Some(Hit { machine: agent, at_s, down_s: FAULT_S, kills: Kills::Kill }),
            Self::HangAgent => Some(Hit { machine: agent, at_s, down_s: seconds, kills: Kills::Pause }),
            Self::KillCoordinator => Some(Hit { machine: 0, at_s, down_s: FAULT_S, kills: Kills::Kill }),
        }
    }

    /// Returns the most seconds that 90 % may take.
    fn aim_90_s(self) -> f64 {
        if self == Self::None { 7.0 } else { 10.0 }
    }
}

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Directory with MNIST as four gzipped IDX files
    #[arg(long, value_name = "DIR", env = "ANABRANCH_DATA")]
    pub data: PathBuf,
    /// What goes wrong
    #[arg(long, value_enum, default_value = "none")]
    pub fault: Fault,
    /// The merge strategy, as `race` takes it
    #[arg(long, value_name = "S", default_value = "init", value_parser = Strategy::parse)]
    pub strategy: Strategy,
    /// A key of run.toml, as in a race; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = Override::parse)]
    pub set: Vec<Override>,
    /// Runs with so many seeds, one after the other: figures are medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub seeds: u64,
    /// How long it runs
    #[arg(long, value_name = "S", default_value_t = 32.0)]
    pub seconds: f64,
    /// No agent holds the test set
    #[arg(long)]
    pub no_evaluation: bool,
}

/// Measures.
///
/// # Errors
/// A process fails, a promise is broken, or the data are not there.
pub fn run(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Report> {
    let evaluator = (!options.no_evaluation).then_some(EVALUATOR);
    let workload = workload(options)?;
    let real = race(options, seed, workload.clone(), Clock::Real { lab: lab.to_owned(), evaluator })?;
    let period_ms = real.report.metrics.get("quick_period_p50_ms").copied().context("no agent made two updates")?;
    let together = race(options, seed, workload.clone(), Clock::Virtual)?;
    let apart = race(options, seed, apart(workload, period_ms / 1e3), Clock::Virtual)?;
    report(options, seed, &real, &[("virtual", &together), ("virtual_apart", &apart)])
}

fn workload(options: &Options) -> anyhow::Result<Workload> {
    let mut workload = Workload::parse(Path::new(WORKLOAD_FILE), WORKLOAD)?.lasting(options.seconds)?;
    workload.look_s = LOOK_S;
    workload.faults.planned.extend(options.fault.hit(options.seconds));
    Ok(workload)
}

/// Returns the workload with quick agents whose rounds take `round_s` on the average, and no two of them the same time.
fn apart(workload: Workload, round_s: f64) -> Workload {
    let quick = PEERS.end;
    let group = |(agent, group): (usize, &AgentGroup)| {
        let place = 2.0 * agent as f64 / (quick - 1) as f64 - 1.0;
        let own_s = if agent < quick { round_s * (1.0 + SPREAD * place) } else { group.round_s };
        AgentGroup { count: 1, round_s: own_s, ..group.clone() }
    };
    let agents = workload.each_agent().enumerate().map(group).collect();
    Workload { agents, ..workload }
}

fn race(options: &Options, seed: u64, workload: Workload, clock: Clock) -> anyhow::Result<RaceReport> {
    race::run(&race::Options {
        command: String::new(),
        workload,
        strategies: vec![options.strategy.clone()],
        overrides: options.set.clone(),
        seed,
        seeds: options.seeds,
        data: Some(options.data.clone()),
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        references: Default::default(),
        clock,
    })
}

/// Figures of the real race, and beside them those of `others` by name.
fn report(options: &Options, seed: u64, real: &RaceReport, others: &[(&str, &RaceReport)]) -> anyhow::Result<Report> {
    let mut report = Report::new("anabranch-lab bench w1", seed);
    let races = &real.runs.first().context("a race was not run")?.races;
    report.metrics.clone_from(&real.report.metrics);
    for (name, other) in others {
        for (figure, value) in &other.report.metrics {
            if BESIDE.contains(&figure.as_str()) {
                report.metric(format!("{name}_{figure}"), *value);
            }
        }
        let others = &other.runs.first().context("a race was not run")?.races;
        for (target, suffix) in [("90", ""), ("95", "_95")] {
            let figure = format!("time_to_{target}_s");
            let ratio =
                |(one, other): (&Finish, &Finish)| Some(one.metrics.get(&figure)? / other.metrics.get(&figure)?);
            if let Some(overhead) = median(races.iter().zip(others).filter_map(ratio)) {
                report.metric(format!("overhead_ratio_to_{name}{suffix}"), overhead);
            }
        }
    }
    report.metric("evaluator_updates_ratio_to_peers", median(races.iter().map(beside_peers)).unwrap_or(0.0));
    for finish in races {
        for (reason, updates) in &finish.refused {
            *report.counts.entry(reason.clone()).or_default() += updates;
        }
        report.pass &= finish.holds() && finish.metrics.get("updates_duplicated") == Some(&0.0);
    }
    aims(options, &mut report);
    Ok(report)
}

/// Figures of the races in virtual time that stand beside those of the real one.
const BESIDE: [&str; 6] =
    ["time_to_90_s", "time_to_95_s", "updates_to_90", "updates_to_95", "updates_accepted", "staleness_p50_versions"];

fn aims(options: &Options, report: &mut Report) {
    let figure = |name: &str| report.metrics.get(name).copied();
    let within = |name: &str, most: f64| figure(name).is_some_and(|value| value <= most);
    let most_s = options.fault.aim_90_s();
    let mut aims = vec![
        (format!("90 % within {most_s} s of the start of all processes"), within("time_to_90_s", most_s)),
        ("start-up below 3 s".to_owned(), within("startup_s", 3.0)),
        ("coordinator below 100 MB".to_owned(), within("coordinator_peak_rss_bytes", 100e6)),
        ("ten agents below 600 MB together".to_owned(), within("agents_peak_pss_bytes", 600e6)),
    ];
    if options.fault == Fault::None {
        let overhead = within("overhead_ratio_to_virtual", 1.15);
        aims.push(("95 % within 28 s of the start of all processes".to_owned(), within("time_to_95_s", 28.0)));
        aims.push(("90 % after at most 1.15 times the virtual time".to_owned(), overhead));
        let evaluator = figure("evaluator_updates_ratio_to_peers").is_some_and(|ratio| ratio >= 0.9);
        aims.push(("the evaluator makes 0.9 of its peers' updates or more".to_owned(), evaluator));
    }
    report.pass &= figure("time_to_90_s").is_some();
    aims.into_iter().for_each(|(text, reached)| report.aim(text, reached));
}

/// The evaluator's updates over the mean of its peers'.
fn beside_peers(finish: &Finish) -> f64 {
    let updates = |agent: usize| finish.agents.get(agent).map_or(0.0, |agent| agent.updates as f64);
    let peers = PEERS.map(updates).sum::<f64>() / PEERS.len() as f64;
    updates(EVALUATOR) / peers.max(1.0)
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (!values.is_empty()).then(|| quantile(&values, 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_one_process_and_a_hang_lasts_to_the_end() {
        let hit = |fault: Fault| fault.hit(32.0).map(|hit| (hit.machine, hit.at_s, hit.down_s, hit.kills));
        assert_eq!(hit(Fault::None), None);
        assert_eq!(hit(Fault::KillAgent), Some((2, 3.0, 2.0, Kills::Kill)));
        assert_eq!(hit(Fault::HangAgent), Some((2, 3.0, 32.0, Kills::Pause)));
        assert_eq!(hit(Fault::KillCoordinator), Some((0, 3.0, 2.0, Kills::Kill)));
    }

    #[test]
    fn quick_agents_that_are_apart_have_the_same_mean_round_and_slow_ones_their_own() {
        let ships = Workload::parse(Path::new(WORKLOAD_FILE), WORKLOAD).expect("it ships");
        let apart: Vec<f64> = apart(ships, 0.3).each_agent().map(|group| group.round_s).collect();
        let quick = &apart[..PEERS.end];
        assert!((quick.iter().sum::<f64>() / quick.len() as f64 - 0.3).abs() < 1e-9, "{quick:?}");
        assert!(quick.is_sorted_by(|one, other| one < other) && (quick[7] / quick[0] - 1.04 / 0.96).abs() < 1e-9);
        assert_eq!(apart[PEERS.end..], [2.5, 12.5]);
    }

    #[test]
    fn the_workload_has_the_agents_that_are_compared() {
        let workload = Workload::parse(Path::new(WORKLOAD_FILE), WORKLOAD).expect("it ships");
        let rounds: Vec<f64> = workload.each_agent().map(|group| group.round_s).collect();
        let peers = PEERS.chain([EVALUATOR, VICTIM]);
        assert!(peers.into_iter().all(|agent| rounds[agent] == rounds[EVALUATOR]), "{rounds:?}");
    }
}
