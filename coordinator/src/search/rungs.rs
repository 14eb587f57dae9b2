//! Who is promoted: asynchronous successive halving (Li et al. 2018, arXiv 1810.05934, algorithm 2).
//!
//! A free place goes to the highest rung with a trial among the best `1/eta` of those that came there and not promoted
//! yet, else to a new trial. The paper's search never ends. This one has a number of trials: when all of them wait, the
//! best one of the highest rung that is not promoted yet goes on, until an open trial was measured at the last rung.
//!
//! A search with one rung (`random`, `grid`) promotes nobody.

use std::collections::BTreeSet;

use super::record::TrialId;
use super::spec::{Method, SearchSpec};
use super::state::SearchState;

/// What a search does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Makes the trial with this number.
    New(TrialId),
    /// Lets a trial run on to a rung.
    Promote(TrialId, u32),
    /// Lets a trial continue from a copy of another one, both compared at a rung.
    Exploit {
        /// The trial.
        trial: TrialId,
        /// The rung.
        rung: u32,
        /// The trial to be copied.
        from: TrialId,
    },
    /// Ends the search.
    Finish(Option<TrialId>),
}

/// How trials compare at every rung, kept as records come.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rungs {
    maximised: bool,
    eta: usize,
    rungs: Vec<Rung>,
}

/// One rung.
#[derive(Debug, Clone, Default, PartialEq)]
struct Rung {
    /// Trials that were measured here, or closed on their way here.
    came: usize,
    /// Those measured here, best first, without those that were closed while they waited here.
    ranked: BTreeSet<(Merit, TrialId)>,
    promoted: BTreeSet<TrialId>,
}

/// A metric in an order in which less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merit(u64);

impl Merit {
    /// Orders finite numbers by their bits, as `f64::total_cmp` does; 0 and -0 are equal.
    fn of(metric: f64, maximised: bool) -> Self {
        let bits = (metric + 0.0).to_bits();
        let ascending = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
        Self(if maximised { !ascending } else { ascending })
    }
}

impl Rungs {
    pub(super) fn new(spec: &SearchSpec) -> Self {
        Self {
            maximised: spec.metric.is_maximised(),
            eta: usize::try_from(spec.eta).unwrap_or(usize::MAX).max(1),
            rungs: vec![Rung::default(); spec.rungs.len()],
        }
    }

    fn rung(&mut self, rung: u32) -> Option<&mut Rung> {
        usize::try_from(rung).ok().and_then(|rung| self.rungs.get_mut(rung))
    }

    pub(super) fn measured(&mut self, rung: u32, trial: TrialId, metric: f64) {
        let merit = Merit::of(metric, self.maximised);
        if let Some(rung) = self.rung(rung) {
            rung.came += 1;
            rung.ranked.insert((merit, trial));
        }
    }

    pub(super) fn promoted(&mut self, rung: u32, trial: TrialId) {
        if let Some(rung) = self.rung(rung) {
            rung.promoted.insert(trial);
        }
    }

    /// Counts a trial that was closed at a rung, or on its way there, as the worst one there.
    pub(super) fn closed(&mut self, rung: u32, trial: TrialId, waited: bool) {
        let Some(rung) = self.rung(rung) else { return };
        match waited {
            true => rung.ranked.retain(|(_, ranked)| *ranked != trial),
            false => rung.came += 1,
        }
    }

    /// The best trial at the highest rung below the last one that is due there: among the best `1/eta`, or, `at_the_end`,
    /// among all. Returns it with the rung that it runs to.
    fn promotable(&self, at_the_end: bool) -> Option<(TrialId, u32)> {
        let below_last = self.rungs.split_last().map_or(&[][..], |(_, below)| below);
        below_last.iter().enumerate().rev().find_map(|(index, rung)| {
            let due = if at_the_end { rung.ranked.len() } else { rung.came / self.eta };
            let mut due = rung.ranked.iter().take(due).map(|(_, trial)| *trial);
            let trial = due.find(|trial| !rung.promoted.contains(trial))?;
            Some((trial, u32::try_from(index).ok()?.checked_add(1)?))
        })
    }

    /// The best trial of the last rung.
    fn first_at_last(&self) -> Option<TrialId> {
        self.rungs.last().and_then(|rung| rung.ranked.first()).map(|(_, trial)| *trial)
    }

    /// The trials that were measured at a rung and not closed there, best first.
    pub(super) fn ranked(&self, rung: u32) -> Vec<TrialId> {
        let rung = usize::try_from(rung).ok().and_then(|rung| self.rungs.get(rung));
        rung.map(|rung| rung.ranked.iter().map(|(_, trial)| *trial).collect()).unwrap_or_default()
    }

    /// Whether a trial has gone on from a rung.
    pub(super) fn has_promoted(&self, rung: u32) -> bool {
        let rung = usize::try_from(rung).ok().and_then(|rung| self.rungs.get(rung));
        rung.is_some_and(|rung| !rung.promoted.is_empty())
    }
}

/// Returns what a search of any method does next; `None` where it waits for its trials.
pub(super) fn decide(state: &SearchState) -> Option<Decision> {
    let spec = &state.plan.spec;
    let active = state.active();
    let has_place = usize::try_from(spec.parallel).is_ok_and(|parallel| active < parallel);
    if state.outcome.is_some() || !has_place {
        return None;
    }
    if spec.method == Method::Pbt {
        return super::population::decide(state);
    }
    if let Some((trial, rung)) = state.rungs.promotable(false) {
        return Some(Decision::Promote(trial, rung));
    }
    if let Some(trial) = state.next_trial() {
        return Some(Decision::New(trial));
    }
    if active > 0 {
        return None;
    }
    match (state.rungs.first_at_last(), state.rungs.promotable(true)) {
        (None, Some((trial, rung))) => Some(Decision::Promote(trial, rung)),
        _ => Some(Decision::Finish(state.leader())),
    }
}

impl SearchState {
    /// The number of the next trial, if another one may be made.
    pub(super) fn next_trial(&self) -> Option<TrialId> {
        u32::try_from(self.trials.len()).ok().filter(|next| *next < self.plan.spec.trials).map(TrialId)
    }
}
