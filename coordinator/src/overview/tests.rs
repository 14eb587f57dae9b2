//! Made-up processes, runs and agents for the tests of each view.

use std::sync::Arc;

use anabranch_common::ids::{AgentId, ModelVersion, RunId};
use anabranch_common::journal::{Aggregate, Chain};
use anabranch_common::status::{AgentStatus, RunStanding, RunSummary, StatusReport, TimedAggregate};
use anabranch_common::wire::message::RunPhase;

use super::history::{History, Page};
use crate::core::status::{report, unseen};
use crate::host::{Health, RunView};
use crate::web::Snapshot;

/// A process that serves.
pub(crate) fn snapshot_at(at_ms: u64, runs: Vec<RunView>) -> Snapshot {
    let mut snapshot = Snapshot::starting(Vec::new());
    (snapshot.at_ms, snapshot.started_at_ms) = (at_ms, 0);
    (snapshot.view.health, snapshot.view.runs) = (Health::Serving, runs);
    snapshot
}

pub(crate) fn page(runs: Vec<RunView>) -> Page {
    History::default().take(Arc::new(snapshot_at(1_000_000, runs)))
}

/// A run that is served.
pub(crate) fn run(name: &str, agents: Vec<AgentStatus>) -> RunView {
    let run = RunId([1; 16]);
    let options = crate::web::tests::options(run);
    let count = |is: &dyn Fn(&AgentStatus) -> bool| agents.iter().filter(|agent| is(agent)).count() as u64;
    let summary = RunSummary {
        name: name.to_owned(),
        run: Some(run),
        own: true,
        weight: 1,
        state: RunStanding::Running,
        version: Some(ModelVersion(7)),
        updates_accepted: 0,
        agents: count(&|_| true),
        connected: count(&|agent| agent.connected),
        problem: None,
    };
    let report = StatusReport {
        serving: true,
        state: RunPhase::Running,
        ..report(&options, name, None, Chain::default(), agents, 0)
    };
    RunView { summary, report: Some(Box::new(report)), queues: None }
}

/// A connected agent.
pub(crate) fn agent(number: usize) -> AgentStatus {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    AgentStatus { name: format!("agent-{number}"), connected: true, ..unseen(AgentId(id)) }
}

/// A measurement of a version with so many percent.
pub(crate) fn measured(version: u64) -> TimedAggregate {
    let aggregate = Aggregate {
        version: ModelVersion(version),
        accuracy: version as f64 / 100.0,
        loss: 1.0 / (version + 1) as f64,
        evaluators: 1,
        num_examples: 10,
        covered_examples: 10,
        known_examples: 10,
    };
    TimedAggregate { at_s: version as f64, aggregate }
}
