//! A failing world made smaller: fewer faults, fewer agents, a shorter run, as long as the same promise breaks.

use super::schedule::{Machine, Schedule};
use super::{Outcome, run};

/// A smaller world that breaks the same promise.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// The world.
    pub schedule: Schedule,
    /// What became of it.
    pub outcome: Outcome,
    /// Worlds that were tried.
    pub tried: u64,
}

/// Reduces a failing world. `None` when it does not fail at all.
#[must_use]
pub fn shrink(seed: u64, schedule: &Schedule) -> Option<Shrunk> {
    let outcome = run(seed, schedule, false);
    outcome.violation.as_ref()?;
    let mut found = Shrunk { schedule: schedule.clone(), outcome, tried: 1 };
    loop {
        let before = found.schedule.clone();
        drop_faults(seed, &mut found);
        drop_agents(seed, &mut found);
        shorten(seed, &mut found);
        if found.schedule == before {
            return Some(found);
        }
    }
}

/// Takes a candidate if it breaks the same promise.
fn try_smaller(seed: u64, found: &mut Shrunk, candidate: Schedule) -> bool {
    found.tried += 1;
    let outcome = run(seed, &candidate, false);
    let name = |outcome: &Outcome| outcome.violation.as_ref().map(|(_, violation)| violation.invariant);
    let same = name(&outcome) == name(&found.outcome);
    if same {
        (found.schedule, found.outcome) = (candidate, outcome);
    }
    same
}

/// Whole kinds first, then halves, then single faults.
fn drop_faults(seed: u64, found: &mut Shrunk) {
    let kinds: std::collections::BTreeSet<_> = found.schedule.faults.iter().map(|p| p.fault.kind()).collect();
    for kind in kinds {
        let mut candidate = found.schedule.clone();
        candidate.faults.retain(|planned| planned.fault.kind() != kind);
        try_smaller(seed, found, candidate);
    }
    let mut size = found.schedule.faults.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < found.schedule.faults.len() {
            let mut candidate = found.schedule.clone();
            let to = (from + size).min(candidate.faults.len());
            candidate.faults.drain(from..to);
            if !try_smaller(seed, found, candidate) {
                from += size;
            }
        }
        size /= 2;
    }
}

/// From the last agent to the first; faults of an agent that is not there do nothing and go too.
fn drop_agents(seed: u64, found: &mut Shrunk) {
    while found.schedule.agents.len() > 1 {
        let mut candidate = found.schedule.clone();
        candidate.agents.pop();
        let left: Machine = candidate.agents.len();
        candidate.faults.retain(|planned| planned.fault.machine() <= left);
        if !try_smaller(seed, found, candidate) {
            return;
        }
    }
}

fn shorten(seed: u64, found: &mut Shrunk) {
    while found.schedule.length_ms > 1_000 {
        let mut candidate = found.schedule.clone();
        candidate.length_ms /= 2;
        let end_ms = candidate.length_ms;
        candidate.faults.retain(|planned| planned.at_ms < end_ms);
        if !try_smaller(seed, found, candidate) {
            return;
        }
    }
}
