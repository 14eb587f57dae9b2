//! The line of each run in the list of runs.

use std::collections::BTreeMap;

use anabranch_common::limits;
use anabranch_common::status::RunStanding;
use serde::Serialize;

use super::history::Page;
use super::words::{percent, thinned};
use crate::commands::count;
use crate::host::RunView;

/// A run in the list of runs.
#[derive(Debug, Serialize)]
pub(crate) struct RunLine {
    pub(crate) name: String,
    pub(crate) state: &'static str,
    pub(crate) version: Option<u64>,
    pub(crate) accuracy: Option<String>,
    pub(crate) loss: Option<String>,
    /// Accuracies, oldest first: at most `limits::PAGE_SPARK_POINTS`.
    pub(crate) spark: Vec<f64>,
    /// Merged updates a minute.
    pub(crate) rate: Option<String>,
    pub(crate) accepted: String,
    pub(crate) refused: String,
    pub(crate) agents: String,
    pub(crate) problem: Option<String>,
}

impl RunLine {
    pub(crate) fn of(page: &Page, view: &RunView) -> Self {
        let summary = &view.summary;
        let report = view.report.as_ref();
        let aggregates = report.map_or(&[][..], |report| &report.aggregates);
        let newest = aggregates.last().map(|timed| &timed.aggregate);
        let refused = report.map_or(0, |report| report.updates_refused.values().sum());
        Self {
            name: summary.name.clone(),
            state: summary.state.word(),
            version: summary.version.map(|version| version.0),
            accuracy: newest.map(|aggregate| percent(aggregate.accuracy)),
            loss: newest.map(|aggregate| format!("{:.4}", aggregate.loss)),
            spark: thinned(aggregates, limits::PAGE_SPARK_POINTS).map(|timed| timed.aggregate.accuracy).collect(),
            rate: page.rates.get(&summary.name).map(|rate| format!("{:.0} a minute", rate.accepted_per_min())),
            accepted: count(summary.updates_accepted),
            refused: count(refused),
            agents: format!("{} of {}", count(summary.connected), count(summary.agents)),
            problem: summary.problem.clone(),
        }
    }
}

/// Returns the runs: those that have failed first, those that have ended last.
pub(crate) fn ordered(page: &Page) -> Vec<&RunView> {
    let mut runs: Vec<&RunView> = page.snapshot.view.runs.iter().collect();
    // The sort is stable: the process's own run stays first of its kind.
    runs.sort_by_key(|view| rank(view.summary.state));
    runs
}

/// Returns how many agents are connected to any run.
pub(crate) fn connected(page: &Page) -> usize {
    let mut connected: BTreeMap<_, bool> = BTreeMap::new();
    let reports = page.snapshot.view.runs.iter().filter_map(|run| run.report.as_ref());
    for agent in reports.flat_map(|report| &report.agents) {
        *connected.entry(agent.agent).or_default() |= agent.connected;
    }
    connected.into_values().filter(|connected| *connected).count()
}

/// What comes first in the list of runs.
fn rank(state: RunStanding) -> u8 {
    match state {
        RunStanding::Failed => 0,
        RunStanding::Running => 1,
        RunStanding::Paused => 2,
        RunStanding::Pending => 3,
        RunStanding::Opening => 4,
        RunStanding::Parked => 5,
        RunStanding::Finished => 6,
    }
}
