//! What the store of a run tells: of one that has ended while the process goes on, and on a stopped coordinator.

use anabranch_common::journal::Chain;
use anabranch_common::status::{RunStanding, RunSummary, StatusReport};
use anabranch_common::wire::message::RunPhase;
use anabranch_common::wire::operator::{OperatorResponse, RunRequest};

use crate::core::Options;
use crate::core::status::{self, Answer};
use crate::recovery::{self, RecoveryError};
use crate::store::Store;

/// Returns the report of a run that is not served, without the members that it has not seen.
///
/// # Errors
/// The run cannot be recovered.
pub fn status(store: &dyn Store, options: &Options, name: &str, unix_ms: u64) -> Result<StatusReport, RecoveryError> {
    let recovered = match recovery::recover(store) {
        Ok(recovered) => Some(recovered),
        Err(RecoveryError::Empty) => None,
        Err(error) => return Err(error),
    };
    let state = recovered.as_ref().map(|recovered| &recovered.state);
    let chain = recovered.as_ref().map_or_else(Chain::default, |recovered| recovered.chain);
    let mut report = status::report(options, name, state, chain, status::agents_of(state), unix_ms);
    report.checkpoint_version = recovered.as_ref().and_then(|recovered| recovered.checkpoint_version);
    Ok(report)
}

/// Answers what an operator asks of a run that has ended.
#[must_use]
pub fn answer(store: &dyn Store, options: &Options, name: &str, what: &RunRequest, unix_ms: u64) -> Answer {
    match (status(store, options, name, unix_ms), what) {
        (Ok(report), RunRequest::Status) => Answer::Status(Box::new(report)),
        (Ok(report), RunRequest::AgentsList) => Answer::Agents(report.agents),
        (Ok(_), _) => OperatorResponse::Conflict(format!("run {name} has ended")).into(),
        (Err(error), _) => {
            let text = error.help().map_or_else(|| error.to_string(), |help| format!("{error}; {help}"));
            OperatorResponse::Failed(text).into()
        }
    }
}

/// The line of a run of which nothing is known but its name and its problem.
#[must_use]
pub fn unreadable(name: String, problem: Option<String>) -> RunSummary {
    RunSummary {
        name,
        run: None,
        own: false,
        weight: 1,
        state: RunStanding::Failed,
        version: None,
        updates_accepted: 0,
        agents: 0,
        connected: 0,
        problem,
    }
}

/// Returns the line of a run that is not served, from its report.
#[must_use]
pub fn summary(report: &StatusReport, own: bool, weight: u32) -> RunSummary {
    let state = match report.state {
        RunPhase::Running => RunStanding::Parked,
        phase => phase.into(),
    };
    RunSummary {
        name: report.name.clone(),
        run: Some(report.run),
        own,
        weight,
        state,
        version: report.params.map(|_| report.version),
        updates_accepted: report.updates_accepted,
        agents: report.agents.iter().filter(|agent| agent.epoch.0 > 0).count() as u64,
        connected: 0,
        problem: None,
    }
}
