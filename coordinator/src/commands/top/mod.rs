//! `top`, and the live views of `status --watch` and `search status --watch`: one view of a process, a run or a search.
//!
//! ```text
//!  a second ─► Feed ─► Answers ─► compose ─► Snapshot ─► History ─► Page ─┐
//!                                                        keys ─► App ◄────┘ ─► draw ─► widgets
//! ```
//! What is shown is that of the operator's page (`overview`), made from what any operator is answered.
//!
//! | file | what is in it |
//! |---|---|
//! | `feed` | what a coordinator is asked |
//! | `compose` | answers as a snapshot |
//! | `app`, `place` | what the view shows, and keys |
//! | `draw` | the view on a terminal of any size |
//! | `screen` | taking the terminal over and giving it back |

mod app;
mod compose;
mod draw;
mod feed;
mod place;
mod screen;

use std::io::IsTerminal as _;

use anabranch_io::exit::{ExitCode, Fail};

use super::output;
use super::search::Source as SearchSource;
use super::status::table;
use crate::cli::{RunTargetArgs, TargetArgs};
use crate::web::Snapshot;
use feed::{Everything, OneRun, OneSearch};
use place::Place;
use screen::{Until, show};

/// Shows the whole process until the operator quits.
pub(super) fn top(target: TargetArgs) -> anyhow::Result<()> {
    if !is_terminal() {
        let fail = Fail::new(ExitCode::Usage, "top needs a terminal for its keys and its view".to_owned());
        let help =
            "`anabranch-coordinator status --watch` prints a line a second, with --json everything, into a pipe too";
        return Err(fail.help(help).into());
    }
    show(Everything::new(target), |_| Place::Overview, Until::Quit).map(drop)
}

/// Shows one run until the operator quits, and leaves its report on the terminal.
pub(super) fn run(target: &RunTargetArgs) -> anyhow::Result<()> {
    let home = |first: &Snapshot| {
        let name = first.view.runs.first().map(|view| view.summary.name.clone());
        Place::Run(name.unwrap_or_default())
    };
    let app = show(OneRun::new(target), home, Until::Quit)?;
    app.report().map_or(Ok(()), |report| output::print(&table::status(report)))
}

/// Shows one search until it has ended or the operator quits, and leaves its report on the terminal.
pub(super) fn search(source: SearchSource) -> anyhow::Result<()> {
    let home = |first: &Snapshot| {
        let name = first.view.searches.first().map(|view| view.summary.name.clone());
        Place::Search(name.unwrap_or_default())
    };
    let app = show(OneSearch::new(source), home, Until::SearchIsOver)?;
    let report = app.search().and_then(|view| view.report.as_ref());
    report.map_or(Ok(()), |report| output::print(&report.text()))
}

/// Whether there are keys to read and a terminal to draw on that can be drawn on at all.
pub(super) fn is_terminal() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && !is_dumb
}
