//! The real cores in virtual time: one seed decides everything, and the same seed gives the same bytes.
//!
//! ```text
//!  schedule ── what kind of world, and which faults when: drawn from the seed, or a scenario
//!  world ───── the loop: takes the next thing from the agenda, hands it to a machine
//!    coordinator   core, engine, writer, merger, checkpointer, recovery: the product's code, without threads
//!    agent         session and ledger: the product's code; a trainer that can be checked
//!    network, disk, time     simulated
//!    pods        members compute with the product's code; what goes between them is simulated
//!    setting       what the race makes otherwise: configuration, learner, overhead
//!  invariants/journal ── checked at every record, every message that matters, every recovery
//! ```
//! docs/simulation.md says what is real, what is not, and what determinism rests on.

mod agent;
mod coordinator;
pub mod disk;
mod draw;
mod faults;
mod learner;
mod network;
mod pods;
pub mod scenario;
pub mod schedule;
pub mod search;
mod setting;
pub mod shrink;
mod spec;
pub mod swarm;
pub mod time;
mod trace;
mod world;

use std::any::Any;
use std::collections::BTreeMap;

use anabranch_common::ids::Digest;

use crate::invariants::journal::Violation;
use crate::picture::Timeline;

use schedule::Schedule;

pub use draw::draw;
pub use pods::draw::draw as draw_pods;

pub(crate) use coordinator::DECODERS;
pub(crate) use setting::{Computed, Devices, Emulated, Learner, Overhead, Setting, Stopped};
pub(crate) use world::{Traffic, World, agent_id};

/// What became of a world.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// The first promise that was broken, and when.
    pub violation: Option<(u64, Violation)>,
    /// What became of the search, if it was a world with one.
    pub searched: Option<search::Searched>,
    /// Updates that agents heard to be accepted.
    pub acknowledged: u64,
    /// Those of them that the journal does not have.
    pub lost: u64,
    /// Updates that are in the model more than once.
    pub duplicated: u64,
    /// Local rounds that each agent began, in the order of the schedule.
    pub rounds: Vec<u64>,
    /// Versions made.
    pub versions: u64,
    /// The digest of each version of the branch that was current at the end.
    pub models: BTreeMap<u64, Digest>,
    /// Rounds that pods computed and that were compared with what their owners compute alone, and those of them that took more
    /// than one attempt.
    pub pod_rounds: (u64, u64),
    /// Measurements of the model, each combined from the evaluations of one version.
    pub measured: u64,
    /// Starts of the coordinator after the first.
    pub recoveries: u64,
    /// Faults that happened.
    pub faults: u64,
    /// Virtual time that passed, in milliseconds.
    pub virtual_ms: u64,
    /// Events that were handled.
    pub events: u64,
    /// Every event in words, if wanted.
    pub trace: String,
    /// The same as a picture, if wanted.
    pub timeline: Option<Timeline>,
}

/// Runs a world to its end, or to the first broken promise. A panic in it is one too.
#[must_use]
pub fn run(seed: u64, schedule: &Schedule, traced: bool) -> Outcome {
    let ran = std::panic::catch_unwind(|| World::new(seed, schedule.clone(), traced).run());
    ran.unwrap_or_else(|panic| {
        let what = panic_text(&*panic);
        Outcome { seed, violation: Some((0, Violation { invariant: "panic", what })), ..Outcome::default() }
    })
}

/// Returns what a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "something panicked".into())
}

/// From here on a panic is the outcome of its world and prints nothing: where it was is shown when the world is replayed.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}
