//! `status`: a table, JSON, one line a second, or a live view.

mod plain;
mod source;
pub(in crate::commands) mod table;

pub(super) use source::{INTERVAL, Source};

use anabranch_common::status::{RunSummary, StatusReport};
use anabranch_common::wire::operator::{RunRequest, RunsRequest};

use super::reach::Coordinator;
use super::{output, runs, top};
use crate::cli::{RunReportArgs, StatusArgs};

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let RunReportArgs { target, output } = &args.report;
    if args.watch {
        return if !output.json && top::is_terminal() { top::run(target) } else { plain::watch(target, output.json) };
    }
    let mut coordinator = Coordinator::look(&target.target)?;
    if target.which.run.is_none()
        && let Some(json) = several(&mut coordinator)?
    {
        if output.json {
            return output::print_line(&json);
        }
        let runs: Vec<RunSummary> = output::read_report(&json, "the list of runs")?;
        return output::print(&runs::table(&runs));
    }
    show_one(&mut coordinator, &args.report)
}

/// Shows one run.
pub(super) fn show(args: &RunReportArgs) -> anyhow::Result<()> {
    show_one(&mut Coordinator::look(&args.target.target)?, args)
}

fn show_one(coordinator: &mut Coordinator, RunReportArgs { target, output }: &RunReportArgs) -> anyhow::Result<()> {
    let json = coordinator.ask_json(target.which.ask(RunRequest::Status))?;
    if output.json {
        return output::print_line(&json);
    }
    output::print(&table::status(&parse(&json)?))
}

/// Returns all runs as JSON, if there are several.
fn several(coordinator: &mut Coordinator) -> anyhow::Result<Option<String>> {
    if let Coordinator::Stopped(stopped) = coordinator
        && !stopped.has_others()?
    {
        return Ok(None);
    }
    let json = coordinator.ask_json(RunsRequest::List)?;
    let runs: Vec<RunSummary> = output::read_report(&json, "the list of runs")?;
    Ok((runs.len() > 1).then_some(json))
}

fn parse(json: &str) -> anyhow::Result<StatusReport> {
    output::read_report(json, "the status")
}
