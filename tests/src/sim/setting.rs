//! What a world is made of beside its schedule, and what the race makes otherwise.
//!
//! | | simulation | race |
//! |---|---|---|
//! | configuration of the run | follows from the schedule | `run.toml` |
//! | learner | updates that can be checked | the product's maths on real examples |
//! | overhead | drawn | none |
//! | a local round of a process that stands still | a device goes on with it | stands still too |

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anabranch_agent::node::{self, MathsJob, Start};
use anabranch_agent::session::event::{Event, Outcome};
use anabranch_agent::train::Metrics;
use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::Lease;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::{RunSpec, TrainSpec};
use anabranch_common::transfer::Budgets;
use parking_lot::Mutex;

use crate::invariants::journal::Checked;

use super::coordinator::budgets;
use super::learner::Simulated;
use super::schedule::{Machine, Schedule};
use super::spec::run_spec;

/// Carries out the jobs of the agents' maths.
pub(crate) trait Learner: fmt::Debug {
    /// Returns the tensors of the model.
    fn manifest(&self) -> &ModelManifest;

    /// A process starts on this machine. It has nothing of the process before it.
    fn started(&mut self, machine: Machine);

    /// Carries out a job of the process on this machine, and returns what it led to. The world knows how long a round takes:
    /// its `compute_ms` is not looked at.
    fn work(&mut self, machine: Machine, job: MathsJob) -> Event;

    /// Returns how many examples this machine holds.
    fn examples(&self, machine: Machine) -> u64;

    /// Whether the trainer of this machine encodes its updates itself.
    fn encodes(&self, machine: Machine) -> bool;

    /// Checks what the model of the last version has learned.
    ///
    /// # Errors
    /// Less than it must have.
    fn learned(&mut self, version: ModelVersion, model: &[f32]) -> Checked;
}

/// A local round's outcome.
#[derive(Debug)]
pub(crate) struct Computed {
    /// Difference that the round has made.
    pub(crate) delta: Arc<[f32]>,
    /// Examples that it was computed from.
    pub(crate) num_examples: u64,
    /// Steps that were done.
    pub(crate) local_steps: u32,
    /// Mean loss over these steps.
    pub(crate) train_loss: f32,
}

/// What stands in for the product's maths: it says what comes of each round and evaluation.
pub(crate) trait Emulated: fmt::Debug {
    /// Returns the tensors of the model.
    fn manifest(&self) -> &ModelManifest;

    /// Returns the model that the run begins with.
    fn initial(&mut self) -> Vec<f32>;

    /// Computes a round as `plan` has it. Nothing where there is nothing left to do, or the round fails.
    fn train(&mut self, machine: Machine, lease: &Lease, plan: &TrainSpec, start: &Start) -> Option<Computed>;

    /// Evaluates a model on what one agent holds.
    fn judge(&mut self, machine: Machine, model: &[f32]) -> Metrics;

    /// As [`Learner::examples`].
    fn examples(&self, machine: Machine) -> u64;

    /// As [`Learner::encodes`].
    fn encodes(&self, _machine: Machine) -> bool {
        false
    }

    /// As [`Learner::learned`].
    ///
    /// # Errors
    /// It has learned less than it must have.
    fn learned(&mut self, _version: ModelVersion, _model: &[f32]) -> Checked {
        Ok(())
    }
}

impl<E: Emulated> Learner for E {
    fn manifest(&self) -> &ModelManifest {
        Emulated::manifest(self)
    }

    fn started(&mut self, _machine: Machine) {}

    fn work(&mut self, machine: Machine, job: MathsJob) -> Event {
        match job {
            MathsJob::Prepare(_) => Event::Prepared { manifest: Emulated::manifest(self).clone() },
            MathsJob::Reorder(manifest) => Event::Prepared { manifest: *manifest },
            MathsJob::MakeInitial { .. } => {
                let initial = self.initial();
                node::initial_model(Emulated::manifest(self), initial.into())
            }
            MathsJob::Train { lease, spec, start, .. } => match self.train(machine, &lease, &spec.train, &start) {
                Some(Computed { delta, num_examples, local_steps, train_loss }) => Event::Trained(Box::new(Outcome {
                    lease: lease.id,
                    delta,
                    num_examples,
                    local_steps,
                    train_loss,
                    compute_ms: 0,
                    encoded: None,
                    pod: None,
                })),
                None => Event::Discarded { lease: lease.id, problem: "out of memory".into() },
            },
            MathsJob::Serve { .. } => unreachable!("pods compute on threads of their own"),
            MathsJob::Evaluate { version, content } => node::judged(version, self.judge(machine, &content)),
        }
    }

    fn examples(&self, machine: Machine) -> u64 {
        Emulated::examples(self, machine)
    }

    fn encodes(&self, machine: Machine) -> bool {
        Emulated::encodes(self, machine)
    }

    fn learned(&mut self, version: ModelVersion, model: &[f32]) -> Checked {
        Emulated::learned(self, version, model)
    }
}

/// How long jobs take beside local rounds: those of the stores, of the merger, of decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overhead {
    /// As the seed draws it.
    Drawn,
    /// No time at all.
    None,
}

impl Overhead {
    /// Returns how long a job takes that was drawn to take so long.
    pub(super) fn of(self, drawn_ms: u64) -> u64 {
        match self {
            Self::Drawn => drawn_ms,
            Self::None => 0,
        }
    }
}

/// What becomes of a local round while its process stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// A device goes on with it.
    Computes,
    /// It takes as much longer.
    StandsStill,
}

/// The devices of agents that take part in several worlds at once. Each computes one round at a time, in the order in which
/// the rounds were begun.
#[derive(Debug, Clone, Default)]
pub(crate) struct Devices {
    /// When each device is free, by machine, in milliseconds since the first world began.
    free_at_ms: Arc<Mutex<BTreeMap<Machine, u64>>>,
    /// When the world began whose agents these are.
    began_ms: u64,
}

impl Devices {
    /// Returns the same devices for a world that begins at this time.
    pub(crate) fn from(&self, began_ms: u64) -> Self {
        Self { free_at_ms: Arc::clone(&self.free_at_ms), began_ms }
    }

    /// Takes the device for so long from when it is free. Returns how long the round waits for it.
    pub(super) fn wait_ms(&self, machine: Machine, now_ms: u64, takes_ms: u64) -> u64 {
        let now_ms = self.began_ms + now_ms;
        let mut free_at_ms = self.free_at_ms.lock();
        let free = free_at_ms.entry(machine).or_default();
        let begins_ms = now_ms.max(*free);
        *free = begins_ms + takes_ms;
        begins_ms - now_ms
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The run's configuration.
    pub(crate) spec: RunSpec,
    /// Carries out the maths.
    pub(crate) learner: Box<dyn Learner>,
    /// How long everything else takes.
    pub(crate) overhead: Overhead,
    /// What becomes of rounds of processes that stand still.
    pub(crate) stopped: Stopped,
    /// What uploads may hold at the coordinator.
    pub(crate) budgets: Budgets,
    /// Whether agents prepare the next round during the current one, where that is worth it.
    pub(crate) overlap: bool,
    /// Devices that the agents share with those of other worlds, if they do.
    pub(crate) devices: Option<Devices>,
}

impl Setting {
    /// Returns the setting of a simulated world.
    pub(crate) fn simulated(seed: u64, schedule: &Schedule) -> Self {
        let spec = run_spec(schedule);
        let learner = Box::new(Simulated::new(schedule, &spec));
        let (overhead, stopped) = (Overhead::Drawn, Stopped::Computes);
        Self { spec, learner, overhead, stopped, budgets: budgets(seed, schedule), overlap: true, devices: None }
    }
}
