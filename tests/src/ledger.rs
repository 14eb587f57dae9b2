//! The ledger task: an update adds exactly 1 to a coordinate of its own, so that the model says what was merged.
//!
//! The model is one vector of as many coordinates as `model.input` in run.toml says, all 0 at first. Training under lease
//! number L adds 1 to coordinate L. With a lossless codec, or one that loses nothing of 0 and 1, and with every update merged at weight 1, a
//! coordinate is 0 when its lease's update was never merged, 1 when it was merged once, and 2 when it was merged twice.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anabranch_agent::shard::Shard;
use anabranch_agent::train::{Metrics, Round, RoundResult, RunPart, StepReport, TrainError, Trainer};
use anabranch_agent::worker::Shards;
use anabranch_common::ids::LeaseId;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_coordinator::core::lease_seed;
use anabranch_io::exit;
use clap::Parser;

use crate::process::be_agent;

/// Settings of a ledger run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Coordinates: as many leases may be granted, and what was refused or lost counts.
    pub coordinates: u64,
    /// A checkpoint after this many versions.
    pub checkpoint_every: u64,
    /// `all` keeps the whole journal; otherwise it is pruned at each checkpoint.
    pub keep_journal: bool,
    /// Seconds after which a lease no longer counts.
    pub lease_ttl_s: f64,
    /// The run ends at this version.
    pub target_versions: Option<u64>,
    /// Agents keep error feedback. The codec sends 0 and 1 as they are, so what it leaves out is 0, and yet as many
    /// bytes on disk as a real one.
    pub feedback: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            coordinates: 1 << 14,
            checkpoint_every: 20,
            keep_journal: false,
            lease_ttl_s: 600.0,
            target_versions: None,
            feedback: false,
        }
    }
}

impl Settings {
    /// The run.toml, without `[server]`.
    #[must_use]
    pub fn run_toml(&self) -> String {
        let Self { coordinates, checkpoint_every, keep_journal, lease_ttl_s, target_versions, feedback } = self;
        let (codec, decay) = if *feedback { ("bf16", 1.0) } else { ("f32", 0.0) };
        let retention = if *keep_journal { "all" } else { "since_snapshot" };
        let target = target_versions.map_or(String::new(), |versions| format!("versions = {versions}\n"));
        format!(
            r#"[run]
name = "ledger"
seed = 11

[model]
kind = "custom"
input = [{coordinates}]
classes = 2

[train]
local_steps = 1
batch_size = 1
optimizer = {{ kind = "sgd", lr = 1.0 }}

[upload]
codec = {{ kind = "{codec}" }}
feedback_decay = {decay:?}

[merge]
strategy = "fedasync"
alpha = 1.0
staleness = {{ fn = "constant" }}

[admit]
max_staleness = 1000000
max_examples = 1000000
max_norm_ratio = 0.0

[evaluate]
every_versions = 1000000
every_s = 1000000.0

[target]
{target}
[schedule]
lease_ttl_s = {lease_ttl_s:?}
tick_ms = 50

[checkpoint]
every_versions = {checkpoint_every}
every_s = 0.0
keep = 2
retention = "{retention}"
"#
        )
    }
}

/// Arguments of `as-ledger-agent`.
#[derive(Debug, Parser)]
#[command(name = "as-ledger-agent")]
struct Args {
    /// The agent's directory
    #[arg(long)]
    dir: PathBuf,
    /// Every local round takes at least this long, in milliseconds
    #[arg(long, default_value_t = 2)]
    min_round: u64,
}

/// Be an agent that keeps the ledger.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = Args::parse_from(std::iter::once("as-ledger-agent".into()).chain(args));
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error).into(),
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    be_agent(&args.dir, "ledger", args.min_round, || {
        let shards = Shards { train: Some(Box::new(OneExample)), eval: None };
        Ok((shards, Box::new(|spec| Ok(Box::new(LedgerTrainer::new(spec)?)))))
    })
}

/// Nothing is read from it.
#[derive(Debug)]
struct OneExample;

impl Shard for OneExample {
    fn len(&self) -> usize {
        1
    }

    fn input_shape(&self) -> &[u64] {
        &[1]
    }

    fn classes(&self) -> u32 {
        2
    }

    fn read(&self, indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>) {
        inputs.clear();
        labels.clear();
        inputs.extend(indices.iter().map(|_| 0.0));
        labels.extend(indices.iter().map(|_| 0));
    }
}

#[derive(Debug)]
struct LedgerTrainer {
    run_seed: u64,
    manifest: ModelManifest,
    /// The lease after the one that was trained last: leases are numbered upwards.
    next: u64,
}

impl LedgerTrainer {
    fn new(spec: &RunPart) -> Result<Self, TrainError> {
        let manifest = ModelManifest::new(vec![TensorSpec { name: "ledger".into(), shape: spec.model.input.clone() }])?;
        Ok(Self { run_seed: spec.seed, manifest, next: 0 })
    }

    /// The lease of a seed. A trainer is told the seed only, and every lease has another.
    fn lease_of(&mut self, seed: u64) -> Option<usize> {
        let coordinates = self.manifest.params();
        let is_it = |lease: &u64| lease_seed(self.run_seed, LeaseId(*lease)) == seed;
        let found = (self.next..coordinates as u64).find(is_it)?;
        self.next = found + 1;
        usize::try_from(found).ok()
    }
}

impl Trainer for LedgerTrainer {
    fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    fn initial(&mut self, _seed: u64) -> Result<Vec<f32>, TrainError> {
        Ok(vec![0.0; self.manifest.params()])
    }

    fn train(&mut self, round: Round<'_>) -> Result<RoundResult, TrainError> {
        let Round { base, seed, control, .. } = round;
        let Some(lease) = self.lease_of(seed) else {
            let coordinates = self.manifest.params();
            return Err(TrainError::Backend(format!("no lease below {coordinates} has seed {seed}")));
        };
        let mut end = base.to_vec();
        end[lease] += 1.0;
        // The one step: there is nothing left to stop.
        let _ = control(StepReport { step: 1, loss: 0.0, examples: 1, micro_batch: None });
        Ok(RoundResult { end, num_examples: 1, steps: 1, mean_loss: 0.0, stopped: false, encoded: None })
    }

    fn evaluate(&mut self, _model: &[f32], shard: &dyn Shard) -> Result<Metrics, TrainError> {
        Ok(Metrics { accuracy: 0.0, loss: 1.0, num_examples: shard.len() as u64 })
    }
}
