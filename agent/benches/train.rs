//! Milliseconds of one training step and of one evaluation, medians over repetitions, for the two models of the README
//! on random data: `cargo bench -p anabranch-agent --bench train [-- MODEL [THREADS]]`.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(clippy::cast_possible_truncation, reason = "made-up data are small")]

use std::ops::ControlFlow;
use std::time::Instant;

use anabranch_agent::shard::{Examples, Inputs};
use anabranch_agent::train::{NativeOptions, Trainer, native_with};
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{ModelKind, ModelSpec, OptimizerSpec, TrainSpec};

const STEPS: u32 = 20;
const REPETITIONS: usize = 15;

fn main() {
    let shard = images(2048);
    let sgd = OptimizerSpec::Sgd { lr: 0.01, momentum: 0.9 };
    let adamw = OptimizerSpec::AdamW { lr: 1e-3, weight_decay: 0.01, beta_1: 0.9, beta_2: 0.999 };
    let cases = [
        ("mlp 784-128-10", ModelKind::Mlp, vec![128], 32, sgd.clone()),
        ("mlp 784-128-10", ModelKind::Mlp, vec![128], 32, adamw.clone()),
        ("mlp 784-512-10", ModelKind::Mlp, vec![512], 64, sgd.clone()),
        ("cnn 16-32-128", ModelKind::Cnn, vec![16, 32, 128], 32, sgd.clone()),
        ("cnn 16-32-128", ModelKind::Cnn, vec![16, 32, 128], 64, adamw),
    ];
    println!("{:<16}{:>7}{:>7}{:>9}{:>12}{:>18}", "model", "batch", "optim", "threads", "ms / step", "ms / evaluation");
    // Cargo itself adds `--bench`.
    let mut filter = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let model = filter.next().unwrap_or_default();
    let threads = filter.next().and_then(|threads| threads.parse().ok());
    for (name, kind, hidden, batch_size, optimizer) in cases.into_iter().filter(|case| case.0.contains(&model)) {
        let label = if matches!(optimizer, OptimizerSpec::Sgd { .. }) { "sgd" } else { "adamw" };
        let spec = ModelSpec {
            kind,
            input: vec![1, 28, 28],
            classes: 10,
            hidden,
            input_scale: 1.0 / 255.0,
            ..ModelSpec::default()
        };
        let plan = TrainSpec { local_steps: STEPS, batch_size, optimizer, keep_optimizer_state: false };
        for threads in threads.map_or(vec![1, 2, 4], |threads| vec![threads]) {
            let options = NativeOptions { threads: Some(threads) };
            let mut trainer = native_with(&spec, options).expect("a valid model");
            let [step, evaluation] = measure(trainer.as_mut(), &plan, &shard);
            let step = step / f64::from(STEPS);
            println!("{name:<16}{batch_size:>7}{label:>7}{threads:>9}{step:>12.3}{evaluation:>18.1}");
        }
    }
}

fn images(count: usize) -> Examples {
    let mut rng = SplitMix64::new(1);
    let inputs = (0..count * 784).map(|_| rng.below(256) as u8).collect();
    let labels = (0..count).map(|_| rng.below(10) as u32).collect();
    Examples::new(Inputs::Bytes(inputs), labels, vec![28, 28]).expect("the lengths agree")
}

/// Median milliseconds of a training call and of an evaluation.
fn measure(trainer: &mut dyn Trainer, plan: &TrainSpec, shard: &Examples) -> [f64; 2] {
    let base = trainer.initial(1).expect("made");
    let mut times = [Vec::new(), Vec::new()];
    for repetition in 0..REPETITIONS {
        let start = Instant::now();
        let outcome = trainer.train(&base, plan, repetition as u64, shard, &mut |_| ControlFlow::Continue(()));
        times[0].push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        trainer.evaluate(&outcome.expect("trains").end, shard).expect("evaluates");
        times[1].push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}
