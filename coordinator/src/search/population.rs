//! Population based training (Jaderberg et al. 2017, arXiv 1711.09846): trials that live side by side, and copy each other.
//!
//! All trials run to a rung, at most `parallel` at a time. When every open one was measured there, each of the bottom
//! quarter continues from a copy of a trial of the top quarter, with perturbed keys ("truncation selection", section 4.1).
//! Then all go on to the next rung.

use super::draw;
use super::record::TrialId;
use super::rungs::Decision;
use super::state::{Phase, SearchState, Trial};

/// One in so many trials is replaced, and as many are copied.
const QUARTER: usize = 4;

/// Returns what a search with a population does next. A place is free.
pub(super) fn decide(state: &SearchState) -> Option<Decision> {
    if let Some(trial) = state.next_trial() {
        return Some(Decision::New(trial));
    }
    let open = || state.trials.iter().filter(|trial| trial.is_open());
    let waiting = open().filter(|trial| trial.phase == Phase::Waiting);
    let Some(trial) = waiting.min_by_key(|trial| (trial.rung, trial.id)) else {
        // Everybody is at work, or nobody is left.
        return open().next().is_none().then_some(Decision::Finish(None));
    };
    let rung = trial.rung;
    // Those that went on are ahead: then the others may follow.
    let everyone_came = open().all(|other| other.rung > rung || other.phase == Phase::Waiting);
    if !everyone_came {
        return None;
    }
    if rung >= state.plan.spec.last_rung() {
        return Some(Decision::Finish(state.leader()));
    }
    if !state.rungs.has_promoted(rung)
        && let Some(decision) = exploit(state, rung)
    {
        return Some(decision);
    }
    Some(Decision::Promote(trial.id, rung.saturating_add(1)))
}

/// The next of the bottom quarter that has no copy yet, the worst one first.
fn exploit(state: &SearchState, rung: u32) -> Option<Decision> {
    let ranked = state.rungs.ranked(rung);
    let quarter = ranked.len() / QUARTER;
    let has_copy = |trial: &Trial| trial.copies.last().is_some_and(|copy| copy.rung == rung);
    let is_due = |id: &&TrialId| state.trial(**id).is_ok_and(|trial| !has_copy(trial));
    let trial = *ranked.iter().rev().take(quarter).find(is_due)?;
    let from = draw::origin(state.plan.spec.seed, trial, rung, &ranked[..quarter])?;
    Some(Decision::Exploit { trial, rung, from })
}
