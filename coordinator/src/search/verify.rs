//! The rules of a search, a second time: a scan over its journal that keeps nothing between two records.
//!
//! It shares the vocabulary with the state machine (records, `SEARCH.toml`) and none of its decisions, on purpose: two
//! implementations that agree are hardly wrong in the same way. What was drawn is held against the space and not drawn
//! again: logarithms differ in their last bits between machines.

use std::cmp::Ordering;
use std::path::Path;

use anabranch_common::ids::{ModelVersion, Position};

use super::record::{CloseReason, Record, RecordBody, TrialId};
use super::space::Overrides;
use super::spec::{Method, SearchSpec};

/// A record that the rules do not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {position}: {problem}")]
pub struct Violation {
    /// Which record.
    pub position: Position,
    /// What the rules say instead.
    pub problem: String,
}

/// What the rules ask for after a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// A new trial.
    New(TrialId),
    /// A trial runs on to a rung.
    Promoted(TrialId, u32),
    /// A trial continues from a copy of one of these, at this rung.
    Exploited(TrialId, u32, Vec<TrialId>),
    /// The end, with the winner.
    Finished(Option<TrialId>),
}

/// Checks a whole journal. Returns what is due after it: at the end of a journal that a crash cut short, a decision may be
/// missing.
///
/// # Errors
/// The first record that the rules do not allow.
pub fn verify(records: &[Record]) -> Result<Option<Due>, Violation> {
    let violation = |index: usize, problem: String| Violation { position: Position(index as u64), problem };
    let Some(Record { body: RecordBody::Started { path, search, .. }, .. }) = records.first() else {
        return Err(violation(0, "expected the start of a search".to_owned()));
    };
    let spec = SearchSpec::parse(Path::new(path), search).map_err(|error| violation(0, error.to_string()))?;
    for (index, record) in records.iter().enumerate().skip(1) {
        if record.position != Position(index as u64) {
            return Err(violation(index, format!("says that it is record {}", record.position)));
        }
        let scan = Scan { spec: &spec, records: &records[..index] };
        scan.allows(&record.body).map_err(|problem| violation(index, problem))?;
    }
    Ok(Scan { spec: &spec, records }.due())
}

/// The records so far.
struct Scan<'a> {
    spec: &'a SearchSpec,
    records: &'a [Record],
}

impl Scan<'_> {
    fn bodies(&self) -> impl Iterator<Item = &RecordBody> {
        self.records.iter().map(|record| &record.body)
    }

    fn trials(&self) -> Vec<TrialId> {
        let made = |body: &RecordBody| matches!(body, RecordBody::Trial { .. });
        (0u32..).zip(self.bodies().filter(|body| made(body))).map(|(number, _)| TrialId(number)).collect()
    }

    /// The rung that a trial runs to, or came to last.
    fn rung(&self, trial: TrialId) -> u32 {
        let to = |body: &RecordBody| match body {
            RecordBody::Promoted { trial: of, rung } if *of == trial => Some(*rung),
            _ => None,
        };
        self.bodies().filter_map(to).last().unwrap_or(0)
    }

    fn is_closed(&self, trial: TrialId) -> bool {
        self.bodies().any(|body| matches!(body, RecordBody::Closed { trial: of, .. } if *of == trial))
    }

    fn metric(&self, trial: TrialId, rung: u32) -> Option<(ModelVersion, f64)> {
        self.bodies().find_map(|body| match body {
            RecordBody::Measured { trial: of, rung: at, version, metric } if (*of, *at) == (trial, rung) => {
                Some((*version, *metric))
            }
            _ => None,
        })
    }

    fn reached(&self, trial: TrialId, rung: u32) -> Option<ModelVersion> {
        self.bodies().find_map(|body| match body {
            RecordBody::Reached { trial: of, rung: at, version, .. } if (*of, *at) == (trial, rung) => Some(*version),
            _ => None,
        })
    }

    fn is_promoted(&self, trial: TrialId, rung: u32) -> bool {
        self.bodies().any(|body| *body == RecordBody::Promoted { trial, rung })
    }

    /// Whether a trial runs or is measured.
    fn is_active(&self, trial: TrialId) -> bool {
        !self.is_closed(trial) && self.metric(trial, self.rung(trial)).is_none()
    }

    fn compare(&self, one: f64, other: f64) -> Ordering {
        let ascending = one.partial_cmp(&other).unwrap_or(Ordering::Equal);
        if self.spec.metric.is_maximised() { ascending.reverse() } else { ascending }
    }

    /// Everybody who came to a rung, best first: measured ones by metric, then those that were closed on the way there or
    /// while they waited there. Of equals the lower number.
    fn ranking(&self, rung: u32) -> Vec<TrialId> {
        let closed_here = |trial: TrialId| self.is_closed(trial) && self.rung(trial) == rung;
        let mut entries: Vec<(Option<f64>, TrialId)> = Vec::new();
        for trial in self.trials() {
            match self.metric(trial, rung) {
                _ if closed_here(trial) => entries.push((None, trial)),
                Some((_, metric)) => entries.push((Some(metric), trial)),
                None => {}
            }
        }
        entries.sort_by(|(one, id), (other, other_id)| {
            let by_metric = match (one, other) {
                (Some(one), Some(other)) => self.compare(*one, *other),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => Ordering::Equal,
            };
            by_metric.then(id.cmp(other_id))
        });
        entries.into_iter().map(|(_, trial)| trial).collect()
    }

    /// The first of the best `share` of a rung that may go on.
    fn candidate(&self, rung: u32, share: usize) -> Option<TrialId> {
        let mut best = self.ranking(rung).into_iter().take(share);
        best.find(|trial| !self.is_closed(*trial) && !self.is_promoted(*trial, rung + 1))
    }

    fn winner(&self) -> Option<TrialId> {
        (0..=self.spec.last_rung()).rev().find_map(|rung| {
            let came: Vec<TrialId> =
                self.trials().into_iter().filter(|trial| self.metric(*trial, rung).is_some()).collect();
            self.ranking(rung).into_iter().find(|trial| came.contains(trial) && !self.is_closed(*trial))
        })
    }

    fn is_over(&self) -> bool {
        self.bodies().any(|body| matches!(body, RecordBody::Finished { .. }))
    }

    /// The decision that the rules ask for now, if any.
    fn due(&self) -> Option<Due> {
        let trials = self.trials();
        let active = trials.iter().filter(|trial| self.is_active(**trial)).count();
        if self.is_over() || active >= self.spec.parallel as usize {
            return None;
        }
        let new = (trials.len() < self.spec.trials as usize).then_some(TrialId(u32::try_from(trials.len()).ok()?));
        if self.spec.method == Method::Pbt {
            return new.map_or_else(|| self.due_in_population(&trials), |trial| Some(Due::New(trial)));
        }
        let below_last = || (0..self.spec.last_rung()).rev();
        for rung in below_last() {
            let share = self.ranking(rung).len() / self.spec.eta as usize;
            if let Some(trial) = self.candidate(rung, share) {
                return Some(Due::Promoted(trial, rung + 1));
            }
        }
        if let Some(trial) = new {
            return Some(Due::New(trial));
        }
        if active > 0 {
            return None;
        }
        let last = self.spec.last_rung();
        let is_done = trials.iter().any(|trial| !self.is_closed(*trial) && self.metric(*trial, last).is_some());
        let next = below_last().find_map(|rung| Some(Due::Promoted(self.candidate(rung, usize::MAX)?, rung + 1)));
        Some(next.filter(|_| !is_done).unwrap_or_else(|| Due::Finished(self.winner())))
    }

    fn due_in_population(&self, trials: &[TrialId]) -> Option<Due> {
        let open: Vec<TrialId> = trials.iter().copied().filter(|trial| !self.is_closed(*trial)).collect();
        if open.is_empty() {
            return Some(Due::Finished(None));
        }
        // The first rung that somebody waits at.
        let rung = open.iter().filter(|trial| !self.is_active(**trial)).map(|trial| self.rung(*trial)).min()?;
        if open.iter().any(|trial| self.metric(*trial, rung).is_none()) {
            return None;
        }
        if rung == self.spec.last_rung() {
            return Some(Due::Finished(self.winner()));
        }
        let someone_went = trials.iter().any(|trial| self.is_promoted(*trial, rung + 1));
        if !someone_went {
            let ranking: Vec<TrialId> = self.ranking(rung).into_iter().filter(|trial| open.contains(trial)).collect();
            let quarter = ranking.len() / 4;
            let copied = |trial: TrialId| {
                let is = |body: &RecordBody| matches!(body, RecordBody::Exploited { trial: of, rung: at, .. } if (*of, *at) == (trial, rung));
                self.bodies().any(is)
            };
            if let Some(trial) = ranking.iter().rev().take(quarter).find(|trial| !copied(**trial)) {
                return Some(Due::Exploited(*trial, rung, ranking[..quarter].to_vec()));
            }
        }
        let waits = |trial: &&TrialId| self.rung(**trial) == rung && !self.is_active(**trial);
        open.iter().find(waits).map(|trial| Due::Promoted(*trial, rung + 1))
    }

    /// Whether a record may follow.
    fn allows(&self, body: &RecordBody) -> Result<(), String> {
        if self.is_over() {
            return Err("follows the end of the search".to_owned());
        }
        let last = self.records.last().map(|record| &record.body);
        let due = self.due();
        let is_due = match body {
            RecordBody::Started { .. } => return Err("starts the search a second time".to_owned()),
            RecordBody::Trial { trial, overrides } => {
                self.is_within_space(overrides)?;
                due == Some(Due::New(*trial))
            }
            RecordBody::Promoted { trial, rung } => due == Some(Due::Promoted(*trial, *rung)),
            RecordBody::Exploited { trial, rung, from, version, overrides } => {
                self.is_within_space(overrides)?;
                let is_measured = self.metric(*from, *rung).is_some_and(|(measured, _)| measured == *version);
                let is_among = |of: &Due| matches!(of, Due::Exploited(due, at, best) if due == trial && at == rung && best.contains(from));
                is_measured && due.as_ref().is_some_and(is_among)
            }
            RecordBody::Finished { winner, stopped: false } => due == Some(Due::Finished(*winner)),
            RecordBody::Finished { winner, stopped: true } => due.is_none() && *winner == self.winner(),
            RecordBody::Closed { trial, why: CloseReason::Impossible, .. } => {
                matches!(last, Some(RecordBody::Trial { trial: made, .. }) if made == trial)
            }
            RecordBody::Closed { trial, .. } => {
                due.is_none() && self.trials().contains(trial) && !self.is_closed(*trial)
            }
            RecordBody::Reached { trial, rung, contributions, .. } => {
                let fits = self.is_active(*trial) && self.rung(*trial) == *rung;
                let first = self.reached(*trial, *rung).is_none();
                due.is_none() && fits && first && *contributions >= self.spec.contributions(*rung)
            }
            RecordBody::Measured { trial, rung, version, metric } => {
                let fits = self.is_active(*trial) && self.rung(*trial) == *rung;
                due.is_none() && fits && metric.is_finite() && self.reached(*trial, *rung) == Some(*version)
            }
        };
        match (is_due, due) {
            (true, _) => Ok(()),
            (false, Some(due)) => Err(format!("{body:?} where {due:?} is due")),
            (false, None) => Err(format!("{body:?} does not follow from the records before it")),
        }
    }

    /// Whether a trial's values are those of the space; in a grid, whether no trial before has the same.
    fn is_within_space(&self, overrides: &Overrides) -> Result<(), String> {
        let space = &self.spec.space.0;
        if !space.keys().eq(overrides.keys()) {
            return Err("its keys are not those of the space".to_owned());
        }
        if let Some((key, text)) = overrides.iter().find(|(key, text)| !space[*key].contains(text)) {
            return Err(format!("{key} is {text}, which is not in the space"));
        }
        let same = |body: &RecordBody| matches!(body, RecordBody::Trial { overrides: of, .. } if of == overrides);
        if self.spec.method == Method::Grid && self.bodies().any(same) {
            return Err("is the same point of the grid as a trial before it".to_owned());
        }
        Ok(())
    }
}
