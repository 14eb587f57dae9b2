//! What needs attention, and what has happened.

use super::items::{Item, Items};
use super::style::{BAD, HEADING, QUIET, WAITS, WELL};
use crate::commands::date;
use crate::overview::attention::Note;
use crate::overview::changes::{Entry, EventKind};
use ratatui::style::Style;

/// Returns what needs the operator, the urgent with a sign; that nothing does, in one line.
pub(crate) fn notes(notes: &[Note]) -> Items {
    if notes.is_empty() {
        return Items::new([Item::new("nothing needs you: everything does its work", WELL)]);
    }
    Items::new(notes.iter().map(|note| {
        let (sign, style) = if note.urgent { ("[!]", BAD) } else { ("[ ]", WAITS) };
        let item = Item::new(&note.text, Style::new()).after(sign, style);
        match note.run.as_ref().or(note.search.as_ref()) {
            Some(name) => item.after(name, HEADING),
            None => item,
        }
    }))
}

/// Whether events are named after the run that they are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// They are of several runs.
    Process,
    /// They are of one run.
    Run,
}

/// Returns events in the order in which they are given, with the time of day in UTC.
pub(crate) fn events<'a>(entries: impl IntoIterator<Item = &'a Entry>, of: Of) -> Items {
    let mut entries = entries.into_iter().peekable();
    if entries.peek().is_none() {
        return Items::new([Item::new("nothing has happened since this was opened", QUIET)]);
    }
    Items::new(entries.map(|entry| {
        let style = match entry.kind {
            EventKind::Refused => WAITS,
            EventKind::Measured | EventKind::Checkpoint => QUIET,
            _ => Style::new(),
        };
        let item = Item::new(&entry.text, style).after(time_of_day(entry.at_ms), QUIET);
        match entry.run.as_ref().filter(|_| of == Of::Process) {
            Some(name) => item.after(name, HEADING),
            None => item,
        }
    }))
}

/// Returns the time of day in UTC: `12:34:56Z`.
pub(crate) fn time_of_day(unix_ms: u64) -> String {
    let date = date(unix_ms);
    date.split_once(' ').map_or(date.clone(), |(_, time)| time.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::text_of;
    use super::*;

    #[test]
    fn what_is_urgent_has_a_sign_and_everything_the_name_of_its_run() {
        let note = |urgent, run: Option<&str>, text: &str| Note {
            urgent,
            run: run.map(String::from),
            search: None,
            text: text.to_owned(),
        };
        let all =
            [note(true, Some("wards"), "no evaluator is connected"), note(false, None, "a \u{1b}[31mcertificate")];
        assert_eq!(text_of(notes(&all), 60, 2), "[!] wards no evaluator is connected\n[ ] a \\u001b[31mcertificate");
        assert!(text_of(notes(&[]), 60, 2).starts_with("nothing needs you"));
    }

    #[test]
    fn an_event_has_its_time_and_its_run_where_there_are_several() {
        let entry = Entry {
            at_ms: 1_772_368_496_000,
            kind: EventKind::Refused,
            run: Some("wards".into()),
            text: "an update of lab was refused: stale".into(),
        };
        let line = |of| text_of(events([&entry], of), 80, 1);
        assert_eq!(line(Of::Process), "12:34:56Z wards an update of lab was refused: stale");
        assert_eq!(line(Of::Run), "12:34:56Z an update of lab was refused: stale");
        assert!(text_of(events([], Of::Run), 80, 1).starts_with("nothing has happened"));
    }
}
