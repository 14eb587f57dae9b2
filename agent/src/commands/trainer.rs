//! `trainer`: the native trainer as a child of an agent.

use super::run::{native_factory, open_shards};
use crate::cli::TrainerArgs;
use crate::train::process;

/// Runs `trainer`.
pub(super) fn trainer(args: &TrainerArgs) -> anyhow::Result<()> {
    process::serve("native", |hello| {
        let shards = open_shards(hello.shard.as_deref(), hello.eval_shard.as_deref(), args.label_column.as_deref())?;
        let factory = native_factory(hello.threads, &shards);
        Ok((shards, factory))
    })
}
