//! Data, configuration and enrolment.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anabranch_examples::daemon::Daemon;
use anabranch_examples::digits::Cut;
use anabranch_examples::run_dir::RunDir;

use crate::VERSIONS;
use crate::text::Text;

/// What an agent is in this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// It has text and joins pods: its rounds are computed together with a helper.
    Owner,
    /// It has no text, and helps owners.
    Helper,
    /// It has text and joins no pods.
    Alone,
}

impl Part {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Helper => "helper",
            Self::Alone => "alone",
        }
    }
}

/// Every agent.
pub(crate) const AGENTS: [(&str, Part); 5] = [
    ("owner-1", Part::Owner),
    ("helper-1", Part::Helper),
    ("owner-2", Part::Owner),
    ("helper-2", Part::Helper),
    ("alone", Part::Alone),
];

/// The run's directory, with its data.
#[derive(Debug)]
pub(crate) struct Setup {
    run: RunDir,
    shards: PathBuf,
    held_out: PathBuf,
    pub(crate) seed: u64,
}

impl Setup {
    /// Makes the directory, a shard for each agent that has text, and the coordinator.
    pub(crate) fn prepare(dir: &Path, seed: u64) -> anyhow::Result<Self> {
        let run = RunDir::replace(dir, "pods")?;
        let Text { train, held_out } = Text::write(run.path())?;
        let shards = run.path().join("shards");
        let with_text = AGENTS.iter().filter(|(_, part)| *part != Part::Helper).count();
        Cut::Even.split(&train, with_text, seed, &shards)?;
        run.init(|listen| run_toml(seed, listen))?;
        Ok(Self { run, shards, held_out, seed })
    }

    pub(crate) fn run(&self) -> &RunDir {
        &self.run
    }

    /// Starts an agent that has joined, by its index in [`AGENTS`].
    pub(crate) fn start_agent(&self, index: usize) -> anyhow::Result<Daemon> {
        let (name, part) = AGENTS[index];
        let shard = AGENTS[..index].iter().filter(|(_, part)| *part != Part::Helper).count();
        let shard = self.shards.join(format!("agent-{shard}"));
        let mut options: Vec<&OsStr> = vec!["--threads".as_ref(), "1".as_ref()];
        if part != Part::Helper {
            options.extend::<[&OsStr; 2]>(["--shard".as_ref(), shard.as_ref()]);
        }
        match part {
            // A free port, which other members are told.
            Part::Owner | Part::Helper => {
                options.extend::<[&OsStr; 2]>(["--pod-listen".as_ref(), "127.0.0.1:0".as_ref()]);
            }
            Part::Alone => options.extend::<[&OsStr; 2]>(["--eval-shard".as_ref(), self.held_out.as_ref()]),
        }
        self.run.start_agent(name, &options)
    }
}

fn run_toml(seed: u64, listen: &str) -> String {
    format!(
        r#"[run]
name = "pods"
seed = {seed}

[model]
kind = "gpt"
context = 64
layers = 4
heads = 4
width = 64

[train]
local_steps = 10
batch_size = 12
optimizer = {{ kind = "adamw", lr = 0.002, weight_decay = 0.01 }}

[pod]
kind = "stages"
stages = 2
schedule = "flush"
deadline_s = 5.0

[upload]
codec = {{ kind = "top-k", fraction = 0.075, bits = 4 }}
feedback_decay = 1.0

[merge]
strategy = "recall"

[admit]
max_staleness = 10000
max_examples = 1000000
max_norm_ratio = 0.0

[evaluate]
every_versions = 4
every_s = 1.0

[target]
versions = {VERSIONS}

[server]
listen = "{listen}"
"#
    )
}
