//! Answers to operators beside the report: what a search costs, which searches there are, and what came out of one.

use anabranch_common::ids::ModelVersion;
use serde::{Deserialize, Serialize};

use super::run_name;
use crate::search::SearchState;
use crate::search::price::Price;
use crate::search::record::TrialId;

/// The answer to `search start`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchStarted {
    /// Name of the search.
    pub name: String,
    /// Trials in all.
    pub trials: u32,
    /// What it costs.
    pub price: Price,
}

impl SearchStarted {
    /// Returns the answer for a search.
    #[must_use]
    pub fn of(state: &SearchState) -> Self {
        let spec = &state.plan.spec;
        Self { name: spec.name.clone(), trials: spec.trials, price: Price::of(spec) }
    }
}

/// One line of `search list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchSummary {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: SearchStanding,
    /// Trials so far.
    pub trials: u32,
    /// Trials in all.
    pub trials_planned: u32,
    /// Name of the leader's run, or of the winner's.
    pub leader: Option<String>,
    /// Accuracy or loss of that one, as measured last.
    pub metric: Option<f64>,
    /// Why it cannot be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a search does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchStanding {
    /// Its directory is being made or opened.
    Opening,
    /// It goes on.
    Running,
    /// It has ended by itself.
    Finished,
    /// An operator ended it.
    Stopped,
    /// It cannot be served.
    Failed,
}

impl SearchStanding {
    /// Returns the word for it, everywhere the same: in tables, on the page, as a label of figures.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl SearchSummary {
    /// Returns the line of a search.
    #[must_use]
    pub fn of(state: &SearchState) -> Self {
        let leader = state.outcome.map_or_else(|| state.leader(), |outcome| outcome.winner);
        let trial = leader.and_then(|leader| state.trials.iter().find(|trial| trial.id == leader));
        Self {
            name: state.plan.spec.name.clone(),
            state: match state.outcome {
                None => SearchStanding::Running,
                Some(outcome) if outcome.stopped => SearchStanding::Stopped,
                Some(_) => SearchStanding::Finished,
            },
            trials: u32::try_from(state.trials.len()).unwrap_or(u32::MAX),
            trials_planned: state.plan.spec.trials,
            leader: leader.map(|leader| run_name(&state.plan.spec.name, leader)),
            metric: trial.and_then(|trial| trial.newest()).map(|newest| newest.metric),
            problem: None,
        }
    }

    /// Returns the line of a search whose journal was not read: it is being opened, or there is a problem.
    #[must_use]
    pub fn unread(name: &str, problem: Option<String>) -> Self {
        Self {
            name: name.to_owned(),
            state: if problem.is_some() { SearchStanding::Failed } else { SearchStanding::Opening },
            trials: 0,
            trials_planned: 0,
            leader: None,
            metric: None,
            problem,
        }
    }
}

/// What came out of a search: the answer to `search export`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// Name of the search.
    pub name: String,
    /// The winner; while the search goes on, the leader.
    pub trial: TrialId,
    /// Name of its run.
    pub run: String,
    /// The version that was measured last.
    pub version: ModelVersion,
    /// Accuracy or loss of that version.
    pub metric: f64,
    /// Whether the search has ended.
    pub is_over: bool,
    /// The `run.toml` of the trial.
    pub config: String,
}

impl SearchResult {
    /// Returns what came out of a search so far.
    ///
    /// # Errors
    /// No trial that is not closed was measured; the text says so.
    pub fn of(state: &SearchState) -> Result<Self, String> {
        let name = &state.plan.spec.name;
        let leader = state.outcome.map_or_else(|| state.leader(), |outcome| outcome.winner);
        let trial = leader.and_then(|leader| state.trials.iter().find(|trial| trial.id == leader));
        let measured = trial.and_then(|trial| Some((trial, trial.newest()?)));
        let none = || format!("search {name} has no result: no trial was measured that is not closed");
        let (trial, newest) = measured.ok_or_else(none)?;
        let run = run_name(name, trial.id);
        Ok(Self {
            config: state.plan.base.trial(&run, &trial.overrides)?,
            name: name.clone(),
            trial: trial.id,
            run,
            version: newest.version,
            metric: newest.metric,
            is_over: state.outcome.is_some(),
        })
    }
}

/// Returns what to say where no search is meant: there is none of that name, or several without one.
pub fn no_search<'a>(wanted: Option<&str>, names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    match (wanted, names.is_empty()) {
        (_, true) => "there is no search here; start one with `search start SEARCH.toml`".to_owned(),
        (Some(wanted), false) => format!("there is no search {wanted} here; name one of: {}", names.join(", ")),
        (None, false) => format!("there are {} searches here; name one of: {}", names.len(), names.join(", ")),
    }
}
