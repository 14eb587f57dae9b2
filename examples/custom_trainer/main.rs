//! An agent with a trainer of your own, in Rust.
//!
//! It estimates the mean of its examples' features: the model is that mean, and a step moves it towards a batch. Start a
//! coordinator whose `run.toml` has `kind = "custom"` in `[model]`, join, and run it in place of `anabranch-agent run`:
//!
//! ```sh
//! cargo run --example custom_trainer -- DIR examples/data/digits-train.csv.gz
//! ```

use std::path::Path;

use anabranch_agent::shard::{self, Shard, ShardOptions};
use anabranch_agent::train::{Metrics, Round, RoundResult, StepReport, TrainError, Trainer};
use anabranch_agent::worker::{Pace, Shards};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anyhow::Context as _;

#[derive(Debug)]
struct Mean(ModelManifest);

impl Trainer for Mean {
    fn manifest(&self) -> &ModelManifest {
        &self.0
    }

    fn initial(&mut self, _seed: u64) -> Result<Vec<f32>, TrainError> {
        Ok(vec![0.0; self.0.params()])
    }

    fn train(&mut self, round: Round<'_>) -> Result<RoundResult, TrainError> {
        let Round { base, plan, seed, shard, control, .. } = round;
        let (mut end, mut inputs, mut labels) = (base.to_vec(), Vec::new(), Vec::new());
        let (mut steps, mut stopped, batch) = (0, false, plan.batch_size);
        let offset = usize::try_from(seed % shard.len() as u64).unwrap_or(0);
        while steps < plan.local_steps && !stopped {
            steps += 1;
            let first = offset + steps as usize * batch as usize;
            let rows: Vec<usize> = (first..first + batch as usize).map(|row| row % shard.len()).collect();
            shard.read(&rows, &mut inputs, &mut labels);
            for example in inputs.chunks(end.len()) {
                end.iter_mut().zip(example).for_each(|(mean, value)| *mean += (value - *mean) / (10.0 * batch as f32));
            }
            stopped = control(StepReport { step: steps, loss: 0.0, examples: batch, micro_batch: None }).is_break();
        }
        let num_examples = u64::from(steps * batch);
        Ok(RoundResult { end, num_examples, steps, mean_loss: 0.0, stopped, encoded: None })
    }

    fn evaluate(&mut self, model: &[f32], shard: &dyn Shard) -> Result<Metrics, TrainError> {
        let (mut inputs, mut labels) = (Vec::new(), Vec::new());
        shard.read(&(0..shard.len()).collect::<Vec<_>>(), &mut inputs, &mut labels);
        let distance =
            |example: &[f32]| example.iter().zip(model).map(|(x, mean)| f64::from(x - mean).powi(2)).sum::<f64>();
        let loss = inputs.chunks(model.len()).map(distance).sum::<f64>() / inputs.len() as f64;
        Ok(Metrics { accuracy: 0.0, loss, num_examples: shard.len() as u64 })
    }
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (dir, path) = args.next().zip(args.next()).context("usage: custom_trainer AGENT_DIR SHARD")?;
    anabranch_io::logging::init(anabranch_io::logging::LogFormat::Human, 0)?;
    let open = || shard::open(Path::new(&path), &ShardOptions::default());
    let shards = Shards { train: Some(open()?), eval: Some(open()?) };
    let shape = shards.train.as_deref().map_or(&[][..], Shard::input_shape).to_vec();
    let mean = move || ModelManifest::new(vec![TensorSpec { name: "mean".to_owned(), shape: shape.clone() }]);
    anabranch_agent::run_with(
        Path::new(&dir),
        shards,
        Box::new(move |_| Ok(Box::new(Mean(mean()?)))),
        "cpu",
        Pace::default(),
    )
}
