//! The state of a search: the fold over its records.

use std::path::Path;
use std::sync::Arc;

use anabranch_common::ids::{ModelVersion, Position};

use super::base::Base;
use super::record::{CloseReason, Record, RecordBody, TrialId};
use super::rungs::Rungs;
use super::space::Overrides;
use super::spec::SearchSpec;

/// What a search was started with.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// `SEARCH.toml`.
    pub spec: SearchSpec,
    /// The configuration that trials vary.
    pub base: Base,
}

/// The state of a search that has begun.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchState {
    /// What it was started with.
    pub plan: Arc<Plan>,
    /// Unix time in milliseconds of its first record.
    pub started_at_ms: u64,
    /// Unix time in milliseconds of its newest record.
    pub changed_at_ms: u64,
    /// Its trials by number.
    pub trials: Vec<Trial>,
    /// Position of the next record.
    pub next: Position,
    /// How it ended, if it has.
    pub outcome: Option<Outcome>,
    pub(super) rungs: Rungs,
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The best trial, if any was measured and not closed.
    pub winner: Option<TrialId>,
    /// Whether an operator ended it.
    pub stopped: bool,
}

/// One trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Its number.
    pub id: TrialId,
    /// What it changes in the base now.
    pub overrides: Overrides,
    /// What it does.
    pub phase: Phase,
    /// The rung that it runs to, is measured at or waits at; that of the end, once it is closed.
    pub rung: u32,
    /// Contributions that are known of: those at the newest rung that it has reached.
    pub contributions: u64,
    /// What was measured, rung by rung.
    pub measured: Vec<Measurement>,
    /// Copies of other trials that it continued from, oldest first.
    pub copies: Vec<Copied>,
}

/// What a trial does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It runs to its rung.
    Running,
    /// It has reached its rung and is measured there.
    Measuring {
        /// The version to be measured.
        version: ModelVersion,
    },
    /// It was measured and waits, for a promotion or for the end.
    Waiting,
    /// It is over.
    Closed {
        /// Why.
        why: CloseReason,
        /// The same for people.
        reason: String,
    },
}

/// What was measured at a rung.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// The rung.
    pub rung: u32,
    /// Contributions of the trial at that moment.
    pub contributions: u64,
    /// The version.
    pub version: ModelVersion,
    /// Accuracy or loss.
    pub metric: f64,
}

/// A copy that a trial continued from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// The rung at which both were compared.
    pub rung: u32,
    /// The trial that was copied.
    pub from: TrialId,
    /// Its version.
    pub version: ModelVersion,
}

/// Why records are not those of a search.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {position} of the search's journal: {problem}")]
pub struct FoldError {
    /// Which record.
    pub position: Position,
    /// What is wrong with it.
    pub problem: String,
}

impl Trial {
    /// Whether it takes one of the search's places.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Measuring { .. })
    }

    /// Whether it is not closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Closed { .. })
    }

    /// What was measured last.
    #[must_use]
    pub fn newest(&self) -> Option<&Measurement> {
        self.measured.last()
    }
}

impl SearchState {
    /// Reads record 0.
    ///
    /// # Errors
    /// It is another kind of record, or its texts are refused by this program.
    pub fn begin(record: &Record) -> Result<Self, FoldError> {
        let wrong = |problem: String| FoldError { position: record.position, problem };
        let RecordBody::Started { path, search, base } = &record.body else {
            return Err(wrong("expected the start of a search".to_owned()));
        };
        let spec = SearchSpec::parse(Path::new(path), search).map_err(|error| wrong(error.to_string()))?;
        let base = Base::parse(Path::new("run.toml"), base).map_err(|error| wrong(error.to_string()))?;
        let rungs = Rungs::new(&spec);
        Ok(Self {
            plan: Arc::new(Plan { spec, base }),
            started_at_ms: record.at_ms,
            changed_at_ms: record.at_ms,
            trials: Vec::new(),
            next: record.position.next(),
            outcome: None,
            rungs,
        })
    }

    /// Reads the records of a whole journal.
    ///
    /// # Errors
    /// As [`begin`](Self::begin) and [`apply`](Self::apply).
    pub fn fold(records: &[Record]) -> Result<Self, FoldError> {
        let empty = || FoldError { position: Position(0), problem: "is missing".to_owned() };
        let (first, rest) = records.split_first().ok_or_else(empty)?;
        let mut state = Self::begin(first)?;
        rest.iter().try_for_each(|record| state.apply(record))?;
        Ok(state)
    }

    /// Applies the next record.
    ///
    /// # Errors
    /// The record does not follow from those before it. The state is then as it was.
    pub fn apply(&mut self, record: &Record) -> Result<(), FoldError> {
        let wrong = |problem: &str| FoldError { position: record.position, problem: problem.to_owned() };
        if record.position != self.next {
            return Err(wrong("does not follow the one before"));
        }
        if self.outcome.is_some() {
            return Err(wrong("follows the end of the search"));
        }
        self.change(&record.body).map_err(wrong)?;
        self.next = record.position.next();
        self.changed_at_ms = record.at_ms;
        Ok(())
    }

    /// Validates a record, then applies it.
    fn change(&mut self, body: &RecordBody) -> Result<(), &'static str> {
        match body {
            RecordBody::Started { .. } => return Err("starts the search a second time"),
            RecordBody::Trial { trial, overrides } => {
                let is_next = usize::try_from(trial.0).is_ok_and(|number| number == self.trials.len());
                if !is_next || trial.0 >= self.plan.spec.trials {
                    return Err("makes a trial whose number is not the next one");
                }
                self.trials.push(Trial {
                    id: *trial,
                    overrides: overrides.clone(),
                    phase: Phase::Running,
                    rung: 0,
                    contributions: 0,
                    measured: Vec::new(),
                    copies: Vec::new(),
                });
            }
            RecordBody::Reached { trial, rung, contributions, version } => {
                let trial = self.trial_at(*trial, *rung, |phase| *phase == Phase::Running)?;
                trial.phase = Phase::Measuring { version: *version };
                trial.contributions = *contributions;
            }
            RecordBody::Measured { trial, rung, version, metric } => {
                if !metric.is_finite() {
                    return Err("measures a number that is not finite");
                }
                let measured = Phase::Measuring { version: *version };
                let of = self.trial_at(*trial, *rung, |phase| *phase == measured)?;
                of.phase = Phase::Waiting;
                let contributions = of.contributions;
                of.measured.push(Measurement { rung: *rung, contributions, version: *version, metric: *metric });
                self.rungs.measured(*rung, *trial, *metric);
            }
            RecordBody::Promoted { trial, rung } => {
                let before = rung.checked_sub(1).ok_or("promotes a trial to the first rung")?;
                if *rung > self.plan.spec.last_rung() {
                    return Err("promotes a trial beyond the last rung");
                }
                let promoted = self.trial_at(*trial, before, |phase| *phase == Phase::Waiting)?;
                promoted.phase = Phase::Running;
                promoted.rung = *rung;
                self.rungs.promoted(before, *trial);
            }
            RecordBody::Exploited { trial, rung, from, version, overrides } => {
                let at_rung = |origin: &Measurement| origin.rung == *rung && origin.version == *version;
                let origin = usize::try_from(from.0).ok().and_then(|number| self.trials.get(number));
                if from == trial || !origin.is_some_and(|origin| origin.measured.iter().any(at_rung)) {
                    return Err("copies a version that was not measured");
                }
                let copy = self.trial_at(*trial, *rung, |phase| *phase == Phase::Waiting)?;
                copy.overrides.clone_from(overrides);
                copy.copies.push(Copied { rung: *rung, from: *from, version: *version });
            }
            RecordBody::Closed { trial, why, reason } => {
                let rung = self.trial(*trial)?.rung;
                let closed = self.trial_at(*trial, rung, |phase| !matches!(phase, Phase::Closed { .. }))?;
                let waited = closed.phase == Phase::Waiting;
                closed.phase = Phase::Closed { why: *why, reason: reason.clone() };
                self.rungs.closed(rung, *trial, waited);
            }
            RecordBody::Finished { winner, stopped } => {
                if let Some(winner) = winner {
                    self.trial(*winner)?;
                }
                self.outcome = Some(Outcome { winner: *winner, stopped: *stopped });
            }
        }
        Ok(())
    }

    /// Returns a trial by its number.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn trial(&self, trial: TrialId) -> Result<&Trial, &'static str> {
        let index = usize::try_from(trial.0).map_err(|_| "names no trial")?;
        self.trials.get(index).ok_or("names no trial")
    }

    fn trial_at(
        &mut self,
        trial: TrialId,
        rung: u32,
        fits: impl Fn(&Phase) -> bool,
    ) -> Result<&mut Trial, &'static str> {
        let index = usize::try_from(trial.0).map_err(|_| "names no trial")?;
        let trial = self.trials.get_mut(index).ok_or("names no trial")?;
        let fits = trial.rung == rung && fits(&trial.phase);
        if fits { Ok(trial) } else { Err("does not fit what its trial does") }
    }

    /// Trials that take a place.
    #[must_use]
    pub fn active(&self) -> usize {
        self.trials.iter().filter(|trial| trial.is_active()).count()
    }

    /// Returns the best open trial at the highest rung that an open trial was measured at; of equals the lower number.
    #[must_use]
    pub fn leader(&self) -> Option<TrialId> {
        let open = self.trials.iter().filter(|trial| trial.is_open());
        let measured = open.filter_map(|trial| trial.newest().map(|newest| (trial.id, newest)));
        let maximised = self.plan.spec.metric.is_maximised();
        let best = measured.min_by(|(id, one), (other_id, other)| {
            let (first, second) = if maximised { (other, one) } else { (one, other) };
            // 0 and -0 are equal.
            let better = (first.metric + 0.0).total_cmp(&(second.metric + 0.0));
            other.rung.cmp(&one.rung).then(better).then(id.cmp(other_id))
        });
        best.map(|(id, _)| id)
    }
}
