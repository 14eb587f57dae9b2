//! Pods: who joins them, who is at work on what, and why none can be formed (docs/adr/0031-pods.md).
//!
//! ```text
//!  hello: PodOffer ─► Member: free ──► form ──► at work on a mark ──► PodEnded, or gone for a while: free
//!                                       ▲
//!  the owner asks for its lease ────────┤ (a request stands until a pod can be formed)
//!  Round: Broken ◄── a member is gone ──┴── AtWork(attempt) ──► Complete ──► its update is decided
//!         Dropped ◄── its owner is gone: it asks for its lease, and gets the same one
//! ```
//! Nothing here is journalled. A process that was started again learns from the hellos which attempts are computed.
//!
//! - `member`: an agent that joins pods; `round`: the attempts at one lease; `form`: helpers and layers.
//! - `orders`: what `Core` makes of it: leases, and messages to the members.

mod form;
mod member;
mod orders;
mod round;

use std::collections::BTreeMap;

use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::journal::Lease;
use anabranch_common::limits;
use anabranch_common::pod::{PodMark, PodOffer, PodPeer, PodProblem, PodRound};
use anabranch_common::spec::RunSpec;
use anabranch_common::status::PodsStatus;

use super::event::PeerId;
use super::state::RunState;
use form::{Candidate, Formed, NoPod, Plan};
use member::Member;
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
    problem: Option<String>,
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
    problem: Option<(String, u64)>,
    logged: Option<String>,
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

    /// An agent has connected, and joins pods.
    pub(super) fn arrived(&mut self, agent: AgentId, offer: &PodOffer, trains: bool, known: Known<'_>) {
        let before = self.members.get(&agent);
        let left = before.and_then(|before| before.at_work).filter(|mark| Some(*mark) != offer.at_work);
        let is_own = offer.at_work.is_some_and(|mark| known.was_granted(agent, mark.lease));
        let member = Member::connected(offer, trains, is_own, before);
        self.members.insert(agent, member);
        if let Some(mark) = left {
            self.lost(agent, mark);
        }
        if let Some(mark) = offer.at_work {
            self.claimed(agent, mark, known.holder(mark.lease));
        }
        let own = self.rounds.iter_mut().filter(|(_, round)| round.owner == agent && round.is_held());
        for (lease, round) in own {
            match offer.at_work.filter(|mark| mark.lease == *lease) {
                None => round.stage = Stage::Dropped,
                Some(mark) if round.current() != Some(mark.attempt) => round.broke(),
                Some(_) => {}
            }
        }
        self.changed();
    }

    /// An agent says that it is at work on this attempt at a lease of `holder`.
    fn claimed(&mut self, agent: AgentId, mark: PodMark, holder: Option<AgentId>) {
        let Some(holder) = holder else { return };
        let holds = |owner: &Member| owner.at_work.is_some_and(|at_work| at_work.lease == mark.lease);
        // An owner that is connected would have said so.
        let is_held = holder == agent || self.members.get(&holder).is_none_or(holds);
        let stage = if is_held { Stage::AtWork(mark.attempt) } else { Stage::Dropped };
        self.rounds.entry(mark.lease).or_insert_with(|| Round::new(holder, stage, 0)).claimed(mark.attempt);
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
    pub(super) fn withdrawn(&mut self, agent: AgentId) {
        let Some(member) = self.members.remove(&agent) else { return };
        if let Some(mark) = member.at_work {
            self.lost(agent, mark);
        }
        self.drop_rounds(agent);
        self.changed();
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
            self.lost(*agent, *mark);
        }
        if !lost.is_empty() {
            self.changed();
        }
    }

    /// An agent is not at work on an attempt any more, and has not said how that ended.
    fn lost(&mut self, agent: AgentId, mark: PodMark) {
        let Some(round) = self.rounds.get_mut(&mark.lease) else { return };
        if round.owner == agent && round.is_held() {
            round.stage = Stage::Dropped;
        } else if round.current() == Some(mark.attempt) {
            round.broke();
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
        match problem {
            None if round.owner != agent => self.members.get_mut(&agent).into_iter().for_each(Member::succeeded),
            None if round.newest == mark.attempt => self.complete(mark.lease, agent),
            None => {}
            Some(problem) if round.current() == Some(mark.attempt) => {
                round.failed(now_ms);
                let helper = Some(agent).filter(|agent| *agent != round.owner);
                self.blame(problem.member.or(helper), mark, agent, now_ms);
            }
            Some(_) => {}
        }
        true
    }

    /// The attempt failed over this member, as `by` says.
    fn blame(&mut self, member: Option<AgentId>, mark: PodMark, by: AgentId, now_ms: u64) {
        let Some(agent) = member else { return };
        if let Some(member) = self.members.get_mut(&agent)
            && (agent == by || member.at_work == Some(mark))
        {
            member.failed(now_ms);
        }
    }

    /// The round under `lease` of `owner` is computed: its update is on its way.
    pub(super) fn complete(&mut self, lease: LeaseId, owner: AgentId) {
        let round = self.rounds.entry(lease).or_insert_with(|| Round::new(owner, Stage::Complete, 0));
        if round.owner != owner {
            return;
        }
        round.stage = Stage::Complete;
        let mark = PodMark { lease, attempt: round.newest };
        let members = self.members.values_mut().filter(|member| member.at_work == Some(mark));
        members.for_each(Member::succeeded);
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
        let could_help = |(agent, member): &Candidate<'_>| *agent != owner && member.is_free_for(lease);
        let members = self.members.iter().map(|(agent, member)| (*agent, member));
        let helpers: Vec<Candidate<'_>> = members.filter(could_help).collect();
        Some(plan.form((owner, own), &helpers, now_ms))
    }

    /// Begins the next attempt at a lease with the pod that was formed.
    fn begin(&mut self, lease: &Lease, formed: Formed, lease_age_ms: u64, now_ms: u64) -> PodRound {
        let Formed { parts, helpers } = formed;
        let owner = lease.agent;
        let round = self.rounds.entry(lease.id).or_insert_with(|| Round::new(owner, Stage::Broken, 0));
        let mark = PodMark { lease: lease.id, attempt: round.begin(lease_age_ms, now_ms) };
        let mut peers = Vec::new();
        for agent in helpers.into_iter().chain([owner]) {
            let Some(member) = self.members.get_mut(&agent) else { continue };
            member.begin(mark, agent == owner);
            if agent != owner {
                peers.push(PodPeer { agent, address: member.address.clone() });
            }
        }
        PodRound { mark, owner, parts, peers, plan: lease.plan }
    }

    /// Returns who is to be told that an attempt is over, and forgets the rounds of leases that are. `holds`: whether an
    /// agent holds a lease. While the run gives no leases (`runs`), no round is computed.
    fn overs(&mut self, holds: impl Fn(AgentId, LeaseId) -> bool, runs: bool) -> Vec<(AgentId, PodMark)> {
        let Self { members, rounds, .. } = self;
        let mut told = Vec::new();
        rounds.retain(|lease, round| {
            let holds = holds(round.owner, *lease);
            let waits = |owner: &Member| owner.is_connected() && owner.at_work.is_none();
            if !holds || !runs {
                if round.stage == Stage::Broken && members.get(&round.owner).is_some_and(waits) {
                    told.push((round.owner, PodMark { lease: *lease, attempt: round.newest }));
                }
                if round.is_held() {
                    round.stage = Stage::Dropped;
                }
            }
            holds
        });
        let counts = |agent: AgentId, mark: PodMark| {
            rounds.get(&mark.lease).is_some_and(|round| match round.stage {
                Stage::AtWork(attempt) => attempt == mark.attempt,
                Stage::Broken | Stage::Complete => round.owner == agent,
                Stage::Dropped => false,
            })
        };
        for (agent, member) in members.iter_mut().filter(|(_, member)| member.is_connected() && !member.told_over) {
            if let Some(mark) = member.at_work.filter(|mark| !counts(*agent, *mark)) {
                member.told_over = true;
                told.push((*agent, mark));
            }
        }
        told
    }

    /// Notes why a request is not granted.
    fn cannot_grant(&mut self, peer: PeerId, why: &NoPod) {
        if let Some(request) = self.requests.get_mut(&peer) {
            request.problem = Some(why.to_string());
        }
    }

    /// Notes why there is no other attempt at a lease.
    fn cannot_go_on(&mut self, lease: LeaseId, why: &NoPod) {
        if let Some(round) = self.rounds.get_mut(&lease) {
            round.problem = Some(why.to_string());
        }
    }

    /// Returns why a pod cannot be formed at present: of a round that is under way, or of the oldest request.
    fn why_none(&self) -> Option<&str> {
        let rounds = self.rounds.values().filter(|round| round.stage == Stage::Broken);
        let oldest = self.requests.values().min_by_key(|request| request.number);
        let mut of_rounds = rounds.filter_map(|round| round.problem.as_deref());
        of_rounds.next().or_else(|| oldest?.problem.as_deref())
    }

    /// Returns the reason why there is no pod, once, when it has held for a while.
    fn take_problem(&mut self, now_ms: u64) -> Option<String> {
        let why = self.why_none().map(str::to_owned);
        if self.problem.as_ref().map(|(known, _)| known) != why.as_ref() {
            self.problem = why.map(|why| (why, now_ms));
        }
        let (why, since_ms) = self.problem.as_ref()?;
        let is_news = now_ms.saturating_sub(*since_ms) >= limits::POD_PROBLEM_MS && self.logged.as_ref() != Some(why);
        is_news.then(|| why.clone()).inspect(|why| self.logged = Some(why.clone()))
    }

    /// What `status` says, where the run has pods.
    pub(super) fn status(&self) -> Option<PodsStatus> {
        self.plan.as_ref()?;
        let count = |is: &dyn Fn(&Member) -> bool| self.members.values().filter(|member| is(member)).count() as u64;
        Some(PodsStatus {
            computing: self.rounds.values().filter(|round| round.current().is_some()).count() as u64,
            members: count(&|member| member.is_connected()),
            at_work: count(&|member| member.at_work.is_some()),
            free: count(&|member| member.is_connected() && member.at_work.is_none()),
            waiting: (self.requests.len() + self.rounds.values().filter(|round| round.stage == Stage::Broken).count())
                as u64,
            problem: self.why_none().map(str::to_owned),
        })
    }

    /// Whether there is nothing to look after.
    fn is_idle(&self) -> bool {
        self.members.is_empty() && self.rounds.is_empty() && self.requests.is_empty()
    }
}
