//! `anabranch-lab bench codec`: every codec next to a copy of the same vector and to zstd, on one thread.
//!
//! In each round every subject takes its turn right after a copy of the vector, and its figure is that copy's time over its
//! own: other load on the machine slows both. The copy goes to memory that is mapped already; a payload or a decoded
//! vector is new memory each time, as in the daemons.

use std::hint::black_box;

use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::quantize::ValueBits;
use anabranch_common::codec::{self, Codec, CodecSpec};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_testkit::codec::normal;
use anyhow::ensure;
use clap::Args;

use crate::clock::Stopwatch;
use crate::report::{Report, quantile};

const DECAY: f32 = 0.95;
/// The size whose decoding has an aim of its own.
const LARGE: usize = 100_000_000;
/// Aims: shares of a copy's speed, and milliseconds. That an encoder holds one chunk beside vector and payload is tested
/// with an allocator that counts (`common/tests/allocations.rs`).
const TOP_K_AIM: f64 = 0.25;
const INT8_AIM: f64 = 0.4;
const ADD_AIM_MS: f64 = 15.0;

/// What is measured.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Parameters of the models, each one tensor
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 10_000_000, LARGE],
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1 << 30))]
    params: Vec<usize>,
    /// Measurements of each codec, after one that warms up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
}

/// Codecs by the name that their figures have.
fn codecs() -> [(&'static str, CodecSpec); 9] {
    let top_k = |fraction, bits| CodecSpec::TopK { fraction, bits };
    [
        ("f32", CodecSpec::F32),
        ("bf16", CodecSpec::Bf16),
        ("int8", CodecSpec::Int8),
        ("int4", CodecSpec::Int4),
        ("top5_int8", top_k(0.05, ValueBits::Eight)),
        ("top5_int4", top_k(0.05, ValueBits::Four)),
        ("top1_int8", top_k(0.01, ValueBits::Eight)),
        ("top1_int4", top_k(0.01, ValueBits::Four)),
        ("top1_sign", top_k(0.01, ValueBits::One)),
    ]
}

/// Measures.
///
/// # Errors
/// A codec does not read what it wrote.
pub fn run(options: &Options, seed: u64) -> anyhow::Result<Report> {
    let Options { params, repeats } = options;
    let sizes: Vec<String> = params.iter().map(usize::to_string).collect();
    let command = format!("anabranch-lab bench codec --params {} --repeats {repeats}", sizes.join(","));
    let mut report = Report::new(&command, seed);
    for params in params {
        let mut bench = Bench::new(*params, seed)?;
        println!("{params} parameters: ratios to a copy, median (least to most)");
        for level in [1, 3] {
            bench.zstd(level, *repeats, &mut report)?;
        }
        for (name, spec) in codecs() {
            bench.codec(name, &*codec::encoder(spec), *repeats, &mut report)?;
        }
    }
    aims(&mut report, params.iter().copied().max().unwrap_or(0));
    Ok(report)
}

/// The figures that have aims: those of the largest size.
fn aims(report: &mut Report, params: usize) {
    let size = size(params);
    let found = |report: &Report, name: &str| report.metrics.get(&format!("{size}_{name}")).copied();
    for (name, codec, aim) in
        [("encode_ratio_to_memcpy", "top1_int8", TOP_K_AIM), ("int8_encode_ratio_to_memcpy", "int8", INT8_AIM)]
    {
        if let Some(ratio) = found(report, &format!("{codec}_encode_ratio_to_memcpy")) {
            report.metric(name, ratio);
            report.aim(format!("{codec} encodes at {aim} of a copy's speed or more"), ratio >= aim);
        }
    }
    if let Some(ms) = found(report, "top1_int8_decode_and_add_ms").filter(|_| params == LARGE) {
        report.metric("sparse_add_100m_ms", ms);
        report.aim(
            format!("top 1 % is decoded and added to 100 M parameters in {ADD_AIM_MS} ms or less"),
            ms <= ADD_AIM_MS,
        );
    }
}

/// A size as figures have it in their names.
fn size(params: usize) -> String {
    match params {
        0..1_000_000 => params.to_string(),
        _ => format!("{}m", params / 1_000_000),
    }
}

struct Bench {
    size: String,
    manifest: ModelManifest,
    values: Vec<f32>,
    /// Copied to, and added to.
    target: Vec<f32>,
}

impl Bench {
    fn new(params: usize, seed: u64) -> anyhow::Result<Self> {
        let manifest = ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![params as u64] }])?;
        Ok(Self { size: size(params), manifest, values: normal(params, seed), target: vec![0.0; params] })
    }

    /// Seconds that a copy takes.
    fn copy(&mut self) -> f64 {
        let watch = Stopwatch::start();
        self.target.copy_from_slice(black_box(&self.values));
        black_box(&mut self.target);
        watch.seconds()
    }

    fn zstd(&mut self, level: i32, repeats: u32, report: &mut Report) -> anyhow::Result<()> {
        let bytes: Vec<u8> = self.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        let mut figures = Figures::default();
        for round in 0..=repeats {
            let copy_s = self.copy();
            let watch = Stopwatch::start();
            let frame = compressor.compress(&bytes)?;
            let encode_s = watch.seconds();
            let watch = Stopwatch::start();
            black_box(zstd::bulk::decompress(&frame, bytes.len())?);
            figures.add(round, copy_s, &[("encode", encode_s), ("decode", watch.seconds())]);
            figures.ratio = bytes.len() as f64 / frame.len() as f64;
        }
        figures.report(&format!("{}_zstd_{level}", self.size), report);
        Ok(())
    }

    fn codec(&mut self, name: &str, codec: &dyn Codec, repeats: u32, report: &mut Report) -> anyhow::Result<()> {
        let mut figures = Figures::default();
        let mut feedback = Feedback::new(DECAY);
        for round in 0..=repeats {
            let copy_s = self.copy();
            let watch = Stopwatch::start();
            let payload = codec.encode(&self.manifest, &self.values)?;
            let encode_s = watch.seconds();
            let watch = Stopwatch::start();
            let delta = codec::decode(codec.id(), &self.manifest, &payload)?;
            let decode_s = watch.seconds();
            ensure!(delta.len() == self.values.len(), "codec {name} does not read what it wrote");
            let watch = Stopwatch::start();
            delta.add_scaled_to(&mut self.target, 0.5);
            let add_s = watch.seconds();
            let again_s = self.copy();
            let watch = Stopwatch::start();
            black_box(feedback.encode(codec, &self.manifest, &self.values)?);
            let feedback_s = watch.seconds();
            figures.add(round, copy_s, &[("encode", encode_s), ("decode_and_add", decode_s + add_s)]);
            figures.add(round, again_s, &[("feedback_and_encode", feedback_s)]);
            figures.ratio = 4.0 * self.values.len() as f64 / payload.len() as f64;
        }
        figures.report(&format!("{}_{name}", self.size), report);
        Ok(())
    }
}

/// Times of one subject, by what it did.
#[derive(Default)]
struct Figures {
    steps: Vec<(&'static str, Vec<f64>, Vec<f64>)>,
    ratio: f64,
}

impl Figures {
    /// Notes times beside that of a copy. Round 0 warms up.
    fn add(&mut self, round: u32, copy_s: f64, steps: &[(&'static str, f64)]) {
        for (name, seconds) in steps.iter().filter(|_| round > 0) {
            if !self.steps.iter().any(|(known, ..)| known == name) {
                self.steps.push((*name, Vec::new(), Vec::new()));
            }
            for (_, times, ratios) in self.steps.iter_mut().filter(|(known, ..)| known == name) {
                times.push(*seconds);
                ratios.push(copy_s / seconds);
            }
        }
    }

    fn report(mut self, name: &str, report: &mut Report) {
        report.metric(format!("{name}_compression_ratio"), self.ratio);
        let mut line = format!("{name:<18} {:>7.2} times smaller", self.ratio);
        for (step, times, ratios) in &mut self.steps {
            times.sort_by(f64::total_cmp);
            ratios.sort_by(f64::total_cmp);
            let [least, median, most] = [0.0, 0.5, 1.0].map(|share| quantile(ratios, share));
            report.metric(format!("{name}_{step}_ratio_to_memcpy"), median);
            report.metric(format!("{name}_{step}_ratio_to_memcpy_min"), least);
            report.metric(format!("{name}_{step}_ratio_to_memcpy_max"), most);
            report.metric(format!("{name}_{step}_ms"), quantile(times, 0.5) * 1e3);
            line += &format!("  {step} {median:.3} ({least:.3} to {most:.3})");
        }
        println!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_is_measured_and_the_named_figures_are_those_of_the_largest_size() {
        let options = Options { params: vec![2_000, 300_000], repeats: 2 };
        let report = run(&options, 1).expect("measured");
        assert!(report.pass);
        for (name, _) in codecs() {
            for step in ["encode", "decode_and_add", "feedback_and_encode"] {
                let key = format!("300000_{name}_{step}_ratio_to_memcpy");
                assert!(report.metrics[&key] > 0.0, "{key}");
            }
        }
        assert_eq!(report.metrics["encode_ratio_to_memcpy"], report.metrics["300000_top1_int8_encode_ratio_to_memcpy"]);
        assert!(report.metrics["300000_int4_compression_ratio"] > 7.4);
        assert!(!report.metrics.contains_key("sparse_add_100m_ms"));
        assert_eq!([size(2_000), size(100_000_000)], ["2000", "100m"]);
    }
}
