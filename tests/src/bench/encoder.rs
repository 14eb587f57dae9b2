//! `anabranch-lab bench encoder`: the encoder of a GPU next to copies on that GPU, and next to the CPU's encoder.
//!
//! In each turn the device encodes an update, copies a vector as long as the model into another, and the CPU encodes the same
//! update; payloads are compared, byte for byte. An encoder cannot do with less than four passes over the model (it reads
//! both models and what was left out, and writes what is left out now), a copy takes two: both are told as bytes moved a
//! second.

use anabranch_agent::device::{Choice, GpuBackend, GpuId};
use anabranch_agent::encode::cuda::device::CudaEngine;
use anabranch_agent::encode::cuda::topk::GpuTopK;
use anabranch_agent::encode::cuda::{Buffer, Engine, GpuError};
use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::sparse::TopK;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anyhow::{bail, ensure};
use clap::Args;

use super::store::noise;
use crate::clock::Stopwatch;
use crate::encoder::Emulator;
use crate::report::{Report, quantile};

/// What share of a copy's speed is aimed at.
const AIM: f64 = 0.4;
const VALUE_BYTES: f64 = 4.0;
const DECAY: f32 = 0.95;

/// What is measured.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Where: cuda, or cuda:N; cpu tries the bench itself, with the kernels retold
    #[arg(long, value_name = "DEVICE", default_value = "cuda:0")]
    device: Choice,
    /// Parameters of the model
    #[arg(long, default_value_t = 100_000_000)]
    params: usize,
    /// Share of the entries that an update sends
    #[arg(long, default_value_t = 0.01)]
    fraction: f32,
    /// Updates that are encoded and copies that are made, after one of each that warms up
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// An engine that can also copy.
trait Copies: Engine {
    fn copy(&mut self, from: Buffer, to: Buffer) -> Result<(), GpuError>;
}

impl Copies for CudaEngine {
    fn copy(&mut self, from: Buffer, to: Buffer) -> Result<(), GpuError> {
        Self::copy(self, from, to)
    }
}

impl Copies for Emulator {
    fn copy(&mut self, from: Buffer, to: Buffer) -> Result<(), GpuError> {
        Self::copy(self, from, to);
        Ok(())
    }
}

/// Measures.
///
/// # Errors
/// The device fails, or encodes to other bytes than the CPU.
pub fn run(options: &Options, seed: u64) -> anyhow::Result<Report> {
    match options.device {
        Choice::Cpu => measure(options, seed, Emulator::default(), Emulator::default()),
        Choice::Gpu(GpuId { backend: GpuBackend::Cuda, index }) => {
            let open = || CudaEngine::new(usize::from(index));
            measure(options, seed, open()?, open()?)
        }
        other => bail!("there is no encoder on {other}; give cuda or cuda:N"),
    }
}

fn measure<E: Copies>(options: &Options, seed: u64, engine: E, mut copier: E) -> anyhow::Result<Report> {
    let Options { device, params, fraction, rounds } = *options;
    let command = format!(
        "anabranch-lab bench encoder --device {device} --params {params} --fraction {fraction} --rounds {rounds}"
    );
    let mut report = Report::new(&command, seed);
    let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![params as u64] }])?;
    let [from, to] = [copier.alloc(params)?, copier.alloc(params)?];
    let mut gpu = GpuTopK::new(engine, &manifest, fraction)?;
    let (mut cpu, codec) = (Feedback::new(DECAY), TopK::new(fraction));
    let base = noise(params, seed);
    let ends = [noise(params, seed + 1), noise(params, seed + 2)];
    let mut figures: [Vec<f64>; 4] = Default::default();
    for (round, end) in (0..=rounds).zip(ends.iter().cycle()) {
        let delta: Vec<f32> = end.iter().zip(&base).map(|(end, base)| end - base).collect();
        let times = [
            timed(|| gpu.load(&base, end).and_then(|()| gpu.finish()))?.0,
            timed(|| gpu.run(DECAY).and_then(|()| gpu.finish()))?.0,
            timed(|| copier.copy(from, to).and_then(|()| copier.finish()))?.0,
        ];
        let (read_s, payload) = timed(|| gpu.payload())?;
        let (cpu_s, wanted) = timed(|| Ok(cpu.encode(&codec, &manifest, &delta)))?;
        ensure!(payload == wanted?, "round {round}: the device's payload is not the CPU's");
        gpu.commit();
        if round > 0 {
            let [load_s, encode_s, copy_s] = times;
            figures[0].push(encode_s);
            figures[1].push(copy_s);
            figures[2].push(cpu_s);
            figures[3].push(load_s + encode_s + read_s);
        }
    }
    let [encode_s, copy_s, cpu_s, whole_s] = figures.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        quantile(&seconds, 0.5)
    });
    let moved = |passes: f64, seconds: f64| passes * VALUE_BYTES * params as f64 / seconds / 1e9;
    let share = moved(4.0, encode_s) / moved(2.0, copy_s);
    report.metric("encode_p50_ms", encode_s * 1e3);
    report.metric("encode_gb_per_s", moved(4.0, encode_s));
    report.metric("copy_p50_ms", copy_s * 1e3);
    report.metric("copy_gb_per_s", moved(2.0, copy_s));
    report.metric("encode_over_copy", share);
    report.metric("from_host_to_payload_p50_ms", whole_s * 1e3);
    report.metric("cpu_encode_p50_ms", cpu_s * 1e3);
    if device != Choice::Cpu {
        report.aim(format!("an encoder that moves {AIM} times the bytes of a copy"), share >= AIM);
    }
    Ok(report)
}

fn timed<T>(work: impl FnOnce() -> Result<T, GpuError>) -> Result<(f64, T), GpuError> {
    let watch = Stopwatch::start();
    let done = work()?;
    Ok((watch.seconds(), done))
}
