//! The live view on a terminal, and plain lines elsewhere.

use std::io::IsTerminal;

use anabranch_common::status::StatusReport;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame};

/// Lines of news that stay in sight.
const NEWS: usize = 4;

/// Where progress is shown.
#[derive(Debug)]
pub(crate) enum View {
    Terminal { terminal: Box<DefaultTerminal>, news: Vec<String>, last: Option<Box<StatusReport>> },
    Plain,
}

impl View {
    pub(crate) fn open(plain: bool) -> Self {
        if plain || !std::io::stdout().is_terminal() {
            return Self::Plain;
        }
        Self::Terminal { terminal: Box::new(ratatui::init()), news: Vec::new(), last: None }
    }

    /// Something happened.
    pub(crate) fn say(&mut self, what: &str) {
        match self {
            Self::Plain => println!("{what}"),
            Self::Terminal { news, .. } => {
                news.push(what.to_owned());
                self.draw();
            }
        }
    }

    /// The run's state, as of now.
    pub(crate) fn show(&mut self, report: &StatusReport) {
        match self {
            Self::Plain => println!("{}", line(report)),
            Self::Terminal { last, .. } => {
                *last = Some(Box::new(report.clone()));
                self.draw();
            }
        }
    }

    fn draw(&mut self) {
        if let Self::Terminal { terminal, news, last } = self {
            // A terminal that went away is no reason to stop training.
            let _ = terminal.draw(|frame| draw(frame, news, last.as_deref()));
        }
    }

    /// Gives the terminal back.
    pub(crate) fn close(&mut self) {
        if matches!(self, Self::Terminal { .. }) {
            ratatui::restore();
            *self = Self::Plain;
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.close();
    }
}

fn accuracy(report: &StatusReport) -> Option<f64> {
    report.aggregates.last().map(|timed| 100.0 * timed.aggregate.accuracy)
}

fn line(report: &StatusReport) -> String {
    let connected = report.agents.iter().filter(|agent| agent.connected).count();
    let accuracy = accuracy(report).map_or_else(|| "-".into(), |percent| format!("{percent:.1} %"));
    let staleness: Vec<String> =
        report.agents.iter().map(|agent| agent.staleness.map_or_else(|| "-".into(), |tau| tau.to_string())).collect();
    format!(
        "{:>5.1} s  version {:>4}  agents {connected}/{}  merged {:>4}  staleness {}  up {} kB  down {} kB  accuracy {accuracy}",
        report.wall_s,
        report.version,
        report.agents.len(),
        report.updates_accepted,
        staleness.join(" "),
        report.uplink_bytes / 1000,
        report.downlink_bytes / 1000,
    )
}

fn draw(frame: &mut Frame<'_>, news: &[String], report: Option<&StatusReport>) {
    let [head, agents, chart, log] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(8),
        Constraint::Min(5),
        Constraint::Length(2 + u16::try_from(NEWS).unwrap_or(4)),
    ])
    .areas(frame.area());
    let lines: Vec<Line<'_>> = news.iter().rev().take(NEWS).rev().map(|what| Line::from(what.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" news ")), log);
    let Some(report) = report else {
        frame.render_widget(Paragraph::new("starting ...").block(Block::bordered().title(" anabranch ")), head);
        return;
    };
    let ratio = report.raw_f32_uplink_bytes as f64 / report.uplink_bytes.max(1) as f64;
    let summary = format!(
        "{:.1} s   version {}   merged {}   leases out {}\nup {} kB ({ratio:.1}x smaller than f32)   down {} kB",
        report.wall_s,
        report.version,
        report.updates_accepted,
        report.leases_outstanding,
        report.uplink_bytes / 1000,
        report.downlink_bytes / 1000,
    );
    frame.render_widget(Paragraph::new(summary).block(Block::bordered().title(" anabranch quickstart ")), head);
    frame.render_widget(table(report), agents);
    let bars: Vec<u64> = report.aggregates.iter().map(|timed| percent(timed.aggregate.accuracy)).collect();
    let visible = usize::from(chart.width.saturating_sub(2));
    let bars = &bars[bars.len().saturating_sub(visible)..];
    let title = accuracy(report).map_or_else(|| " test accuracy ".into(), |now| format!(" test accuracy {now:.1} % "));
    let sparkline = Sparkline::default().data(bars).max(100).style(Style::new().fg(Color::Cyan));
    frame.render_widget(sparkline.block(Block::bordered().title(title)), chart);
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an accuracy lies between 0 and 1")]
fn percent(accuracy: f64) -> u64 {
    (100.0 * accuracy).round() as u64
}

fn table(report: &StatusReport) -> Table<'_> {
    let header = Row::new(["agent", "state", "epoch", "examples/s", "staleness", "merged", "up kB", "loss"])
        .style(Style::new().add_modifier(Modifier::BOLD));
    let rows = report.agents.iter().map(|agent| {
        let (state, colour) = if agent.connected { ("up", Color::Green) } else { ("gone", Color::Red) };
        let dash = || "-".to_owned();
        Row::new([
            Cell::from(agent.name.as_str()),
            Cell::from(state).style(Style::new().fg(colour)),
            Cell::from(agent.epoch.to_string()),
            Cell::from(format!("{:.0}", agent.examples_per_s)),
            Cell::from(agent.staleness.map_or_else(dash, |tau| tau.to_string())),
            Cell::from(agent.updates_accepted.to_string()),
            Cell::from((agent.uplink_bytes / 1000).to_string()),
            Cell::from(agent.train_loss.map_or_else(dash, |loss| format!("{loss:.3}"))),
        ])
    });
    let widths = [14, 6, 6, 11, 10, 8, 8, 8].map(Constraint::Length);
    Table::new(rows, widths).header(header).block(Block::bordered().title(" agents "))
}
