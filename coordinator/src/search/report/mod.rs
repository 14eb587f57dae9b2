//! What a search looks like from outside: for `--json`, as a table, and as a picture.

mod answers;
mod picture;
mod table;

use std::collections::BTreeMap;

use anabranch_common::ids::ModelVersion;
use serde::{Deserialize, Serialize};

use super::machine::run_name;
use super::price::Price;
use super::record::{CloseReason, TrialId};
use super::space::parse_value;
use super::spec::{Method, Metric};
use super::state::{Phase, SearchState, Trial};

pub use answers::{SearchResult, SearchStanding, SearchStarted, SearchSummary, no_search};

/// A search as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchReport {
    /// Its name.
    pub name: String,
    /// How it chooses trials.
    pub method: Method,
    /// What trials are compared by.
    pub metric: Metric,
    /// Where it stands.
    pub state: SearchPhase,
    /// The winner; while the search goes on, the best open trial at the highest rung so far.
    pub leader: Option<TrialId>,
    /// Unix time in milliseconds at which it began.
    pub started_at_ms: u64,
    /// Unix time in milliseconds of the newest record.
    pub changed_at_ms: u64,
    /// Contributions at each rung.
    pub rungs: Vec<u64>,
    /// Trials in all, those included that are not made yet.
    pub trials_planned: u32,
    /// Trials that may be active at the same time.
    pub parallel: u32,
    /// What it costs.
    pub price: Price,
    /// Contributions so far, as known at rungs.
    pub spent: u64,
    /// Its trials by number.
    pub trials: Vec<TrialReport>,
    /// Why it gets no further, as far as the process that serves it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Where a search stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchPhase {
    /// It goes on.
    Running,
    /// It has ended by itself.
    Finished,
    /// An operator ended it.
    Stopped,
}

/// One trial as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialReport {
    /// Its number.
    pub trial: TrialId,
    /// Name of its run.
    pub run: String,
    /// What it does.
    pub state: TrialPhase,
    /// The rung that it runs to, is measured at or waits at, from 0.
    pub rung: u32,
    /// Contributions at the newest rung that it has reached.
    pub contributions: u64,
    /// What was measured, rung by rung.
    pub measured: Vec<MeasurementReport>,
    /// What it changes in the base.
    pub overrides: BTreeMap<String, serde_json::Value>,
    /// Trials that it continued from copies of, with the rung, oldest first.
    pub copies: Vec<CopyReport>,
    /// Why it was closed, if it was.
    pub closed: Option<ClosedReport>,
}

/// What a trial does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialPhase {
    /// It trains.
    Running,
    /// It is measured.
    Measuring,
    /// It waits for a promotion, or has come to the end.
    Waiting,
    /// It is over.
    Closed,
}

/// What was measured at a rung.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeasurementReport {
    /// The rung, from 0.
    pub rung: u32,
    /// Contributions of the trial at that moment.
    pub contributions: u64,
    /// The version that was measured.
    pub version: ModelVersion,
    /// Accuracy or loss.
    pub metric: f64,
}

/// A copy that a trial continued from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// The rung at which both were compared.
    pub rung: u32,
    /// The trial that was copied.
    pub from: TrialId,
}

/// Why a trial is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedReport {
    /// The kind of reason.
    pub why: CloseReason,
    /// The reason itself.
    pub reason: String,
}

impl SearchReport {
    /// Returns the report of a search.
    #[must_use]
    pub fn of(state: &SearchState) -> Self {
        let spec = &state.plan.spec;
        Self {
            name: spec.name.clone(),
            method: spec.method,
            metric: spec.metric,
            state: match state.outcome {
                None => SearchPhase::Running,
                Some(outcome) if outcome.stopped => SearchPhase::Stopped,
                Some(_) => SearchPhase::Finished,
            },
            leader: state.outcome.map_or_else(|| state.leader(), |outcome| outcome.winner),
            started_at_ms: state.started_at_ms,
            changed_at_ms: state.changed_at_ms,
            rungs: spec.rungs.clone(),
            trials_planned: spec.trials,
            parallel: spec.parallel,
            price: Price::of(spec),
            spent: state.trials.iter().fold(0, |spent, trial| trial.contributions.saturating_add(spent)),
            trials: state.trials.iter().map(|trial| TrialReport::of(&spec.name, trial)).collect(),
            problem: None,
        }
    }

    /// Returns the report as text: a head, and a line for each trial, the leader first.
    #[must_use]
    pub fn text(&self) -> String {
        table::text(self)
    }

    /// Returns the lines above the trials: a name and a value each.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        table::head(self)
    }

    /// Returns the names of the trials' columns, and a row for each trial of [`ordered`](Self::ordered).
    pub(crate) fn cells(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let (columns, rows) = table::cells(self);
        (columns.into_iter().map(|(name, _)| name).collect(), rows)
    }

    /// Returns the report as an SVG: the curves of all trials by rung, and parallel coordinates of their keys. The same
    /// report gives the same bytes.
    #[must_use]
    pub fn picture(&self) -> String {
        picture::svg(self)
    }

    /// Returns what a trial does, as one word. At the end one trial is the winner.
    #[must_use]
    pub fn standing(&self, trial: &TrialReport) -> &'static str {
        table::state(self, trial)
    }

    /// Returns the curve of a trial as one bar for each rung that it was measured at.
    #[must_use]
    pub fn curve(&self, trial: &TrialReport) -> String {
        table::sparkline(self, trial)
    }

    /// Returns a metric as people read it.
    #[must_use]
    pub fn shown(&self, metric: f64) -> String {
        table::shown(self.metric, metric)
    }

    /// Returns the trials from best to worst: by the highest rung that they were measured at, then by the metric there;
    /// closed ones last.
    #[must_use]
    pub fn ordered(&self) -> Vec<&TrialReport> {
        let mut trials: Vec<&TrialReport> = self.trials.iter().collect();
        let maximised = self.metric.is_maximised();
        trials.sort_by(|one, other| {
            let last = |trial: &TrialReport| trial.measured.last().map(|measured| (measured.rung, measured.metric));
            let by_metric = match (last(one), last(other)) {
                (Some((rung, metric)), Some((other_rung, other_metric))) => {
                    let better = metric.total_cmp(&other_metric);
                    other_rung.cmp(&rung).then(if maximised { better.reverse() } else { better })
                }
                (one, other) => other.is_some().cmp(&one.is_some()),
            };
            one.closed.is_some().cmp(&other.closed.is_some()).then(by_metric).then(one.trial.cmp(&other.trial))
        });
        trials
    }

    /// Least and most of all that was measured; `None` before the first measurement.
    fn range(&self) -> Option<(f64, f64)> {
        let metrics = self.trials.iter().flat_map(|trial| trial.measured.iter().map(|measured| measured.metric));
        metrics.fold(None, |range, metric| {
            let (least, most) = range.unwrap_or((metric, metric));
            Some((f64::min(least, metric), f64::max(most, metric)))
        })
    }
}

impl TrialReport {
    fn of(search: &str, trial: &Trial) -> Self {
        let measured = trial.measured.iter().map(|measured| MeasurementReport {
            rung: measured.rung,
            contributions: measured.contributions,
            version: measured.version,
            metric: measured.metric,
        });
        Self {
            trial: trial.id,
            run: run_name(search, trial.id),
            state: match trial.phase {
                Phase::Running => TrialPhase::Running,
                Phase::Measuring { .. } => TrialPhase::Measuring,
                Phase::Waiting => TrialPhase::Waiting,
                Phase::Closed { .. } => TrialPhase::Closed,
            },
            rung: trial.rung,
            contributions: trial.contributions,
            measured: measured.collect(),
            overrides: trial.overrides.iter().map(|(key, text)| (key.clone(), json(text))).collect(),
            copies: trial.copies.iter().map(|copy| CopyReport { rung: copy.rung, from: copy.from }).collect(),
            closed: match &trial.phase {
                Phase::Closed { why, reason } => Some(ClosedReport { why: *why, reason: reason.clone() }),
                _ => None,
            },
        }
    }
}

/// A value in JSON; its text where JSON has no form for it.
fn json(text: &str) -> serde_json::Value {
    let value = parse_value(text).and_then(|value| serde_json::to_value(value).ok());
    value.filter(|value| !value.is_null()).unwrap_or_else(|| serde_json::Value::String(text.to_owned()))
}
