//! A search over configurations in virtual time: the product's host, searches, runs and agents, with kills at any step.
//!
//! ```text
//!  plan ────── SEARCH.toml, run.toml, agents, kills and faults: drawn from the seed, or written by a test
//!  world ───── the loop, streams between agents and coordinator
//!    coordinator   Host with its own run, the search and the trials' runs; a simulated disk for each store
//!    jobs          what the host wants done beside its loop, each as a whole after a drawn delay
//!    agent         AgentHost with a node for each run, one device
//!  invariants/search ── checked at every record of the search, every lease of a trial, every recovery
//! ```
//! A *step* of a search is an output of the host for it, its job before and after it is carried out, and the moment after the
//! answer was taken in. A process can be killed at each of them.

mod agent;
mod coordinator;
mod draw;
mod jobs;
mod learner;
mod life;
mod peers;
mod plan;
mod work;
mod world;

use crate::invariants::journal::Violation;

use super::{Outcome, panic_text};
use world::World;

pub use draw::draw;
pub use plan::{Disturbance, Divergence, Kill, KillAt, Merge, Order, SearchAgent, SearchPlan, Trouble};

/// What became of a search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Searched {
    /// The records of its journal, without their times.
    pub decisions: Vec<String>,
    /// Steps that it took, over all processes.
    pub steps: u64,
    /// Trials that were made.
    pub trials: u64,
    /// Trials that were closed.
    pub closed: u64,
    /// The trial that has won.
    pub winner: Option<u32>,
}

/// Runs a world with a search to its end, or to the first broken promise. A panic in it is one too.
#[must_use]
pub fn run(seed: u64, plan: &SearchPlan, traced: bool) -> Outcome {
    let ran = std::panic::catch_unwind(|| World::new(seed, plan.clone(), traced).run());
    ran.unwrap_or_else(|panic| {
        let what = panic_text(&*panic);
        Outcome { seed, violation: Some((0, Violation { invariant: "panic", what })), ..Outcome::default() }
    })
}
