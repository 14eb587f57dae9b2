//! One run: its standing, its curves, its agents.

use std::collections::BTreeMap;

use anabranch_common::status::{RunStanding, StatusReport};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget;

use super::curve::{Curves, Measure, staleness};
use super::items::{Item, Items};
use super::style::{HEADING, QUIET, WAITS, standing};
use super::tables::agents;
use super::text::{fit, shown, wrap};
use crate::commands::{status_lines, status_state};
use crate::overview::agents::Agents;

/// Columns before the values of facts.
const INDENT: usize = 12;
/// Lines of the table of agents that are shown before any fact or curve is.
const AGENTS: u16 = 4;
/// Lines of a curve.
const CURVE: std::ops::RangeInclusive<u16> = 4..=12;
/// Lines of the reason of the selected agent, ...
const REASON: usize = 2;
/// ... which has a place below a table of so many lines.
const TABLE: u16 = 6;
/// Facts in the order in which they are given up last.
const FACTS: [&str; 9] =
    ["target", "quota", "updates", "pods", "bytes up", "bytes down", "model", "checkpoint", "bytes eval"];

/// A run.
#[derive(Debug)]
pub struct RunPanel<'a> {
    report: &'a StatusReport,
    measure: Measure,
    roles: Option<&'a BTreeMap<String, String>>,
    filter: &'a str,
    selected: Option<usize>,
    facts: usize,
}

impl<'a> RunPanel<'a> {
    /// Makes the view of a run.
    #[must_use]
    pub fn new(report: &'a StatusReport) -> Self {
        Self { report, measure: Measure::Accuracy, roles: None, filter: "", selected: None, facts: usize::MAX }
    }

    /// Sets the figure whose curve is drawn where there is no room for both.
    #[must_use]
    pub fn measure(self, measure: Measure) -> Self {
        Self { measure, ..self }
    }

    /// Adds a column with what each agent of a name is; none where nothing is said of any.
    #[must_use]
    pub fn roles(self, roles: &'a BTreeMap<String, String>) -> Self {
        Self { roles: (!roles.is_empty()).then_some(roles), ..self }
    }

    /// Leaves out the agents whose names do not have this part.
    #[must_use]
    pub fn filter(self, filter: &'a str) -> Self {
        Self { filter, ..self }
    }

    /// Marks an agent by its place among those that are shown, and says in full why it is as it is.
    #[must_use]
    pub fn select(self, selected: Option<usize>) -> Self {
        Self { selected, ..self }
    }

    /// Shows at most so many of the lines that `status` has above its tables.
    #[must_use]
    pub fn facts(self, facts: usize) -> Self {
        Self { facts, ..self }
    }

    fn head(&self) -> Items {
        let state = if self.report.serving { self.report.state.into() } else { RunStanding::Parked };
        let style = if self.report.finished.is_some() { standing(RunStanding::Finished) } else { standing(state) };
        Items::new([Item::new(status_state(self.report), style).after(&self.report.name, HEADING)])
    }

    /// Returns as many of the lines of `status` as there is room for, in its order.
    fn lines(&self, room: usize) -> Vec<(&'static str, String)> {
        let mut lines = status_lines(self.report);
        lines.retain(|(key, _)| FACTS.contains(key));
        let rank = |key: &str| FACTS.iter().position(|known| *known == key);
        let mut ranks: Vec<_> = lines.iter().map(|(key, _)| rank(key)).collect();
        ranks.sort_unstable();
        ranks.truncate(room.min(self.facts));
        lines.retain(|(key, _)| ranks.contains(&rank(key)));
        lines
    }

    fn agents(&self, area: Rect, buffer: &mut Buffer) {
        if area.is_empty() {
            return;
        }
        let found = Agents::named(self.report, self.filter);
        buffer.set_line(area.x, area.y, &self.title(&found), area.width);
        let why = self.selected.and_then(|selected| found.rows.get(selected.min(found.rows.len().saturating_sub(1))));
        let why = why.and_then(|row| Some(format!("{}: {}", row.name, row.why.as_ref()?)));
        let columns = usize::from(area.width);
        let reason = why.map(|why| wrap(&shown(why), columns, REASON)).unwrap_or_default();
        // The place of the reason stays, so that the table does not jump from agent to agent.
        let is_needed = self.selected.is_some() && found.rows.iter().any(|row| row.why.is_some());
        let below = if is_needed && usize::from(area.height) > usize::from(TABLE) + REASON {
            u16::try_from(REASON).unwrap_or(0)
        } else {
            0
        };
        let [_, table, below] =
            Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(below)]).areas(area);
        agents(&found, self.roles).select(self.selected).render(table, buffer);
        for (y, line) in (below.y..below.bottom()).zip(reason) {
            buffer.set_string(area.x, y, line, WAITS);
        }
    }

    /// `Agents  1 slow, 1 away, 3 training`.
    fn title(&self, found: &Agents) -> Line<'static> {
        let counts: Vec<String> =
            found.counts.iter().map(|(doing, count)| format!("{count} {}", doing.word())).collect();
        let counts = if counts.is_empty() { "none yet".to_owned() } else { counts.join(", ") };
        let mut spans = vec![Span::styled("Agents", HEADING), Span::raw(format!("  {counts}"))];
        if !self.filter.is_empty() {
            let found = found.rows.len() + found.more;
            spans.push(Span::styled(format!("  {found} with \"{}\"", shown(self.filter)), WAITS));
        }
        Line::from(spans)
    }
}

impl Widget for RunPanel<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let head = self.head();
        let head_height = u16::try_from(head.height(area.width)).unwrap_or(1).min(area.height);
        let staleness = staleness(&self.report.staleness_histogram);
        let room = area.height - head_height;
        let curve =
            if room < AGENTS + *CURVE.start() { 0 } else { (area.height / 4).clamp(*CURVE.start(), *CURVE.end()) };
        let bars = u16::from(staleness.is_some() && room > AGENTS + curve);
        let rows = u16::try_from(self.report.agents.len()).unwrap_or(u16::MAX).saturating_add(2);
        let wanted = rows.clamp(AGENTS, AGENTS.max(room / 3));
        let lines = self.lines(usize::from(room.saturating_sub(curve + bars + wanted)));
        let height = u16::try_from(lines.len()).unwrap_or(0);
        let parts = [head_height, height, bars, curve].map(Constraint::Length);
        let [top, fact_area, bar_area, curve_area, table] =
            Layout::vertical(parts.into_iter().chain([Constraint::Fill(1)])).areas(area);
        head.render(top, buffer);
        facts(&lines, fact_area, buffer);
        if let Some(bars) = staleness.filter(|_| !bar_area.is_empty()) {
            fact("staleness", bars, bar_area, buffer);
        }
        Curves::new(&self.report.aggregates, self.measure).render(curve_area, buffer);
        self.agents(table, buffer);
    }
}

/// Draws lines with a name each.
pub(crate) fn facts(lines: &[(&'static str, String)], area: Rect, buffer: &mut Buffer) {
    for (y, (key, value)) in (area.y..area.bottom()).zip(lines) {
        let value = fit(&shown(value), usize::from(area.width).saturating_sub(INDENT));
        fact(key, Line::styled(value, Style::new()), Rect { y, height: 1, ..area }, buffer);
    }
}

fn fact(key: &str, value: Line<'static>, area: Rect, buffer: &mut Buffer) {
    let mut spans = vec![Span::styled(format!("{key:<INDENT$}"), QUIET)];
    spans.extend(value.spans);
    buffer.set_line(area.x, area.y, &Line::from(spans), area.width);
}

#[cfg(test)]
mod tests {
    use anabranch_common::status::AgentStatus;

    use super::super::tests::text_of;
    use super::*;
    use crate::overview::tests::wards;

    #[test]
    fn a_run_has_its_curves_and_first_the_agents_that_need_the_operator() {
        insta::assert_snapshot!(text_of(RunPanel::new(&wards()).select(Some(0)), 80, 24));
    }

    #[test]
    fn a_narrow_terminal_has_one_curve_and_few_columns() {
        insta::assert_snapshot!(text_of(RunPanel::new(&wards()).measure(Measure::Loss).select(Some(1)), 40, 24));
    }

    #[test]
    fn a_wide_terminal_has_all_columns() {
        insta::assert_snapshot!(text_of(RunPanel::new(&wards()), 160, 30));
    }

    #[test]
    fn roles_have_a_column_and_a_filter_says_how_many_it_leaves() {
        let roles = [("lab".to_owned(), "helper".to_owned())].into();
        let text = text_of(RunPanel::new(&wards()).roles(&roles).filter("LA"), 80, 24);
        assert!(
            text.contains("1 with \"LA\"") && text.contains("lab    helper") && !text.contains("ward-3 "),
            "{text}"
        );
    }

    #[test]
    fn any_run_fits_any_terminal() {
        let mut empty = wards();
        (empty.agents, empty.aggregates, empty.staleness_histogram, empty.params) = (vec![], vec![], vec![], None);
        let mut crowded = wards();
        let hostile = AgentStatus { name: "\u{1b}]0;x\u{7}\u{202e}診".into(), ..crowded.agents[0].clone() };
        crowded.agents = vec![hostile; 300];
        crowded.staleness_histogram = vec![u64::MAX / 64; 24];
        for report in [wards(), empty, crowded] {
            for (width, height) in [(0, 0), (1, 1), (20, 5), (40, 12), (80, 24), (89, 24), (250, 80)] {
                let text = text_of(RunPanel::new(&report).select(Some(299)), width, height);
                assert!(!text.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{text:?}");
                assert!(width < 20 || text.contains("wards"), "{text}");
            }
        }
    }
}
