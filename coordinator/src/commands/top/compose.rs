//! What operators are answered, as the snapshot that the page of a process is made from.

use std::collections::BTreeMap;

use anabranch_common::ids::{AgentId, Epoch};
use anabranch_common::status::{RunSummary, StatusReport};

use crate::host::{Health, HostView, MemberView, RunView, SearchView};
use crate::runs;
use crate::web::Snapshot;

/// Weight of a run of which only its report is known. It is not shown.
const WEIGHT: u32 = 1;

/// What a coordinator has answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    /// Whether a process answers; else a directory was read.
    pub(super) is_running: bool,
    /// Every run, and what `status` says of it, as far as it was asked.
    pub(super) runs: Vec<(RunSummary, Option<StatusReport>)>,
    /// Every search.
    pub(super) searches: Vec<SearchView>,
}

/// Returns the process at this moment, as far as an operator is told. Certificates and what waits in the process are not
/// part of any answer.
pub(super) fn snapshot(answers: Answers) -> Snapshot {
    let mut snapshot = Snapshot::starting(Vec::new());
    let Answers { is_running, runs, searches } = answers;
    let reports = runs.iter().filter_map(|(_, report)| report.as_ref());
    if let Some(network) = reports.clone().find_map(|report| report.network) {
        snapshot.network = network;
    }
    let members: BTreeMap<AgentId, MemberView> = reports
        .flat_map(|report| &report.agents)
        .map(|agent| {
            let (name, revoked) = (agent.name.clone(), agent.revoked);
            (agent.agent, MemberView { agent: agent.agent, name, revoked, joined_at_ms: 0 })
        })
        .collect();
    snapshot.view = HostView {
        health: if is_running { Health::Serving } else { stopped() },
        runs: runs.into_iter().map(|(summary, report)| run(summary, report)).collect(),
        searches,
        members: members.into_values().collect(),
        joins_waiting: 0,
    };
    snapshot
}

/// Returns the line of a run of which only its report is known.
pub(super) fn summary(report: &StatusReport) -> RunSummary {
    let summary = runs::summary(report, true, WEIGHT);
    let state = if report.serving { report.state.into() } else { summary.state };
    let connected = report.agents.iter().filter(|agent| agent.connected).count() as u64;
    RunSummary { state, connected, ..summary }
}

fn stopped() -> Health {
    Health::Leaving("no coordinator is running here: this is what its directory says".to_owned())
}

/// An operator's report lists every member; a run's agents are those that have taken part in it.
fn run(summary: RunSummary, report: Option<StatusReport>) -> RunView {
    let report = report.map(|mut report| {
        report.agents.retain(|agent| agent.connected || agent.epoch > Epoch(0));
        Box::new(report)
    });
    RunView { summary, report, queues: None }
}

#[cfg(test)]
mod tests {
    use anabranch_common::status::AgentStatus;

    use super::*;
    use crate::overview::history::History;
    use crate::overview::tests::{agent, run};

    fn answers(agents: Vec<AgentStatus>) -> Answers {
        let RunView { summary, report, .. } = run("wards", agents);
        Answers { is_running: true, runs: vec![(summary, report.map(|report| *report))], searches: Vec::new() }
    }

    #[test]
    fn members_that_a_run_has_not_seen_are_none_of_its_agents() {
        let unseen = AgentStatus { connected: false, ..agent(2) };
        let seen = AgentStatus { epoch: Epoch(1), connected: false, ..agent(3) };
        let snapshot = snapshot(answers(vec![agent(1), unseen, seen]));
        let report = snapshot.view.runs[0].report.as_ref().expect("a report");
        let names: Vec<&str> = report.agents.iter().map(|agent| agent.name.as_str()).collect();
        assert_eq!(names, ["agent-1", "agent-3"]);
        assert_eq!(snapshot.view.members.len(), 3);
    }

    #[test]
    fn what_two_answers_differ_in_is_in_the_log() {
        let mut history = History::default();
        let take = |history: &mut History, answers| history.take(std::sync::Arc::new(snapshot(answers)));
        take(&mut history, answers(vec![agent(1)]));
        let page = take(&mut history, answers(vec![agent(1), agent(2)]));
        let texts: Vec<&str> = page.log.iter().map(|entry| entry.text.as_str()).collect();
        assert_eq!(texts, ["agent-2 has joined", "agent-2 is connected"]);
        let page = take(&mut history, Answers { is_running: false, ..answers(vec![agent(1), agent(2)]) });
        let last = page.log.back().map(|entry| entry.text.clone()).unwrap_or_default();
        assert!(last.starts_with("no coordinator is running here"), "{last}");
    }
}
