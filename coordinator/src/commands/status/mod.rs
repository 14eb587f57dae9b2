//! `status`: a table, JSON, one line a second, or a live view.

mod plain;
mod source;
pub(super) mod table;
mod view;
mod watch;

use std::io::IsTerminal as _;

use anabranch_common::status::StatusReport;
use anabranch_common::wire::operator::RunRequest;

use super::output;
use super::reach::Coordinator;
use crate::cli::{ReportArgs, StatusArgs};

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let ReportArgs { target, output } = &args.report;
    if args.watch {
        return match (output.json, std::io::stdout().is_terminal()) {
            (false, true) => watch::watch(target),
            (json, _) => plain::watch(target, json),
        };
    }
    let json = Coordinator::look(target)?.ask_json(RunRequest::Status)?;
    if output.json {
        return output::print_line(&json);
    }
    output::print(&table::status(&parse(&json)?))
}

fn parse(json: &str) -> anyhow::Result<StatusReport> {
    output::read_report(json, "the status")
}
