//! What agents compute: steps towards a point of their own, by the learning rate of the trial, so that trials differ.

use std::sync::Arc;

use anabranch_agent::node;
use anabranch_agent::session::event::{Event, Outcome};
use anabranch_agent::train::Metrics;
use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::Lease;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{AgentSpec, ModelSpec, OptimizerSpec};

use crate::sim::schedule::Machine;

/// An update that overflows after a few: it is finite itself.
const OVERFLOWING: f32 = 3e38;

/// Returns the tensors of a trial's model.
pub(super) fn manifest(model: &ModelSpec) -> ModelManifest {
    model.layers().ok().flatten().map(|layers| layers.manifest).expect("a small native model")
}

/// Returns version 0.
pub(super) fn initial(manifest: &ModelManifest) -> Event {
    node::initial_model(manifest, vec![0.5; manifest.params()].into())
}

/// Computes a local round.
pub(super) fn train(machine: Machine, lease: &Lease, spec: &AgentSpec, base: &[f32], overflows: bool) -> Outcome {
    let rate = match spec.train.optimizer {
        OptimizerSpec::Sgd { lr, .. } | OptimizerSpec::AdamW { lr, .. } => lr,
    };
    let mut point = SplitMix64::new(machine as u64);
    let mut noise = SplitMix64::new(lease.seed);
    let step = |value: &f32| rate * (point.next_signed_f32() - value) + 0.02 * noise.next_signed_f32();
    let delta: Vec<f32> = if overflows { vec![OVERFLOWING; base.len()] } else { base.iter().map(step).collect() };
    Outcome {
        lease: lease.id,
        delta: Arc::from(delta),
        num_examples: 10,
        local_steps: spec.train.local_steps,
        train_loss: 0.5,
        compute_ms: 0,
        encoded: None,
        pod: None,
    }
}

/// Evaluates a model on an agent's shard: how far it is from the agent's point.
pub(super) fn judge(machine: Machine, version: ModelVersion, model: &[f32], examples: u64, is_finite: bool) -> Event {
    let mut point = SplitMix64::new(machine as u64);
    let squares = model.iter().map(|value| f64::from(value - point.next_signed_f32()).powi(2));
    let mean = squares.sum::<f64>() / model.len().max(1) as f64;
    let loss = if is_finite { mean } else { f64::NAN };
    node::judged(version, Metrics { accuracy: 1.0 / (1.0 + mean), loss, num_examples: examples })
}
