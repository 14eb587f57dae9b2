//! What agents compute: two tasks whose every update can be checked, and the native trainer on data that is drawn.

use std::ops::ControlFlow;

use anabranch_agent::node::Start;
use anabranch_agent::shard::{Examples, Inputs};
use anabranch_agent::train::{Metrics, NativeOptions, Round, Trainer, native_with};
use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::Lease;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{RunSpec, TrainSpec};

use crate::invariants::journal::{Checked, ensure};

use super::schedule::{Machine, Schedule, Task};
use super::setting::{Computed, Emulated};

/// Values of one example of the native task.
pub(super) const INPUTS: u32 = 4;
/// Classes of the native task.
pub(super) const CLASSES: u32 = 3;
/// Examples of one agent.
const EXAMPLES: usize = 60;
/// How far examples lie from the middle of their class, which is within 1 of the origin in every direction.
const NOISE: f32 = 0.3;

/// Versions from which on a model must be better than none.
const VERSIONS_TO_LEARN: u64 = 40;

/// The mathematics of a world.
#[derive(Debug)]
pub(super) struct Simulated {
    manifest: ModelManifest,
    task: Task,
    in_pods: bool,
    agents: usize,
    native: Option<Native>,
}

/// The native trainer, and what each agent holds, that of machine 1 first.
#[derive(Debug)]
struct Native {
    trainer: Box<dyn Trainer>,
    shards: Vec<Examples>,
}

impl Simulated {
    pub(super) fn new(schedule: &Schedule, spec: &RunSpec) -> Self {
        let task = schedule.task;
        let flat = || {
            let tensor = TensorSpec { name: "w".into(), shape: vec![u64::from(schedule.params)] };
            ModelManifest::new(vec![tensor]).expect("one tensor")
        };
        let native = (task == Task::Native).then(|| {
            let options = NativeOptions { threads: Some(1), ..NativeOptions::default() };
            let trainer = native_with(&spec.model, options).expect("a small model");
            Native { trainer, shards: (1..=schedule.agents.len()).map(shard).collect() }
        });
        let manifest = native.as_ref().map_or_else(flat, |native| native.trainer.manifest().clone());
        let in_pods = schedule.pods.is_some();
        Self { manifest, task, in_pods, agents: schedule.agents.len(), native }
    }
}

impl Emulated for Simulated {
    fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    fn initial(&mut self) -> Vec<f32> {
        match &mut self.native {
            Some(native) => native.trainer.initial(1).expect("the native trainer makes every model"),
            None if self.task == Task::Quadratic => {
                // Not zeros: the norm of version 0 is the measure of the first updates.
                let mut rng = SplitMix64::new(2);
                (0..self.manifest.params()).map(|_| 0.5 * rng.next_signed_f32()).collect()
            }
            None => vec![0.0; self.manifest.params()],
        }
    }

    fn train(&mut self, machine: Machine, lease: &Lease, plan: &TrainSpec, start: &Start) -> Option<Computed> {
        let model = start.model();
        let base = &*model;
        let delta = match (self.task, &mut self.native) {
            (Task::Native, Some(Native { trainer, shards })) => {
                let go_on = &mut |_| ControlFlow::Continue(());
                let done = trainer.train(Round::of(lease, base, plan, &shards[machine - 1], go_on)).ok()?;
                return Some(Computed {
                    delta: done.end.iter().zip(base).map(|(end, base)| end - base).collect(),
                    num_examples: done.num_examples,
                    local_steps: done.steps,
                    train_loss: done.mean_loss,
                });
            }
            (Task::Ledger, _) => ledger_delta(lease, base.len())?,
            (Task::Quadratic | Task::Native, _) => quadratic_delta(machine, lease, base),
        };
        Some(Computed { delta: delta.into(), num_examples: 10, local_steps: plan.local_steps, train_loss: 0.5 })
    }

    fn judge(&mut self, machine: Machine, model: &[f32]) -> Metrics {
        let squares = || model.iter().map(|value| f64::from(value * value)).sum::<f64>() / model.len().max(1) as f64;
        let not_finite = Metrics { accuracy: 0.0, loss: f64::NAN, num_examples: 1 };
        match &mut self.native {
            Some(Native { trainer, shards, .. }) => trainer.evaluate(model, &shards[machine - 1]).unwrap_or(not_finite),
            None => Metrics { accuracy: 0.0, loss: squares(), num_examples: 1 },
        }
    }

    fn examples(&self, machine: Machine) -> u64 {
        10 * machine as u64
    }

    fn encodes(&self, machine: Machine) -> bool {
        machine.is_multiple_of(2)
    }

    /// Whatever happened, what the native trainer has learned is still in the model.
    fn learned(&mut self, version: ModelVersion, model: &[f32]) -> Checked {
        // What pods learn is compared bit by bit.
        if self.task != Task::Native || self.in_pods || version.0 < VERSIONS_TO_LEARN {
            return Ok(());
        }
        let initial = self.initial();
        let mut loss = |model: &[f32]| {
            (1..=self.agents).map(|machine| self.judge(machine, model).loss).sum::<f64>() / self.agents as f64
        };
        let (before, after) = (loss(&initial), loss(model));
        ensure(after < 0.5 * before, "learning", || {
            format!("version {version} has a loss of {after}, version 0 {before}")
        })
    }
}

/// Three clouds of points. Most of an agent's examples are of one class, as those of real sites are.
pub(super) fn shard(machine: Machine) -> Examples {
    let mut middles = SplitMix64::new(3);
    let middles: Vec<f32> = (0..CLASSES * INPUTS).map(|_| middles.next_signed_f32()).collect();
    let mut rng = SplitMix64::new(machine as u64);
    let (mut inputs, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..EXAMPLES {
        let own = u32::try_from(machine).unwrap_or(0) % CLASSES;
        let label = if rng.below(3) == 0 { u32::try_from(rng.below(u64::from(CLASSES))).unwrap_or(0) } else { own };
        labels.push(label);
        inputs.extend(
            (0..INPUTS).map(|dimension| middles[(label * INPUTS + dimension) as usize] + NOISE * rng.next_signed_f32()),
        );
    }
    Examples::new(Inputs::Floats(inputs), labels, vec![u64::from(INPUTS)]).expect("as many labels as examples")
}

fn ledger_delta(lease: &Lease, params: usize) -> Option<Vec<f32>> {
    let mut delta = vec![0.0; params];
    *delta.get_mut(usize::try_from(lease.id.0).ok()?)? = 1.0;
    Some(delta)
}

/// A step towards the agent's own point, with noise from the lease's seed.
fn quadratic_delta(machine: Machine, lease: &Lease, base: &[f32]) -> Vec<f32> {
    let mut point = SplitMix64::new(machine as u64);
    let mut noise = SplitMix64::new(lease.seed);
    let rate = lease.plan.lr_factor;
    let step = |value: &f32| 0.5 * (point.next_signed_f32() - value) + 0.05 * noise.next_signed_f32();
    base.iter().map(step).map(|step| rate * step).collect()
}
