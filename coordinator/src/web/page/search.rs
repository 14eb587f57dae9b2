//! Searches: a line in their list, and one in detail.

use serde::Serialize;

use crate::host::SearchView;

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
            state: summary.state.word(),
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
            state: view.summary.state.word(),
            problem: view.summary.problem.clone(),
            facts: report.map(|report| report.lines()).unwrap_or_default(),
            columns: columns.into_iter().map(|name| name.to_lowercase()).collect(),
            trials: runs.unwrap_or_default().into_iter().zip(rows).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overview::tests::search;
    use crate::search::report::{SearchStanding, SearchSummary};

    #[test]
    fn a_search_has_its_trials_from_best_to_worst_each_with_its_run() {
        let report = search();
        let summary = SearchSummary {
            state: SearchStanding::Running,
            trials: 3,
            trials_planned: 4,
            ..SearchSummary::unread("lr", None)
        };
        let view = SearchView { summary, report: Some(Box::new(report)) };
        assert_eq!(SearchLine::of(&view).trials, "3 of 4");
        let SearchDetail { facts, columns, trials, .. } = SearchDetail::of(&view);
        assert_eq!(columns[..5], ["trial", "state", "rung", "contributions", "metric"]);
        let runs: Vec<&str> = trials.iter().map(|(run, _)| run.as_str()).collect();
        assert_eq!(runs, ["lr-2", "lr-1", "lr-0"]);
        assert_eq!((trials[0].1[0].as_str(), trials[0].1[4].as_str()), ("2", "75.00 %"));
        assert_eq!(trials[2].1.last().map(String::as_str), Some("its loss is not finite"));
        assert!(trials.iter().all(|(_, cells)| cells.len() == columns.len()));
        assert!(facts.contains(&("leader", "trial 2 (run lr-2): accuracy 75.00 %".to_owned())), "{facts:?}");
        let failed = SearchSummary::unread("old", Some("its store is damaged".to_owned()));
        let detail = SearchDetail::of(&SearchView { summary: failed, report: None });
        assert_eq!((detail.state, detail.problem.as_deref()), ("failed", Some("its store is damaged")));
    }
}
