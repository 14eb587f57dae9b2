//! `trainer`: the native trainer as a child of an agent.

use super::run::{native_factory_with, open_shards};
use crate::cli::TrainerArgs;
use crate::train::{NativeOptions, process};

/// Runs `trainer`.
pub(super) fn trainer(args: &TrainerArgs) -> anyhow::Result<()> {
    process::serve("native", |hello| {
        let shards = open_shards(hello.shard.as_deref(), hello.eval_shard.as_deref(), args.label_column.as_deref())?;
        let options = NativeOptions { threads: hello.threads, max_memory_bytes: hello.max_memory };
        let factory = native_factory_with(options, &shards);
        Ok((shards, factory))
    })
}
