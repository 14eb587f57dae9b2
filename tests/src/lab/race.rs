//! The verb of the race.

use std::path::{Path, PathBuf};

use anabranch_tests::race::pipeline::{PipelineOptions, PipelineWorkload};
use anabranch_tests::race::search::{SearchOptions, SearchWorkload};
use anabranch_tests::race::{self, Clock, Options, Override, Reference, Strategy, Workload};
use anyhow::bail;
use clap::Args;

/// What to race, and where results go.
#[derive(Debug, Clone, Args)]
pub(crate) struct RaceArgs {
    /// What is trained by whom, and what goes wrong
    #[arg(value_name = "WORKLOAD.toml")]
    workload: PathBuf,
    /// A merge strategy: init (what `anabranch-coordinator init` writes), fedasync, fedbuff, recall, delayed-nesterov,
    /// fadas, rescaled, or the section merge of run.toml; or replicas: all agents as one synchronous group. May be repeated. init
    /// when absent
    #[arg(long = "strategy", value_name = "S")]
    strategies: Vec<String>,
    /// A key of run.toml for all strategies, such as admit.max_influence=0; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Seed of the initial model, of all batches, of lines and faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Race with so many seeds, from --seed on
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: u64,
    /// Virtual time that agents train, in seconds, in place of the workload's
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Directory with the data set, such as MNIST as four gzipped IDX files
    #[arg(long, value_name = "DIR", env = "ANABRANCH_DATA")]
    data: Option<PathBuf>,
    /// Race every strategy again with processes that stand still where the workload kills them, and compare
    #[arg(long)]
    pauses: bool,
    /// Let one machine that holds all data make as many local rounds as all agents together, and compare
    #[arg(long)]
    pooled: bool,
    /// Run the daemons as processes, one race after the other, in place of virtual time
    #[arg(long)]
    real: bool,
    /// Run every configuration of a search to its end, and write what they come to where the search looks for it
    #[arg(long)]
    exhaustive: bool,
    /// Races at a time; as many as there are cores when absent
    #[arg(long)]
    jobs: Option<usize>,
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write accuracy curves and figures as one HTML page to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) fn run(lab: &Path, args: &RaceArgs) -> anyhow::Result<bool> {
    if PipelineWorkload::is_at(&args.workload) {
        return pipeline(args);
    }
    if SearchWorkload::is_at(&args.workload) {
        return search(args);
    }
    if args.exhaustive {
        bail!("{} is no search: --exhaustive does not apply", args.workload.display());
    }
    let mut strategies =
        args.strategies.iter().map(|text| Strategy::parse(text)).collect::<anyhow::Result<Vec<Strategy>>>()?;
    if strategies.is_empty() {
        strategies.push(Strategy::init());
    }
    let overrides = args.overrides.iter().map(|text| Override::parse(text)).collect::<anyhow::Result<_>>()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workload = Workload::read(&args.workload)?;
    let workload = match args.seconds {
        Some(seconds) => workload.lasting(seconds)?,
        None => workload,
    };
    let pauses = args.pauses.then_some(Reference::Pauses);
    let references = pauses.into_iter().chain(args.pooled.then_some(Reference::Pooled)).collect();
    let options = Options {
        command: command(args),
        workload,
        strategies,
        overrides,
        seed: args.seed,
        seeds: args.seeds,
        data: args.data.clone(),
        jobs: args.jobs.unwrap_or(cores),
        references,
        clock: if args.real { Clock::Real { lab: lab.to_owned(), evaluator: None } } else { Clock::Virtual },
    };
    let report = race::run(&options)?;
    report.print();
    report.write(args.json.as_deref(), args.html.as_deref())?;
    Ok(report.report.pass)
}

/// Compares the schedules of a pod in place of merge rules.
fn pipeline(args: &RaceArgs) -> anyhow::Result<bool> {
    if args.is_of_merging() || args.exhaustive {
        bail!("{} compares schedules: only --seed, --seeds, --data, --jobs and --json apply", args.workload.display());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let report = race::pipeline::run(&PipelineOptions {
        command: command(args),
        workload: PipelineWorkload::read(&args.workload)?,
        seed: args.seed,
        seeds: args.seeds,
        data: args.data.clone(),
        jobs: args.jobs.unwrap_or(cores),
    })?;
    report.finish(args.json.as_deref())?;
    Ok(report.pass)
}

/// Holds a search over configurations against full runs of all of them.
fn search(args: &RaceArgs) -> anyhow::Result<bool> {
    if args.is_of_merging() {
        let only = "only --seed, --seeds, --data, --jobs, --exhaustive and --json apply";
        bail!("{} searches: {only}", args.workload.display());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let report = race::search::run(&SearchOptions {
        command: command(args),
        made_by: command(&RaceArgs { exhaustive: true, ..args.clone() }),
        workload: SearchWorkload::read(&args.workload)?,
        seed: args.seed,
        seeds: args.seeds,
        data: args.data.clone(),
        jobs: args.jobs.unwrap_or(cores),
        exhaustive: args.exhaustive,
    })?;
    report.finish(args.json.as_deref())?;
    Ok(report.pass)
}

impl RaceArgs {
    /// Whether it has what applies to races of merge rules alone.
    fn is_of_merging(&self) -> bool {
        let configures = !self.strategies.is_empty() || !self.overrides.is_empty() || self.seconds.is_some();
        configures || self.pauses || self.pooled || self.real || self.html.is_some()
    }
}

/// The command as it can be typed again in a shell; where the data are is the machine's affair.
fn command(args: &RaceArgs) -> String {
    let quoted = |name: &str, texts: &[String]| -> String {
        texts.iter().map(|text| format!(" {name} '{}'", text.trim().replace('\'', r"'\''"))).collect()
    };
    let seconds = args.seconds.map_or(String::new(), |seconds| format!(" --seconds {seconds}"));
    let switches = [
        (args.pauses, " --pauses"),
        (args.pooled, " --pooled"),
        (args.real, " --real"),
        (args.exhaustive, " --exhaustive"),
    ];
    let switches: String = switches.iter().filter(|(is_on, _)| *is_on).map(|(_, name)| *name).collect();
    format!(
        "anabranch-lab race {}{seconds}{}{}{switches} --seed {} --seeds {}",
        args.workload.display(),
        quoted("--strategy", &args.strategies),
        quoted("--set", &args.overrides),
        args.seed,
        args.seeds
    )
}
