//! Milliseconds of one training step and of one evaluation, medians over repetitions, for the two models of the README
//! and a small gpt on random data: `cargo bench -p anabranch-agent --bench train [-- MODEL [THREADS [REPETITIONS]]]`.
//!
//! `cpu` is processor time, for a machine with other load. `model` is the digest of a trained model: it changes
//! when the bits of a result do.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(clippy::cast_possible_truncation, reason = "made-up data are small")]

use std::ops::ControlFlow;
use std::time::Instant;

use anabranch_agent::shard::{Examples, Inputs, Shard, Text};
use anabranch_agent::train::{NativeOptions, Round, Trainer, native_with};
use anabranch_common::ids::Digest;
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{ModelKind, ModelSpec, OptimizerSpec, TrainSpec};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

const STEPS: u32 = 20;
const REPETITIONS: usize = 15;

fn main() {
    let (images, text) = (images(2048), text(1 << 14));
    let sgd = OptimizerSpec::Sgd { lr: 0.01, momentum: 0.9 };
    let adamw = OptimizerSpec::AdamW { lr: 1e-3, weight_decay: 0.01, beta_1: 0.9, beta_2: 0.999 };
    let image = |kind, hidden: &[u64]| {
        let (input, hidden) = (vec![1, 28, 28], hidden.to_vec());
        ModelSpec { kind, input, classes: 10, hidden, input_scale: 1.0 / 255.0, ..ModelSpec::default() }
    };
    let (context, layers, heads, width) = (64, 2, 4, 64);
    let gpt = ModelSpec { kind: ModelKind::Gpt, context, layers, heads, width, ..ModelSpec::default() };
    let cases: [(&str, ModelSpec, &dyn Shard, u32, OptimizerSpec); 6] = [
        ("mlp 784-128-10", image(ModelKind::Mlp, &[128]), &images, 32, sgd.clone()),
        ("mlp 784-128-10", image(ModelKind::Mlp, &[128]), &images, 32, adamw.clone()),
        ("mlp 784-512-10", image(ModelKind::Mlp, &[512]), &images, 64, sgd.clone()),
        ("cnn 16-32-128", image(ModelKind::Cnn, &[16, 32, 128]), &images, 32, sgd),
        ("cnn 16-32-128", image(ModelKind::Cnn, &[16, 32, 128]), &images, 64, adamw.clone()),
        ("gpt 64-2-4-64", gpt, &text, 16, adamw),
    ];
    println!(
        "{:<16}{:>7}{:>7}{:>9}{:>12}{:>12}{:>18}{:>10}",
        "model", "batch", "optim", "threads", "ms / step", "cpu / step", "ms / evaluation", "model"
    );
    // Cargo itself adds `--bench`.
    let mut filter = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let model = filter.next().unwrap_or_default();
    let threads = filter.next().and_then(|threads| threads.parse().ok());
    let repetitions = filter.next().and_then(|count| count.parse().ok()).unwrap_or(REPETITIONS);
    for (name, spec, shard, batch_size, optimizer) in cases.into_iter().filter(|case| case.0.contains(&model)) {
        let label = if matches!(optimizer, OptimizerSpec::Sgd { .. }) { "sgd" } else { "adamw" };
        let plan = TrainSpec {
            local_steps: STEPS,
            batch_size,
            optimizer,
            keep_optimizer_state: false,
            target_round_s: None,
            max_local_steps: None,
            schedule: None,
            proximal_mu: 0.0,
        };
        for threads in threads.map_or(vec![1, 2, 4], |threads| vec![threads]) {
            let options = NativeOptions { threads: Some(threads), ..NativeOptions::default() };
            let mut trainer = native_with(&spec, options).expect("a valid model");
            let ([step, cpu, evaluation], end) = measure(trainer.as_mut(), &plan, shard, repetitions);
            let [step, cpu] = [step, cpu].map(|time| time / f64::from(STEPS));
            println!(
                "{name:<16}{batch_size:>7}{label:>7}{threads:>9}{step:>12.3}{cpu:>12.3}{evaluation:>18.1}{:>10}",
                end.short()
            );
        }
    }
}

fn images(count: usize) -> Examples {
    let mut rng = SplitMix64::new(1);
    let inputs = (0..count * 784).map(|_| rng.below(256) as u8).collect();
    let labels = (0..count).map(|_| rng.below(10) as u32).collect();
    Examples::new(Inputs::Bytes(inputs), labels, vec![28, 28]).expect("the lengths agree")
}

fn text(count: usize) -> Text {
    let mut rng = SplitMix64::new(1);
    Text::new((0..count).map(|_| rng.below(256) as u8).collect()).expect("long enough")
}

/// Median milliseconds of a training call, of its processor time and of an evaluation; digest of the last model.
fn measure(trainer: &mut dyn Trainer, plan: &TrainSpec, shard: &dyn Shard, repetitions: usize) -> ([f64; 3], Digest) {
    let base = trainer.initial(1).expect("made");
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let mut end = Vec::new();
    for repetition in 0..repetitions {
        let (start, cpu_start) = (Instant::now(), cpu_ms());
        let mut go_on = |_| ControlFlow::Continue(());
        let outcome = trainer.train(Round::new(&base, plan, repetition as u64, shard, &mut go_on));
        times[0].push(start.elapsed().as_secs_f64() * 1e3);
        times[1].push(cpu_ms() - cpu_start);
        end = outcome.expect("trains").end;
        let start = Instant::now();
        trainer.evaluate(&end, shard).expect("evaluates");
        times[2].push(start.elapsed().as_secs_f64() * 1e3);
    }
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    (medians, Digest::of_f32(&end))
}

/// Processor time of this process so far, all threads, in milliseconds.
fn cpu_ms() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the system tells it");
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e3
}
