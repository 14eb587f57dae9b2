//! Pods: who joins them, who is at work on what, and why none can be formed (docs/adr/0031-pods.md).
//!
//! ```text
//!  hello: PodOffer ─► Member: free ──► form ──► at work on a mark ──► PodEnded, or gone for a while: free
//!                                       ▲
//!  the owner asks for its lease ────────┤ (a request stands until a pod can be formed)
//!  Round: Broken ◄── a member is gone ──┴── AtWork(attempt) ──► Complete ──► its update is decided
//!         Dropped ◄── its owner is gone: it asks for its lease, and gets the same one
//! ```
//! Nothing here is journalled. A process that was started again learns from the owners' hellos which attempts are computed.
//!
//! What counts of an agent's words:
//!
//! | said | counts |
//! |---|---|
//! | "I am at work on this attempt" | of the holder of the lease; it begins no round and ends none otherwise |
//! | "this attempt has failed" | of the owner, and of the helpers of an attempt that this process began |
//! | "the round is computed" | of the owner |
//!
//! - `member`: an agent that joins pods; `round`: the attempts at one lease; `numbers`: the numbers of attempts.
//! - `requests`: owners' requests that stand; `reasons`: why there is no pod, as the log names it.
//! - `presence`: agents that come, go and are at work; `ends`: how attempts and rounds end.
//! - `plan`: who computes what; of stages `form`: helpers and layers; of replicas `replicas`: the agents of a site.
//! - `report`: what `status` says.
//! - `orders`: what `Core` makes of it: leases, and messages to the members.

mod ends;
mod form;
mod member;
mod numbers;
mod orders;
mod plan;
mod presence;
mod reasons;
mod replicas;
mod report;
mod requests;
mod round;

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::journal::{Lease, LeaseEnd};
use anabranch_common::pod::{PodMark, PodPeer, PodRound};
use anabranch_common::spec::RunSpec;

use super::state::RunState;
use form::{Candidate, Formed, NoPod};
use member::Member;
use numbers::Numbers;
use plan::Plan;
use reasons::Reasons;
use requests::Requests;
use round::{Round, Stage};

/// What the journal says of leases, if there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a>(pub(super) Option<&'a RunState>);

impl Known<'_> {
    /// Returns who holds an outstanding lease.
    fn holder(self, lease: LeaseId) -> Option<AgentId> {
        self.0?.holder(lease)
    }

    /// Whether a lease, which may be over, was this agent's.
    fn was_granted(self, agent: AgentId, lease: LeaseId) -> bool {
        let known = self.0.and_then(|state| state.agents.get(&agent));
        known.is_some_and(|known| known.leases.contains_key(&lease))
    }
}

/// Members, and the rounds that they compute.
#[derive(Debug, Default)]
pub(super) struct Pods {
    plan: Option<Plan>,
    members: BTreeMap<AgentId, Member>,
    rounds: BTreeMap<LeaseId, Round>,
    /// Of owners, for leases.
    pub(super) requests: Requests,
    /// Why there is no pod.
    reasons: Reasons,
    /// What attempts of this process are numbered by.
    numbers: Numbers,
    /// Whether attempts that were begun before this process count for nothing: the configuration was another one.
    voids_earlier: bool,
}

impl Pods {
    /// Without members, at the run's start number `starts`. None are formed where `spec` has no pods.
    pub(super) fn new(spec: &RunSpec, starts: u64) -> Self {
        Self { plan: Plan::of(spec), numbers: Numbers::of_start(starts), ..Self::default() }
    }

    /// Something has changed that other attempts may be formed from.
    fn changed(&mut self) {
        self.requests.try_again();
        self.rounds.values_mut().for_each(|round| round.tried = false);
    }

    /// Attempts that were begun before this process were computed by another configuration.
    pub(super) fn configuration_changed(&mut self) {
        self.voids_earlier = true;
    }

    /// Whether agents compute rounds in pods.
    fn are_formed(&self) -> bool {
        self.plan.is_some()
    }

    /// Whether an attempt at the round of a lease is under way.
    pub(super) fn is_computed(&self, lease: LeaseId) -> bool {
        self.rounds.get(&lease).is_some_and(|round| round.current().is_some())
    }

    /// Returns the helper that has computed a part of the model in an attempt at a lease of `owner`, if this process began that
    /// attempt, and no other one since.
    fn helper(&self, owner: AgentId, mark: PodMark, part: u32) -> Option<AgentId> {
        self.rounds.get(&mark.lease).filter(|round| round.owner == owner)?.helper(mark.attempt, part)
    }

    /// Returns the latest attempt at a lease of `owner` that this process began, and its members.
    fn latest(&self, owner: AgentId, lease: LeaseId) -> Option<(PodMark, &[AgentId])> {
        let round = self.rounds.get(&lease).filter(|round| round.owner == owner && !round.is_inherited())?;
        Some((PodMark { lease, attempt: round.newest }, round.members()))
    }

    /// Whether no other attempt at a lease can be begun.
    pub(super) fn is_spent(&self, lease: LeaseId) -> bool {
        self.rounds.get(&lease).is_some_and(|round| self.numbers.are_used_up_by(round.newest))
    }

    /// Whether the round of a lease was given up: its members have failed at it too often.
    pub(super) fn is_given_up(&self, lease: LeaseId) -> bool {
        self.rounds.get(&lease).is_some_and(Round::is_given_up)
    }

    /// Returns why an owner begins no round, if it rests after one that was given up.
    fn why_given_up(&self, owner: AgentId) -> Option<&NoPod> {
        self.members.get(&owner)?.why_given_up()
    }

    /// Returns why a lease ends whose owner asks for one and does not get it again.
    pub(super) fn why_over(&self, lease: LeaseId) -> LeaseEnd {
        if self.is_given_up(lease) { LeaseEnd::Returned } else { LeaseEnd::Superseded }
    }

    /// Whether the round under a lease is computed.
    pub(super) fn is_complete(&self, lease: LeaseId) -> bool {
        self.rounds.get(&lease).is_some_and(|round| round.stage == Stage::Complete)
    }

    /// Whether this agent's rounds are those of pods.
    pub(super) fn is_owner(&self, agent: AgentId) -> bool {
        self.plan.is_some() && self.members.get(&agent).is_some_and(|member| member.trains)
    }

    /// An agent asks for a lease: it computes no round of its own, whatever was heard of it.
    pub(super) fn asked(&mut self, agent: AgentId) {
        self.drop_rounds(agent);
        if let Some(member) = self.members.get_mut(&agent).filter(|member| member.is_own) {
            member.at_work = None;
        }
        self.changed();
    }

    /// Returns the leases whose owners wait for another attempt, and marks them as tried.
    fn due_rounds(&mut self, now_ms: u64) -> Vec<(LeaseId, AgentId)> {
        let due = self.rounds.iter_mut().filter(|(_, round)| round.is_due(now_ms));
        due.map(|(lease, round)| {
            round.tried = true;
            (*lease, round.owner)
        })
        .collect()
    }

    /// Forms a pod for `owner`. Members that are at work on its lease already are as good as free ones.
    fn form(&self, owner: AgentId, lease: Option<LeaseId>, now_ms: u64) -> Option<Result<Formed, NoPod>> {
        let plan = self.plan.as_ref()?;
        let own = self.members.get(&owner).filter(|member| member.is_connected())?;
        if !own.is_free_for(lease) {
            return Some(Err(NoPod::AtWork));
        }
        if let Some(why) = own.why_given_up().filter(|_| lease.is_none()) {
            return Some(Err(why.clone()));
        }
        // An owner that holds its lease waits for an attempt of its own.
        let held = self.rounds.values().filter(|round| round.is_held());
        let busy: BTreeSet<AgentId> = held.map(|round| round.owner).chain([owner]).collect();
        let is_free = |agent: AgentId, member: &Member| !busy.contains(&agent) && member.is_free_for(lease);
        let others = self.members.iter().filter(|(agent, _)| **agent != owner);
        let others: Vec<Candidate<'_>> = others.map(|(agent, member)| (*agent, member)).collect();
        Some(plan.form((owner, own), &others, is_free, now_ms))
    }

    /// Begins the next attempt at a lease with the pod that was formed.
    fn begin(&mut self, lease: &Lease, formed: Formed, now_ms: u64) -> PodRound {
        let Formed { parts, helpers, spec } = formed;
        let owner = lease.agent;
        let round = self.rounds.entry(lease.id).or_insert_with(|| Round::new(owner, Stage::Broken, 0));
        let members: Vec<AgentId> = helpers.into_iter().chain([owner]).collect();
        let attempt = self.numbers.after(round.newest);
        round.begin(attempt, members.clone(), &parts, now_ms);
        let mark = PodMark { lease: lease.id, attempt };
        let mut peers = Vec::new();
        for agent in members {
            let Some(member) = self.members.get_mut(&agent) else { continue };
            member.begin(mark, agent == owner);
            if agent != owner {
                peers.push(PodPeer { agent, address: member.address.clone() });
            }
        }
        PodRound { mark, owner, parts, peers, plan: lease.plan, spec }
    }

    /// Notes why there is no other attempt at a lease.
    fn cannot_go_on(&mut self, lease: LeaseId, why: NoPod) {
        if let Some(round) = self.rounds.get_mut(&lease) {
            round.problem = Some(why);
        }
    }

    /// Returns why a pod cannot be formed at present: of a round that is under way, or of the oldest request.
    fn why_none(&self) -> Option<&NoPod> {
        let rounds = self.rounds.values().filter(|round| round.stage == Stage::Broken);
        let mut of_rounds = rounds.filter_map(|round| round.problem.as_ref());
        of_rounds.next().or_else(|| self.requests.problem())
    }

    /// Returns the reason why there is no pod, if the log is to name it now.
    pub(super) fn take_problem(&mut self, now_ms: u64) -> Option<String> {
        let why = self.why_none().cloned();
        self.reasons.news(why, now_ms)
    }

    /// Whether there is nothing to look after.
    fn is_idle(&self) -> bool {
        self.members.is_empty() && self.rounds.is_empty() && self.requests.is_empty()
    }
}
