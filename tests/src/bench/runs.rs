//! `anabranch-lab bench runs`: what an idle run costs a coordinator that serves many, with agents in all of them.
//!
//! One real coordinator serves the run of `init` to real agents, the run is paused, and the process is measured. Then it serves
//! so many further runs, paused before the agents come, in each of which every agent takes part, and is measured again. Resident
//! memory and processor time above the first measurement are the idle runs'.

use std::path::Path;
use std::time::Duration;

use anabranch_common::status::{RunStanding, RunSummary};
use anyhow::Context as _;

use crate::clock::{Stopwatch, poll};
use crate::process::{Cluster, DIGITS, PATIENCE, Role, cpu_s, example};
use crate::report::{Report, proc_kib};

/// How long all runs may take to be opened and joined.
const OPENING: Duration = Duration::from_secs(300);
/// How long a coordinator is left alone before it is measured.
const SETTLING: Duration = Duration::from_secs(3);
/// Most resident memory of an idle run, in bytes.
const AIM_BYTES: f64 = 2e6;
/// Largest share of a core that an idle run takes.
const AIM_SHARE: f64 = 0.001;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Runs beside the one of `init`
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub runs: u32,
    /// Agents that take part in all runs
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub agents: u64,
    /// How long the idle coordinator is watched, in seconds
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    pub seconds: f64,
}

/// Resident memory in bytes, the share of a core, open files and threads.
#[derive(Debug, Clone, Copy)]
struct Cost {
    rss_bytes: f64,
    cpu_share: f64,
    files: f64,
    threads: f64,
}

/// Measures.
///
/// # Errors
/// A process fails, or a run is not served.
pub fn run(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Report> {
    let settings = DIGITS.replace("versions = 40", "versions = 1000000");
    let mut cluster = Cluster::new(lab, &settings)?;
    cluster.start_coordinator()?;
    for number in 0..options.agents {
        cluster.join(&agent_name(number))?;
    }
    start_agents(&mut cluster, options.agents)?;
    cluster.wait_for_updates(1)?;
    cluster.coordinate(&["pause"], &[])?.code(0)?;
    wait_for_agents(&cluster, 1, options.agents)?;
    let alone = measure(&mut cluster, options.seconds)?;
    let model = cluster.path().join("model.safetensors").display().to_string();
    cluster.coordinate(&["checkpoint", "export"], &["--out", &model])?.code(0)?;
    cluster.park_agents()?;
    cluster.park_coordinator()?;

    let config = cluster.path().join("further.toml");
    std::fs::write(&config, &settings)?;
    let config = config.display().to_string();
    for number in 0..options.runs {
        let name = format!("run-{number}");
        cluster.coordinate(&["runs", "create"], &[&name, "--config", &config])?.code(0)?;
        cluster.coordinate(&["checkpoint", "import"], &["--run", &name, &model])?.code(0)?;
    }
    let watch = Stopwatch::start();
    cluster.start_coordinator()?;
    let runs = options.runs as usize + 1;
    let served = poll(OPENING, || Ok((list(&cluster)?.iter().filter(|run| idle(run)).count() == runs).then_some(())))?;
    served.with_context(|| format!("{runs} runs are not served within {OPENING:?}"))?;
    let opened_s = watch.seconds();
    for number in 0..options.runs {
        cluster.coordinate(&["runs", "pause"], &[&format!("run-{number}")])?.code(0)?;
    }
    start_agents(&mut cluster, options.agents)?;
    wait_for_agents(&cluster, runs, options.agents)?;
    let together = measure(&mut cluster, options.seconds)?;
    cluster.park_agents()?;
    cluster.park_coordinator()?;

    let of_each = |all: f64, one: f64| (all - one).max(0.0) / f64::from(options.runs.max(1));
    let mut report = Report::new("anabranch-lab bench runs", seed);
    report.metric("agents", options.agents as f64);
    report.metric("process_rss_bytes", alone.rss_bytes);
    report.metric("process_cpu_share", alone.cpu_share);
    report.metric("run_rss_bytes", of_each(together.rss_bytes, alone.rss_bytes));
    report.metric("run_cpu_share", of_each(together.cpu_share, alone.cpu_share));
    report.metric("run_open_files", of_each(together.files, alone.files));
    report.metric("run_threads", of_each(together.threads, alone.threads));
    report.metric("runs_opened_s", opened_s);
    report.aim("an idle run takes at most 2 MB of memory", report.metrics["run_rss_bytes"] <= AIM_BYTES);
    report.aim("an idle run takes at most 0.1 % of a core", report.metrics["run_cpu_share"] <= AIM_SHARE);
    Ok(report)
}

fn agent_name(number: u64) -> String {
    format!("agent-{number}")
}

/// Starts agents that have joined; they take part in all runs.
fn start_agents(cluster: &mut Cluster, agents: u64) -> anyhow::Result<()> {
    let data = example("data/digits-train.csv.gz");
    let args = ["--shard".as_ref(), data.as_os_str(), "--threads=1".as_ref(), "--runs=all".as_ref()];
    for number in 0..agents {
        cluster.start_agent(Role::Agent, &agent_name(number), &args, &[])?;
    }
    Ok(())
}

/// Returns every run of the running coordinator.
fn list(cluster: &Cluster) -> anyhow::Result<Vec<RunSummary>> {
    Ok(serde_json::from_str(&cluster.coordinate(&["runs", "list"], &["--json"])?.code(0)?.stdout)?)
}

/// Returns whether a run is served and has a model.
fn idle(run: &RunSummary) -> bool {
    matches!(run.state, RunStanding::Running | RunStanding::Paused)
}

/// Waits until so many runs are paused and every agent is connected to each of them.
fn wait_for_agents(cluster: &Cluster, runs: usize, agents: u64) -> anyhow::Result<()> {
    let ready = |run: &RunSummary| run.state == RunStanding::Paused && run.connected == agents;
    let joined = poll(OPENING.max(PATIENCE), || {
        Ok((list(cluster)?.iter().filter(|run| ready(run)).count() == runs).then_some(()))
    })?;
    joined.with_context(|| format!("{agents} agents are not in {runs} paused runs\n{}", cluster.logs()))
}

/// Watches the coordinator for so many seconds.
fn measure(cluster: &mut Cluster, seconds: f64) -> anyhow::Result<Cost> {
    let pid = cluster.coordinator()?.pid();
    std::thread::sleep(SETTLING);
    let used = || cpu_s(pid).context("the coordinator has ended");
    let (before, watch) = (used()?, Stopwatch::start());
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let cpu_share = (used()? - before) / watch.seconds();
    let rss_kib = proc_kib(&format!("/proc/{pid}/status"), "VmRSS:").context("the coordinator has ended")?;
    let entries =
        |of: &str| -> anyhow::Result<f64> { Ok(std::fs::read_dir(format!("/proc/{pid}/{of}"))?.count() as f64) };
    let (files, threads) = (entries("fd")?, entries("task")?);
    Ok(Cost { rss_bytes: (rss_kib << 10) as f64, cpu_share, files, threads })
}
