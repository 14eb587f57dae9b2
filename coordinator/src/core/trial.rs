//! A run that is a trial of a search (docs/adr/0037-search.md): how far it may go, and which version of it is measured.
//!
//! ```text
//!  Limit(Until(n)) ─► leases ─► n contributions, none of which waits for a close ─► Reached{version}
//!  Copy{rung, model} ─► no agent is connected: Imported, unless the rung was copied ► Copied{rung}
//!  Measure{version} ─► a round of evaluation of exactly that version ─────────────► Measured{version, accuracy, loss}
//!  no agent gets an update out of a round, or that version's figures are not finite ► Stuck
//!  the run ends by itself, or an operator ends it ────────────────────────────────► Finished{reason}
//! ```
//! Nothing but the copy is journalled: the search repeats its orders after a restart. What is told rests on durable records.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, Digest, LeaseId, ModelVersion};
use anabranch_common::journal::{Aggregate, FinishReason, LeaseEnd, RecordBody};
use anabranch_common::limits;
use anabranch_common::wire::message::{AgentHello, NOT_FINITE, RunPhase};

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
    /// It gets no further, and trying again does not help.
    Stuck(Stuck),
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

/// Why a trial gets no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// Every agent that is connected and trains has given back `limits::TRIAL_ATTEMPTS` leases in a row.
    NoUpdates,
    /// Every evaluator that is connected has said that the figures of this version are not finite.
    NotFinite {
        /// The version that is to be measured.
        version: ModelVersion,
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
    /// Leases that each agent has given back since its latest update, or since the limit was set.
    leases_returned: BTreeMap<AgentId, u32>,
    /// Evaluators to whom the figures of the version that is to be measured are not finite.
    not_finite_to: BTreeSet<AgentId>,
    /// Whether it was told that the trial gets no further.
    told_stuck: bool,
}

impl Trial {
    /// Whether a version is to be measured: no other round of evaluation is due before.
    pub(super) fn is_measuring(&self) -> bool {
        self.measure.is_some()
    }

    /// An update of an agent was accepted.
    pub(super) fn contributed(&mut self, agent: AgentId) {
        self.leases_returned.remove(&agent);
    }

    /// Says once more what is so: nobody may have listened, or it may have been lost.
    fn tell_again(&mut self) {
        (self.told_reached, self.told_stuck, self.told_end) = (false, false, false);
    }

    /// Begins to count attempts that come to nothing.
    fn count_anew(&mut self) {
        self.leases_returned.clear();
        self.not_finite_to.clear();
        self.told_stuck = false;
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
            TrialOrder::Limit(limit) if limit == self.trial.limit => self.trial.tell_again(),
            TrialOrder::Limit(limit) => {
                let before = self.lease_phase();
                self.trial.limit = limit;
                self.trial.tell_again();
                self.trial.count_anew();
                let state = self.lease_phase();
                if before != state && self.state.is_some() {
                    self.tell_everyone(state);
                }
            }
            TrialOrder::Measure { version, digest } => {
                self.trial.measure = Some(Measure { version, digest, look_at_ms: 0 });
                self.trial.count_anew();
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
        self.pace_stuck();
    }

    /// An agent gives a lease back by itself: what it has computed is no update, or it stops.
    pub(super) fn lease_given_back(&mut self, agent: AgentId, lease: LeaseId, why: LeaseEnd) {
        if self.lease_of(agent) == Some(lease) && self.trial.limit != LeaseLimit::None {
            let returned = self.trial.leases_returned.entry(agent).or_default();
            *returned = returned.saturating_add(1);
        }
        self.lease_returned(agent, lease, why);
    }

    /// An agent says that it cannot evaluate a version. Only figures that are not finite say something of the version: another
    /// attempt gives the same.
    pub(super) fn evaluation_declined(&mut self, agent: AgentId, version: ModelVersion, reason: &str) {
        let is_measured = self.trial.measure.is_some_and(|measure| measure.version == version);
        if is_measured && reason.starts_with(NOT_FINITE) {
            self.trial.not_finite_to.insert(agent);
        }
        self.evaluation_failed(agent, version, reason);
    }

    fn pace_stuck(&mut self) {
        let Trial { measure, leases_returned, not_finite_to, .. } = &self.trial;
        let stuck = match measure {
            Some(_) if not_finite_to.is_empty() => None,
            Some(Measure { version, .. }) => {
                let all = self.is_so_of_all(|hello| hello.eval_examples, |agent| not_finite_to.contains(&agent));
                all.then_some(Stuck::NotFinite { version: *version })
            }
            None if self.is_held() || leases_returned.is_empty() => None,
            None => {
                let returned = |agent| leases_returned.get(&agent).copied().unwrap_or(0);
                let has_tried = |agent| returned(agent) >= limits::TRIAL_ATTEMPTS;
                self.is_so_of_all(|hello| hello.train_examples, has_tried).then_some(Stuck::NoUpdates)
            }
        };
        if let Some(stuck) = stuck
            && !std::mem::replace(&mut self.trial.told_stuck, true)
        {
            self.gated(Command::Trial(TrialNews::Stuck(stuck)));
        }
    }

    /// Whether something is so of every connected agent with examples of this kind, and of at least one.
    fn is_so_of_all(&self, examples: impl Fn(&AgentHello) -> u64, is_so: impl Fn(AgentId) -> bool) -> bool {
        let hello = |agent| self.peers.live(agent).and_then(|live| live.hello.as_ref());
        let holds = |agent: &AgentId| hello(*agent).is_some_and(|hello| examples(hello) > 0);
        let mut connected = self.peers.all().map(|(_, agent)| agent).filter(holds).peekable();
        connected.peek().is_some() && connected.all(is_so)
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
