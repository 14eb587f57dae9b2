//! A list of sentences, each in as many lines as it needs.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget;

use super::style::{QUIET, SELECTED};
use super::text::{fit, shown, width, wrap};

/// Lines of one item.
const LINES: usize = 3;
/// Columns before a sentence that begins below its lead.
const INDENT: usize = 2;
/// A sentence begins beside its lead where that leaves it so many columns.
const BESIDE: usize = 8;

/// A sentence, with what stands before it.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    lead: Vec<(String, Style)>,
    text: String,
    style: Style,
}

impl Item {
    pub(crate) fn new(text: impl Into<String>, style: Style) -> Self {
        Self { lead: Vec::new(), text: shown(text).trim().to_owned(), style }
    }

    /// Puts a word before the sentence.
    pub(crate) fn after(mut self, lead: impl Into<String>, style: Style) -> Self {
        self.lead.push((shown(lead), style));
        self
    }

    fn lines(&self, columns: usize) -> Vec<Line<'static>> {
        let lead: usize = self.lead.iter().map(|(text, _)| width(text) + 1).sum();
        let mut spans: Vec<Span<'static>> = Vec::new();
        for (text, style) in &self.lead {
            spans.push(Span::styled(text.clone(), *style));
            spans.push(Span::raw(" "));
        }
        if lead + BESIDE > columns && lead + width(&self.text) > columns {
            let mut lines = vec![Line::from(spans)];
            lines.extend(self.below(&self.text, columns, INDENT.min(columns), LINES - 1));
            return lines;
        }
        let beside = wrap(&self.text, columns.saturating_sub(lead), LINES);
        let first = beside.first().cloned().unwrap_or_default();
        let rest = if beside.len() > 1 { self.text.strip_prefix(&first).unwrap_or_default() } else { "" };
        let below = self.below(rest, columns, lead.min(columns / 3), LINES - 1);
        spans.push(Span::styled(first, self.style));
        std::iter::once(Line::from(spans)).chain(below).collect()
    }

    fn below(&self, text: &str, columns: usize, indent: usize, lines: usize) -> Vec<Line<'static>> {
        let wrapped = wrap(text, columns.saturating_sub(indent).max(1), lines);
        let line = |text| Line::from(vec![Span::raw(" ".repeat(indent)), Span::styled(text, self.style)]);
        wrapped.into_iter().map(line).collect()
    }
}

/// Sentences below each other.
#[derive(Debug, Default)]
pub(crate) struct Items {
    items: Vec<Item>,
    selected: Option<usize>,
}

impl Items {
    pub(crate) fn new(items: impl IntoIterator<Item = Item>) -> Self {
        Self { items: items.into_iter().collect(), selected: None }
    }

    /// Marks an item, which stays in sight.
    pub(crate) fn select(mut self, selected: Option<usize>) -> Self {
        self.selected = selected.map(|item| item.min(self.items.len().saturating_sub(1)));
        self
    }

    /// Returns how many lines all of it needs.
    pub(crate) fn height(&self, columns: u16) -> usize {
        self.items.iter().map(|item| item.lines(usize::from(columns)).len()).sum()
    }
}

impl Widget for Items {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let (columns, room) = (usize::from(area.width), usize::from(area.height));
        if area.is_empty() {
            return;
        }
        let mut lines: Vec<(usize, Line<'static>)> = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            lines.extend(item.lines(columns).into_iter().map(|line| (index, line)));
            let is_enough = lines.len() > room && self.selected.is_none_or(|selected| index >= selected);
            if is_enough {
                break;
            }
        }
        let end = self.selected.and_then(|selected| lines.iter().rposition(|(index, _)| *index == selected));
        let first = end.map_or(0, |end| (end + 1).saturating_sub(room));
        let is_cut = self.selected.is_none() && lines.len() > room;
        let shown = room - usize::from(is_cut);
        for (y, (index, line)) in (area.y..area.bottom()).zip(lines.iter().skip(first).take(shown)) {
            buffer.set_line(area.x, y, line, area.width);
            if self.selected == Some(*index) {
                buffer.set_style(Rect { y, height: 1, ..area }, SELECTED);
            }
        }
        if is_cut {
            let whole = lines.get(shown).map_or(0, |(index, _)| *index);
            let text = fit(&format!("and {} more", self.items.len().saturating_sub(whole)), columns);
            buffer.set_string(area.x, area.bottom() - 1, text, QUIET);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::text_of;
    use super::*;

    fn items(count: usize) -> Items {
        let item = |number: usize| {
            Item::new("2 of 5 agents are away: lab, ward-3", Style::new()).after(format!("run-{number}"), Style::new())
        };
        Items::new((0..count).map(item))
    }

    #[test]
    fn a_sentence_has_the_lines_that_it_needs() {
        assert_eq!(text_of(items(1), 60, 1), "run-0 2 of 5 agents are away: lab, ward-3");
        assert_eq!(text_of(items(1), 30, 3), "run-0 2 of 5 agents are away:\n      lab, ward-3");
        assert_eq!(items(2).height(30), 4);
        assert_eq!(text_of(items(1), 12, 3), "run-0\n  2 of 5\n  agents ar…");
    }

    #[test]
    fn what_does_not_fit_is_counted_and_the_selected_item_is_in_sight() {
        assert_eq!(text_of(items(5), 60, 3).lines().last(), Some("and 3 more"));
        let text = text_of(items(5).select(Some(4)), 60, 2);
        assert!(text.starts_with("run-3 ") && text.contains("\nrun-4 "), "{text}");
        for (width, height) in [(0, 3), (3, 0), (1, 1), (2, 9)] {
            text_of(items(3).select(Some(2)), width, height);
        }
    }
}
