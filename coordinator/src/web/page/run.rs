//! One run in detail.

use anabranch_common::limits;
use anabranch_common::merge::Served;
use anabranch_common::status::StatusReport;
use serde::Serialize;

use super::pods::Pods;
use crate::commands::{count, span, status_lines};
use crate::host::RunView;
use crate::overview::agents::Agents;
use crate::overview::words::{percent, thinned};

/// A run.
#[derive(Debug, Serialize)]
pub(super) struct RunDetail {
    name: String,
    /// Its id in hexadecimal, by which requests name it; none while it is being opened, or when it cannot be.
    id: Option<String>,
    state: &'static str,
    problem: Option<String>,
    /// Version of its newest checkpoint: when it changes, the page asks for the list.
    checkpoint: Option<u64>,
    /// What `status` says above its tables.
    facts: Vec<(&'static str, String)>,
    /// Measurements, oldest first: at most `limits::PAGE_POINTS`.
    curve: Vec<Point>,
    /// Whether what is measured is the average of versions.
    is_average: bool,
    /// The newest measurements, newest first.
    measured: Vec<Measured>,
    /// Merged updates by staleness; the last bucket holds everything above.
    staleness: Vec<u64>,
    /// Refused updates, most frequent first.
    refused: Vec<(String, u64)>,
    agents: Agents,
    pods: Option<Pods>,
}

/// A measurement as a point: seconds since the run began, its version, accuracy, loss.
type Point = (f64, u64, f64, f64);

#[derive(Debug, Serialize)]
struct Measured {
    at: String,
    version: u64,
    accuracy: String,
    loss: String,
    examples: String,
    /// Whether it covers too few of the examples to decide on a target.
    is_partial: bool,
}

impl RunDetail {
    pub(super) fn of(view: &RunView) -> Self {
        let report = view.report.as_deref();
        let aggregates = report.map_or(&[][..], |report| &report.aggregates);
        let curve = thinned(aggregates, limits::PAGE_POINTS).map(|timed| {
            let aggregate = &timed.aggregate;
            (timed.at_s, aggregate.version.0, aggregate.accuracy, aggregate.loss)
        });
        let measured = aggregates.iter().rev().take(limits::PAGE_MEASURED).map(|timed| {
            let aggregate = &timed.aggregate;
            Measured {
                at: span(timed.at_s),
                version: aggregate.version.0,
                accuracy: percent(aggregate.accuracy),
                loss: format!("{:.4}", aggregate.loss),
                examples: count(aggregate.num_examples),
                is_partial: !aggregate.covers_most(),
            }
        });
        Self {
            name: view.summary.name.clone(),
            id: view.summary.run.map(|run| run.to_string()),
            state: view.summary.state.word(),
            problem: view.summary.problem.clone(),
            checkpoint: report.and_then(|report| report.checkpoint_version).map(|version| version.0),
            facts: report.map(status_lines).unwrap_or_default(),
            curve: curve.collect(),
            is_average: report.is_some_and(|report| report.served == Served::Average),
            measured: measured.collect(),
            staleness: report.map(|report| report.staleness_histogram.clone()).unwrap_or_default(),
            refused: report.map(refused).unwrap_or_default(),
            agents: report.map(Agents::of).unwrap_or_default(),
            pods: report.and_then(Pods::of),
        }
    }
}

fn refused(report: &StatusReport) -> Vec<(String, u64)> {
    let reasons = report.updates_refused.iter().filter(|(_, count)| **count > 0);
    let mut reasons: Vec<(String, u64)> = reasons.map(|(reason, count)| (reason.clone(), *count)).collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    reasons
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::ModelVersion;
    use anabranch_common::status::PodsStatus;

    use super::super::tests::{agent, measured, run};
    use super::*;

    #[test]
    fn a_run_has_its_curve_its_newest_measurements_and_its_refusals() {
        let mut view = run("wards", vec![agent(1)]);
        let report = view.report.as_mut().expect("a report");
        report.aggregates = (0..2 * limits::PAGE_POINTS as u64).map(measured).collect();
        report.updates_refused = [("duplicate".into(), 2), ("finished".into(), 0), ("stale".into(), 7)].into();
        report.pods = Some(PodsStatus::default());
        report.checkpoint_version = Some(ModelVersion(40));
        let detail = RunDetail::of(&view);
        assert_eq!(detail.curve.len(), limits::PAGE_POINTS);
        let newest = 2 * limits::PAGE_POINTS as u64 - 1;
        assert_eq!(detail.curve.last().map(|point| point.1), Some(newest));
        assert_eq!((detail.measured.len(), detail.measured[0].version), (limits::PAGE_MEASURED, newest));
        assert_eq!(detail.refused, [("stale".to_owned(), 7), ("duplicate".to_owned(), 2)]);
        assert!(detail.pods.is_some());
        assert_eq!((detail.id, detail.checkpoint), (view.summary.run.map(|run| run.to_string()), Some(40)));
        assert!(detail.facts.iter().any(|(key, _)| *key == "checkpoint"), "{:?}", detail.facts);
    }

    #[test]
    fn a_run_that_cannot_be_opened_is_shown_with_its_problem() {
        let mut view = run("old", Vec::new());
        (view.report, view.summary.problem) = (None, Some("its store is damaged".to_owned()));
        let detail = RunDetail::of(&view);
        assert_eq!(detail.problem.as_deref(), Some("its store is damaged"));
        assert!(detail.facts.is_empty() && detail.curve.is_empty() && detail.pods.is_none());
    }
}
