//! Searches: a line in their list, and one in detail.

use serde::Serialize;

use crate::host::SearchView;
use crate::search::report::SearchStanding;

/// A search in the list of searches.
#[derive(Debug, Serialize)]
pub(super) struct SearchLine {
    name: String,
    state: &'static str,
    trials: String,
    leader: Option<String>,
    metric: Option<String>,
    problem: Option<String>,
}

impl SearchLine {
    pub(super) fn of(view: &SearchView) -> Self {
        let summary = &view.summary;
        Self {
            name: summary.name.clone(),
            state: standing(summary.state),
            trials: format!("{} of {}", summary.trials, summary.trials_planned),
            leader: summary.leader.clone(),
            metric: summary.metric.map(|metric| format!("{metric:.4}")),
            problem: summary.problem.clone(),
        }
    }
}

/// A search: what `search status` says of it.
#[derive(Debug, Serialize)]
pub(super) struct SearchDetail {
    name: String,
    state: &'static str,
    problem: Option<String>,
    facts: Vec<(&'static str, String)>,
    columns: Vec<String>,
    /// Its trials from best to worst, each with the name of its run.
    trials: Vec<(String, Vec<String>)>,
}

impl SearchDetail {
    pub(super) fn of(view: &SearchView) -> Self {
        let report = view.report.as_deref();
        let (columns, rows) = report.map(|report| report.cells()).unwrap_or_default();
        let runs = report.map(|report| report.ordered().into_iter().map(|trial| trial.run.clone()).collect::<Vec<_>>());
        Self {
            name: view.summary.name.clone(),
            state: standing(view.summary.state),
            problem: view.summary.problem.clone(),
            facts: report.map(|report| report.lines()).unwrap_or_default(),
            columns: columns.into_iter().map(|name| name.to_lowercase()).collect(),
            trials: runs.unwrap_or_default().into_iter().zip(rows).collect(),
        }
    }
}

/// What a search does, as `search list` says it.
pub(super) fn standing(state: SearchStanding) -> &'static str {
    match state {
        SearchStanding::Opening => "opening",
        SearchStanding::Running => "running",
        SearchStanding::Finished => "finished",
        SearchStanding::Stopped => "stopped",
        SearchStanding::Failed => "failed",
    }
}
