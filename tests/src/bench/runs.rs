//! `anabranch-lab bench runs`: what an idle run costs a coordinator that serves many.
//!
//! One real coordinator serves the run of `init`, and is measured. Then it serves so many further runs, each with a model,
//! and is measured again. Resident memory and processor time above the first measurement are the idle runs'.

use std::path::Path;
use std::time::Duration;

use anabranch_common::status::{RunStanding, RunSummary};
use anyhow::Context as _;

use super::recovery::write_model;
use super::store::noise;
use crate::clock::{Stopwatch, poll};
use crate::ledger::Settings;
use crate::process::{Cluster, cpu_s};
use crate::report::{Report, proc_kib};

/// How long all runs may take to be opened.
const OPENING: Duration = Duration::from_secs(300);
/// How long a coordinator that has just started is left alone before it is measured.
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
    /// Parameters of each run's model
    #[arg(long, value_name = "P", default_value_t = 1_000)]
    pub params: u64,
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
    let settings = Settings { coordinates: options.params, ..Settings::default() };
    let mut cluster = Cluster::new(lab, &settings.run_toml())?;
    let file = cluster.path().join("model.safetensors");
    write_model(&file, &noise(usize::try_from(options.params)?, seed))?;
    let model = file.display().to_string();
    cluster.coordinate(&["checkpoint", "import"], &[&model])?.code(0)?;
    let alone = serve(&mut cluster, 1, options.seconds)?.0;
    cluster.park_coordinator()?;

    let config = cluster.path().join("further.toml");
    std::fs::write(&config, settings.run_toml())?;
    let config = config.display().to_string();
    for number in 0..options.runs {
        let name = format!("run-{number}");
        cluster.coordinate(&["runs", "create"], &[&name, "--config", &config])?.code(0)?;
        cluster.coordinate(&["checkpoint", "import"], &["--run", &name, &model])?.code(0)?;
    }
    let (together, opened_s) = serve(&mut cluster, options.runs as usize + 1, options.seconds)?;
    cluster.park_coordinator()?;

    let of_each = |all: f64, one: f64| (all - one).max(0.0) / f64::from(options.runs.max(1));
    let mut report = Report::new("anabranch-lab bench runs", seed);
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

/// Starts the coordinator, waits until it serves so many runs, and watches it. Returns also how long the runs took to be
/// opened.
fn serve(cluster: &mut Cluster, runs: usize, seconds: f64) -> anyhow::Result<(Cost, f64)> {
    let watch = Stopwatch::start();
    cluster.start_coordinator()?;
    let served = poll(OPENING, || {
        let listed = cluster.coordinate(&["runs", "list"], &["--json"])?.code(0)?.stdout;
        let listed: Vec<RunSummary> = serde_json::from_str(&listed)?;
        let running = listed.iter().filter(|run| run.state == RunStanding::Running).count();
        Ok((running == runs).then_some(()))
    })?;
    served.with_context(|| format!("{runs} runs are not served within {OPENING:?}"))?;
    let opened_s = watch.seconds();
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
    Ok((Cost { rss_bytes: (rss_kib << 10) as f64, cpu_share, files, threads }, opened_s))
}
