//! How a pod of stages is formed: which helpers an owner gets, and which layers each member computes. A pure function of who is free.

use std::cmp::Reverse;
use std::num::NonZeroU64;

use anabranch_common::ids::{AgentId, Digest, LeaseId};
use anabranch_common::limits;
use anabranch_common::pod::cut::{self, CutError, Load, Row, Table};
use anabranch_common::pod::order::Order;
use anabranch_common::pod::{PodPart, memory};
use anabranch_common::spec::{Labels, RunSpec, StageCount, StagesSpec};

use super::member::Member;

/// What every pod of stages of a run is formed by.
#[derive(Debug, Clone)]
pub(super) struct StagesPlan {
    spec: StagesSpec,
    table: Vec<Row>,
    load: Load,
    /// What an owner holds of the model whichever parts it computes.
    owner_bytes: u64,
    /// What agents are told of the configuration.
    spec_digest: Digest,
}

/// Why no pod can be formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPod {
    /// The owner's turn comes when its part in another round is over.
    #[error("the owner of the round is at work on another agent's")]
    AtWork,
    /// Other agents are away, or at work.
    #[error("a pod takes {takes} helpers, and {free} of the agents that join pods are free")]
    TooFew {
        /// Helpers that a pod takes.
        takes: usize,
        /// Agents that could help.
        free: usize,
    },
    /// The owner has no room for vectors as long as the model.
    #[error("the owner of a round holds {needed_bytes} bytes of the model, and may use {memory_bytes}")]
    Owner {
        /// What it takes.
        needed_bytes: u64,
        /// What the owner may use.
        memory_bytes: u64,
    },
    /// The model does not fit.
    #[error("{0}")]
    Cut(#[from] CutError),
    /// No other replica could be at the owner's site.
    #[error("no other agent of site {site:?} is connected that joins pods and has a training shard")]
    Alone {
        /// The owner's.
        site: String,
    },
    /// The other agents of the site have no room for the whole model.
    #[error("a replica takes {needed_bytes} bytes, and other agents of site {site:?} may use {memory_bytes} at most")]
    Replica {
        /// The owner's.
        site: String,
        /// What it takes.
        needed_bytes: u64,
        /// The most that one of them may use.
        memory_bytes: u64,
    },
    /// The owner's last round was given up, and it rests.
    #[error(
        "the round under lease {lease} was given up after {attempts} attempts that a member could not compute, the last one agent \
         {}: {reason}; mend that agent's trainer and start the agent again, or wait: the owner begins another round in minutes",
        agent.short()
    )]
    GivenUp {
        /// The owner's lease.
        lease: LeaseId,
        /// How many attempts failed so.
        attempts: u32,
        /// Who could not compute the last one.
        agent: AgentId,
        /// As that agent says.
        reason: String,
    },
}

impl NoPod {
    /// Returns what kind of reason it is: one line in the log for each.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::AtWork => "at work",
            Self::TooFew { .. } => "too few",
            Self::Owner { .. } => "owner",
            Self::Cut(_) => "cut",
            Self::Alone { .. } => "alone",
            Self::Replica { .. } => "replica",
            Self::GivenUp { .. } => "given up",
        }
    }
}

/// A pod as it could be formed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::core) struct Formed {
    pub(super) parts: Vec<PodPart>,
    pub(super) helpers: Vec<AgentId>,
    /// Digest of the configuration that its members compute by.
    pub(super) spec: Digest,
}

/// An agent that could help.
pub(super) type Candidate<'a> = (AgentId, &'a Member);

impl StagesPlan {
    /// The pods of `run`, whose model has such a table, and which is told to agents with such a digest.
    pub(super) fn new(run: &RunSpec, spec: StagesSpec, table: Table, spec_digest: Digest) -> Self {
        let Table { rows, params } = table;
        let load = Load::of(&spec, &run.train, &run.upload);
        let owner_bytes = memory::owner_bytes(params);
        Self { spec, table: rows, load, owner_bytes, spec_digest }
    }

    /// Forms the pod of `owner` with some of `helpers`: of as many members as the run says, or of as few as the model fits.
    pub(super) fn form(&self, owner: Candidate<'_>, helpers: &[Candidate<'_>], now_ms: u64) -> Result<Formed, NoPod> {
        if let StageCount::Exactly(members) = self.spec.stages {
            return self.form_of(members, owner, helpers, now_ms);
        }
        let mut why = NoPod::TooFew { takes: 1, free: helpers.len() };
        for members in 2..=self.most_members(helpers.len()) {
            match self.form_of(members, owner, helpers, now_ms) {
                // More members would not help.
                formed @ (Ok(_) | Err(NoPod::Owner { .. })) => return formed,
                Err(problem) => why = problem,
            }
        }
        Err(why)
    }

    /// The most members that a pod can have where so many agents could help.
    fn most_members(&self, helpers: usize) -> u32 {
        let Load { schedule, micro_batches, .. } = self.load;
        let is_possible = |members: &u32| {
            let parts = self.spec.parts_of(*members);
            let most = limits::POD_MEMBERS.min(self.table.len());
            parts as usize <= most && Order::new(schedule, parts, micro_batches, 1).is_ok()
        };
        let most = u32::try_from(helpers).unwrap_or(u32::MAX).saturating_add(1);
        (2..=most).take_while(is_possible).last().unwrap_or(1)
    }

    /// Forms a pod of so many members. Agents that are left out for a while come last, before them agents
    /// with rounds of their own; of the others the fastest are taken. Where the model does not fit, those with the most
    /// memory are tried, and both in the other order: the earlier stages hold more in flight.
    fn form_of(
        &self,
        members: u32,
        owner: Candidate<'_>,
        helpers: &[Candidate<'_>],
        now_ms: u64,
    ) -> Result<Formed, NoPod> {
        let takes = (members as usize).saturating_sub(1);
        if helpers.len() < takes {
            return Err(NoPod::TooFew { takes, free: helpers.len() });
        }
        let chosen = |rank: fn(&Member) -> u64| {
            let mut helpers = helpers.to_vec();
            helpers.sort_by_key(|(agent, member)| {
                (member.reputation(now_ms), member.trains, Reverse(rank(member)), *agent)
            });
            helpers.truncate(takes);
            helpers
        };
        let mut why = None;
        for mut order in [chosen(|member| member.flops_per_s.get()), chosen(|member| member.memory_bytes)] {
            for _ in 0..2 {
                match self.cut(owner, &order) {
                    Ok(formed) => return Ok(formed),
                    Err(problem) => why = Some(problem),
                }
                order.reverse();
            }
        }
        Err(why.expect("a cut was tried"))
    }

    fn cut(&self, (owner, own): Candidate<'_>, helpers: &[Candidate<'_>]) -> Result<Formed, NoPod> {
        let both = u64::from(self.spec.labels == Labels::Stay);
        let needed = NoPod::Owner { needed_bytes: self.owner_bytes, memory_bytes: own.memory_bytes };
        let left_bytes = own.memory_bytes.checked_sub(self.owner_bytes).ok_or(needed)?;
        // Where the owner has the first and the last part, each counts with half of its speed and of what memory is left.
        let share = NonZeroU64::MIN.saturating_add(both);
        let speed = NonZeroU64::new(own.flops_per_s.get() / share).unwrap_or(NonZeroU64::MIN);
        let part = cut::Member { flops_per_s: speed, memory_bytes: left_bytes / share };
        let help = |(_, member): &Candidate<'_>| cut::Member {
            flops_per_s: member.flops_per_s,
            memory_bytes: member.memory_bytes,
        };
        let last = (both > 0).then_some(part);
        let members: Vec<cut::Member> = [part].into_iter().chain(helpers.iter().map(help)).chain(last).collect();
        let stages = cut::cut(&self.table, &members, &self.load)?;
        let helpers: Vec<AgentId> = helpers.iter().map(|(agent, _)| *agent).collect();
        let agents = [owner].into_iter().chain(helpers.iter().copied()).chain([owner]);
        let end = |end: usize| u32::try_from(end).expect("a model has at most limits::MANIFEST_TENSORS layers");
        let parts = stages.iter().zip(agents).map(|(stage, agent)| PodPart { end: end(stage.layers.end), agent });
        Ok(Formed { parts: parts.collect(), helpers, spec: self.spec_digest })
    }
}

/// The `failures`-th wait, counted from 1, of waits that double.
pub(super) fn wait_ms((first_ms, most_ms): (u64, u64), failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(u64::BITS - 1);
    first_ms.saturating_mul(1 << doublings).min(most_ms)
}

/// How long an attempt lasts at least before a failure counts as the first one again.
pub(super) const SOUND_MS: u64 = limits::POD_RETRY_MS.1;
