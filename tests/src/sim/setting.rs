//! What a world is made of beside its schedule, and what the race makes otherwise.
//!
//! | | simulation | race |
//! |---|---|---|
//! | configuration of the run | follows from the schedule | `run.toml` |
//! | learner | updates that can be checked | the product's maths on real examples |
//! | overhead | drawn | none |
//! | a local round of a process that stands still | a device goes on with it | stands still too |

use std::fmt;

use anabranch_agent::node::MathsJob;
use anabranch_agent::session::event::Event;
use anabranch_common::ids::ModelVersion;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::RunSpec;
use anabranch_common::transfer::Budgets;

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
}

impl Setting {
    /// Returns the setting of a simulated world.
    pub(super) fn simulated(seed: u64, schedule: &Schedule) -> Self {
        let spec = run_spec(schedule);
        let learner = Box::new(Simulated::new(schedule, &spec));
        let (overhead, stopped) = (Overhead::Drawn, Stopped::Computes);
        Self { spec, learner, overhead, stopped, budgets: budgets(seed, schedule), overlap: true }
    }
}
