//! The live view: the lines that are drawn for a report.
//!
//! ```text
//!  mnist  running, 3 agents connected, 2 training
//!  model       version 308 at position ...
//!  ...         what `status` says above its tables
//!  accuracy    91.20 %, loss 0.3100 at version 300
//!  20-100 %      ▂▃▅▆▇███          over the whole time
//!  staleness   █▆▃▁                0 to 3 versions
//!
//!  the agents' table, as far as it fits
//!  Ctrl-C quits
//! ```

use anabranch_common::status::StatusReport;
use anabranch_common::wire::message::RunPhase;
use console::{Style, truncate_str};

use super::table;
use crate::commands::output::{self, Table};

/// Columns before the values, as in `status`.
const INDENT: usize = 12;
/// Columns of a curve, where the terminal has room for so many.
const CURVE: usize = 72;
/// Shares of a character cell, from nothing to all of it.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Lines for a terminal of `height` lines and `width` columns, neither exceeded; `notice` stands in the last one when there is
/// something to say about the connection.
pub(super) fn lines(report: &StatusReport, notice: Option<&str>, height: usize, width: usize) -> Vec<String> {
    let dim = Style::new().dim();
    let mut lines = vec![format!(
        "{}  {}",
        Style::new().bold().apply_to(&report.name),
        phase_style(report).apply_to(table::state(report))
    )];
    let head = table::head(report).into_iter().filter(|(key, _)| !matches!(*key, "run" | "state" | "staleness"));
    lines.extend(head.map(|(key, value)| entry(key, &value)));
    lines.extend(accuracy(report, width.saturating_sub(INDENT).min(CURVE)));
    lines.extend(staleness(&report.staleness_histogram));
    lines.push(String::new());
    let room = height.saturating_sub(lines.len() + 1);
    lines.extend(agents(report, room));
    lines.truncate(height.saturating_sub(1));
    lines.push(match notice {
        Some(notice) => Style::new().yellow().apply_to(notice).to_string(),
        None => dim.apply_to(format!("Ctrl-C quits   {}", report.software)).to_string(),
    });
    lines.truncate(height);
    lines.into_iter().map(|line| truncate_str(&line, width, "").into_owned()).collect()
}

fn entry(key: &str, value: &str) -> String {
    format!("{}{value}", Style::new().dim().apply_to(format!("{key:<INDENT$}")))
}

fn phase_style(report: &StatusReport) -> Style {
    match report.state {
        RunPhase::Running if report.serving => Style::new().green(),
        RunPhase::Finished => Style::new().cyan(),
        RunPhase::Pending | RunPhase::Running | RunPhase::Paused => Style::new().yellow(),
    }
}

/// The latest measurement of the model, and the curve of all of them over time.
fn accuracy(report: &StatusReport, columns: usize) -> Vec<String> {
    let Some(latest) = report.aggregates.last() else {
        return vec![entry("accuracy", "no evaluation yet")];
    };
    let aggregate = latest.aggregate;
    let percent = 100.0 * aggregate.accuracy;
    let said = format!("{percent:.2} %, loss {:.4} at version {}", aggregate.loss, aggregate.version);
    let lowest = report.aggregates.iter().map(|timed| 100.0 * timed.aggregate.accuracy).fold(100.0, f64::min);
    let floor = ((lowest / 10.0).floor() * 10.0).clamp(0.0, 90.0);
    let columns = columns.max(1);
    let heights = (1..=columns).map(|column| {
        let until = latest.at_s * column as f64 / columns as f64;
        let known = report.aggregates.iter().rev().find(|timed| timed.at_s <= until);
        known.map_or(0.0, |timed| (100.0 * timed.aggregate.accuracy - floor) / (100.0 - floor))
    });
    let curve: String = heights.map(cell).collect();
    let scale = format!("{floor:.0}-100 %");
    let curve = entry(&scale, &Style::new().green().apply_to(curve).to_string());
    vec![entry("accuracy", &format!("{said}, {} after the start", output::span(latest.at_s))), curve]
}

/// One bar for each number of versions.
fn staleness(histogram: &[u64]) -> Option<String> {
    let used = histogram.iter().rposition(|count| *count > 0)? + 1;
    let most = histogram.iter().max().copied().unwrap_or(1).max(1);
    let bars: String = histogram[..used].iter().map(|count| cell(*count as f64 / most as f64)).collect();
    let bars = Style::new().blue().apply_to(bars);
    Some(entry("staleness", &format!("{bars}  of accepted updates, 0 to {} versions", used - 1)))
}

/// A bar of that share of a character cell; what is there at all is seen.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 to 8")]
fn cell(share: f64) -> char {
    let eighths = (share.clamp(0.0, 1.0) * 8.0).round() as usize;
    EIGHTHS[if share > 0.0 { eighths.max(1) } else { eighths }]
}

/// The agents' table in at most `room` lines.
fn agents(report: &StatusReport, room: usize) -> Vec<String> {
    let mut table = Table::new(&table::AGENT_COLUMNS);
    for agent in &report.agents {
        table.row(table::agent_row(agent));
    }
    let styles = report.agents.iter().map(|agent| match (agent.revoked, agent.connected) {
        (true, _) => Style::new().red(),
        (false, false) => Style::new().dim(),
        (false, true) => Style::new(),
    });
    let text = table.render();
    let styles = std::iter::once(Style::new().dim()).chain(styles);
    let mut lines: Vec<String> =
        text.lines().zip(styles).map(|(line, style)| style.apply_to(line).to_string()).collect();
    if lines.len() > room {
        let left = lines.len() - room.saturating_sub(1);
        lines.truncate(room.saturating_sub(1));
        lines.push(format!("and {left} more agents; `status` lists them all"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::report;
    use super::*;

    fn drawn(report: &StatusReport, notice: Option<&str>) -> String {
        lines(report, notice, 32, 120).join("\n")
    }

    #[test]
    fn the_view_shows_the_run_its_curves_and_its_agents() {
        let text = drawn(&report(), None);
        for expected in
            ["mnist", "running", "version 308", "91.20 %, loss", "staleness", "clinic", "1834 ex/s", "Ctrl-C quits"]
        {
            assert!(text.contains(expected), "{text}\ndoes not show {expected:?}");
        }
        assert!(drawn(&report(), Some("no answer")).ends_with("no answer"));
    }

    #[test]
    fn a_curve_rises_with_the_accuracy() {
        let mut climbing = report();
        let first = climbing.aggregates[0];
        climbing.aggregates = (0..5u32)
            .map(|index| {
                let mut timed = first;
                timed.at_s = f64::from(index) * 10.0;
                timed.aggregate.accuracy = 0.2 + 0.2 * f64::from(index);
                timed
            })
            .collect();
        let curve = accuracy(&climbing, 4).pop().expect("a curve");
        assert_eq!(curve, "20-100 %    ▂▄▆█");
    }

    #[test]
    fn any_report_fits_any_terminal() {
        let mut empty = report();
        (empty.agents, empty.aggregates, empty.staleness_histogram, empty.params) = (vec![], vec![], vec![], None);
        let mut crowded = report();
        crowded.agents = vec![crowded.agents[0].clone(); 300];
        crowded.staleness_histogram = vec![u64::MAX / 64; 24];
        for report in [report(), empty, crowded] {
            for (width, height) in [(1, 1), (20, 5), (80, 24), (89, 24), (250, 80)] {
                let lines = lines(&report, None, height, width);
                assert!(lines.len() <= height, "{} lines of {height}", lines.len());
                assert!(
                    lines.iter().all(|line| console::measure_text_width(line) <= width),
                    "{width} columns: {lines:#?}"
                );
            }
        }
    }
}
