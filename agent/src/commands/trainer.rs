//! `trainer`: the native trainer as a child of an agent.

use super::device;
use super::run::{native_factory_with, open_shards};
use crate::cli::TrainerArgs;
use crate::train::{NativeOptions, process};

/// Runs `trainer`.
pub(super) fn trainer(args: &TrainerArgs) -> anyhow::Result<()> {
    let name = match args.device {
        None => "native".to_owned(),
        Some(id) => {
            // What cannot be opened is an error with words of its own.
            std::panic::set_hook(Box::new(|_| {}));
            let found = device::open(id)?;
            device::end_at_a_panic();
            format!("native on {} ({id})", found.name)
        }
    };
    process::serve(&name, |hello| {
        let shards = open_shards(hello.shard.as_deref(), hello.eval_shard.as_deref(), args.label_column.as_deref())?;
        let options = NativeOptions { threads: hello.threads, max_memory_bytes: hello.max_memory, device: args.device };
        let factory = native_factory_with(options, &shards);
        Ok((shards, factory))
    })
}
