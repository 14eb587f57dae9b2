//! `status --watch` on a terminal: asks once a second and draws.

use anabranch_common::status::StatusReport;
use anabranch_io::terminal::visible_line;
use anyhow::Context as _;
use console::Term;

use super::source::{INTERVAL, Source};
use super::{parse, view};
use crate::cli::RunTargetArgs;

/// Draws until Ctrl-C, which leaves the last view on the terminal.
pub(super) fn watch(target: &RunTargetArgs) -> anyhow::Result<()> {
    let mut source = Source::new(target);
    let mut next = || parse(&source.next()?);
    // The first report before the screen is cleared: what goes wrong so far belongs on the plain terminal.
    let mut report = next()?;
    let term = Term::buffered_stdout();
    term.clear_screen().context("cannot use this terminal; try without --watch, or pipe it")?;
    let mut notice = None;
    loop {
        draw(&term, &report, notice.as_deref()).context("cannot draw")?;
        std::thread::sleep(INTERVAL);
        match next() {
            Ok(newer) => (report, notice) = (newer, None),
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
