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
//! - `member`: an agent that joins pods; `round`: the attempts at one lease.
//! - `plan`: who computes what; of stages `form`: helpers and layers; of replicas `replicas`: the agents of a site.
//! - `orders`: what `Core` makes of it: leases, and messages to the members.

mod form;
mod member;
mod orders;
mod plan;
mod replicas;
mod round;

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, Incarnation, LeaseId};
use anabranch_common::journal::Lease;
use anabranch_common::limits;
use anabranch_common::pod::{PodMark, PodOffer, PodPeer, PodProblem, PodRound};
use anabranch_common::spec::RunSpec;
use anabranch_common::status::PodsStatus;

use super::event::PeerId;
use super::state::RunState;
use form::{Candidate, Formed, NoPod};
use member::Member;
use plan::Plan;
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

/// An owner's request for a lease that stands.
#[derive(Debug)]
struct Request {
    /// Requests are served in this order.
    number: u64,
    /// When the owner last heard of it.
    told_ms: u64,
    problem: Option<NoPod>,
}

/// Members, and the rounds that they compute.
#[derive(Debug, Default)]
pub(super) struct Pods {
    plan: Option<Plan>,
    members: BTreeMap<AgentId, Member>,
    rounds: BTreeMap<LeaseId, Round>,
    requests: BTreeMap<PeerId, Request>,
    next_request: u64,
    /// Whether requests are to be tried again.
    is_due: bool,
    /// The reason why there is no pod, and since when it holds.
    problem: Option<(NoPod, u64)>,
    /// Kinds of reasons that the log names.
    logged: BTreeSet<&'static str>,
    /// Whether attempts that were begun before this process count for nothing: the configuration was another one.
    voids_earlier: bool,
}

impl Pods {
    /// Without members. None are formed where `spec` has no pods.
    pub(super) fn new(spec: &RunSpec) -> Self {
        Self { plan: Plan::of(spec), ..Self::default() }
    }

    /// Something has changed that other attempts may be formed from.
    fn changed(&mut self) {
        self.is_due = true;
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

    /// An agent has connected with its process `incarnation`, and joins pods.
    fn arrived(
        &mut self,
        agent: AgentId,
        offer: &PodOffer,
        incarnation: Incarnation,
        trains: bool,
        known: Known<'_>,
        now_ms: u64,
    ) {
        let before = self.members.get(&agent);
        let is_new_process = before.is_none_or(|before| before.incarnation != incarnation);
        let left = before.and_then(|before| before.at_work).filter(|mark| Some(*mark) != offer.at_work);
        let is_own = offer.at_work.is_some_and(|mark| known.was_granted(agent, mark.lease));
        let member = Member::connected(offer, incarnation, trains, is_own, before);
        self.members.insert(agent, member);
        if let Some(mark) = left {
            self.lost(agent, mark, now_ms);
        }
        if let Some(mark) = offer.at_work.filter(|mark| known.holder(mark.lease) == Some(agent)) {
            self.claimed(agent, mark);
        }
        for (lease, round) in self.rounds.iter_mut().filter(|(_, round)| round.owner == agent) {
            match offer.at_work.filter(|mark| mark.lease == *lease) {
                // What the process before had computed is in its outbox, and offered before a lease is asked for. Or it is lost.
                _ if round.stage == Stage::Complete && is_new_process => round.stage = Stage::Dropped,
                _ if !round.is_held() => {}
                None => round.stage = Stage::Dropped,
                Some(mark) if round.current() != Some(mark.attempt) => {
                    round.heard_owner();
                    round.broke();
                }
                Some(_) => {}
            }
        }
        if !self.members[&agent].rests(now_ms) {
            self.rounds.values_mut().for_each(Round::retries_at_once);
        }
        self.changed();
    }

    /// The owner of a lease says that it is at work on this attempt.
    fn claimed(&mut self, owner: AgentId, mark: PodMark) {
        let stage = if self.voids_earlier { Stage::Dropped } else { Stage::AtWork(mark.attempt) };
        self.rounds.entry(mark.lease).or_insert_with(|| Round::new(owner, stage, 0)).claimed(mark.attempt);
    }

    /// An agent's connection is gone. What it is at work on goes on for a while without it.
    pub(super) fn left(&mut self, agent: AgentId, peer: PeerId, now_ms: u64) {
        self.requests.remove(&peer);
        let Some(member) = self.members.get_mut(&agent).filter(|member| member.is_connected()) else { return };
        member.away_since_ms = Some(now_ms);
        if std::mem::take(&mut member.told_over) {
            member.at_work = None;
        }
        if member.at_work.is_none() {
            // Owners forget what waits for an attempt when their connection is gone.
            self.drop_rounds(agent);
        }
        self.changed();
    }

    /// An agent joins no pods any more.
    pub(super) fn withdrawn(&mut self, agent: AgentId, now_ms: u64) {
        let Some(member) = self.members.remove(&agent) else { return };
        if let Some(mark) = member.at_work {
            self.lost(agent, mark, now_ms);
        }
        self.drop_rounds(agent);
        self.changed();
    }

    /// An agent was revoked. Attempts that it helps with count for nothing, nor do those whose members are not known.
    pub(super) fn revoked(&mut self, agent: AgentId, now_ms: u64) {
        self.withdrawn(agent, now_ms);
        for round in self.rounds.values_mut().filter(|round| round.is_held()) {
            if round.is_inherited() || round.members().contains(&agent) {
                round.broke();
                round.is_void = true;
            }
        }
    }

    fn drop_rounds(&mut self, owner: AgentId) {
        for round in self.rounds.values_mut().filter(|round| round.owner == owner && round.is_held()) {
            round.stage = Stage::Dropped;
        }
    }

    /// Members that have been away for too long are no members any more.
    fn expire(&mut self, now_ms: u64) {
        let is_lost = |member: &Member| {
            let since_ms = member.away_since_ms.filter(|_| member.at_work.is_some());
            since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= limits::POD_ABSENCE_MS)
        };
        let lost = self.members.iter_mut().filter(|(_, member)| is_lost(member));
        let lost: Vec<(AgentId, PodMark)> =
            lost.filter_map(|(agent, member)| Some((*agent, member.at_work.take()?))).collect();
        for (agent, mark) in &lost {
            self.lost(*agent, *mark, now_ms);
        }
        if !lost.is_empty() {
            self.changed();
        }
    }

    /// An agent is not at work on an attempt any more, and has not said how that ended.
    fn lost(&mut self, agent: AgentId, mark: PodMark, now_ms: u64) {
        let Some(round) = self.rounds.get_mut(&mark.lease) else { return };
        if round.owner == agent {
            if round.is_held() {
                round.stage = Stage::Dropped;
            }
        } else if round.current() == Some(mark.attempt) && round.has(agent) {
            round.failed(now_ms);
            self.failed(agent, true, now_ms);
        }
    }

    /// An agent's part of an attempt is over. Returns false where that is not what it is at work on.
    pub(super) fn ended(&mut self, agent: AgentId, mark: PodMark, problem: Option<&PodProblem>, now_ms: u64) -> bool {
        let Some(member) = self.members.get_mut(&agent).filter(|member| member.at_work == Some(mark)) else {
            return false;
        };
        member.at_work = None;
        let told_over = std::mem::take(&mut member.told_over);
        self.changed();
        let Some(round) = self.rounds.get_mut(&mark.lease).filter(|_| !told_over) else { return true };
        let is_owner = round.owner == agent;
        if is_owner && round.newest == mark.attempt {
            round.heard_owner();
        }
        match problem {
            None if is_owner && round.newest == mark.attempt => self.complete(mark.lease, agent),
            None => {}
            Some(problem) if round.current() == Some(mark.attempt) && round.has(agent) => {
                self.attempt_failed(agent, mark, problem.member, now_ms);
            }
            Some(_) => {}
        }
        true
    }

    /// The current attempt has failed, as one of its members says.
    fn attempt_failed(&mut self, by: AgentId, mark: PodMark, over: Option<AgentId>, now_ms: u64) {
        let Some(round) = self.rounds.get_mut(&mark.lease) else { return };
        let owner = round.owner;
        let over = over.filter(|over| round.has(*over) || round.is_inherited());
        if over != Some(owner) {
            round.failed(now_ms);
        } else if by == owner {
            // It takes part in no other attempt before it asks for its lease.
            round.misses_owner();
            round.is_void = true;
        } else {
            round.misses_owner();
        }
        // Which of the two is to blame cannot be known.
        if by != owner {
            self.failed(by, over == Some(by), now_ms);
        }
        if let Some(over) = over.filter(|over| *over != by && *over != owner) {
            self.failed(over, true, now_ms);
        }
    }

    fn failed(&mut self, agent: AgentId, accused: bool, now_ms: u64) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.failed(accused, now_ms);
        }
    }

    /// The round under `lease` of `owner` is computed: its update is on its way.
    pub(super) fn complete(&mut self, lease: LeaseId, owner: AgentId) {
        let Self { rounds, members, .. } = self;
        let round = rounds.entry(lease).or_insert_with(|| Round::new(owner, Stage::Complete, 0));
        if round.owner != owner {
            return;
        }
        round.stage = Stage::Complete;
        for helper in round.members() {
            members.get_mut(helper).into_iter().for_each(Member::succeeded);
        }
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
        self.rounds.get(&lease).is_some_and(Round::is_spent)
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

    /// Lets an owner's request wait for a pod.
    pub(super) fn wait(&mut self, peer: PeerId, now_ms: u64) {
        let number = self.next_request;
        self.next_request += 1;
        self.requests.entry(peer).or_insert(Request { number, told_ms: now_ms, problem: None });
        self.is_due = true;
    }

    /// Whether a connection's request for a lease waits for a pod.
    pub(super) fn waits(&self, peer: PeerId) -> bool {
        self.requests.contains_key(&peer)
    }

    /// Whether a request may be granted now, if there is a version to train from.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_due && !self.requests.is_empty()
    }

    /// Forgets the request of a connection.
    pub(super) fn forget_request(&mut self, peer: PeerId) {
        self.requests.remove(&peer);
    }

    /// Takes every request.
    fn take_requests(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.requests).into_keys().collect()
    }

    /// Returns the requests that are to be tried now, in their order.
    fn due_requests(&mut self) -> Vec<PeerId> {
        if !std::mem::take(&mut self.is_due) {
            return Vec::new();
        }
        let mut requests: Vec<(u64, PeerId)> =
            self.requests.iter().map(|(peer, request)| (request.number, *peer)).collect();
        requests.sort_unstable();
        requests.into_iter().map(|(_, peer)| peer).collect()
    }

    /// Returns the connections that have waited without a word for a while, and marks them as told.
    fn due_news(&mut self, now_ms: u64) -> Vec<PeerId> {
        let is_due = |request: &Request| now_ms.saturating_sub(request.told_ms) >= limits::LEASE_DEFERRED_MS;
        let due = self.requests.iter_mut().filter(|(_, request)| is_due(request));
        due.map(|(peer, request)| {
            request.told_ms = now_ms;
            *peer
        })
        .collect()
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
        // An owner that holds its lease waits for an attempt of its own.
        let held = self.rounds.values().filter(|round| round.is_held());
        let busy: BTreeSet<AgentId> = held.map(|round| round.owner).chain([owner]).collect();
        let is_free = |agent: AgentId, member: &Member| !busy.contains(&agent) && member.is_free_for(lease);
        let others = self.members.iter().filter(|(agent, _)| **agent != owner);
        let others: Vec<Candidate<'_>> = others.map(|(agent, member)| (*agent, member)).collect();
        Some(plan.form((owner, own), &others, is_free, now_ms))
    }

    /// Begins the next attempt at a lease with the pod that was formed.
    fn begin(&mut self, lease: &Lease, formed: Formed, lease_age_ms: u64, now_ms: u64) -> PodRound {
        let Formed { parts, helpers, spec } = formed;
        let owner = lease.agent;
        let round = self.rounds.entry(lease.id).or_insert_with(|| Round::new(owner, Stage::Broken, 0));
        let members: Vec<AgentId> = helpers.into_iter().chain([owner]).collect();
        let mark = PodMark { lease: lease.id, attempt: round.begin(members.clone(), &parts, lease_age_ms, now_ms) };
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

    /// Of several owners that wait in vain for another attempt, all but that of the earliest lease give their rounds up for
    /// now, so that they can help it.
    fn give_way(&mut self) {
        let mut others = self.rounds.values_mut().filter(|round| round.is_stuck()).skip(1).peekable();
        if others.peek().is_some() {
            others.for_each(|round| round.is_void = true);
            self.changed();
        }
    }

    /// Returns who is to be told that an attempt is over, and forgets the rounds of leases that are. `holder`: who holds a
    /// lease. While the run gives no leases (`runs`), no round is computed.
    fn overs(&mut self, holder: impl Fn(LeaseId) -> Option<AgentId>, runs: bool) -> Vec<(AgentId, PodMark)> {
        let Self { members, rounds, .. } = self;
        rounds.retain(|lease, round| {
            let holds = holder(*lease) == Some(round.owner);
            if round.is_held() && (!holds || !runs || round.is_void) {
                let mark = PodMark { lease: *lease, attempt: round.newest };
                let owner = members.get_mut(&round.owner).filter(|owner| owner.is_connected());
                if let Some(owner) = owner.filter(|owner| owner.at_work.is_none()) {
                    // It waits for an attempt. It can help others once it says that it does not any more.
                    owner.begin(mark, true);
                }
                (round.stage, round.is_void) = (Stage::Dropped, false);
            }
            holds
        });
        let known: BTreeSet<AgentId> = members.keys().copied().collect();
        let counts = |agent: AgentId, mark: PodMark| match rounds.get(&mark.lease) {
            Some(round) => match round.stage {
                Stage::AtWork(attempt) => attempt == mark.attempt && (round.has(agent) || round.is_inherited()),
                Stage::Broken | Stage::Complete => round.owner == agent,
                Stage::Dropped => false,
            },
            // The owner is not back yet since this process has begun.
            None => runs && holder(mark.lease).is_some_and(|owner| !known.contains(&owner)),
        };
        let mut told = Vec::new();
        for (agent, member) in members.iter_mut().filter(|(_, member)| member.is_connected() && !member.told_over) {
            if let Some(mark) = member.at_work.filter(|mark| !counts(*agent, *mark)) {
                member.told_over = true;
                told.push((*agent, mark));
            }
        }
        told
    }

    /// Notes why a request is not granted.
    fn cannot_grant(&mut self, peer: PeerId, why: NoPod) {
        if let Some(request) = self.requests.get_mut(&peer) {
            request.problem = Some(why);
        }
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
        let oldest = self.requests.values().min_by_key(|request| request.number);
        let mut of_rounds = rounds.filter_map(|round| round.problem.as_ref());
        of_rounds.next().or_else(|| oldest?.problem.as_ref())
    }

    /// Returns the reason why there is no pod when one of its kind has held for a while: of each kind the first.
    fn take_problem(&mut self, now_ms: u64) -> Option<String> {
        let Some(why) = self.why_none().cloned() else {
            self.problem = None;
            return None;
        };
        let since_ms = match &self.problem {
            Some((known, since_ms)) if known.kind() == why.kind() => *since_ms,
            _ => now_ms,
        };
        let is_news = now_ms.saturating_sub(since_ms) >= limits::POD_PROBLEM_MS && self.logged.insert(why.kind());
        let news = is_news.then(|| why.to_string());
        self.problem = Some((why, since_ms));
        news
    }

    /// What `status` says, where the run has pods.
    pub(super) fn status(&self) -> Option<PodsStatus> {
        self.plan.as_ref()?;
        let count = |is: &dyn Fn(&Member) -> bool| self.members.values().filter(|member| is(member)).count() as u64;
        let sizes = || self.rounds.values().filter_map(Round::size);
        Some(PodsStatus {
            sizes: sizes().min().zip(sizes().max()).map(|(least, most)| [least, most]),
            computing: self.rounds.values().filter(|round| round.current().is_some()).count() as u64,
            members: count(&|member| member.is_connected()),
            at_work: count(&|member| member.at_work.is_some()),
            free: count(&|member| member.is_connected() && member.at_work.is_none()),
            waiting: (self.requests.len() + self.rounds.values().filter(|round| round.stage == Stage::Broken).count())
                as u64,
            problem: self.why_none().map(ToString::to_string),
        })
    }

    /// Whether there is nothing to look after.
    fn is_idle(&self) -> bool {
        self.members.is_empty() && self.rounds.is_empty() && self.requests.is_empty()
    }
}
