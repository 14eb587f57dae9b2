//! The saved fold: what its bytes hold.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anabranch_common::ids::{AgentId, BranchId, Digest, LeaseId, ModelVersion, Position, RunId};
use anabranch_common::journal::{Aggregate, Evaluation, FinishReason, Publication};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::participation::{self, Participation};
use anabranch_common::merge::shares::{self, Shares};
use anabranch_common::schema::{RunText, RunTextError, SchemaError};
use anabranch_common::spec::RunSpec;

use crate::core::agent::{AgentState, EpochLog};
use crate::core::agents::{self, Agents};
use crate::core::compression::Compression;
use crate::core::outstanding::Outstanding;
use crate::core::recent::{Recent, Vote};
use crate::core::round::Round;
use crate::core::sizing::Pace;
use crate::core::state::{RunState, Totals};

anabranch_common::layout! {
    struct Head {
        run, branch, spec, manifest, initial, started_at_ms, position, version, base, round, published, next_lease,
        participation, shares, recent, totals, evaluations, aggregates, paused, finished, reference_norm,
        copied since 7 or None, examples, pages,
    }
    struct Round { contributions, examples, since }
    struct Recent { votes }
    struct Vote { agent, norm, count, at }
    struct Totals { accepted, refused, uplink_bytes, staleness }

    struct Page { agents }
    struct Agent { state, part, share }
    struct AgentState {
        name, revoked, epoch, incarnation, epochs, lease, leases, pace, compression, rounds, examples_held,
        eval_examples,
        evaluation_failures, evaluation_problem, accepted, contributed_at, memory, refused, uplink_bytes, staleness, train_loss, examples_per_s,
        models_sent, downlink_bytes, evaluation_downlink_bytes,
    }
    struct EpochLog { forgotten_below, verdicts }
    struct Pace { step_ms, steps, granted }
    struct Compression { level, round_ms, byte_ms, fixed_ms, latest, accepted_ms, residual_ratio }
}

/// Everything that is not of one agent, and where the agents are.
#[derive(Debug)]
pub(super) struct Head {
    run: RunId,
    branch: BranchId,
    /// Read only by what goes on from here: its pages are asked for far more often.
    spec: RunText,
    manifest: ModelManifest,
    initial: Digest,
    started_at_ms: u64,
    position: Position,
    version: ModelVersion,
    base: ModelVersion,
    round: Round,
    published: Option<Publication>,
    next_lease: LeaseId,
    participation: participation::Sums,
    shares: shares::Sums,
    recent: Recent,
    totals: Totals,
    evaluations: VecDeque<(u64, Evaluation)>,
    aggregates: VecDeque<(u64, Aggregate)>,
    paused: bool,
    finished: Option<(FinishReason, ModelVersion)>,
    reference_norm: f64,
    copied: Option<u32>,
    examples: u64,
    /// Digests of the pages, by the smallest id in each in ascending order.
    pub(super) pages: Vec<Digest>,
}

/// Some agents by identity, in ascending order.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) agents: Vec<(AgentId, Agent)>,
}

/// One agent, with its parts of the participation and of the shares.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) state: Arc<AgentState>,
    pub(super) part: Option<participation::Part>,
    pub(super) share: Option<shares::Part>,
}

/// What is saved with the agents and belongs together in a fold.
#[derive(Debug, Default)]
pub(super) struct AgentParts {
    pub(super) participation: BTreeMap<AgentId, participation::Part>,
    pub(super) shares: BTreeMap<AgentId, shares::Part>,
}

impl Head {
    /// The head of a fold whose agents are saved in `pages`.
    ///
    /// # Errors
    /// The configuration has no text.
    pub(super) fn of(state: &RunState, pages: Vec<Digest>) -> Result<Self, SchemaError> {
        Ok(Self {
            run: state.run,
            branch: state.branch,
            spec: RunText::of(&state.spec)?,
            manifest: state.manifest.clone(),
            initial: state.initial,
            started_at_ms: state.started_at_ms,
            position: state.position,
            version: state.version,
            base: state.base,
            round: state.round,
            published: state.published,
            next_lease: state.next_lease,
            participation: state.participation.sums(),
            shares: state.shares.sums(),
            recent: state.recent.clone(),
            totals: state.totals.clone(),
            evaluations: state.evaluations.clone(),
            aggregates: state.aggregates.clone(),
            paused: state.paused,
            finished: state.finished,
            reference_norm: state.reference_norm,
            copied: state.copied,
            examples: state.examples,
            pages,
        })
    }

    /// The configuration.
    ///
    /// # Errors
    /// Its text is none that this program knows.
    pub(super) fn spec(&self) -> Result<RunSpec, RunTextError> {
        self.spec.parse()
    }

    /// The fold with these agents, and their parts of participation and shares.
    ///
    /// # Errors
    /// As [`spec`](Self::spec).
    pub(super) fn into_state(self, agents: Agents, parts: AgentParts) -> Result<RunState, RunTextError> {
        let outstanding = Outstanding::of(&agents);
        Ok(RunState {
            run: self.run,
            branch: self.branch,
            spec: self.spec()?,
            manifest: self.manifest,
            initial: self.initial,
            started_at_ms: self.started_at_ms,
            position: self.position,
            version: self.version,
            base: self.base,
            round: self.round,
            published: self.published,
            agents,
            outstanding,
            next_lease: self.next_lease,
            participation: Participation::restore(self.participation, parts.participation),
            shares: Shares::restore(self.shares, parts.shares),
            recent: self.recent,
            totals: self.totals,
            evaluations: self.evaluations,
            aggregates: self.aggregates,
            paused: self.paused,
            finished: self.finished,
            reference_norm: self.reference_norm,
            copied: self.copied,
            examples: self.examples,
        })
    }
}

impl Page {
    pub(super) fn of(page: &agents::Page, participation: &Participation, shares: &Shares) -> Self {
        let saved = |(agent, state): (AgentId, &Arc<AgentState>)| {
            let (part, share) = (participation.part(agent), shares.part(agent));
            (agent, Agent { state: Arc::clone(state), part, share })
        };
        Self { agents: page.agents().map(saved).collect() }
    }
}
