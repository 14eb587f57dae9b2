//! One search: its standing, and its trials from best to worst.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::widgets::Widget;

use super::panel::facts;
use super::tables::trials;
use crate::search::report::SearchReport;

/// Lines of trials that are shown before any fact is.
const TRIALS: u16 = 4;

/// A search.
#[derive(Debug)]
pub struct SearchPanel<'a> {
    report: &'a SearchReport,
    selected: Option<usize>,
}

impl<'a> SearchPanel<'a> {
    /// Makes the view of a search.
    #[must_use]
    pub fn new(report: &'a SearchReport) -> Self {
        Self { report, selected: None }
    }

    /// Marks a trial by its place from best to worst.
    #[must_use]
    pub fn select(self, selected: Option<usize>) -> Self {
        Self { selected, ..self }
    }
}

impl Widget for SearchPanel<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let lines = self.report.lines();
        let room = area.height.saturating_sub(TRIALS + 1);
        let height = room.min(u16::try_from(lines.len()).unwrap_or(u16::MAX));
        let gap = u16::from(height > 0 && area.height > height + TRIALS);
        let [head, _, table] =
            Layout::vertical([Constraint::Length(height), Constraint::Length(gap), Constraint::Fill(1)]).areas(area);
        facts(&lines, head, buffer);
        trials(self.report).select(self.selected).render(table, buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::text_of;
    use super::*;
    use crate::overview::tests::search;

    #[test]
    fn a_search_has_its_standing_and_its_trials() {
        insta::assert_snapshot!(text_of(SearchPanel::new(&search()), 80, 14));
    }

    #[test]
    fn a_narrow_terminal_keeps_trial_state_and_metric() {
        insta::assert_snapshot!(text_of(SearchPanel::new(&search()).select(Some(1)), 40, 14));
        for (width, height) in [(0, 0), (1, 1), (12, 3), (200, 60)] {
            text_of(SearchPanel::new(&search()), width, height);
        }
    }
}
