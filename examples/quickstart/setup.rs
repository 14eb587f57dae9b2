//! Directories, data, configuration, enrolment: what a person would type, in order.

use std::ffi::OsStr;
use std::path::Path;

use anabranch_common::status::StatusReport;
use anabranch_examples::daemon::Daemon;
use anabranch_examples::digits::{Cut, Digits};
use anabranch_examples::plot::Plot;
use anabranch_examples::run_dir::RunDir;

use crate::report::Outcome;
use crate::{AGENTS, SLOW};

/// A local round takes at least this long, so that there is something to watch.
const ROUND_MS: u64 = 100;
/// How many times as long the slow agent takes.
const SLOWER: u64 = 10;

/// The run's directory, with its data.
#[derive(Debug)]
pub(crate) struct Setup {
    run: RunDir,
    digits: Digits,
    seed: u64,
}

impl Setup {
    /// Makes the directory, the shards and the coordinator.
    pub(crate) fn prepare(dir: &Path, seed: u64) -> anyhow::Result<Self> {
        let run = RunDir::replace(dir, "quickstart")?;
        let digits = Digits::split(&run, AGENTS, Cut::OneSided, seed)?;
        run.init(|listen| run_toml(seed, listen))?;
        Ok(Self { run, digits, seed })
    }

    pub(crate) fn run(&self) -> &RunDir {
        &self.run
    }

    pub(crate) fn join_and_start_agents(&self) -> anyhow::Result<Vec<Daemon>> {
        for number in 1..=AGENTS {
            self.run.join(&format!("agent-{number}"))?;
        }
        (1..=AGENTS).map(|number| self.start_agent(number)).collect()
    }

    pub(crate) fn start_agent(&self, number: usize) -> anyhow::Result<Daemon> {
        let shard = self.digits.shard(number - 1);
        let round = (if number == SLOW { ROUND_MS * SLOWER } else { ROUND_MS }).to_string();
        let mut options: Vec<&OsStr> = vec!["--shard".as_ref(), shard.as_ref()];
        options.extend::<[&OsStr; 4]>(["--threads".as_ref(), "1".as_ref(), "--min-round".as_ref(), round.as_ref()]);
        if number <= 2 {
            options.extend::<[&OsStr; 2]>(["--eval-shard".as_ref(), self.digits.test().as_ref()]);
        }
        self.run.start_agent(&format!("agent-{number}"), &options)
    }

    /// After the end: the model, its figures and the plot.
    pub(crate) fn collect(&self, live: &StatusReport, wall_s: f64, killed: bool) -> anyhow::Result<Outcome> {
        let (model, report) = (self.run.export()?, self.run.last_status(live)?);
        let plot = self.run.path().join("accuracy.svg");
        accuracy(&report).write(&plot)?;
        Ok(Outcome { report, wall_s, killed, seed: self.seed, model, plot })
    }
}

/// Every measurement of the run, with the target as a line.
fn accuracy(report: &StatusReport) -> Plot {
    Plot {
        caption: "Four agents, one ten times slower, one killed: test accuracy",
        measure: "accuracy on unseen digits, %",
        values: 0.0..100.0,
        labels: (11, 0),
        points: report.aggregates.iter().map(|timed| (timed.at_s, 100.0 * timed.aggregate.accuracy)).collect(),
        level: (95.0, "95 %"),
        spans: Vec::new(),
    }
}

fn run_toml(seed: u64, listen: &str) -> String {
    format!(
        r#"[run]
name = "quickstart"
seed = {seed}

[model]
kind = "mlp"
input = [64]
classes = 10
hidden = [128]
input_scale = 0.0625

[train]
local_steps = 10
batch_size = 32
optimizer = {{ kind = "sgd", lr = 0.1 }}

[upload]
codec = {{ kind = "top-k", fraction = 0.075, bits = 4 }}
feedback_decay = 1.0

[merge]
strategy = "recall"

[admit]
max_staleness = 10000
max_examples = 1000000
max_norm_ratio = 0.0

[downlink]
track = {{ codec = {{ kind = "top-k", fraction = 0.075, bits = 4 }} }}

[evaluate]
every_versions = 4
every_s = 0.5

[target]
accuracy = 0.965

[server]
listen = "{listen}"
"#
    )
}
