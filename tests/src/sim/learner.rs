//! What agents compute: two tasks whose every update can be checked, and the native trainer on data that is drawn.

use std::ops::ControlFlow;

use anabranch_agent::shard::{Examples, Inputs};
use anabranch_agent::train::{Metrics, NativeOptions, Round, Trainer, native_with};
use anabranch_common::journal::Lease;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::TrainSpec;

use super::schedule::{Machine, Schedule, Task};
use super::spec::run_spec;

/// Values of one example of the native task.
pub(super) const INPUTS: u32 = 4;
/// Classes of the native task.
pub(super) const CLASSES: u32 = 3;
/// Examples of one agent.
const EXAMPLES: usize = 60;
/// How far examples lie from the middle of their class, which is within 1 of the origin in every direction.
const NOISE: f32 = 0.3;

/// A local round's outcome.
pub(super) struct Computed {
    pub(super) delta: Vec<f32>,
    pub(super) num_examples: u64,
    pub(super) local_steps: u32,
    pub(super) train_loss: f32,
}

/// The mathematics of a world.
#[derive(Debug)]
pub(super) struct Learner {
    pub(super) manifest: ModelManifest,
    task: Task,
    native: Option<Native>,
}

/// The native trainer, and what each agent holds, that of machine 1 first.
#[derive(Debug)]
struct Native {
    trainer: Box<dyn Trainer>,
    shards: Vec<Examples>,
}

impl Learner {
    pub(super) fn new(schedule: &Schedule) -> Self {
        let task = schedule.task;
        let flat = || {
            let tensor = TensorSpec { name: "w".into(), shape: vec![u64::from(schedule.params)] };
            ModelManifest::new(vec![tensor]).expect("one tensor")
        };
        let native = (task == Task::Native).then(|| {
            let (spec, options) = (run_spec(schedule), NativeOptions { threads: Some(1), ..NativeOptions::default() });
            let trainer = native_with(&spec.model, options).expect("a small model");
            Native { trainer, shards: (1..=schedule.agents.len()).map(shard).collect() }
        });
        let manifest = native.as_ref().map_or_else(flat, |native| native.trainer.manifest().clone());
        Self { manifest, task, native }
    }

    pub(super) fn initial(&mut self) -> Vec<f32> {
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

    /// As `plan` has it. Nothing where there is nothing left to do, or the round fails.
    pub(super) fn train(
        &mut self,
        machine: Machine,
        lease: &Lease,
        plan: &TrainSpec,
        base: &[f32],
    ) -> Option<Computed> {
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
        Some(Computed { delta, num_examples: 10, local_steps: plan.local_steps, train_loss: 0.5 })
    }

    /// How good a model is in the eyes of one agent.
    pub(super) fn judge(&mut self, machine: Machine, model: &[f32]) -> Metrics {
        let squares = || model.iter().map(|value| f64::from(value * value)).sum::<f64>() / model.len().max(1) as f64;
        let not_finite = Metrics { accuracy: 0.0, loss: f64::NAN, num_examples: 1 };
        match &mut self.native {
            Some(Native { trainer, shards, .. }) => trainer.evaluate(model, &shards[machine - 1]).unwrap_or(not_finite),
            None => Metrics { accuracy: 0.0, loss: squares(), num_examples: 1 },
        }
    }
}

/// Three clouds of points. Most of an agent's examples are of one class, as those of real sites are.
fn shard(machine: Machine) -> Examples {
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
