//! `status --watch` on a terminal: asks once a second and draws.

use std::time::Duration;

use anabranch_common::status::StatusReport;
use anabranch_common::wire::operator::RunRequest;
use anabranch_io::terminal::visible_line;
use anyhow::Context as _;
use console::Term;

use super::{parse, view};
use crate::cli::TargetArgs;
use crate::commands::reach::Coordinator;

const INTERVAL: Duration = Duration::from_secs(1);

/// Draws until Ctrl-C, which leaves the last view on the terminal.
pub(super) fn watch(coordinator: Coordinator, target: &TargetArgs) -> anyhow::Result<()> {
    let mut source = Source { coordinator: Some(coordinator), target };
    // The first report before the screen is cleared: what goes wrong so far belongs on the plain terminal.
    let mut report = source.next()?;
    let term = Term::buffered_stdout();
    term.clear_screen().context("cannot use this terminal; try without --watch, or pipe it")?;
    let mut notice = None;
    loop {
        draw(&term, &report, notice.as_deref()).context("cannot draw")?;
        std::thread::sleep(INTERVAL);
        match source.next() {
            Ok(next) => (report, notice) = (next, None),
            Err(error) => notice = Some(visible_line(&format!("{error:#}; trying again, Ctrl-C quits")).into_owned()),
        }
    }
}

/// Over the view before, line by line, so that nothing flickers.
fn draw(term: &Term, report: &StatusReport, notice: Option<&str>) -> std::io::Result<()> {
    let (height, width) = term.size();
    term.move_cursor_to(0, 0)?;
    // The cursor stays below the last line: one line of the terminal is its.
    for line in view::lines(report, notice, usize::from(height).saturating_sub(1), usize::from(width)) {
        term.clear_line()?;
        term.write_line(&line)?;
    }
    term.clear_to_end_of_screen()?;
    term.flush()
}

/// Where reports come from. Finds the coordinator again when it was started or stopped in the meantime.
struct Source<'a> {
    coordinator: Option<Coordinator>,
    target: &'a TargetArgs,
}

impl Source<'_> {
    fn next(&mut self) -> anyhow::Result<StatusReport> {
        let mut coordinator = match self.coordinator.take() {
            Some(coordinator) => coordinator,
            None => Coordinator::look(self.target)?,
        };
        let report = parse(&coordinator.ask_json(RunRequest::Status)?)?;
        // The store of a stopped coordinator is let go between two looks: one may want to start.
        if matches!(coordinator, Coordinator::Running(_)) {
            self.coordinator = Some(coordinator);
        }
        Ok(report)
    }
}
