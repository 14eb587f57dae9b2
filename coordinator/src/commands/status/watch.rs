//! `status --watch` on a terminal: asks once a second and draws.

use std::time::Duration;

use anabranch_common::status::StatusReport;
use anabranch_common::wire::operator::OperatorRequest;
use anyhow::Context as _;
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;

use super::{parse, view};
use crate::cli::TargetArgs;
use crate::commands::reach::Coordinator;

const INTERVAL: Duration = Duration::from_secs(1);

/// Draws until `q`, Escape or Ctrl-C.
pub(super) fn watch(coordinator: Coordinator, target: &TargetArgs) -> anyhow::Result<()> {
    let mut source = Source { coordinator: Some(coordinator), target };
    // The first report before the screen is taken: what goes wrong so far belongs on the plain terminal.
    let first = source.next()?;
    let mut terminal = ratatui::try_init().context("cannot use this terminal; try without --watch, or pipe it")?;
    let result = show(&mut terminal, &mut source, first);
    ratatui::restore();
    result
}

fn show(terminal: &mut DefaultTerminal, source: &mut Source<'_>, first: StatusReport) -> anyhow::Result<()> {
    let mut report = first;
    let mut notice = None;
    loop {
        terminal.draw(|frame| view::draw(frame, &report, notice.as_deref())).context("cannot draw")?;
        if wants_to_quit()? {
            return Ok(());
        }
        match source.next() {
            Ok(next) => (report, notice) = (next, None),
            Err(error) => notice = Some(format!("{error:#}; trying again, q quits")),
        }
    }
}

/// Waits a second for a key that ends the view; a resized window is drawn at once.
fn wants_to_quit() -> anyhow::Result<bool> {
    if !event::poll(INTERVAL).context("cannot read the keyboard")? {
        return Ok(false);
    }
    let Event::Key(key) = event::read().context("cannot read the keyboard")? else { return Ok(false) };
    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    let quit = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
    Ok(key.kind == KeyEventKind::Press && (quit || interrupt))
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
            None => Coordinator::reach(self.target)?,
        };
        let report = parse(&coordinator.ask_json(OperatorRequest::Status)?)?;
        // The store of a stopped coordinator is let go between two looks: one may want to start.
        if matches!(coordinator, Coordinator::Running(_)) {
            self.coordinator = Some(coordinator);
        }
        Ok(report)
    }
}
