//! The state machine: what happened to trials goes in, what shall happen to them comes out.

use std::collections::VecDeque;

use anabranch_common::ids::{ModelVersion, Position};
use anabranch_common::limits;
use anabranch_common::now::Now;
use anabranch_common::plain::plain;

use super::draw;
use super::record::{CloseReason, Record, RecordBody, TrialId};
use super::rungs::{self, Decision};
use super::space::Overrides;
use super::spec::Metric;
use super::state::{FoldError, Outcome, Phase, SearchState, Trial};

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The process serves the search from here on: once after [`Search::start`] or [`Search::restore`].
    Begin,
    /// A trial's run has this many contributions, which make this version. Told again, it changes nothing.
    Reached {
        /// Which trial.
        trial: TrialId,
        /// Its contributions; fewer than it was to have change nothing.
        contributions: u64,
        /// The first version that all of them are part of.
        version: ModelVersion,
    },
    /// Most evaluation examples of a trial's version were evaluated.
    Measured {
        /// Which trial.
        trial: TrialId,
        /// The version. Another one than was asked for changes nothing.
        version: ModelVersion,
        /// Share of examples classified correctly, 0..1.
        accuracy: f64,
        /// Mean loss.
        loss: f64,
    },
    /// A trial's model stopped being finite, and its run ended.
    Diverged {
        /// Which trial.
        trial: TrialId,
        /// How that was seen, for people.
        reason: String,
    },
    /// A trial's run could not be made, copied or measured.
    Failed {
        /// Which trial.
        trial: TrialId,
        /// Why, for people.
        reason: String,
    },
    /// A trial's run was deleted, or ended by somebody else than the search.
    Gone {
        /// Which trial.
        trial: TrialId,
        /// How, for people.
        reason: String,
    },
    /// An operator ends the search.
    Stop,
    /// The records up to this position are durable.
    Written {
        /// The newest of them.
        position: Position,
    },
}

/// What shall happen. Each output leaves after the records that it rests on are durable, in order. After a restart outputs are
/// repeated: carrying one out a second time changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Write a record. [`Input::Written`] answers.
    Append(Record),
    /// Make a trial's run, unless it is there. It gives no leases before [`Output::Continue`].
    Make {
        /// Which trial.
        trial: TrialId,
        /// Name of the run.
        name: String,
        /// Its `run.toml`.
        config: String,
    },
    /// Replace a trial's model with a copy of another trial's, and its configuration, unless its journal says so already.
    Copy {
        /// Which trial.
        trial: TrialId,
        /// The rung that names this copy: a trial gets one there at most.
        rung: u32,
        /// The trial that is copied.
        from: TrialId,
        /// The version of that trial.
        version: ModelVersion,
        /// The trial's `run.toml` from here on.
        config: String,
    },
    /// Give leases until a trial has this many contributions, then none, and say [`Input::Reached`].
    Continue {
        /// Which trial.
        trial: TrialId,
        /// Contributions since its run began.
        until: u64,
    },
    /// Give no leases for a trial.
    Hold {
        /// Which trial.
        trial: TrialId,
    },
    /// Have a trial's version evaluated, and keep it until that is done.
    Measure {
        /// Which trial.
        trial: TrialId,
        /// The version.
        version: ModelVersion,
    },
    /// End a trial's run, unless it has ended.
    End {
        /// Which trial.
        trial: TrialId,
        /// Why.
        why: EndReason,
    },
    /// The search is over.
    Finished(Outcome),
}

/// Why a search ends a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// It was closed: it diverged or failed.
    Closed,
    /// Another trial has won.
    Lost,
    /// It has won: its last version is the search's result.
    Won,
}

/// One search.
#[derive(Debug)]
pub struct Search {
    state: SearchState,
    /// Record 0, until it is appended.
    unwritten: Option<Record>,
    durable: Option<Position>,
    waiting: VecDeque<(Position, Output)>,
    out: Vec<Output>,
}

impl Search {
    /// Starts a search: `path` and `search` are `SEARCH.toml`, `base` is [`Base::text`](super::base::Base::text).
    ///
    /// # Errors
    /// A text is refused.
    pub fn start(now: Now, path: String, search: String, base: String) -> Result<Self, FoldError> {
        let body = RecordBody::Started { path, search, base };
        let record = Record { position: Position(0), at_ms: now.unix_ms, body };
        let state = SearchState::begin(&record)?;
        Ok(Self { state, unwritten: Some(record), durable: None, waiting: VecDeque::new(), out: Vec::new() })
    }

    /// Continues a search from its whole journal, which is durable.
    ///
    /// # Errors
    /// The records are not those of a search.
    pub fn restore(records: &[Record]) -> Result<Self, FoldError> {
        let state = SearchState::fold(records)?;
        let durable = records.last().map(|record| record.position);
        Ok(Self { state, unwritten: None, durable, waiting: VecDeque::new(), out: Vec::new() })
    }

    /// The fold over the records so far, those included that are not durable yet.
    #[must_use]
    pub fn state(&self) -> &SearchState {
        &self.state
    }

    /// Takes one input and returns what shall happen, in order.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Begin => self.begin(now),
            Input::Written { position } => self.durable = self.durable.max(Some(position)),
            _ if self.state.outcome.is_some() => {}
            Input::Reached { trial, contributions, version } => self.reached(now, trial, contributions, version),
            Input::Measured { trial, version, accuracy, loss } => {
                let metric = match self.state.plan.spec.metric {
                    Metric::Accuracy => accuracy,
                    Metric::Loss => loss,
                };
                self.measured(now, trial, version, metric);
            }
            Input::Diverged { trial, reason } => self.close(now, trial, CloseReason::Diverged, &reason),
            Input::Failed { trial, reason } => self.close(now, trial, CloseReason::Failed, &reason),
            Input::Gone { trial, reason } => self.close(now, trial, CloseReason::Gone, &reason),
            Input::Stop => self.finish(now, Outcome { winner: self.state.leader(), stopped: true }),
        }
        self.release();
        std::mem::take(&mut self.out)
    }

    fn release(&mut self) {
        while let Some((_, output)) = self.waiting.pop_front_if(|(needs, _)| Some(*needs) <= self.durable) {
            self.out.push(output);
        }
    }

    /// Appends a record that the state allows.
    fn append(&mut self, now: Now, body: RecordBody) {
        let record = Record { position: self.state.next, at_ms: now.unix_ms, body };
        self.state.apply(&record).expect("the search decides what its state allows");
        self.out.push(Output::Append(record));
    }

    /// Lets an output out once every record so far is durable.
    fn after_records(&mut self, output: Output) {
        self.waiting.push_back((Position(self.state.next.0.saturating_sub(1)), output));
    }

    /// Repeats what may have been lost, and decides what is due.
    fn begin(&mut self, now: Now) {
        if let Some(record) = self.unwritten.take() {
            self.out.push(Output::Append(record));
        }
        if let Some(outcome) = self.state.outcome {
            return self.end_all(outcome);
        }
        let trials: Vec<TrialId> = self.state.trials.iter().map(|trial| trial.id).collect();
        trials.into_iter().for_each(|trial| self.repeat(now, trial));
        self.decide(now);
    }

    /// Repeats the outputs for one trial.
    fn repeat(&mut self, now: Now, id: TrialId) {
        let Some(trial) = self.state.trial(id).ok().cloned() else { return };
        if matches!(trial.phase, Phase::Running | Phase::Waiting) {
            self.copy(&trial);
        }
        match trial.phase {
            Phase::Running if trial.measured.is_empty() => self.make(now, id),
            Phase::Running => self.run(&trial),
            Phase::Measuring { version } => self.measure(id, version),
            Phase::Waiting => self.after_records(Output::Hold { trial: id }),
            Phase::Closed { why: CloseReason::Diverged | CloseReason::Failed, .. } => {
                self.after_records(Output::End { trial: id, why: EndReason::Closed });
            }
            Phase::Closed { .. } => {}
        }
    }

    fn reached(&mut self, now: Now, id: TrialId, contributions: u64, version: ModelVersion) {
        let Ok(trial) = self.state.trial(id) else { return };
        let rung = trial.rung;
        if trial.phase != Phase::Running || contributions < self.state.plan.spec.contributions(rung) {
            return;
        }
        self.append(now, RecordBody::Reached { trial: id, rung, contributions, version });
        self.measure(id, version);
    }

    fn measure(&mut self, trial: TrialId, version: ModelVersion) {
        self.after_records(Output::Hold { trial });
        self.after_records(Output::Measure { trial, version });
    }

    fn measured(&mut self, now: Now, id: TrialId, version: ModelVersion, metric: f64) {
        let Ok(trial) = self.state.trial(id) else { return };
        let rung = trial.rung;
        if trial.phase != (Phase::Measuring { version }) {
            return;
        }
        if !metric.is_finite() {
            let name = self.state.plan.spec.metric.as_str();
            let reason = format!("version {version} was measured with {name} {metric}");
            return self.close(now, id, CloseReason::Diverged, &reason);
        }
        self.append(now, RecordBody::Measured { trial: id, rung, version, metric: metric + 0.0 });
        self.decide(now);
    }

    fn close(&mut self, now: Now, id: TrialId, why: CloseReason, reason: &str) {
        if self.state.trial(id).is_ok_and(Trial::is_open) {
            let reason = plain(reason, limits::SEARCH_REASON_BYTES);
            self.append(now, RecordBody::Closed { trial: id, why, reason });
            if matches!(why, CloseReason::Diverged | CloseReason::Failed) {
                self.after_records(Output::End { trial: id, why: EndReason::Closed });
            }
            self.decide(now);
        }
    }

    /// Decides until a decision waits for a trial. Each one makes the number of trials, promotions or copies larger, so
    /// it ends.
    fn decide(&mut self, now: Now) {
        while let Some(decision) = rungs::decide(&self.state) {
            match decision {
                Decision::New(id) => {
                    let overrides = draw::first(&self.state.plan.spec, id);
                    self.append(now, RecordBody::Trial { trial: id, overrides });
                    self.make(now, id);
                }
                Decision::Promote(id, rung) => {
                    self.append(now, RecordBody::Promoted { trial: id, rung });
                    let trial = self.state.trial(id).ok().cloned();
                    trial.iter().for_each(|trial| self.run(trial));
                }
                Decision::Exploit { trial, rung, from } => self.exploit(now, trial, rung, from),
                Decision::Finish(winner) => self.finish(now, Outcome { winner, stopped: false }),
            }
        }
    }

    /// Makes the run of a new trial and lets it go, or closes a trial that is impossible.
    fn make(&mut self, now: Now, id: TrialId) {
        let Some(trial) = self.state.trial(id).ok().cloned() else { return };
        match self.config(id, &trial.overrides) {
            Ok(config) => {
                let name = self.run_name(id);
                self.after_records(Output::Make { trial: id, name, config });
                self.run(&trial);
            }
            Err(problem) => {
                let reason = plain(&problem, limits::SEARCH_REASON_BYTES);
                self.append(now, RecordBody::Closed { trial: id, why: CloseReason::Impossible, reason });
            }
        }
    }

    fn run(&mut self, trial: &Trial) {
        let until = self.state.plan.spec.contributions(trial.rung);
        self.after_records(Output::Continue { trial: trial.id, until });
    }

    fn exploit(&mut self, now: Now, trial: TrialId, rung: u32, from: TrialId) {
        let origin = self.state.trial(from).expect("a trial is copied that was ranked");
        let measured = origin.measured.iter().find(|measurement| measurement.rung == rung);
        let version = measured.expect("a trial is copied that was ranked").version;
        let perturbed = draw::perturbed(&self.state.plan.spec, trial, rung, &origin.overrides);
        // What the origin runs with is possible.
        let overrides = if self.config(trial, &perturbed).is_ok() { perturbed } else { origin.overrides.clone() };
        self.append(now, RecordBody::Exploited { trial, rung, from, version, overrides });
        if let Some(trial) = self.state.trial(trial).ok().cloned() {
            self.copy(&trial);
        }
    }

    /// Copies what a trial that has not come to its next rung since continues from.
    fn copy(&mut self, trial: &Trial) {
        let newest = trial.newest().map(|newest| newest.rung);
        let Some(copy) = trial.copies.last().copied().filter(|copy| Some(copy.rung) == newest) else { return };
        if let Ok(config) = self.config(trial.id, &trial.overrides) {
            let (trial, from, version) = (trial.id, copy.from, copy.version);
            self.after_records(Output::Copy { trial, rung: copy.rung, from, version, config });
        }
    }

    fn finish(&mut self, now: Now, outcome: Outcome) {
        let Outcome { winner, stopped } = outcome;
        self.append(now, RecordBody::Finished { winner, stopped });
        self.end_all(outcome);
    }

    fn end_all(&mut self, outcome: Outcome) {
        let ends: Vec<(TrialId, EndReason)> = self
            .state
            .trials
            .iter()
            .filter_map(|trial| match trial.phase {
                Phase::Closed { why: CloseReason::Impossible | CloseReason::Gone, .. } => None,
                Phase::Closed { .. } => Some((trial.id, EndReason::Closed)),
                _ if outcome.winner == Some(trial.id) => Some((trial.id, EndReason::Won)),
                _ => Some((trial.id, EndReason::Lost)),
            })
            .collect();
        for (trial, why) in ends {
            self.after_records(Output::End { trial, why });
        }
        self.after_records(Output::Finished(outcome));
    }

    fn run_name(&self, trial: TrialId) -> String {
        run_name(&self.state.plan.spec.name, trial)
    }

    fn config(&self, trial: TrialId, overrides: &Overrides) -> Result<String, String> {
        self.state.plan.base.trial(&self.run_name(trial), overrides)
    }
}

/// Returns the name of a trial's run.
#[must_use]
pub fn run_name(search: &str, trial: TrialId) -> String {
    format!("{search}-{trial}")
}
