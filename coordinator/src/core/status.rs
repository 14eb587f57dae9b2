//! `status`: the fold over the journal, and what is known of agents while this process lives.

use std::collections::BTreeMap;

use anabranch_common::ids::{AgentId, Digest, Position};
use anabranch_common::journal::Chain;
use anabranch_common::merge::Served;
use anabranch_common::status::{AgentStatus, EvaluationProblem, StatusReport, TimedAggregate, TimedEvaluation};
use anabranch_common::update::RefusalReason;
use anabranch_common::wire::message::RunPhase;
use anabranch_common::wire::operator::OperatorResponse;

use super::agent::AgentState;
use super::sizing::Pace;
use super::state::RunState;
use super::{Core, Options};

/// Version of this software.
pub const SOFTWARE: &str = concat!("anabranch-coordinator ", env!("CARGO_PKG_VERSION"));

fn reasons(refused: &BTreeMap<RefusalReason, u64>) -> BTreeMap<String, u64> {
    refused.iter().map(|(reason, count)| (reason.as_str().to_owned(), *count)).collect()
}

/// The answer to an operator.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To `Status`.
    Status(Box<StatusReport>),
    /// To `AgentsList`.
    Agents(Vec<AgentStatus>),
    /// To everything else.
    Plain(OperatorResponse),
}

impl From<OperatorResponse> for Answer {
    fn from(response: OperatorResponse) -> Self {
        Self::Plain(response)
    }
}

impl Answer {
    /// The agents that it reports on, to be completed with the members that the run has not seen.
    pub fn agents_mut(&mut self) -> Option<&mut Vec<AgentStatus>> {
        match self {
            Self::Status(report) => Some(&mut report.agents),
            Self::Agents(agents) => Some(agents),
            Self::Plain(_) => None,
        }
    }

    /// The answer as it is sent.
    #[must_use]
    pub fn into_response(self) -> OperatorResponse {
        match self {
            Self::Status(report) => json(&report),
            Self::Agents(agents) => json(&agents),
            Self::Plain(response) => response,
        }
    }
}

/// A report as JSON.
#[must_use]
pub fn json<T: serde::Serialize>(report: &T) -> OperatorResponse {
    serde_json::to_string(report)
        .map_or_else(|error| OperatorResponse::Failed(error.to_string()), OperatorResponse::Json)
}

/// A member that a run knows nothing of.
#[must_use]
pub fn unseen(agent: AgentId) -> AgentStatus {
    agent_status(agent, &AgentState::default())
}

fn agent_status(agent: AgentId, state: &AgentState) -> AgentStatus {
    AgentStatus {
        agent,
        name: state.name.clone(),
        epoch: state.epoch,
        connected: false,
        revoked: state.revoked,
        device: String::new(),
        last_seen_ms: None,
        examples_per_s: state.examples_per_s,
        lease_steps: state.pace.as_ref().map(Pace::newest),
        staleness: state.staleness,
        lag_versions: None,
        codec_level: state.compression.as_ref().map(|compression| compression.level() as u64),
        train_loss: state.train_loss.map(f64::from),
        train_examples: state.examples_held,
        eval_examples: state.eval_examples,
        updates_accepted: state.accepted,
        updates_refused: reasons(&state.refused),
        uplink_bytes: state.uplink_bytes,
        downlink_bytes: state.downlink_bytes,
        evaluation_downlink_bytes: state.evaluation_downlink_bytes,
        evaluation_problem: state.evaluation_problem.as_ref().map(|(version, reason)| EvaluationProblem {
            version: *version,
            reason: reason.clone(),
            failures: state.evaluation_failures,
        }),
        // The registry knows.
        certificate_expires_at_ms: None,
        rotates: false,
    }
}

/// Every agent that the journal knows, by identity.
#[must_use]
pub fn agents_of(state: Option<&RunState>) -> Vec<AgentStatus> {
    let Some(run) = state else { return Vec::new() };
    let status = |(agent, state): (&AgentId, &AgentState)| {
        let lease = state.lease.and_then(|lease| state.leases.get(&lease));
        let lag_versions = lease.map(|lease| run.version.0.saturating_sub(lease.base_version.0));
        AgentStatus { lag_versions, ..agent_status(*agent, state) }
    };
    run.agents.iter().map(status).collect()
}

/// The report for a run whose coordinator is not running; also the part that does not depend on this process.
#[must_use]
pub fn report(
    options: &Options,
    name: &str,
    state: Option<&RunState>,
    chain: Chain,
    agents: Vec<AgentStatus>,
    unix_ms: u64,
) -> StatusReport {
    let started_at_ms = state.map_or(unix_ms, |state| state.started_at_ms);
    let seconds = |at_ms: u64| at_ms.saturating_sub(started_at_ms) as f64 / 1000.0;
    let params = state.map(|state| state.manifest.params() as u64);
    let accepted = state.map_or(0, |state| state.totals.accepted);
    let models_sent: u64 =
        state.into_iter().flat_map(|state| state.agents.values()).map(|agent| agent.models_sent).sum();
    let phase = match state {
        None => RunPhase::Pending,
        Some(state) if state.finished.is_some() => RunPhase::Finished,
        Some(state) if state.paused => RunPhase::Paused,
        Some(_) => RunPhase::Running,
    };
    StatusReport {
        software: SOFTWARE.to_owned(),
        serving: false,
        run: options.run,
        name: name.to_owned(),
        branch: state.map_or(options.first_branch, |state| state.branch),
        state: phase,
        finished: state.and_then(|state| state.finished).map(|(reason, _)| reason),
        result_version: state.and_then(|state| state.finished).map(|(_, result)| result),
        position: state.map_or(Position(0), |state| state.position),
        version: state.map(|state| state.version).unwrap_or_default(),
        served: match state {
            Some(state) if state.spec.merge.serves_average() => Served::Average,
            _ => Served::Model,
        },
        chain: if state.is_some() { chain.0 } else { Digest::default() },
        checkpoint_version: None,
        params,
        wall_s: seconds(unix_ms),
        leases_outstanding: state.map_or(0, |state| state.leases_outstanding() as u64),
        updates_accepted: accepted,
        updates_refused: state.map(|state| reasons(&state.totals.refused)).unwrap_or_default(),
        retries_answered: 0,
        uplink_bytes: state.map_or(0, |state| state.totals.uplink_bytes),
        downlink_bytes: agents.iter().map(|agent| agent.downlink_bytes).sum(),
        evaluation_downlink_bytes: agents.iter().map(|agent| agent.evaluation_downlink_bytes).sum(),
        raw_f32_uplink_bytes: accepted * params.unwrap_or(0) * 4,
        raw_f32_downlink_bytes: models_sent * params.unwrap_or(0) * 4,
        staleness_histogram: state.map(|state| state.totals.staleness.clone()).unwrap_or_default(),
        evaluations: state
            .into_iter()
            .flat_map(|state| &state.evaluations)
            .map(|(at_ms, evaluation)| TimedEvaluation { at_s: seconds(*at_ms), evaluation: *evaluation })
            .collect(),
        aggregates: state
            .into_iter()
            .flat_map(|state| &state.aggregates)
            .map(|(at_ms, aggregate)| TimedAggregate { at_s: seconds(*at_ms), aggregate: *aggregate })
            .collect(),
        target_problem: None,
        quota_problem: None,
        pods: None,
        agents,
        uploads: None,
        network: None,
    }
}

impl Core {
    /// Every agent that has taken part or connected, with what is known of it while this process lives.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentStatus> {
        let mut agents = agents_of(self.state.as_ref());
        let is_new = |agent| self.state.as_ref().is_none_or(|state| !state.agents.contains_key(&agent));
        let new = self.peers.seen().filter(|(agent, _)| is_new(*agent));
        agents.extend(new.map(|(agent, name)| AgentStatus { name: name.to_owned(), ..unseen(agent) }));
        for status in &mut agents {
            status.connected = self.peers.peer_of(status.agent).is_some();
            let Some(live) = self.peers.live(status.agent) else { continue };
            status.last_seen_ms = Some(self.now.mono_ms.saturating_sub(live.last_seen_ms));
            status.downlink_bytes += live.downlink_bytes;
            status.evaluation_downlink_bytes += live.evaluation_downlink_bytes;
            if let Some(speed) = live.examples_per_s {
                status.examples_per_s = f64::from(speed);
            }
            if let Some(hello) = &live.hello {
                status.device.clone_from(&hello.device);
                status.train_examples = hello.train_examples;
                status.eval_examples = hello.eval_examples;
            }
        }
        agents
    }

    /// The report of a serving coordinator.
    #[must_use]
    pub fn status(&self) -> StatusReport {
        let state = self.state.as_ref();
        let mut report = report(&self.options, &self.spec.name, state, self.chain, self.agents(), self.now.unix_ms);
        report.serving = true;
        report.checkpoint_version = self.checkpoints.version();
        report.retries_answered = self.admission.retries_answered;
        report.target_problem = self.target_problem();
        report.quota_problem = self.quota_problem().map(String::from);
        report.pods = self.pods.status();
        let models: u64 =
            report.agents.iter().filter_map(|agent| self.peers.live(agent.agent)).map(|live| live.models_sent).sum();
        report.raw_f32_downlink_bytes += models * report.params.unwrap_or(0) * 4;
        report
    }
}
