//! `status`: what a running agent does, or what a stopped one's store holds.

use std::time::Duration;

use anabranch_common::limits;
use anabranch_io::control::{self, ControlError};
use anabranch_io::exit::{ExitCode, Fail};
use anyhow::Context as _;

use super::config_fail;
use crate::cli::StatusArgs;
use crate::config::{AgentConfig, AgentDir};
use crate::report::{AgentReport, RunReport, WaitingUpdate};
use crate::store::Ledger;

/// The line that asks for a report.
pub(super) const REQUEST: &str = "\"status\"";

/// Runs `status`.
pub(super) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let dir = AgentDir::new(&args.dir.dir);
    let config = AgentConfig::read(&dir.config()).map_err(config_fail)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deadline = Duration::from_millis(limits::REQUEST_TIMEOUT_MS);
    let report = match runtime.block_on(control::request(&dir.socket(), REQUEST, deadline)) {
        Ok(line) => serde_json::from_str(&line)
            .map_err(|error| Fail::new(ExitCode::Unavailable, "the agent's answer cannot be read").because(error))?,
        Err(ControlError::NotRunning { .. }) => stopped(&dir, config)?,
        Err(error) => return Err(error.into()),
    };
    if args.output.json { super::print_json(&report) } else { super::print(&report.to_text()) }
}

/// The address of the coordinator that has worked last, where one is noted.
fn last_address(dir: &AgentDir) -> Option<String> {
    let text = std::fs::read_to_string(dir.last_address()).ok()?;
    Some(text.trim().to_owned()).filter(|address| !address.is_empty())
}

fn stopped(dir: &AgentDir, config: AgentConfig) -> anyhow::Result<AgentReport> {
    let mut report = AgentReport {
        software: env!("CARGO_PKG_VERSION").to_owned(),
        running: false,
        run: config.run,
        agent: config.agent,
        name: config.name,
        address: last_address(dir).unwrap_or_else(|| config.address.first().to_owned()),
        addresses: config.address.as_slice().to_vec(),
        outbox: Vec::new(),
        branch: None,
        live: None,
        runs: Vec::new(),
    };
    // An agent that never ran has no store; looking changes nothing.
    if dir.store().exists() {
        let ledger = Ledger::open_copy(&dir.store()).context("the store cannot be looked at")?;
        report.outbox = ledger.outbox().map(WaitingUpdate::of).collect();
        report.branch = ledger.branch();
    }
    for run in dir.runs() {
        let store = dir.of_run(run).store();
        if store.exists() {
            let ledger = Ledger::open_copy(&store).context("the store of a further run cannot be looked at")?;
            let outbox = ledger.outbox().map(WaitingUpdate::of).collect();
            report.show(RunReport { run, name: None, weight: None, outbox, branch: ledger.branch(), live: None });
        }
    }
    Ok(report)
}
