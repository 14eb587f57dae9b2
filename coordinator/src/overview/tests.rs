//! Made-up processes, runs and agents for the tests of each view.

use std::sync::Arc;

use anabranch_common::ids::{AgentId, Epoch, ModelVersion, Position, RunId};
use anabranch_common::journal::{Aggregate, Chain};
use anabranch_common::status::{AgentStatus, PodsStatus, RunStanding, RunSummary, StatusReport, TimedAggregate};
use anabranch_common::wire::message::RunPhase;

use super::history::{History, Page};
use crate::core::status::{report, unseen};
use crate::host::{Health, RunView};
use crate::search::price::Price;
use crate::search::record::{CloseReason, TrialId};
use crate::search::report::{ClosedReport, MeasurementReport, SearchPhase, SearchReport, TrialPhase, TrialReport};
use crate::search::spec::{Method, Metric};
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

/// A run in the middle of its life: an agent is slow, one is away, one is refused.
pub(crate) fn wards() -> StatusReport {
    let computing = |number: usize, name: &str, examples_per_s: f64| AgentStatus {
        name: name.to_owned(),
        epoch: Epoch(2),
        device: "cpu".to_owned(),
        last_seen_ms: Some(1_200),
        examples_per_s,
        staleness: Some(1),
        lag_versions: Some(1),
        train_loss: Some(0.31),
        updates_accepted: 100 + number as u64,
        uplink_bytes: 1 << 20,
        downlink_bytes: 2 << 20,
        ..agent(number)
    };
    let mut agents = vec![
        computing(1, "clinic", 1_834.0),
        computing(2, "ward-1", 1_700.0),
        computing(3, "ward-2", 1_650.0),
        computing(4, "ward-3", 120.0),
    ];
    agents.push(AgentStatus { connected: false, last_seen_ms: Some(200_000), ..computing(5, "lab", 0.0) });
    let refused = [("stale".to_owned(), 12), ("duplicate".to_owned(), 1)].into();
    agents.push(AgentStatus { updates_accepted: 4, updates_refused: refused, ..computing(6, "kiosk", 900.0) });
    StatusReport {
        params: Some(203_530),
        position: Position(321),
        version: ModelVersion(308),
        wall_s: 200.0,
        leases_outstanding: 5,
        updates_accepted: 1_234,
        updates_refused: [("stale".to_owned(), 12), ("duplicate".to_owned(), 1)].into(),
        uplink_bytes: 5 << 20,
        raw_f32_uplink_bytes: 40 << 20,
        downlink_bytes: 9 << 20,
        raw_f32_downlink_bytes: 36 << 20,
        staleness_histogram: vec![600, 500, 100, 34, 0, 0],
        checkpoint_version: Some(ModelVersion(300)),
        aggregates: (0..=90).step_by(10).map(measured).collect(),
        pods: Some(PodsStatus { computing: 2, sizes: Some([2, 3]), members: 5, free: 1, ..PodsStatus::default() }),
        agents,
        ..*run("wards", Vec::new()).report.expect("a report")
    }
}

/// A search with a trial in the lead, one behind and one that was closed.
pub(crate) fn search() -> SearchReport {
    let trial = |number: u32, metric: Option<f64>| TrialReport {
        trial: TrialId(number),
        run: format!("lr-{number}"),
        state: if metric.is_some() { TrialPhase::Waiting } else { TrialPhase::Closed },
        rung: 0,
        contributions: 6,
        measured: metric
            .map(|metric| MeasurementReport { rung: 0, contributions: 6, version: ModelVersion(3), metric })
            .into_iter()
            .collect(),
        overrides: [("train.optimizer.lr".to_owned(), 0.25.into())].into(),
        copies: Vec::new(),
        closed: metric
            .is_none()
            .then(|| ClosedReport { why: CloseReason::Diverged, reason: "its loss is not finite".to_owned() }),
    };
    SearchReport {
        name: "lr".to_owned(),
        method: Method::Asha,
        metric: Metric::Accuracy,
        state: SearchPhase::Running,
        leader: Some(TrialId(2)),
        started_at_ms: 0,
        changed_at_ms: 0,
        rungs: vec![6, 12],
        trials_planned: 4,
        parallel: 2,
        price: Price { full_run: 12, least: 24, about: 30.0, most: 48 },
        spent: 18,
        trials: vec![trial(0, None), trial(1, Some(0.5)), trial(2, Some(0.75))],
        problem: None,
    }
}
