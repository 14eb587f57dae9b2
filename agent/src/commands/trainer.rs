//! `trainer`: the native trainer as a child of an agent.

use super::device;
use super::run::{native_factory_with, open_shards, refuse_nothing_to_do, shard_options};
use crate::cli::TrainerArgs;
use crate::device::{GpuBackend, GpuId};
use crate::encode::cuda::device::CudaEngine;
use crate::encode::cuda::encoder::{EngineOpener, RoundEncoder};
use crate::encode::cuda::topk::ENCODER_BYTES_PER_PARAM;
use crate::encode::cuda::{EncoderPlace, Engine, GpuError};
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
    let encoder = args.encoder.and_then(|place| open_encoder(place, args.device));
    let reserved_per_param = encoder.as_ref().map_or(0, |_| ENCODER_BYTES_PER_PARAM);
    process::serve_with_encoder(&name, encoder, |hello| {
        let options = shard_options(args.label_column.clone(), args.drop_columns.clone());
        let shards = open_shards(hello.shard.as_deref(), hello.eval_shard.as_deref(), options)?;
        refuse_nothing_to_do(&shards)?;
        let options = NativeOptions {
            before_bytes: None,
            threads: hello.threads,
            max_memory_bytes: hello.max_memory,
            device: args.device,
            reserved_per_param,
        };
        let factory = native_factory_with(options, &shards);
        Ok((shards, factory))
    })
}

/// The encoder of this child. Where it cannot be had the agent encodes.
fn open_encoder(place: EncoderPlace, device: Option<GpuId>) -> Option<RoundEncoder> {
    let open: EngineOpener = match (place, device) {
        (EncoderPlace::Auto, Some(GpuId { backend: GpuBackend::Cuda, index })) => {
            Box::new(move || Ok(Box::new(CudaEngine::new(usize::from(index))?) as Box<dyn Engine>))
        }
        (EncoderPlace::Auto | EncoderPlace::Cpu, _) => return None,
    };
    let encoder = RoundEncoder::new(open);
    encoder.inspect_err(|error: &GpuError| tracing::warn!("{error}; updates are encoded on the CPU")).ok()
}
