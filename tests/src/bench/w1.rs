//! `anabranch-lab bench w1`: workload W1 with real processes, mutual TLS and real sockets.
//!
//! Ten agents train a small network on MNIST, cut one-sidedly; one of them is 10 times slower than the others and one 50
//! times. Everything is enrolled first; then the coordinator and the agents are started at the same moment, and the
//! clock of start-up runs until the first lease. From there on the time to an accuracy is counted.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use super::usage::Usage;
use crate::clock::Stopwatch;
use crate::process::{Counted, LOOK, PATIENCE, TimedRun, What, agent_name};
use crate::race::{DataSet, Workload, real};
use crate::report::Report;

/// Data, split, model and rounds.
const WORKLOAD: &str = include_str!("../../workloads/w1.toml");
/// Where its split file is, when this was built.
const WORKLOAD_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/w1.toml");
/// The agent that also holds the test set.
const JUDGE: usize = 0;
/// The agent that faults hit: neither the judge nor one of the slow ones.
const VICTIM: usize = 1;
/// When the fault comes, in seconds after the first lease, and how long it lasts unless it is for good.
const FAULT_AT_S: f64 = 3.0;
const FAULT_S: f64 = 2.0;
/// Looks between two at memory and processor time.
const LOOKS_PER_USAGE: u64 = 10;
/// Looks between two at the coordinator's own count of what it has sent, which is lost with its process.
const LOOKS_PER_STATUS: u64 = 100;
/// Accuracies whose times are reported.
const TARGETS: [(&str, f64); 2] = [("time_to_90_s", 0.90), ("time_to_95_s", 0.95)];

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

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Directory with MNIST as four gzipped IDX files
    #[arg(long, value_name = "DIR", env = "ANABRANCH_DATA")]
    pub data: PathBuf,
    /// What goes wrong
    #[arg(long, value_enum, default_value = "none")]
    pub fault: Fault,
    /// The `merge` section of run.toml
    #[arg(long, value_name = "TOML", default_value = MERGE)]
    pub merge: String,
    /// How updates are compressed, as in run.toml
    #[arg(long, value_name = "TOML", default_value = CODEC)]
    pub codec: String,
    /// Stop at this accuracy
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    pub until: f64,
    /// Stop after this many seconds, whatever the accuracy
    #[arg(long, value_name = "S", default_value_t = 150.0)]
    pub limit: f64,
}

/// The strategy that is taken unless another one is asked for (docs/benchmarks.md).
const MERGE: &str = "strategy = \"fedasync\"\nalpha = 0.5\nstaleness = { fn = \"constant\" }";
/// The codec that is taken unless another one is asked for.
const CODEC: &str = "{ kind = \"top-k\", fraction = 0.05 }";

impl Options {
    fn run_toml(&self, seed: u64) -> String {
        let Self { merge, codec, until, limit, .. } = self;
        format!(
            r#"[run]
name = "w1"
seed = {seed}

[model]
kind = "mlp"
input = [1, 28, 28]
classes = 10
hidden = [128]
input_scale = 0.00392156862745098

[train]
local_steps = 20
batch_size = 32
optimizer = {{ kind = "sgd", lr = 0.05 }}

[upload]
codec = {codec}
feedback_decay = 1.0

[merge]
{merge}

[admit]
max_staleness = 1000000
max_examples = 1000000
max_norm_ratio = 0.0

[evaluate]
every_versions = 1000000
every_s = 1.0

[target]
accuracy = {until:?}
wall_s = {limit:?}

[checkpoint]
every_versions = 200
every_s = 60.0
keep = 2
retention = "all"
"#
        )
    }
}

/// Measures.
///
/// # Errors
/// A process fails, or the data are not there.
pub fn run(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Report> {
    let mut bench = Bench::new(lab, options, seed)?;
    bench.start()?;
    bench.watch_to_the_end()?;
    bench.stop()?;
    bench.report(options, seed)
}

struct Bench {
    run: TimedRun,
    fault: Fault,
    until: f64,
    usage: Usage,
    startup_s: f64,
    times: [Option<f64>; TARGETS.len()],
    best: f64,
    wall_s: f64,
    counted: Counted,
    /// Whom the fault has stopped, until it is over.
    struck: bool,
    over: bool,
}

impl Bench {
    /// Certificates and shards; nothing runs afterwards.
    fn new(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Self> {
        let workload = Workload::parse(Path::new(WORKLOAD_FILE), WORKLOAD)?;
        let data = DataSet::open(&workload, Some(&options.data))?;
        let run = TimedRun::new(lab, &options.run_toml(seed), |folder| {
            let mut agents = real::prepare(&workload, &data, folder)?;
            let test = folder.join("test");
            data.all_test.write(&test)?;
            agents[JUDGE].eval_shard = Some(test);
            Ok(agents)
        })?;
        Ok(Self {
            run,
            fault: options.fault,
            until: options.until,
            usage: Usage::default(),
            startup_s: 0.0,
            times: [None; TARGETS.len()],
            best: 0.0,
            wall_s: 0.0,
            counted: Counted::default(),
            struck: false,
            over: false,
        })
    }

    /// Everything at once, until there is work.
    fn start(&mut self) -> anyhow::Result<()> {
        let watch = Stopwatch::start();
        self.run.start()?;
        self.run.wait_for_work()?;
        self.startup_s = watch.seconds();
        Ok(())
    }

    fn watch_to_the_end(&mut self) -> anyhow::Result<()> {
        let (watch, mut reached) = (Stopwatch::start(), false);
        for look in 0u64.. {
            let now_s = watch.seconds();
            let heard = self.run.seen.len();
            self.run.listen()?;
            for seen in &self.run.seen[heard..] {
                if let What::Evaluated { accuracy, .. } = seen.what {
                    self.best = self.best.max(accuracy);
                }
            }
            for (time, (_, target)) in self.times.iter_mut().zip(TARGETS) {
                if self.best >= target && time.is_none() {
                    *time = Some(now_s);
                }
            }
            if look % LOOKS_PER_USAGE == 0 {
                self.look_at_processes()?;
            }
            if look % LOOKS_PER_STATUS == 0 || (self.best >= self.until && !reached) {
                reached = self.best >= self.until;
                self.counted = self.run.count();
            }
            self.strike(now_s)?;
            if (!self.struck || self.over) && self.run.cluster.coordinator()?.exited()?.is_some() {
                self.wall_s = now_s;
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn look_at_processes(&mut self) -> anyhow::Result<()> {
        let pid = self.run.cluster.coordinator()?.pid();
        self.usage.look("coordinator", pid);
        let mut pids = Vec::new();
        for agent in (0..self.run.agents()).map(agent_name) {
            let pid = self.run.cluster.agent(&agent)?.pid();
            self.usage.look(&agent, pid);
            pids.push(pid);
        }
        self.usage.look_together(pids.into_iter());
        Ok(())
    }

    fn strike(&mut self, now_s: f64) -> anyhow::Result<()> {
        if !self.struck && now_s >= FAULT_AT_S && self.fault != Fault::None {
            self.struck = true;
            self.look_at_processes()?;
            match self.fault {
                Fault::None => {}
                Fault::KillAgent => self.run.kill(VICTIM + 1)?,
                Fault::HangAgent => {
                    self.run.signal(VICTIM + 1, Signal::SIGSTOP)?;
                    self.over = true;
                }
                Fault::KillCoordinator => self.run.kill(0)?,
            }
        }
        if self.struck && !self.over && now_s >= FAULT_AT_S + FAULT_S {
            self.over = true;
            match self.fault {
                Fault::KillAgent => self.run.revive(VICTIM + 1)?,
                Fault::KillCoordinator => self.run.revive(0)?,
                Fault::None | Fault::HangAgent => {}
            }
        }
        Ok(())
    }

    /// The run has ended and everyone was told, but whoever hung.
    fn stop(&mut self) -> anyhow::Result<()> {
        let code = self.run.cluster.coordinator()?.wait(PATIENCE)?;
        if code != 0 {
            bail!("the coordinator ended with {code}\n{}", self.run.cluster.logs());
        }
        if self.fault == Fault::HangAgent {
            self.run.signal(VICTIM + 1, Signal::SIGCONT)?;
        }
        self.run.cluster.park_agents()?;
        self.run.listen()
    }

    fn report(self, options: &Options, seed: u64) -> anyhow::Result<Report> {
        let mut report = Report::new("anabranch-lab bench w1", seed);
        let status = self.run.cluster.status()?;
        self.run.cluster.verify()?;
        let found = self.run.audit().context("the journal does not keep its promises")?;
        report.metric("startup_s", self.startup_s);
        report.metric("wall_s", self.wall_s);
        for ((metric, _), time) in TARGETS.iter().zip(self.times) {
            if let Some(time) = time {
                report.metric(*metric, time);
            }
        }
        let last = status.evaluations.last().map_or(0.0, |last| last.evaluation.accuracy);
        report.metric("test_accuracy", last);
        report.metric("test_accuracy_best", self.best);
        report.metric("versions", status.version.0 as f64);
        report.metric("updates_accepted", status.updates_accepted as f64);
        report.metric("updates_refused", status.updates_refused.values().sum::<u64>() as f64);
        report.metric("updates_lost", found.lost as f64);
        report.metric("updates_duplicated", found.duplicated as f64);
        report.metric("uplink_bytes", status.uplink_bytes as f64);
        // Looked up every 2 s and at the end: the last moments before a kill are not in it.
        report.metric("downlink_bytes", self.counted.models as f64);
        report.metric("uplink_ip_bytes", self.counted.received.ip_bytes() as f64);
        report.metric("downlink_ip_bytes", self.counted.sent.ip_bytes() as f64);
        report.metric("raw_f32_uplink_bytes", status.raw_f32_uplink_bytes as f64);
        let (coordinator, all) = ((|name: &str| name == "coordinator"), (|name: &str| name != "coordinator"));
        report.metric("coordinator_peak_rss_bytes", self.usage.peak_bytes(coordinator));
        report.metric("agents_peak_rss_bytes", self.usage.peak_bytes(all));
        report.metric("agents_peak_pss_bytes", self.usage.together_bytes());
        report.metric("coordinator_cpu_s", self.usage.cpu_s(coordinator));
        report.metric("agents_cpu_s", self.usage.cpu_s(all));
        report.counts.extend(status.updates_refused);
        report.pass = found.lost == 0 && found.duplicated == 0 && self.best >= options.until.min(TARGETS[0].1);
        let within = |time: Option<f64>, most: f64| time.is_some_and(|time| time <= most);
        report.aim("90 % within 12.5 s of the first lease", within(self.times[0], 12.5));
        report.aim("start-up below 3 s", self.startup_s < 3.0);
        report.aim("coordinator below 100 MB", self.usage.peak_bytes(coordinator) < 100e6);
        report.aim("ten agents below 600 MB together", self.usage.together_bytes() < 600e6);
        Ok(report)
    }
}
