//! Data, configuration, enrolment, and the search itself: what a person would type, in order.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anabranch_coordinator::search::report::SearchReport;
use anabranch_examples::daemon::Daemon;
use anabranch_examples::digits::{Cut, Digits};
use anabranch_examples::run_dir::RunDir;
use anyhow::Context;

/// Agents that train; the first one measures too.
pub(crate) const AGENTS: usize = 3;
/// Configurations that are tried.
pub(crate) const TRIALS: usize = 12;
/// A local round takes at least this long, so that there is something to watch.
const ROUND_MS: &str = "30";

/// The search's directory, with its data.
#[derive(Debug)]
pub(crate) struct Setup {
    run: RunDir,
    digits: Digits,
    pub(crate) seed: u64,
}

/// The files that a search leads to.
#[derive(Debug)]
pub(crate) struct Files {
    /// The winner's model, as it was measured last.
    pub(crate) model: PathBuf,
    /// Its configuration.
    pub(crate) config: PathBuf,
    /// The learning curves of all trials.
    pub(crate) plot: PathBuf,
}

impl Setup {
    /// Makes the directory, the shards, the coordinator, and `SEARCH.toml`.
    pub(crate) fn prepare(dir: &Path, seed: u64) -> anyhow::Result<Self> {
        let run = RunDir::replace(dir, "search")?.staying();
        let digits = Digits::split(&run, AGENTS, Cut::Even, seed)?;
        run.init(|listen| run_toml(seed, listen))?;
        let this = Self { run, digits, seed };
        std::fs::write(this.file(), search_toml(seed))?;
        Ok(this)
    }

    pub(crate) fn run(&self) -> &RunDir {
        &self.run
    }

    fn file(&self) -> PathBuf {
        self.run.path().join("digits.toml")
    }

    /// Starts the search on the coordinator, which may still be starting itself.
    pub(crate) fn start_search(&self) -> anyhow::Result<()> {
        self.run.coordinate(&["search", "start"], &[self.file().as_ref()])?;
        Ok(())
    }

    pub(crate) fn join_and_start_agents(&self) -> anyhow::Result<Vec<Daemon>> {
        let name = |number| format!("agent-{number}");
        (1..=AGENTS).try_for_each(|number| self.run.join(&name(number)))?;
        let start = |number: usize| {
            let shard = self.digits.shard(number - 1);
            let mut options: Vec<&OsStr> = vec!["--shard".as_ref(), shard.as_ref()];
            options.extend(["--runs", "all", "--threads", "1", "--min-round", ROUND_MS].map(OsStr::new));
            if number == 1 {
                options.extend::<[&OsStr; 2]>(["--eval-shard".as_ref(), self.digits.test().as_ref()]);
            }
            self.run.start_agent(&name(number), &options)
        };
        (1..=AGENTS).map(start).collect()
    }

    /// After the end: the report, the winner's files and the plot.
    pub(crate) fn collect(&self) -> anyhow::Result<(SearchReport, Files)> {
        let file = |name: &str| self.run.path().join(name);
        let (model, config, plot) = (file("best.safetensors"), file("best.toml"), file("search.svg"));
        let svg: [&OsStr; 3] = ["--json".as_ref(), "--svg".as_ref(), plot.as_ref()];
        let report = self.run.coordinate(&["search", "status"], &svg)?;
        let report = serde_json::from_str(&report).context("cannot read the report of the search")?;
        let out: [&OsStr; 4] = ["--out".as_ref(), model.as_ref(), "--config".as_ref(), config.as_ref()];
        self.run.coordinate(&["search", "export"], &out)?;
        Ok((report, Files { model, config, plot }))
    }
}

fn search_toml(seed: u64) -> String {
    format!(
        r#"config = "coordinator/run.toml"

[search]
method = "asha"
trials = {TRIALS}
eta = 3
r = 16
max = 144
parallel = 2
seed = {seed}

[space]
"train.optimizer.lr" = {{ log = [1e-3, 1] }}
"train.batch_size" = {{ choice = [16, 32, 64] }}
"model.hidden" = {{ choice = [[16], [32], [64], [128]] }}
"#
    )
}

/// What all trials have in common. The run itself ends after one version: it is there because a coordinator has one.
fn run_toml(seed: u64, listen: &str) -> String {
    format!(
        r#"[run]
name = "base"
seed = {seed}

[model]
kind = "mlp"
input = [64]
classes = 10
hidden = [32]
input_scale = 0.0625

[train]
local_steps = 10
batch_size = 32
optimizer = {{ kind = "sgd", lr = 0.1 }}

[upload]
codec = {{ kind = "top-k", fraction = 0.075, bits = 4 }}
feedback_decay = 1.0

[merge]
strategy = "fedasync"
alpha = 0.6
staleness = {{ fn = "polynomial", a = 0.5 }}

[admit]
max_staleness = 10000
max_examples = 1000000
max_norm_ratio = 0.0

[evaluate]
every_versions = 4
every_s = 0.5

[target]
versions = 1

[server]
listen = "{listen}"
"#
    )
}
