//! An agent that trains as it should, and sends something else.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anabranch_agent::shard::{self, Shard, ShardOptions};
use anabranch_agent::train::{Metrics, Round, RoundResult, TrainError, Trainer};
use anabranch_agent::worker::Shards;
use anabranch_common::manifest::ModelManifest;
use anabranch_io::exit;
use clap::Parser;

use super::fault::Poison;
use crate::process::be_agent;

/// Arguments of `as-poisoned-agent`.
#[derive(Debug, Parser)]
#[command(name = "as-poisoned-agent")]
struct Args {
    /// The agent's directory
    #[arg(long)]
    dir: PathBuf,
    /// Its shard
    #[arg(long)]
    shard: PathBuf,
    /// Every local round takes at least this long, in milliseconds
    #[arg(long)]
    min_round: u64,
    /// What it sends
    #[arg(long)]
    with: Poison,
}

/// Be such an agent.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = Args::parse_from(std::iter::once("as-poisoned-agent".into()).chain(args));
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error).into(),
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    be_agent(&args.dir, "poisoned", args.min_round, || {
        let shards = Shards { train: Some(shard::open(&args.shard, &ShardOptions::default())?), eval: None };
        let (native, with) = (anabranch_agent::native_factory(Some(1), &shards), args.with);
        Ok((shards, Box::new(move |spec| Ok(Box::new(Poisoned { trainer: native(spec)?, with })))))
    })
}

#[derive(Debug)]
struct Poisoned {
    trainer: Box<dyn Trainer>,
    with: Poison,
}

impl Trainer for Poisoned {
    fn manifest(&self) -> &ModelManifest {
        self.trainer.manifest()
    }

    fn initial(&mut self, seed: u64) -> Result<Vec<f32>, TrainError> {
        self.trainer.initial(seed)
    }

    fn train(&mut self, round: Round<'_>) -> Result<RoundResult, TrainError> {
        let base = round.base;
        let mut result = self.trainer.train(round)?;
        for (end, base) in result.end.iter_mut().zip(base) {
            let delta = *end - base;
            *end = match self.with {
                Poison::Nan => f32::NAN,
                Poison::Huge => base + delta * 1e6,
                Poison::Flip => base - delta * 10.0,
            };
        }
        Ok(result)
    }

    fn evaluate(&mut self, model: &[f32], shard: &dyn Shard) -> Result<Metrics, TrainError> {
        self.trainer.evaluate(model, shard)
    }
}
