//! `anabranch-lab bench w1`: workload W1 with real processes, mutual TLS and real sockets.
//!
//! Ten agents train a small network on MNIST, cut one-sidedly; one of them is 10 times slower than the others and one 50
//! times. Everything is enrolled first; then the coordinator and the agents are started at the same moment, and the
//! clock of start-up runs until the first lease. From there on the time to an accuracy is counted.

mod data;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch_common::status::Traffic;
use anabranch_coordinator::store::Store as _;
use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use super::usage::Usage;
use crate::clock::Stopwatch;
use crate::invariants::{on_a_copy, told};
use crate::process::{Cluster, PATIENCE, Role, Seen, Tail, What};
use crate::report::Report;

/// Local rounds in milliseconds, by agent.
const ROUNDS_MS: [u64; 10] = [250, 250, 250, 250, 250, 250, 250, 250, 2_500, 12_500];
/// The agent that also holds the test set.
const JUDGE: usize = 0;
/// The agent that faults hit: neither the judge nor one of the slow ones.
const VICTIM: usize = 1;
/// When the fault comes, in seconds after the first lease, and how long it lasts unless it is for good.
const FAULT_AT_S: f64 = 3.0;
const FAULT_S: f64 = 2.0;
/// How often logs and processes are looked at.
const LOOK: Duration = Duration::from_millis(20);
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

fn name(agent: usize) -> String {
    format!("agent-{agent}")
}

/// What a coordinator counts and does not store.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    /// Bytes of models, as sent.
    models: u64,
    received: Traffic,
    sent: Traffic,
}

impl Counted {
    fn plus(mut self, other: Self) -> Self {
        self.models += other.models;
        self.received += other.received;
        self.sent += other.sent;
        self
    }
}

struct Bench {
    cluster: Cluster,
    shards: Vec<PathBuf>,
    test: PathBuf,
    fault: Fault,
    until: f64,
    tails: Vec<Tail>,
    /// What agents have said, in the order in which it was read.
    seen: Vec<Seen>,
    usage: Usage,
    startup_s: f64,
    times: [Option<f64>; TARGETS.len()],
    best: f64,
    wall_s: f64,
    /// What coordinators have counted that are gone, and what the present one has.
    traffic: (Counted, Counted),
    /// Whom the fault has stopped, until it is over.
    struck: bool,
    over: bool,
}

impl Bench {
    /// Certificates and shards; nothing runs afterwards.
    fn new(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Self> {
        let mut cluster = Cluster::new(lab, &options.run_toml(seed))?;
        let shards = data::write_shards(&options.data, cluster.path())?;
        let test = data::write_test(&options.data, cluster.path())?;
        if shards.len() != ROUNDS_MS.len() {
            bail!("the split file has {} lines for {} agents", shards.len(), ROUNDS_MS.len());
        }
        cluster.start_coordinator()?;
        for agent in 0..shards.len() {
            cluster.join(&name(agent))?;
        }
        cluster.park_coordinator()?;
        let tails = (0..shards.len()).map(name).map(|name| Tail::new(&name, cluster.log_path(&name))).collect();
        Ok(Self {
            cluster,
            tails,
            seen: Vec::new(),
            shards,
            test,
            fault: options.fault,
            until: options.until,
            usage: Usage::default(),
            startup_s: 0.0,
            times: [None; TARGETS.len()],
            best: 0.0,
            wall_s: 0.0,
            traffic: Default::default(),
            struck: false,
            over: false,
        })
    }

    fn start_agent(&mut self, agent: usize) -> anyhow::Result<()> {
        let (shard, test, round) = (self.shards[agent].clone(), self.test.clone(), ROUNDS_MS[agent].to_string());
        let mut args: Vec<&OsStr> = vec!["--shard".as_ref(), shard.as_os_str(), "--min-round".as_ref(), round.as_ref()];
        args.extend(["--threads", "1", "--log-format", "json"].map(OsStr::new));
        if agent == JUDGE {
            args.extend([OsStr::new("--eval-shard"), test.as_os_str()]);
        }
        self.cluster.start_agent(Role::Agent, &name(agent), &args, &[])?;
        Ok(())
    }

    /// Everything at once, until there is work.
    fn start(&mut self) -> anyhow::Result<()> {
        let watch = Stopwatch::start();
        self.cluster.spawn_coordinator(&[])?;
        for agent in 0..self.shards.len() {
            self.start_agent(agent)?;
        }
        loop {
            self.listen()?;
            if self.seen.iter().any(|seen| seen.what == What::Leased) {
                self.startup_s = watch.seconds();
                return Ok(());
            }
            if watch.elapsed() > PATIENCE {
                bail!("nobody was granted a lease within {PATIENCE:?}\n{}", self.cluster.logs());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Reads what agents have said. Nobody asks when that was: the watch of the run is looked at here.
    fn listen(&mut self) -> anyhow::Result<()> {
        self.tails.iter_mut().try_for_each(|tail| tail.read(0, &mut self.seen))
    }

    fn watch_to_the_end(&mut self) -> anyhow::Result<()> {
        let (watch, mut reached) = (Stopwatch::start(), false);
        for look in 0u64.. {
            let now_s = watch.seconds();
            let heard = self.seen.len();
            self.listen()?;
            for seen in &self.seen[heard..] {
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
                self.look_at_traffic();
            }
            self.strike(now_s)?;
            if (!self.struck || self.over) && self.cluster.coordinator()?.exited()?.is_some() {
                self.wall_s = now_s;
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn look_at_processes(&mut self) -> anyhow::Result<()> {
        let pid = self.cluster.coordinator()?.pid();
        self.usage.look("coordinator", pid);
        let mut pids = Vec::new();
        for agent in (0..self.shards.len()).map(name) {
            let pid = self.cluster.agent(&agent)?.pid();
            self.usage.look(&agent, pid);
            pids.push(pid);
        }
        self.usage.look_together(pids.into_iter());
        Ok(())
    }

    /// A coordinator that does not answer is dead, or has just ended: what it said last stands.
    fn look_at_traffic(&mut self) {
        if let Ok(status) = self.cluster.status()
            && status.serving
        {
            let network = status.network.unwrap_or_default();
            let (models, received, sent) = (status.downlink_bytes, network.received, network.sent);
            self.traffic.1 = Counted { models, received, sent };
        }
    }

    fn strike(&mut self, now_s: f64) -> anyhow::Result<()> {
        if !self.struck && now_s >= FAULT_AT_S && self.fault != Fault::None {
            self.struck = true;
            self.look_at_processes()?;
            match self.fault {
                Fault::None => {}
                Fault::KillAgent => self.cluster.agent(&name(VICTIM))?.kill()?,
                Fault::HangAgent => {
                    self.cluster.agent(&name(VICTIM))?.signal(Signal::SIGSTOP)?;
                    self.over = true;
                }
                Fault::KillCoordinator => {
                    self.look_at_traffic();
                    self.cluster.coordinator()?.kill()?;
                    self.traffic = (self.traffic.0.plus(self.traffic.1), Counted::default());
                }
            }
        }
        if self.struck && !self.over && now_s >= FAULT_AT_S + FAULT_S {
            self.over = true;
            match self.fault {
                Fault::KillAgent => self.start_agent(VICTIM)?,
                Fault::KillCoordinator => drop(self.cluster.spawn_coordinator(&[])?),
                Fault::None | Fault::HangAgent => {}
            }
        }
        Ok(())
    }

    /// The run has ended and everyone was told, but whoever hung.
    fn stop(&mut self) -> anyhow::Result<()> {
        let code = self.cluster.coordinator()?.wait(PATIENCE)?;
        if code != 0 {
            bail!("the coordinator ended with {code}\n{}", self.cluster.logs());
        }
        if self.fault == Fault::HangAgent {
            self.cluster.agent(&name(VICTIM))?.signal(Signal::SIGCONT)?;
        }
        self.cluster.park_agents()?;
        self.listen()
    }

    /// What agents were told against every record.
    fn audit(&self) -> anyhow::Result<told::Told> {
        let told = told::keys(&self.cluster, &self.seen)?;
        let found = on_a_copy(&self.cluster.coordinator_dir(), |store| told::audit(store.journal(), &told))?;
        match found.problem {
            Some(violation) => Err(violation.into()),
            None => Ok(found),
        }
    }

    fn report(self, options: &Options, seed: u64) -> anyhow::Result<Report> {
        let mut report = Report::new("anabranch-lab bench w1", seed);
        let status = self.cluster.status()?;
        self.cluster.verify()?;
        let found = self.audit().context("the journal does not keep its promises")?;
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
        let traffic = self.traffic.0.plus(self.traffic.1);
        report.metric("downlink_bytes", traffic.models as f64);
        report.metric("uplink_ip_bytes", traffic.received.ip_bytes() as f64);
        report.metric("downlink_ip_bytes", traffic.sent.ip_bytes() as f64);
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
