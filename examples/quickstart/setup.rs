//! Directories, data, configuration, enrolment: what a person would type, in order.

use std::ffi::OsStr;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anabranch_common::status::StatusReport;
use anyhow::{Context, bail};

use crate::children::{Daemon, Role};
use crate::report::Outcome;
use crate::{AGENTS, SLOW, plot};

const TRAIN: &[u8] = include_bytes!("../data/digits-train.csv.gz");
const TEST: &[u8] = include_bytes!("../data/digits-test.csv.gz");
/// In a directory that this program made, and that it may therefore replace.
const MARKER: &str = ".anabranch-quickstart";
/// A local round takes at least this long, so that there is something to watch.
const ROUND_MS: u64 = 100;
/// How many times as long the slow agent takes.
const SLOWER: u64 = 10;

/// The run's directory.
#[derive(Debug)]
pub(crate) struct Setup {
    dir: PathBuf,
    seed: u64,
}

impl Setup {
    /// Makes the directory, the shards and the coordinator.
    pub(crate) fn prepare(dir: &Path, seed: u64) -> anyhow::Result<Self> {
        if dir.exists() {
            if !dir.join(MARKER).exists() {
                bail!("{} exists and is not a quickstart's; choose another with --dir", dir.display());
            }
            std::fs::remove_dir_all(dir)?;
        }
        std::fs::create_dir_all(dir.join("logs")).with_context(|| format!("cannot make {}", dir.display()))?;
        let this = Self { dir: dir.canonicalize()?, seed };
        std::fs::write(this.dir.join(MARKER), [])?;
        std::fs::write(this.dir.join("digits-train.csv.gz"), TRAIN)?;
        std::fs::write(this.dir.join("digits-test.csv.gz"), TEST)?;
        let (agents, seed) = (AGENTS.to_string(), seed.to_string());
        let (train, shards) = (this.dir.join("digits-train.csv.gz"), this.dir.join("shards"));
        let split: [&OsStr; 11] = [
            "shard".as_ref(),
            "split".as_ref(),
            train.as_ref(),
            "--agents".as_ref(),
            agents.as_ref(),
            "--alpha=0.3".as_ref(),
            "--seed".as_ref(),
            seed.as_ref(),
            "--out".as_ref(),
            shards.as_ref(),
            "-q".as_ref(),
        ];
        Role::Agent.run(&split)?;
        this.init()?;
        Ok(this)
    }

    fn init(&self) -> anyhow::Result<()> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let dir = self.coordinator_dir();
        let args: [&OsStr; 5] = ["init".as_ref(), "--dir".as_ref(), dir.as_ref(), "--listen".as_ref(), listen.as_ref()];
        Role::Coordinator.run(&args)?;
        std::fs::write(dir.join("run.toml"), run_toml(self.seed, &listen))?;
        Ok(())
    }

    pub(crate) fn coordinator_dir(&self) -> PathBuf {
        self.dir.join("coordinator")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub(crate) fn start_coordinator(&self) -> anyhow::Result<Daemon> {
        let dir = self.coordinator_dir();
        let args: [&OsStr; 3] = ["run".as_ref(), "--dir".as_ref(), dir.as_ref()];
        Daemon::start(Role::Coordinator, &args, self.logs().join("coordinator.log"))
    }

    fn agent_dir(&self, number: usize) -> PathBuf {
        self.dir.join(format!("agent-{number}"))
    }

    /// One token for all of them; `join` tries again while the coordinator is still starting.
    pub(crate) fn join_and_start_agents(&self) -> anyhow::Result<Vec<Daemon>> {
        let dir = self.coordinator_dir();
        for number in 1..=AGENTS {
            let name = format!("agent-{number}");
            let create: [&OsStr; 6] =
                ["token".as_ref(), "create".as_ref(), "--dir".as_ref(), dir.as_ref(), "--name".as_ref(), name.as_ref()];
            let token = Role::Coordinator.run(&create)?;
            let (token, agent) = (token.trim(), self.agent_dir(number));
            let join: [&OsStr; 5] =
                ["join".as_ref(), "--token".as_ref(), token.as_ref(), "--dir".as_ref(), agent.as_ref()];
            Role::Agent.run(&join)?;
        }
        (1..=AGENTS).map(|number| self.start_agent(number)).collect()
    }

    pub(crate) fn start_agent(&self, number: usize) -> anyhow::Result<Daemon> {
        let (dir, shard) = (self.agent_dir(number), self.dir.join(format!("shards/agent-{}", number - 1)));
        let test = self.dir.join("digits-test.csv.gz");
        let round = (if number == SLOW { ROUND_MS * SLOWER } else { ROUND_MS }).to_string();
        let mut args: Vec<&OsStr> = vec!["run".as_ref(), "--dir".as_ref(), dir.as_ref()];
        args.extend::<[&OsStr; 2]>(["--shard".as_ref(), shard.as_ref()]);
        args.extend::<[&OsStr; 4]>(["--threads".as_ref(), "1".as_ref(), "--min-round".as_ref(), round.as_ref()]);
        if number <= 2 {
            args.extend::<[&OsStr; 2]>(["--eval-shard".as_ref(), test.as_ref()]);
        }
        Daemon::start(Role::Agent, &args, self.logs().join(format!("agent-{number}.log")))
    }

    /// After the end: the model, its figures and the plot.
    pub(crate) fn collect(&self, live: StatusReport, wall_s: f64, killed: bool) -> anyhow::Result<Outcome> {
        let (dir, model) = (self.coordinator_dir(), self.dir.join("model.safetensors"));
        let export: [&OsStr; 6] = [
            "checkpoint".as_ref(),
            "export".as_ref(),
            "--dir".as_ref(),
            dir.as_ref(),
            "--out".as_ref(),
            model.as_ref(),
        ];
        Role::Coordinator.run(&export)?;
        let status: [&OsStr; 4] = ["status".as_ref(), "--json".as_ref(), "--dir".as_ref(), dir.as_ref()];
        let mut last: StatusReport = serde_json::from_str(&Role::Coordinator.run(&status)?)?;
        // What was sent is known to the process that sent it, and to its last words.
        last.downlink_bytes = live.downlink_bytes;
        last.raw_f32_downlink_bytes = live.raw_f32_downlink_bytes;
        let plot = self.dir.join("accuracy.svg");
        plot::accuracy(&last, &plot)?;
        Ok(Outcome { report: last, wall_s, killed, seed: self.seed, model, plot })
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(UdpSocket::bind("127.0.0.1:0").context("no free UDP port on loopback")?.local_addr()?.port())
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
