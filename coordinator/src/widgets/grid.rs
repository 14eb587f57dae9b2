//! A table that gives up its least important columns where the terminal is narrow.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget;

use super::style::{HEADING, QUIET, SELECTED};
use super::text::{fit, shown, width};

/// Columns between two of a table.
const GAP: usize = 2;
/// A column of sentences has at least so many columns of the terminal, or none.
const SENTENCE: usize = 28;
/// The same on a terminal of less than `NARROW` columns.
const NARROW_SENTENCE: usize = 12;
const NARROW: usize = 60;

/// How a column is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Text: begins at the left.
    Left,
    /// A number: ends at the right.
    Right,
    /// A sentence: has what the other columns leave.
    Sentence,
}

/// A column.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    name: String,
    fill: Fill,
    /// How soon it is given up: the one with the highest number first, one with 0 never.
    rank: u8,
}

impl Column {
    pub(crate) fn new(name: impl Into<String>, fill: Fill, rank: u8) -> Self {
        Self { name: shown(name), fill, rank }
    }
}

/// A table.
#[derive(Debug, Default)]
pub(crate) struct Grid {
    columns: Vec<Column>,
    rows: Vec<Vec<(String, Style)>>,
    selected: Option<usize>,
    /// Rows that there are beside those that were added.
    more: usize,
}

impl Grid {
    pub(crate) fn new(columns: Vec<Column>) -> Self {
        Self { columns, ..Self::default() }
    }

    /// Adds a row: a text and its style for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = (String, Style)>) {
        self.rows.push(cells.into_iter().map(|(text, style)| (shown(text), style)).collect());
    }

    /// Marks a row, which stays in sight.
    pub(crate) fn select(mut self, selected: Option<usize>) -> Self {
        self.selected = selected.map(|row| row.min(self.rows.len().saturating_sub(1)));
        self
    }

    /// Says how many rows there are beside those that were added.
    pub(crate) fn more(mut self, more: usize) -> Self {
        self.more = more;
        self
    }

    /// Returns the columns that are drawn and their widths, for a terminal of so many columns.
    fn widths(&self, room: usize) -> Vec<(usize, usize)> {
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|(text, _)| width(text));
            cells.chain([width(&self.columns[column].name)]).max().unwrap_or(0)
        };
        let mut shown: Vec<(usize, usize)> = (0..self.columns.len()).map(|column| (column, widest(column))).collect();
        let sentence = if room < NARROW { NARROW_SENTENCE } else { SENTENCE };
        let is_sentence = |column: usize| self.columns[column].fill == Fill::Sentence;
        loop {
            let least =
                |(column, wide): &(usize, usize)| if is_sentence(*column) { sentence.min(*wide) } else { *wide };
            let needed = shown.iter().map(least).sum::<usize>() + GAP * shown.len().saturating_sub(1);
            let last = shown.iter().map(|(column, _)| self.columns[*column].rank).max().unwrap_or(0);
            if needed <= room || last == 0 {
                break;
            }
            shown.retain(|(column, _)| self.columns[*column].rank < last);
        }
        let others = shown.iter().filter(|(column, _)| !is_sentence(*column)).map(|(_, wide)| wide).sum::<usize>();
        let left = room.saturating_sub(others + GAP * shown.len().saturating_sub(1));
        shown
            .into_iter()
            .map(|(column, wide)| (column, if is_sentence(column) { wide.min(left) } else { wide }))
            .collect()
    }

    fn line(&self, widths: &[(usize, usize)], cell: impl Fn(usize) -> (String, Style)) -> Line<'static> {
        let mut spans = Vec::new();
        for (place, (column, wide)) in widths.iter().enumerate() {
            let (text, style) = cell(*column);
            let text = fit(&text, *wide);
            let space = " ".repeat(wide - width(&text));
            let text = if self.columns[*column].fill == Fill::Right { space + &text } else { text + &space };
            spans.push(Span::styled(text, style));
            if place + 1 < widths.len() {
                spans.push(Span::raw(" ".repeat(GAP)));
            }
        }
        Line::from(spans)
    }
}

impl Widget for Grid {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        if area.is_empty() {
            return;
        }
        let widths = self.widths(usize::from(area.width));
        let head = self.line(&widths, |column| (self.columns[column].name.clone(), HEADING));
        buffer.set_line(area.x, area.y, &head, area.width);
        let room = usize::from(area.height) - 1;
        let is_cut = self.selected.is_none() && (self.rows.len() > room || self.more > 0);
        let lines = room - usize::from(is_cut && room > 0);
        let first = self.selected.map_or(0, |selected| (selected + 1).saturating_sub(lines));
        let places = (area.y + 1..area.bottom()).zip(self.rows.iter().enumerate().skip(first).take(lines));
        for (y, (index, row)) in places {
            let line = self.line(&widths, |column| row.get(column).cloned().unwrap_or_default());
            buffer.set_line(area.x, y, &line, area.width);
            if self.selected == Some(index) {
                buffer.set_style(Rect { y, height: 1, ..area }, SELECTED);
            }
        }
        if is_cut && room > 0 {
            let left = self.rows.len().saturating_sub(lines) + self.more;
            let y = area.y + 1 + u16::try_from(lines.min(self.rows.len())).unwrap_or(u16::MAX);
            let text = fit(&format!("and {left} more"), usize::from(area.width));
            buffer.set_string(area.x, y.min(area.bottom() - 1), text, QUIET);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::text_of;
    use super::*;

    fn grid(rows: usize) -> Grid {
        let mut grid = Grid::new(vec![
            Column::new("agent", Fill::Left, 0),
            Column::new("state", Fill::Left, 0),
            Column::new("why", Fill::Sentence, 2),
            Column::new("merged", Fill::Right, 1),
        ]);
        for row in 0..rows {
            let cells = [format!("agent-{row}"), "slow".into(), "computes 100 examples/s".into(), format!("{row}00")];
            grid.row(cells.map(|text| (text, Style::new())));
        }
        grid
    }

    #[test]
    fn a_narrow_terminal_has_fewer_columns_and_a_sentence_has_what_is_left() {
        let first = |width| text_of(grid(1), width, 2).lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(first(60)[0], "agent    state  why                      merged");
        assert_eq!(first(60)[1], "agent-0  slow   computes 100 examples/s     000");
        assert_eq!(first(40)[1], "agent-0  slow   computes 100 ex…     000");
        assert_eq!(first(30)[1], "agent-0  slow      000");
        assert_eq!(first(20)[1], "agent-0  slow");
        assert_eq!(first(10)[1], "agent-0  s", "what is never given up is cut");
    }

    #[test]
    fn rows_that_do_not_fit_are_counted_and_the_selected_one_is_in_sight() {
        let text = text_of(grid(9).more(3), 20, 4);
        assert!(text.ends_with("agent-0  slow\nagent-1  slow\nand 10 more"), "{text}");
        let text = text_of(grid(9).select(Some(7)), 20, 4);
        assert!(text.ends_with("agent-5  slow\nagent-6  slow\nagent-7  slow"), "{text}");
        assert!(text_of(grid(9).select(Some(99)), 20, 4).ends_with("agent-8  slow"), "no row beyond the last");
        for (width, height) in [(1, 1), (0, 4), (4, 0), (3, 2)] {
            text_of(grid(3).select(Some(2)), width, height);
        }
    }
}
