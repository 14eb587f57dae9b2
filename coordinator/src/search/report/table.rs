//! The report as text.

use super::{SearchPhase, SearchReport, TrialPhase, TrialReport};
use crate::columns::{self, Align};
use crate::search::spec::{Method, Metric};

/// Bars of a sparkline, from the least metric of the search to the most.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns in front of those of the keys.
const COLUMNS: [(&str, Align); 6] = [
    ("TRIAL", Align::Right),
    ("STATE", Align::Left),
    ("RUNG", Align::Right),
    ("CONTRIBUTIONS", Align::Right),
    ("METRIC", Align::Right),
    ("BY RUNG", Align::Left),
];

pub(super) fn text(report: &SearchReport) -> String {
    let mut text = String::new();
    for (name, value) in head(report) {
        text.push_str(&format!("{name:<12}{value}\n"));
    }
    if !report.trials.is_empty() {
        text.push_str(&format!("\n{}", trials(report)));
    }
    text
}

/// The lines above the trials.
pub(super) fn head(report: &SearchReport) -> Vec<(&'static str, String)> {
    let method = match report.method {
        Method::Asha => "asha",
        Method::Random => "random",
        Method::Grid => "grid",
        Method::Pbt => "pbt",
    };
    let state = match report.state {
        SearchPhase::Running => "running",
        SearchPhase::Finished => "finished",
        SearchPhase::Stopped => "stopped by the operator",
    };
    let in_state = |state| report.trials.iter().filter(|trial| trial.state == state).count();
    let active = in_state(TrialPhase::Running) + in_state(TrialPhase::Measuring);
    let rungs: Vec<String> = report.rungs.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        ("search", format!("{} ({method}, {})", report.name, report.metric.as_str())),
        ("state", state.to_owned()),
        (
            "trials",
            format!(
                "{} of {}, {active} active of at most {}, {} closed",
                report.trials.len(),
                report.trials_planned,
                report.parallel,
                in_state(TrialPhase::Closed)
            ),
        ),
        ("rungs", format!("{} contributions", rungs.join(", "))),
        ("spent", spent(report)),
    ];
    let leader = report.leader.and_then(|leader| report.trials.iter().find(|trial| trial.trial == leader));
    if let Some(trial) = leader {
        let name = if report.state == SearchPhase::Running { "leader" } else { "winner" };
        lines.push((name, format!("trial {} (run {}){}", trial.trial, trial.run, metric_of(report, trial))));
    } else if report.state != SearchPhase::Running {
        lines.push(("winner", "none: no trial was measured that is not closed".to_owned()));
    }
    lines.extend(report.problem.clone().map(|problem| ("problem", problem)));
    lines
}

fn metric_of(report: &SearchReport, trial: &TrialReport) -> String {
    let measured = |metric| format!(": {} {}", report.metric.as_str(), shown(report.metric, metric));
    trial.measured.last().map_or_else(String::new, |newest| measured(newest.metric))
}

/// `1,234 contributions, 1.2 full runs (about 1.5 in all, at most 8.0)`.
fn spent(report: &SearchReport) -> String {
    let price = &report.price;
    let runs = |contributions: u64| price.in_full_runs(contributions as f64);
    format!(
        "{} contributions, {:.1} full runs (about {:.1} in all, at most {:.1})",
        report.spent,
        runs(report.spent),
        price.in_full_runs(price.about),
        runs(price.most)
    )
}

pub(super) fn shown(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Accuracy => format!("{:.2} %", 100.0 * value),
        Metric::Loss => format!("{value:.4}"),
    }
}

/// The columns of the trials, and a row for each, from best to worst.
pub(super) fn cells(report: &SearchReport) -> (Vec<(String, Align)>, Vec<Vec<String>>) {
    let keys: Vec<&String> = report.trials.first().iter().flat_map(|trial| trial.overrides.keys()).collect();
    let mut columns: Vec<(String, Align)> = COLUMNS.iter().map(|(name, align)| ((*name).to_owned(), *align)).collect();
    columns.extend(keys.iter().map(|key| ((*key).clone(), Align::Right)));
    columns.push((String::new(), Align::Left));
    let row = |trial: &TrialReport| {
        let newest = trial.measured.last().map_or_else(|| "-".to_owned(), |newest| shown(report.metric, newest.metric));
        let mut row = vec![
            trial.trial.to_string(),
            state(report, trial).to_owned(),
            trial.rung.to_string(),
            trial.contributions.to_string(),
            newest,
            sparkline(report, trial),
        ];
        row.extend(keys.iter().map(|key| trial.overrides.get(*key).map_or_else(String::new, ToString::to_string)));
        row.push(trial.closed.as_ref().map_or_else(String::new, |closed| closed.reason.clone()));
        row
    };
    let rows = report.ordered().into_iter().map(row).collect();
    (columns, rows)
}

fn trials(report: &SearchReport) -> String {
    let (names, rows) = cells(report);
    let names: Vec<(&str, Align)> = names.iter().map(|(name, align)| (name.as_str(), *align)).collect();
    columns::render(&names, &rows)
}

pub(super) fn state(report: &SearchReport, trial: &TrialReport) -> &'static str {
    let is_over = report.state != SearchPhase::Running;
    match trial.state {
        TrialPhase::Closed => "closed",
        _ if is_over && report.leader == Some(trial.trial) => "winner",
        _ if is_over => "ended",
        TrialPhase::Running => "running",
        TrialPhase::Measuring => "measured",
        TrialPhase::Waiting => "waits",
    }
}

/// One bar for each rung: the least metric of all trials is the lowest bar, the most the highest.
pub(super) fn sparkline(report: &SearchReport, trial: &TrialReport) -> String {
    let Some((least, most)) = report.range() else { return String::new() };
    let bar = |metric: f64| {
        let share = if most > least { (metric - least) / (most - least) } else { 1.0 };
        // A share of 1 is the last bar.
        BARS.iter().enumerate().rev().find(|(index, _)| share * 8.0 >= *index as f64).map_or(BARS[0], |(_, bar)| *bar)
    };
    trial.measured.iter().map(|measured| bar(measured.metric)).collect()
}
