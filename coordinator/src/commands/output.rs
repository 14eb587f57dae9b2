//! Printing: tables, numbers for people, and a standard output that may be closed early.

use std::io::{self, Write as _};

use anabranch_io::cli::OutputArgs;
pub(super) use anabranch_io::cli::print;
pub(crate) use anabranch_io::cli::size_text as bytes;
use anabranch_io::terminal::{make_visible, visible};
use anyhow::Context as _;
use serde::de::DeserializeOwned;

use crate::columns;
pub(super) use crate::columns::Align;

/// Writes one line to standard output.
pub(super) fn print_line(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}

/// Writes a hint for people to standard error, where no script reads it.
pub(super) fn hint(text: &str) {
    // A closed standard error is nobody to talk to.
    let _ = writeln!(io::stderr(), "{}", visible(text));
}

/// Prints a list that was answered as JSON: as it is, or as a table; `none` in place of an empty one. `what`: the list, for
/// errors.
pub(super) fn print_list<T: DeserializeOwned>(
    json: &str,
    output: OutputArgs,
    (what, none): (&str, &str),
    table: impl FnOnce(&[T]) -> String,
) -> anyhow::Result<()> {
    if output.json {
        return print_line(json);
    }
    let entries: Vec<T> = read_report(json, what)?;
    if entries.is_empty() { print_line(none) } else { print(&table(&entries)) }
}

/// Reads a report that is shown to people: the text in it, most of which agents chose, is made safe for a terminal.
pub(super) fn read_report<T: DeserializeOwned>(json: &str, what: &str) -> anyhow::Result<T> {
    let unreadable = || format!("{what} cannot be read");
    let mut value = serde_json::from_str(json).with_context(unreadable)?;
    make_visible(&mut value);
    serde_json::from_value(value).with_context(unreadable)
}

/// A table whose columns are as wide as a terminal shows them, two spaces apart.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn render(&self) -> String {
        columns::render(&self.columns, &self.rows)
    }
}

/// A number with an apostrophe-free thousands separator: `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span of time in its two largest units: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub(crate) fn span(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let total = std::time::Duration::try_from_secs_f64(seconds).map_or(u64::MAX, |span| span.as_secs());
    let (days, hours, minutes, secs) = (total / 86_400, total / 3600 % 24, total / 60 % 60, total % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs} s"),
        (0, 0, _) => format!("{minutes} min {secs} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Unix milliseconds as a date in UTC: `2026-03-01 12:34:56Z`.
pub(crate) fn date(unix_ms: u64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    i64::try_from(unix_ms / 1000)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(&format).ok())
        .unwrap_or_else(|| "never".to_owned())
}

/// Compares what was sent with raw f32: `7.9x smaller than`, `about as much as` or `1.2x larger than`;
/// `None` when nothing was sent.
pub(super) fn comparison(sent: u64, raw: u64) -> Option<String> {
    let (smaller, larger) = (sent.min(raw), sent.max(raw));
    let times = format!("{:.1}x", larger as f64 / smaller as f64);
    match (smaller, times.as_str()) {
        (0, _) => None,
        (_, "1.0x") => Some("about as much as".to_owned()),
        _ if sent < raw => Some(format!("{times} smaller than")),
        _ => Some(format!("{times} larger than")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([span(0.25), span(45.0), span(200.0)], ["0.2 s", "45 s", "3 min 20 s"]);
        assert_eq!([span(7500.0), span(273_600.0)], ["2 h 5 min", "3 d 4 h"]);
        assert_eq!(date(1_772_368_496_000), "2026-03-01 12:34:56Z");
        assert_eq!(comparison(10, 100).as_deref(), Some("10.0x smaller than"));
        assert_eq!(comparison(297, 292).as_deref(), Some("about as much as"));
        assert_eq!(comparison(120, 100).as_deref(), Some("1.2x larger than"));
        assert_eq!([comparison(0, 100), comparison(100, 0)], [None, None]);
    }
}
