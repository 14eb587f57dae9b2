//! The live view: what is drawn for a report.
//!
//! ```text
//!  ┌ mnist ─ running ──────────────────────────────┐
//!  │ head: version, position, updates, bytes       │
//!  ├───────────────────────┬───────────────────────┤
//!  │ accuracy over time    │ staleness             │
//!  ├───────────────────────┴───────────────────────┤
//!  │ agents                                        │
//!  └───────────────────────────────────────────────┘
//! ```

use anabranch_common::status::{AgentStatus, StatusReport};
use anabranch_common::wire::message::RunPhase;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Bar, BarChart, BarGroup, Block, Chart, Dataset, GraphType, Paragraph, Row, Table};

use super::table;
use crate::commands::output::{self, Align};

/// Width below which the charts stand in each other's way.
const WIDE: u16 = 90;

/// Draws `report`; `notice` stands in the bottom line when there is something to say about the connection.
pub(super) fn draw(frame: &mut Frame<'_>, report: &StatusReport, notice: Option<&str>) {
    let head: Vec<_> = table::head(report).into_iter().filter(|(key, _)| !matches!(*key, "run" | "state")).collect();
    let head_height = u16::try_from(head.len()).unwrap_or(u16::MAX).saturating_add(2);
    let agents_height = u16::try_from(report.agents.len()).unwrap_or(u16::MAX).saturating_add(3);
    let rows = Layout::vertical([
        Constraint::Length(head_height),
        Constraint::Min(8),
        Constraint::Max(agents_height),
        Constraint::Length(1),
    ]);
    let [top, middle, bottom, footer] = rows.areas(frame.area());
    draw_head(frame, top, report, &head);
    if middle.width >= WIDE {
        let [left, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(middle);
        draw_accuracy(frame, left, report);
        draw_staleness(frame, right, &report.staleness_histogram);
    } else {
        draw_accuracy(frame, middle, report);
    }
    draw_agents(frame, bottom, &report.agents);
    let footer_text = notice.map_or_else(
        || Line::from(Span::styled(format!(" q quits   {}", report.software), dim())),
        |notice| Line::from(Span::styled(format!(" {notice}"), Style::new().fg(Color::Yellow))),
    );
    frame.render_widget(Paragraph::new(footer_text), footer);
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn phase_color(report: &StatusReport) -> Color {
    match report.state {
        RunPhase::Running if report.serving => Color::Green,
        RunPhase::Finished => Color::Cyan,
        RunPhase::Pending | RunPhase::Running | RunPhase::Paused => Color::Yellow,
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, report: &StatusReport, head: &[(&'static str, String)]) {
    let title = Line::from(vec![
        Span::styled(format!(" {} ", report.name), bold()),
        Span::styled(format!(" {} ", table::state(report)), Style::new().fg(phase_color(report))),
    ]);
    let lines: Vec<Line<'_>> = head
        .iter()
        .map(|(key, value)| Line::from(vec![Span::styled(format!(" {key:<12}"), dim()), Span::raw(value.as_str())]))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}

fn draw_accuracy(frame: &mut Frame<'_>, area: Rect, report: &StatusReport) {
    let points: Vec<(f64, f64)> =
        report.evaluations.iter().map(|timed| (timed.at_s, 100.0 * timed.evaluation.accuracy)).collect();
    let latest = report.evaluations.last().map(|timed| timed.evaluation);
    let title = latest.map_or_else(
        || " accuracy: no evaluation yet ".to_owned(),
        |latest| {
            let (accuracy, loss, version) = (100.0 * latest.accuracy, latest.loss, latest.version);
            format!(" accuracy {accuracy:.2} %, loss {loss:.4} at version {version} ")
        },
    );
    let lowest = points.iter().map(|(_, accuracy)| *accuracy).fold(100.0, f64::min);
    let floor = ((lowest / 10.0).floor() * 10.0).clamp(0.0, 90.0);
    let until = points.last().map_or(1.0, |(at_s, _)| at_s.max(1.0));
    let percent = |value: f64| Span::styled(format!("{value:>3.0} %"), dim());
    let moment = |at_s: f64| Span::styled(output::span(at_s), dim());
    let dataset = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().fg(Color::Green))
        .data(&points);
    let chart = Chart::new(vec![dataset])
        .block(Block::bordered().title(title))
        .x_axis(Axis::default().bounds([0.0, until]).style(dim()).labels([
            moment(0.0),
            moment(until / 2.0),
            moment(until),
        ]))
        .y_axis(Axis::default().bounds([floor, 100.0]).style(dim()).labels([
            percent(floor),
            percent((floor + 100.0) / 2.0),
            percent(100.0),
        ]));
    frame.render_widget(chart, area);
}

fn draw_staleness(frame: &mut Frame<'_>, area: Rect, histogram: &[u64]) {
    let used = histogram.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
    let bars: Vec<Bar<'_>> = histogram[..used]
        .iter()
        .enumerate()
        .map(|(staleness, count)| Bar::default().value(*count).label(staleness.to_string()).text_value(String::new()))
        .collect();
    let room = area.width.saturating_sub(2) / u16::try_from(used.max(1)).unwrap_or(u16::MAX);
    let chart = BarChart::default()
        .block(Block::bordered().title(" staleness of accepted updates, in versions "))
        .bar_width(room.saturating_sub(1).clamp(1, 5))
        .bar_gap(1)
        .bar_style(Style::new().fg(Color::Blue))
        .label_style(dim())
        .data(BarGroup::default().bars(&bars));
    frame.render_widget(chart, area);
}

fn draw_agents(frame: &mut Frame<'_>, area: Rect, agents: &[AgentStatus]) {
    let cells: Vec<Vec<String>> = agents.iter().map(table::agent_row).collect();
    let widths: Vec<Constraint> = table::AGENT_COLUMNS
        .iter()
        .enumerate()
        .map(|(column, (name, _))| {
            let widest = cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
            Constraint::Length(u16::try_from(widest.unwrap_or(0).max(name.len())).unwrap_or(u16::MAX))
        })
        .collect();
    let cell = |text: String, align: Align| match align {
        Align::Left => Line::from(text),
        Align::Right => Line::from(text).alignment(Alignment::Right),
    };
    let header = Row::new(table::AGENT_COLUMNS.map(|(name, align)| cell(name.to_owned(), align))).style(dim());
    let rows = agents.iter().zip(cells).map(|(agent, cells)| {
        let style = match (agent.revoked, agent.connected) {
            (true, _) => Style::new().fg(Color::Red),
            (false, false) => dim(),
            (false, true) => Style::new(),
        };
        Row::new(cells.into_iter().zip(table::AGENT_COLUMNS).map(|(text, (_, align))| cell(text, align))).style(style)
    });
    let connected = agents.iter().filter(|agent| agent.connected).count();
    let title = format!(" {connected} of {} agents connected ", agents.len());
    let table = Table::new(rows, widths).header(header).column_spacing(2).block(Block::bordered().title(title));
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::table::tests::report;
    use super::*;

    fn drawn(report: &StatusReport, width: u16, height: u16, notice: Option<&str>) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, report, notice)).expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn the_view_shows_the_run_its_charts_and_its_agents() {
        let text = drawn(&report(), 120, 32, None);
        for expected in [
            "mnist",
            "running",
            "version 308",
            "accuracy 91.20 %",
            "staleness of accepted",
            "clinic",
            "1834 ex/s",
            "q quits",
        ] {
            assert!(text.contains(expected), "{text}\ndoes not show {expected:?}");
        }
        assert!(drawn(&report(), 120, 32, Some("no answer")).contains("no answer"));
    }

    #[test]
    fn any_report_fits_any_terminal() {
        let mut empty = report();
        (empty.agents, empty.evaluations, empty.staleness_histogram, empty.params) = (vec![], vec![], vec![], None);
        let mut crowded = report();
        crowded.agents = vec![crowded.agents[0].clone(); 300];
        crowded.staleness_histogram = vec![u64::MAX / 64; 24];
        for report in [report(), empty, crowded] {
            for (width, height) in [(1, 1), (20, 5), (80, 24), (89, 24), (250, 80)] {
                drawn(&report, width, height, None);
            }
        }
    }
}
