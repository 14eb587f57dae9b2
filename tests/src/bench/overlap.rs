//! `anabranch-lab bench overlap`: how long devices wait for a thin line, with the next round made ready while the present
//! one is computed, and without.
//!
//! Real processes train a byte-level gpt, each agent behind a line of its own with a rate and a delay. The share of waiting
//! is what the agents' own `status` says: time since the first round in which nothing was computed.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use anabranch_agent::report::AgentReport;
use anabranch_agent::session::Waits;
use anyhow::Context as _;
use tokio::runtime::Runtime;
use toml::{Table, Value};

use crate::chaos::link::Conditions;
use crate::chaos::proxy::{Proxy, Shape};
use crate::clock::Stopwatch;
use crate::process::{Cluster, Role};
use crate::race::{self, Override};
use crate::report::Report;
use crate::text::sentences;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Agents, each with one thread
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub agents: u64,
    /// Rate of each agent's line, both ways
    #[arg(long, value_name = "KBIT/S", default_value_t = 20_000)]
    pub rate: u64,
    /// Delay of each agent's line, each way
    #[arg(long, value_name = "MS", default_value_t = 20)]
    pub delay: u64,
    /// Steps of a local round
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub local_steps: u32,
    /// How long each of the two runs takes, in seconds
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    pub seconds: f64,
    /// A key of run.toml, as in a race; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = Override::parse)]
    pub set: Vec<Override>,
    /// The gpt
    #[arg(long, value_name = "TOML", default_value = "context = 128\nlayers = 4\nheads = 4\nwidth = 128")]
    pub model: String,
}

/// The share of time that devices may wait.
const AIM: f64 = 0.03;
/// Sentences of a shard, and of the text that is judged by.
const SENTENCES: [usize; 2] = [4_000, 100];

impl Options {
    /// Returns what `init` writes, for the gpt.
    fn run_toml(&self, seed: u64) -> anyhow::Result<String> {
        let mut table = race::written("overlap", seed);
        let model: Table = format!("kind = \"gpt\"\n{}", self.model).parse().context("--model")?;
        table.insert("model".to_owned(), Value::Table(model));
        let steps = self.local_steps;
        let train = format!(
            "local_steps = {steps}\nbatch_size = 4\noptimizer = {{ kind = \"adamw\", lr = 0.001 }}\nkeep_optimizer_state = true"
        );
        table.insert("train".to_owned(), Value::Table(train.parse()?));
        race::put(&mut table, "evaluate", "every_versions", 8.into());
        race::put(&mut table, "evaluate", "every_s", 1_000.0.into());
        race::put(&mut table, "target", "wall_s", self.seconds.into());
        self.set.iter().for_each(|set| set.apply(&mut table));
        Ok(race::run_toml(&table, seed))
    }
}

/// What one of the two runs gave.
struct Half {
    waits: Waits,
    updates: u64,
    staleness: f64,
    loss: Option<f64>,
}

/// Measures both.
///
/// # Errors
/// A process fails.
pub fn run(lab: &Path, options: &Options, seed: u64) -> anyhow::Result<Report> {
    let mut report = Report::new("anabranch-lab bench overlap", seed);
    for (name, overlap) in [("off", false), ("on", true)] {
        let half = half(lab, options, seed, overlap)?;
        let share = half.waits.share().context("nobody has trained: give it more seconds")?;
        report.metric(format!("waiting_share_{name}"), share);
        report.metric(format!("updates_accepted_{name}"), half.updates as f64);
        report.metric(format!("staleness_mean_{name}"), half.staleness);
        if let Some(loss) = half.loss {
            report.metric(format!("test_loss_{name}"), loss);
        }
        if overlap {
            report.aim("devices wait at most 3 % of the time", share <= AIM);
        }
    }
    Ok(report)
}

fn half(lab: &Path, options: &Options, seed: u64, overlap: bool) -> anyhow::Result<Half> {
    let mut cluster = Cluster::new(lab, &options.run_toml(seed)?)?;
    let lines = Lines::new()?;
    let eval = cluster.path().join("eval");
    write_text(&eval, SENTENCES[1], seed)?;
    cluster.start_coordinator()?;
    let mut proxies = Vec::new();
    for agent in 1..=options.agents {
        let name = format!("agent-{agent}");
        cluster.join(&name)?;
        let proxy = lines.to(cluster.port(), options, seed ^ (agent << 40))?;
        cluster.reroute(&name, proxy.port())?;
        proxies.push(proxy);
        let shard = cluster.path().join(&name).with_extension("text");
        write_text(&shard, SENTENCES[0], seed.wrapping_add(agent))?;
        let mut args: Vec<&OsStr> = vec!["--shard".as_ref(), shard.as_os_str(), "--threads=1".as_ref()];
        if agent == 1 {
            args.extend(["--eval-shard".as_ref(), eval.as_os_str()]);
        }
        if !overlap {
            args.push("--no-overlap".as_ref());
        }
        cluster.start_agent(Role::Agent, &name, &args, &[])?;
    }
    let mut waits = vec![Waits::default(); proxies.len()];
    let watch = Stopwatch::start();
    // Agents answer while the run goes on; the last word of each counts.
    while cluster.coordinator()?.exited()?.is_none() && watch.seconds() < options.seconds + 60.0 {
        for (agent, waits) in (1..).zip(&mut waits) {
            *waits = ask(&cluster, &format!("agent-{agent}")).unwrap_or(*waits);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    cluster.park_agents()?;
    let status = cluster.status()?;
    let sum = waits.iter().fold(Waits::default(), |sum, one| Waits {
        busy_ms: sum.busy_ms + one.busy_ms,
        waiting_ms: sum.waiting_ms + one.waiting_ms,
    });
    let histogram = (0u64..).zip(&status.staleness_histogram);
    let (count, total) =
        histogram.fold((0, 0), |(count, total), (staleness, updates)| (count + updates, total + staleness * updates));
    Ok(Half {
        waits: sum,
        updates: status.updates_accepted,
        staleness: total as f64 / count.max(1) as f64,
        loss: status.evaluations.last().map(|last| last.evaluation.loss),
    })
}

/// What a running agent says of its waits.
fn ask(cluster: &Cluster, name: &str) -> Option<Waits> {
    let dir = cluster.agent_dir(name);
    let args = ["status".as_ref(), "--json".as_ref(), "--dir".as_ref(), dir.as_os_str()];
    let ended = cluster.call(Role::Agent, &args).ok()?.code(0).ok()?;
    let live = serde_json::from_str::<AgentReport>(&ended.stdout).ok()?.live?;
    Some(Waits { busy_ms: live.busy_ms, waiting_ms: live.waiting_ms })
}

fn write_text(folder: &Path, count: usize, seed: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    Ok(std::fs::write(folder.join("text.txt"), sentences(count, seed))?)
}

/// Where the agents' lines are.
struct Lines(Runtime);

impl Lines {
    fn new() -> anyhow::Result<Self> {
        Ok(Self(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?))
    }

    fn to(&self, port: u16, options: &Options, seed: u64) -> anyhow::Result<Proxy> {
        let way = Conditions { rate_kbit: options.rate, delay_ms: options.delay, ..Conditions::default() };
        let shape = Shape { up: way.clone(), down: way, rebind_ms: 0 };
        Proxy::start(self.0.handle(), port, seed, shape)
    }
}
