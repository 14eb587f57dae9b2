//! A run, as the coordinator's own views show it.

use std::collections::BTreeMap;

use anabranch_common::status::{PodsStatus, StatusReport};
use anabranch_coordinator::widgets::{Measure, RunPanel};
use ratatui::Frame;
use ratatui::layout::Rect;

use super::Picture;

/// Lines of `status` that are shown above the curves.
const FACTS: usize = 4;

/// What a view shows of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Name of the example.
    pub title: &'static str,
    /// What measurements are about.
    pub measure: Measure,
    /// A column of its own with what each agent of this name is; no column when empty.
    pub roles: BTreeMap<String, String>,
}

impl Picture for Subject {
    type Report = StatusReport;

    const COMMAND: &'static [&'static str] = &["status"];

    fn parse(line: &str) -> Option<StatusReport> {
        serde_json::from_str(line).ok()
    }

    fn lines(&self, _: Option<&StatusReport>, report: &StatusReport) -> Vec<String> {
        vec![line(self, report)]
    }

    fn draw(&self, frame: &mut Frame<'_>, area: Rect, report: Option<&StatusReport>) {
        match report {
            Some(report) => {
                let panel = RunPanel::new(report).measure(self.measure).roles(&self.roles).facts(FACTS);
                frame.render_widget(panel, area);
            }
            None => frame.render_widget(format!("{}: starting ...", self.title), area),
        }
    }
}

fn line(subject: &Subject, report: &StatusReport) -> String {
    let connected = report.agents.iter().filter(|agent| agent.connected).count();
    let newest = report.aggregates.last().map(|timed| subject.measure.of(&timed.aggregate));
    let measured = newest.map_or_else(|| "-".to_owned(), |figure| text(subject.measure, figure));
    let staleness: Vec<String> =
        report.agents.iter().map(|agent| agent.staleness.map_or_else(|| "-".into(), |tau| tau.to_string())).collect();
    format!(
        "{:>5.1} s  version {:>4}  agents {connected}/{}{}  merged {:>4}  staleness {}  up {} kB  down {} kB  {} {measured}",
        report.wall_s,
        report.version,
        report.agents.len(),
        pods(report, "  "),
        report.updates_accepted,
        staleness.join(" "),
        report.uplink_bytes / 1000,
        report.downlink_bytes / 1000,
        subject.measure.name(),
    )
}

/// A figure in a line.
fn text(measure: Measure, figure: f64) -> String {
    match measure {
        Measure::Accuracy => format!("{figure:.1} %"),
        Measure::Loss => format!("{figure:.3}"),
    }
}

/// How many pods compute a round, and how many owners wait for one, where the run has pods.
fn pods(report: &StatusReport, before: &str) -> String {
    let text = |pods: &PodsStatus| format!("{before}pods {}, {} waiting", pods.computing, pods.waiting);
    report.pods.as_ref().map_or_else(String::new, text)
}
