//! Tables as text: columns as wide as a terminal shows them, two spaces apart.

use unicode_width::UnicodeWidthStr as _;

/// Where the text of a column begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// It begins at the left.
    Left,
    /// It ends at the right.
    Right,
}

/// Returns a line of names and a line for each row, without spaces at the ends of lines.
pub(crate) fn render<'a>(columns: &[(&'a str, Align)], rows: &'a [Vec<String>]) -> String {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let rows = rows.iter().map(|row| row.iter().map(String::as_str).collect());
    let lines: Vec<Vec<&str>> = std::iter::once(names).chain(rows).collect();
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.width()).max();
    let widths: Vec<usize> = (0..columns.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).zip(columns);
        let cells = cells.map(|((cell, width), (_, align))| pad(cell, *width, *align));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Returns a cell with spaces up to a width.
fn pad(cell: &str, width: usize, align: Align) -> String {
    let space = " ".repeat(width.saturating_sub(cell.width()));
    match align {
        Align::Left => format!("{cell}{space}"),
        Align::Right => format!("{space}{cell}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows = [["clinic", "7"], ["é", "1,000"], ["診療", "12"]];
        let rows: Vec<Vec<String>> = rows.map(|row| row.map(String::from).into()).into();
        let text = render(&[("name", Align::Left), ("n", Align::Right)], &rows);
        assert_eq!(text, "name        n\nclinic      7\né       1,000\n診療       12\n");
    }
}
