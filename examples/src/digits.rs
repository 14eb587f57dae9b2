//! The handwritten digits of `examples/data`, cut into shards.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::daemon::Role;
use crate::run_dir::RunDir;

const TRAIN: &[u8] = include_bytes!("../data/digits-train.csv.gz");
const TEST: &[u8] = include_bytes!("../data/digits-test.csv.gz");

/// How examples are divided among agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// By class, as a Dirichlet distribution draws it: agents have few of some digits.
    OneSided,
    /// Alike.
    Even,
}

impl Cut {
    /// Cuts a data set into a shard for each agent, in a folder of its own below `out`.
    ///
    /// # Errors
    /// The agent's verb fails.
    pub fn split(self, data: &Path, agents: usize, seed: u64, out: &Path) -> anyhow::Result<()> {
        let (agents, drawn) = (agents.to_string(), seed.to_string());
        let cut = match self {
            Self::OneSided => "--alpha=0.3",
            Self::Even => "--iid",
        };
        let split: [&OsStr; 11] = [
            "shard".as_ref(),
            "split".as_ref(),
            data.as_ref(),
            "--agents".as_ref(),
            agents.as_ref(),
            cut.as_ref(),
            "--seed".as_ref(),
            drawn.as_ref(),
            "--out".as_ref(),
            out.as_ref(),
            "-q".as_ref(),
        ];
        Role::Agent.run(&split)?;
        Ok(())
    }
}

/// Digits to train on, in shards, and digits that no agent trains on.
#[derive(Debug)]
pub struct Digits {
    shards: PathBuf,
    test: PathBuf,
}

impl Digits {
    /// Writes the digits into a run's directory, with a shard for each agent.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn split(run: &RunDir, agents: usize, cut: Cut, seed: u64) -> anyhow::Result<Self> {
        let this = Self { shards: run.path().join("shards"), test: run.path().join("digits-test.csv.gz") };
        let train = run.path().join("digits-train.csv.gz");
        std::fs::write(&train, TRAIN)?;
        std::fs::write(&this.test, TEST)?;
        cut.split(&train, agents, seed, &this.shards)?;
        Ok(this)
    }

    /// Returns the shard of an agent, counted from 0.
    #[must_use]
    pub fn shard(&self, agent: usize) -> PathBuf {
        self.shards.join(format!("agent-{agent}"))
    }

    /// Returns the digits for evaluation.
    #[must_use]
    pub fn test(&self) -> &PathBuf {
        &self.test
    }
}
