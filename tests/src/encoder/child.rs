//! A native trainer in a process of its own, whose encoder is the GPU's algorithm on the CPU.

use std::path::PathBuf;
use std::process::ExitCode;

use anabranch_agent::encode::cuda::Engine;
use anabranch_agent::encode::cuda::encoder::RoundEncoder;
use anabranch_agent::native_factory_with;
use anabranch_agent::shard::{self, Shard, ShardOptions};
use anabranch_agent::train::NativeOptions;
use anabranch_agent::train::process::{HelloAsk, serve_with_encoder};
use anabranch_agent::worker::{Shards, TrainerFactory};
use anabranch_io::exit;
use anabranch_io::logging::{self, LogFormat};

use super::Emulator;

/// Be such a trainer until the agent leaves.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error).into(),
    }
}

fn run() -> anyhow::Result<()> {
    logging::init(LogFormat::Human, 0)?;
    let encoder = RoundEncoder::new(Box::new(|| Ok(Box::new(Emulator::default()) as Box<dyn Engine>)))?;
    serve_with_encoder("native, encoding as a GPU does", Some(encoder), work)
}

/// What the agent's own `trainer` has: the shards that the agent names, and a native trainer.
fn work(hello: &HelloAsk) -> anyhow::Result<(Shards, TrainerFactory)> {
    let open = |path: &Option<PathBuf>| -> anyhow::Result<Option<Box<dyn Shard>>> {
        Ok(path.as_deref().map(|path| shard::open(path, &ShardOptions::default())).transpose()?)
    };
    let shards = Shards { train: open(&hello.shard)?, eval: open(&hello.eval_shard)? };
    let options =
        NativeOptions { threads: hello.threads, max_memory_bytes: hello.max_memory, ..NativeOptions::default() };
    let factory = native_factory_with(options, &shards);
    Ok((shards, factory))
}
