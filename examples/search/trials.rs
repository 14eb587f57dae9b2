//! The search as it is shown: a row for each trial on a terminal, and a line for each event elsewhere.

use anabranch_coordinator::search::report::{SearchReport, TrialReport};
use anabranch_coordinator::widgets::SearchPanel;
use anabranch_examples::view::Picture;
use ratatui::Frame;
use ratatui::layout::Rect;

/// Shows a search.
#[derive(Debug)]
pub(crate) struct Trials;

impl Picture for Trials {
    type Report = SearchReport;

    const COMMAND: &'static [&'static str] = &["search", "status"];

    fn parse(line: &str) -> Option<SearchReport> {
        serde_json::from_str(line).ok()
    }

    fn lines(&self, before: Option<&SearchReport>, report: &SearchReport) -> Vec<String> {
        let known = |trial: &TrialReport| {
            before.and_then(|before| before.trials.iter().find(|known| known.trial == trial.trial))
        };
        let events = report.trials.iter().flat_map(|trial| events(report, known(trial), trial));
        let at_s = report.changed_at_ms.saturating_sub(report.started_at_ms) as f64 / 1_000.0;
        events.map(|event| format!("{at_s:>5.1} s  {event}")).collect()
    }

    fn draw(&self, frame: &mut Frame<'_>, area: Rect, report: Option<&SearchReport>) {
        match report {
            Some(report) => frame.render_widget(SearchPanel::new(report), area),
            None => frame.render_widget("search: starting ...", area),
        }
    }
}

/// What has happened to a trial since it was last seen.
fn events(report: &SearchReport, before: Option<&TrialReport>, trial: &TrialReport) -> Vec<String> {
    let name = format!("trial {}", trial.trial);
    let mut events = Vec::new();
    if before.is_none() {
        events.push(format!("{name} begins: {}", settings(trial)));
    }
    let seen = before.map_or(0, |before| before.measured.len());
    let from = before.map_or(0, |before| before.rung);
    for rung in from..=trial.rung {
        if rung > from {
            events.push(format!("{name} goes on to rung {rung}"));
        }
        let measured = trial.measured.iter().skip(seen).filter(|measured| measured.rung == rung);
        events.extend(measured.map(|measured| {
            let (contributions, metric) = (measured.contributions, report.shown(measured.metric));
            format!("{name} at rung {rung}, after {contributions} contributions: {metric}")
        }));
    }
    if let Some(closed) = trial.closed.as_ref().filter(|_| before.is_none_or(|before| before.closed.is_none())) {
        events.push(format!("{name} is closed: {}", closed.reason));
    }
    events
}

/// Returns what a trial changes in the base: the last part of each key, and its value.
pub(crate) fn settings(trial: &TrialReport) -> String {
    let setting =
        |(key, value): (&String, &serde_json::Value)| format!("{} {value}", key.rsplit('.').next().unwrap_or(key));
    trial.overrides.iter().map(setting).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::ModelVersion;
    use anabranch_coordinator::search::record::{CloseReason, TrialId};
    use anabranch_coordinator::search::report::{ClosedReport, MeasurementReport, TrialPhase};
    use serde_json::json;

    use super::*;

    fn report(trials: Vec<TrialReport>) -> SearchReport {
        let value = json!({
            "name": "digits", "method": "asha", "metric": "accuracy", "state": "running", "leader": 0,
            "started_at_ms": 1_000, "changed_at_ms": 3_500, "rungs": [16, 48], "trials_planned": 12, "parallel": 2,
            "price": { "full_run": 48, "least": 100, "about": 110.0, "most": 200 }, "spent": 16, "trials": [],
        });
        SearchReport { trials, ..serde_json::from_value(value).expect("a report") }
    }

    fn trial(number: u32, rung: u32, metrics: &[f64]) -> TrialReport {
        let measured = |(rung, metric): (u32, &f64)| {
            let contributions = 16 + 32 * u64::from(rung);
            MeasurementReport { rung, contributions, version: ModelVersion(contributions), metric: *metric }
        };
        TrialReport {
            trial: TrialId(number),
            run: format!("digits-{number}"),
            state: TrialPhase::Running,
            rung,
            contributions: 0,
            measured: (0..).zip(metrics).map(measured).collect(),
            overrides: [("train.optimizer.lr".to_owned(), json!(0.5))].into(),
            copies: Vec::new(),
            closed: None,
        }
    }

    #[test]
    fn every_event_has_its_line_once() {
        let first = report(vec![trial(0, 0, &[]), trial(1, 0, &[])]);
        assert_eq!(Trials.lines(None, &first), ["  2.5 s  trial 0 begins: lr 0.5", "  2.5 s  trial 1 begins: lr 0.5"]);
        assert_eq!(Trials.lines(Some(&first), &first), [""; 0]);
        let reason = "its model stopped being finite".to_owned();
        let closed =
            TrialReport { closed: Some(ClosedReport { why: CloseReason::Diverged, reason }), ..trial(1, 0, &[]) };
        let second = report(vec![trial(0, 1, &[0.75]), closed]);
        let lines = [
            "  2.5 s  trial 0 at rung 0, after 16 contributions: 75.00 %",
            "  2.5 s  trial 0 goes on to rung 1",
            "  2.5 s  trial 1 is closed: its model stopped being finite",
        ];
        assert_eq!(Trials.lines(Some(&first), &second), lines);
        assert_eq!(Trials.lines(Some(&second), &second), [""; 0]);
        let third = report(vec![trial(0, 1, &[0.75, 0.875])]);
        let lines = ["  2.5 s  trial 0 at rung 1, after 48 contributions: 87.50 %"];
        assert_eq!(Trials.lines(Some(&second), &third), lines);
        let at_once = Trials.lines(Some(&first), &third);
        assert_eq!(at_once.len(), 3, "a promotion stands between two measurements: {at_once:?}");
        assert!(at_once[1].ends_with("trial 0 goes on to rung 1"), "{at_once:?}");
    }
}
