//! A run: its agents, and the curve of what is measured.

use std::collections::BTreeMap;

use anabranch_common::journal::Aggregate;
use anabranch_common::status::{PodsStatus, StatusReport, TimedAggregate};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::Picture;

/// Column of the agents' roles.
const ROLE: usize = 1;

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

/// Which figure of a measurement is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// The share of examples that the model tells right.
    Accuracy,
    /// Nats an example; of text, nats a byte.
    Loss,
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
        draw(frame, area, self, report);
    }
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Loss => "loss",
        }
    }

    fn of(self, aggregate: &Aggregate) -> f64 {
        match self {
            Self::Accuracy => 100.0 * aggregate.accuracy,
            Self::Loss => aggregate.loss,
        }
    }

    fn text(self, value: f64) -> String {
        match self {
            Self::Accuracy => format!("{value:.1} %"),
            Self::Loss => format!("{value:.3}"),
        }
    }

    /// The newest measurement.
    fn newest(self, report: &StatusReport) -> Option<String> {
        report.aggregates.last().map(|timed| self.text(self.of(&timed.aggregate)))
    }

    /// Height of a bar, and of the highest one.
    fn bars(self, report: &StatusReport) -> (Vec<u64>, u64) {
        let (scale, top) = match self {
            Self::Accuracy => (1.0, 100),
            Self::Loss => (100.0, 600),
        };
        let bar = |timed: &TimedAggregate| whole(scale * self.of(&timed.aggregate));
        (report.aggregates.iter().map(bar).collect(), top)
    }
}

fn line(subject: &Subject, report: &StatusReport) -> String {
    let connected = report.agents.iter().filter(|agent| agent.connected).count();
    let measured = subject.measure.newest(report).unwrap_or_else(|| "-".into());
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

/// How many pods compute a round, and how many owners wait for one, where the run has pods.
fn pods(report: &StatusReport, before: &str) -> String {
    let text = |pods: &PodsStatus| format!("{before}pods {}, {} waiting", pods.computing, pods.waiting);
    report.pods.as_ref().map_or_else(String::new, text)
}

fn draw(frame: &mut Frame<'_>, area: Rect, subject: &Subject, report: Option<&StatusReport>) {
    let [head, agents, chart] =
        Layout::vertical([Constraint::Length(4), Constraint::Length(8), Constraint::Min(5)]).areas(area);
    let Some(report) = report else {
        frame.render_widget(Paragraph::new("starting ...").block(Block::bordered().title(" anabranch ")), head);
        return;
    };
    let ratio = report.raw_f32_uplink_bytes as f64 / report.uplink_bytes.max(1) as f64;
    let summary = format!(
        "{:.1} s   version {}   merged {}   leases out {}{}\nup {} kB ({ratio:.1}x smaller than f32)   down {} kB",
        report.wall_s,
        report.version,
        report.updates_accepted,
        report.leases_outstanding,
        pods(report, "   "),
        report.uplink_bytes / 1000,
        report.downlink_bytes / 1000,
    );
    let title = format!(" anabranch {} ", subject.title);
    frame.render_widget(Paragraph::new(summary).block(Block::bordered().title(title)), head);
    frame.render_widget(table(subject, report), agents);
    let (bars, top) = subject.measure.bars(report);
    let visible = usize::from(chart.width.saturating_sub(2));
    let bars = &bars[bars.len().saturating_sub(visible)..];
    let (name, newest) = (subject.measure.name(), subject.measure.newest(report));
    let title = newest.map_or_else(|| format!(" test {name} "), |now| format!(" test {name} {now} "));
    let sparkline = Sparkline::default().data(bars).max(top).style(Style::new().fg(Color::Cyan));
    frame.render_widget(sparkline.block(Block::bordered().title(title)), chart);
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measure is at least 0, and a bar is short"
)]
fn whole(bar: f64) -> u64 {
    bar.round() as u64
}

fn table<'a>(subject: &'a Subject, report: &'a StatusReport) -> Table<'a> {
    let with_roles = !subject.roles.is_empty();
    let names = ["agent", "role", "state", "epoch", "examples/s", "staleness", "merged", "up kB", "loss"];
    let widths = [14, 12, 6, 6, 11, 10, 8, 8, 8];
    let shown = move |column: &usize| with_roles || *column != ROLE;
    let header = Row::new((0..names.len()).filter(shown).map(|column| names[column]))
        .style(Style::new().add_modifier(Modifier::BOLD));
    let rows = report.agents.iter().map(move |agent| {
        let (state, colour) = if agent.connected { ("up", Color::Green) } else { ("gone", Color::Red) };
        let dash = || "-".to_owned();
        let mut cells = vec![
            Cell::from(agent.name.as_str()),
            Cell::from(state).style(Style::new().fg(colour)),
            Cell::from(agent.epoch.to_string()),
            Cell::from(format!("{:.0}", agent.examples_per_s)),
            Cell::from(agent.staleness.map_or_else(dash, |tau| tau.to_string())),
            Cell::from(agent.updates_accepted.to_string()),
            Cell::from((agent.uplink_bytes / 1000).to_string()),
            Cell::from(agent.train_loss.map_or_else(dash, |loss| format!("{loss:.3}"))),
        ];
        if with_roles {
            cells.insert(ROLE, Cell::from(subject.roles.get(&agent.name).map_or("-", String::as_str)));
        }
        Row::new(cells)
    });
    let widths = (0..widths.len()).filter(shown).map(|column| Constraint::Length(widths[column]));
    Table::new(rows, widths).header(header).block(Block::bordered().title(" agents "))
}
