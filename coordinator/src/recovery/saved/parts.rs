//! The saved fold: what its bytes hold.

use std::collections::BTreeMap;

use anabranch_common::ids::{
    AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, RunId, UpdateSeq,
};
use anabranch_common::journal::{Aggregate, Evaluation, FinishReason, Lease};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::participation::{self, Participation};
use anabranch_common::spec::RunSpec;
use anabranch_common::update::{RefusalReason, Verdict};

use crate::core::agent::{AgentState, EpochLog};
use crate::core::agents::{self, Agents};
use crate::core::recent::{self, Recent};
use crate::core::sizing;
use crate::core::state::{RunState, Totals};

anabranch_common::layout! {
    struct Head {
        run, branch, spec, manifest, initial, started_at_ms, position, version, buffered, next_lease, participation, votes, accepted, refused, uplink_bytes, staleness, evaluations, aggregates, paused, finished, reference_norm, examples, buffered_examples, pages,
    }
    struct Page {
        agents,
    }
    struct Agent {
        name, revoked, epoch, incarnation, epochs, lease, leases, pace, part, rounds, examples_held, eval_examples, evaluation_failures, evaluation_problem, accepted, refused, uplink_bytes, staleness, train_loss, examples_per_s, models_sent, downlink_bytes,
    }
    struct Decided {
        forgotten_below, verdicts,
    }
    struct Pace {
        step_ms, steps, granted,
    }
    struct Vote {
        agent, norm, count, at,
    }
}

/// Everything that is not of one agent, and where the agents are.
#[derive(Debug)]
pub(super) struct Head {
    run: RunId,
    branch: BranchId,
    spec: RunSpec,
    manifest: ModelManifest,
    initial: Digest,
    started_at_ms: u64,
    position: Position,
    version: ModelVersion,
    buffered: u32,
    next_lease: LeaseId,
    participation: participation::Sums,
    votes: Vec<Vote>,
    accepted: u64,
    refused: Vec<(RefusalReason, u64)>,
    uplink_bytes: u64,
    staleness: Vec<u64>,
    evaluations: Vec<(u64, Evaluation)>,
    aggregates: Vec<(u64, Aggregate)>,
    paused: bool,
    finished: Option<(FinishReason, ModelVersion)>,
    reference_norm: f64,
    examples: u64,
    buffered_examples: u64,
    /// Digests of the pages, by the smallest id in each in ascending order.
    pub(super) pages: Vec<Digest>,
}

/// Some agents by identity, in ascending order.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) agents: Vec<(AgentId, Agent)>,
}

/// One agent.
#[derive(Debug)]
pub(super) struct Agent {
    name: String,
    revoked: bool,
    epoch: Epoch,
    incarnation: Incarnation,
    epochs: Vec<(Epoch, Decided)>,
    lease: Option<LeaseId>,
    leases: Vec<Lease>,
    pace: Option<Pace>,
    pub(super) part: Option<participation::Part>,
    rounds: u64,
    examples_held: u64,
    eval_examples: u64,
    evaluation_failures: u32,
    evaluation_problem: Option<(ModelVersion, String)>,
    accepted: u64,
    refused: Vec<(RefusalReason, u64)>,
    uplink_bytes: u64,
    staleness: Option<u64>,
    train_loss: Option<f32>,
    examples_per_s: f64,
    models_sent: u64,
    downlink_bytes: u64,
}

/// The verdicts of one incarnation.
#[derive(Debug)]
struct Decided {
    forgotten_below: UpdateSeq,
    verdicts: Vec<(UpdateSeq, (Digest, Verdict))>,
}

#[derive(Debug)]
struct Pace {
    step_ms: Option<f64>,
    steps: u32,
    granted: Vec<(LeaseId, (u32, u64))>,
}

#[derive(Debug)]
struct Vote {
    agent: AgentId,
    norm: f64,
    count: f64,
    at: u64,
}

impl Head {
    /// The head of a fold whose agents are saved in `pages`.
    pub(super) fn of(state: &RunState, pages: Vec<Digest>) -> Self {
        let Totals { accepted, refused, uplink_bytes, staleness } = &state.totals;
        let vote = |vote: &recent::Vote| {
            let recent::Vote { agent, norm, count, at } = *vote;
            Vote { agent, norm, count, at }
        };
        Self {
            run: state.run,
            branch: state.branch,
            spec: state.spec.clone(),
            manifest: state.manifest.clone(),
            initial: state.initial,
            started_at_ms: state.started_at_ms,
            position: state.position,
            version: state.version,
            buffered: state.buffered,
            next_lease: state.next_lease,
            participation: state.participation.sums(),
            votes: state.recent.votes.iter().map(vote).collect(),
            accepted: *accepted,
            refused: refused.iter().map(|(reason, count)| (*reason, *count)).collect(),
            uplink_bytes: *uplink_bytes,
            staleness: staleness.clone(),
            evaluations: state.evaluations.iter().copied().collect(),
            aggregates: state.aggregates.iter().copied().collect(),
            paused: state.paused,
            finished: state.finished,
            reference_norm: state.reference_norm,
            examples: state.examples,
            buffered_examples: state.buffered_examples,
            pages,
        }
    }

    /// The fold with these agents, and their parts of the participation.
    pub(super) fn into_state(self, agents: Agents, parts: BTreeMap<AgentId, participation::Part>) -> RunState {
        let outstanding = agents.iter().filter_map(|(agent, state)| Some((state.lease?, *agent))).collect();
        let vote = |vote: Vote| {
            let Vote { agent, norm, count, at } = vote;
            recent::Vote { agent, norm, count, at }
        };
        RunState {
            run: self.run,
            branch: self.branch,
            spec: self.spec,
            manifest: self.manifest,
            initial: self.initial,
            started_at_ms: self.started_at_ms,
            position: self.position,
            version: self.version,
            buffered: self.buffered,
            agents,
            outstanding,
            next_lease: self.next_lease,
            participation: Participation::restore(self.participation, parts),
            recent: Recent { votes: self.votes.into_iter().map(vote).collect() },
            totals: Totals {
                accepted: self.accepted,
                refused: self.refused.into_iter().collect(),
                uplink_bytes: self.uplink_bytes,
                staleness: self.staleness,
            },
            evaluations: self.evaluations.into(),
            aggregates: self.aggregates.into(),
            paused: self.paused,
            finished: self.finished,
            reference_norm: self.reference_norm,
            examples: self.examples,
            buffered_examples: self.buffered_examples,
        }
    }
}

impl Page {
    pub(super) fn of(page: &agents::Page, participation: &Participation) -> Self {
        let saved = |(agent, state)| (agent, Agent::of(state, participation.part(agent)));
        Self { agents: page.agents().map(saved).collect() }
    }
}

impl Agent {
    fn of(state: &AgentState, part: Option<participation::Part>) -> Self {
        Self {
            name: state.name.clone(),
            revoked: state.revoked,
            epoch: state.epoch,
            incarnation: state.incarnation,
            epochs: state.epochs.iter().map(|(epoch, log)| (*epoch, Decided::of(log))).collect(),
            lease: state.lease,
            leases: state.leases.values().cloned().collect(),
            pace: state.pace.as_ref().map(Pace::of),
            part,
            rounds: state.rounds,
            examples_held: state.examples_held,
            eval_examples: state.eval_examples,
            evaluation_failures: state.evaluation_failures,
            evaluation_problem: state.evaluation_problem.clone(),
            accepted: state.accepted,
            refused: state.refused.iter().map(|(reason, count)| (*reason, *count)).collect(),
            uplink_bytes: state.uplink_bytes,
            staleness: state.staleness,
            train_loss: state.train_loss,
            examples_per_s: state.examples_per_s,
            models_sent: state.models_sent,
            downlink_bytes: state.downlink_bytes,
        }
    }

    pub(super) fn into_state(self) -> AgentState {
        AgentState {
            name: self.name,
            revoked: self.revoked,
            epoch: self.epoch,
            incarnation: self.incarnation,
            epochs: self.epochs.into_iter().map(|(epoch, decided)| (epoch, decided.into_log())).collect(),
            lease: self.lease,
            leases: self.leases.into_iter().map(|lease| (lease.id, lease)).collect(),
            pace: self.pace.map(Pace::into_pace),
            rounds: self.rounds,
            examples_held: self.examples_held,
            eval_examples: self.eval_examples,
            evaluation_failures: self.evaluation_failures,
            evaluation_problem: self.evaluation_problem,
            accepted: self.accepted,
            refused: self.refused.into_iter().collect(),
            uplink_bytes: self.uplink_bytes,
            staleness: self.staleness,
            train_loss: self.train_loss,
            examples_per_s: self.examples_per_s,
            models_sent: self.models_sent,
            downlink_bytes: self.downlink_bytes,
        }
    }
}

impl Decided {
    fn of(log: &EpochLog) -> Self {
        let EpochLog { verdicts, forgotten_below } = log;
        let verdicts = verdicts.iter().map(|(seq, verdict)| (*seq, *verdict)).collect();
        Self { forgotten_below: *forgotten_below, verdicts }
    }

    fn into_log(self) -> EpochLog {
        let Self { forgotten_below, verdicts } = self;
        EpochLog { verdicts: verdicts.into_iter().collect(), forgotten_below }
    }
}

impl Pace {
    fn of(pace: &sizing::Pace) -> Self {
        let sizing::Pace { step_ms, steps, granted } = pace;
        Self {
            step_ms: *step_ms,
            steps: *steps,
            granted: granted.iter().map(|(lease, grant)| (*lease, *grant)).collect(),
        }
    }

    fn into_pace(self) -> sizing::Pace {
        let Self { step_ms, steps, granted } = self;
        sizing::Pace { step_ms, steps, granted: granted.into_iter().collect() }
    }
}
