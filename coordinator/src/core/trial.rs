//! A run that is a trial of a search (docs/adr/0037-search.md): how far it may go, and which version of it is measured.
//!
//! ```text
//!  Limit(Until(n)) ─► leases ─► n contributions, none of which waits for a close ─► Reached{version}
//!  Copy{rung, model} ─► no agent is connected: Imported, unless the rung was copied ► Copied{rung}
//!  Measure{version} ─► a round of evaluation of exactly that version ─────────────► Measured{version, accuracy, loss}
//!  the run ends by itself, or an operator ends it ────────────────────────────────► Finished{reason}
//! ```
//! Nothing but the copy is journalled: the search repeats its orders after a restart. What is told rests on durable records.

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::journal::{Aggregate, FinishReason, RecordBody};
use anabranch_common::limits;
use anabranch_common::wire::message::RunPhase;

use super::Core;
use super::command::Command;

/// How far a run may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LeaseLimit {
    /// As far as its targets: it is no trial of a search that is under way.
    #[default]
    None,
    /// It gives no leases.
    Held,
    /// It gives leases while it has fewer contributions than this, or some of them wait for the close of a version.
    Until(u64),
}

/// What a search wants of a trial. A second time changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialOrder {
    /// Go so far. A limit that has been reached is told as [`TrialNews::Reached`].
    Limit(LeaseLimit),
    /// Have a version evaluated, whose content can be fetched. Told as [`TrialNews::Measured`].
    Measure {
        /// The version.
        version: ModelVersion,
        /// Digest of what users are given of it.
        digest: Digest,
    },
    /// End the run; nothing is told of that.
    End {
        /// The version that is its result; the newest one without, or where that one cannot be rebuilt any more.
        result: Option<ModelVersion>,
    },
}

/// What has become of a trial.
#[derive(Debug, Clone, PartialEq)]
pub enum TrialNews {
    /// It has the contributions of its limit.
    Reached {
        /// Contributions, at least those.
        contributions: u64,
        /// The version that has all of them.
        version: ModelVersion,
    },
    /// Most of the known evaluation examples of a version were evaluated.
    Measured {
        /// The version.
        version: ModelVersion,
        /// Share of examples classified correctly.
        accuracy: f64,
        /// Mean loss.
        loss: f64,
    },
    /// It goes on from a copy of another trial's version.
    Copied {
        /// The rung that names the copy.
        rung: u32,
    },
    /// It cannot go on from that copy.
    NotCopied {
        /// Why, for people.
        reason: String,
    },
    /// It has ended, and its search did not end it.
    Finished {
        /// Why.
        reason: FinishReason,
    },
}

/// A version that is to be measured.
#[derive(Debug, Clone, Copy)]
struct Measure {
    version: ModelVersion,
    digest: Digest,
    /// Until then too few evaluators can be asked.
    look_at_ms: u64,
}

/// What a search wants of the run at present.
#[derive(Debug, Default)]
pub(super) struct Trial {
    limit: LeaseLimit,
    /// Whether the limit was told as reached.
    told_reached: bool,
    /// Whether the end was told.
    told_end: bool,
    measure: Option<Measure>,
}

impl Trial {
    /// Whether a version is to be measured: no other round of evaluation is due before.
    pub(super) fn is_measuring(&self) -> bool {
        self.measure.is_some()
    }
}

impl Core {
    /// Whether a search keeps the run from giving leases.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let waits = |state: &super::state::RunState| state.round.contributions > 0;
        match (self.trial.limit, &self.state) {
            (LeaseLimit::None, _) | (LeaseLimit::Until(_), None) => false,
            (LeaseLimit::Held, _) => true,
            (LeaseLimit::Until(until), Some(state)) => state.totals.accepted >= until && !waits(state),
        }
    }

    /// Why the version that is to be measured is not, if nobody can.
    #[must_use]
    pub fn measure_problem(&self) -> Option<&'static str> {
        let waits = self.trial.is_measuring() && self.evaluators.is_empty();
        waits.then_some(
            "no agent with an evaluation shard takes part: start one with `anabranch-agent run --eval-shard`",
        )
    }

    pub(super) fn trial_ordered(&mut self, order: TrialOrder) {
        match order {
            TrialOrder::Limit(limit) if limit == self.trial.limit => self.trial.told_reached = false,
            TrialOrder::Limit(limit) => {
                let before = self.lease_phase();
                (self.trial.limit, self.trial.told_reached) = (limit, false);
                let state = self.lease_phase();
                if before != state && self.state.is_some() {
                    self.tell_everyone(state);
                }
            }
            TrialOrder::Measure { version, digest } => {
                self.trial.measure = Some(Measure { version, digest, look_at_ms: 0 });
                self.evaluators.cancel_unless(Some(version));
            }
            TrialOrder::End { result } => self.end_trial(result),
        }
    }

    /// Ends the run. A run without a model has nothing to end: it leaves the process.
    fn end_trial(&mut self, result: Option<ModelVersion>) {
        self.trial = Trial::default();
        let Some(state) = &self.state else { return self.park() };
        if state.finished.is_some() {
            return;
        }
        let newest = state.version;
        let oldest = self.checkpoints.oldest_rebuildable();
        let result = result.filter(|result| (oldest..=newest).contains(result)).unwrap_or(newest);
        self.append(RecordBody::Finished { reason: FinishReason::Stopped, result });
        self.evaluators.cancel_unless(None);
        self.lifecycle.end(self.now);
        self.order_checkpoint();
    }

    /// Runs after every event: tells what has become true, and opens the round that measures.
    pub(super) fn pace_trial(&mut self) {
        let Some(state) = &self.state else { return };
        if self.trial.limit == LeaseLimit::None {
            return;
        }
        if let Some((reason, _)) = state.finished {
            if !std::mem::replace(&mut self.trial.told_end, true) {
                self.trial.measure = None;
                self.gated(Command::Trial(TrialNews::Finished { reason }));
            }
            return;
        }
        let (contributions, version) = (state.totals.accepted, state.version);
        if let LeaseLimit::Until(_) = self.trial.limit
            && self.is_held()
            && !std::mem::replace(&mut self.trial.told_reached, true)
        {
            self.gated(Command::Trial(TrialNews::Reached { contributions, version }));
        }
        self.pace_measure();
    }

    fn pace_measure(&mut self) {
        let (Some(measure), Some(state)) = (self.trial.measure, &self.state) else { return };
        let Measure { version, digest, look_at_ms } = measure;
        let of_version = |(_, aggregate): &&(u64, Aggregate)| aggregate.version == version && aggregate.covers_most();
        if let Some((_, Aggregate { accuracy, loss, .. })) = state.aggregates.iter().rev().find(of_version).copied() {
            self.trial.measure = None;
            return self.gated(Command::Trial(TrialNews::Measured { version, accuracy, loss }));
        }
        let is_open = self.evaluators.round().is_some_and(|(open, _)| open == version);
        if is_open || self.now.mono_ms < look_at_ms {
            return;
        }
        if self.can_measure() {
            self.evaluators.cancel_unless(None);
            self.evaluators.open(version, digest, self.now.mono_ms);
            self.evaluators.take_changed();
            self.settle_round();
        } else if let Some(measure) = &mut self.trial.measure {
            measure.look_at_ms = self.now.mono_ms + limits::EVALUATION_LOOK_MS;
        }
    }

    /// The state of the run as agents are told that ask for leases: paused, while a search holds it.
    pub(super) fn held_phase(&self) -> RunPhase {
        match self.phase() {
            RunPhase::Running if self.is_held() => RunPhase::Paused,
            phase => phase,
        }
    }
}
