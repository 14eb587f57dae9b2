//! How attempts and rounds end: what members say of it, and who hears of it.

use std::collections::BTreeSet;

use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::limits;
use anabranch_common::plain::plain;
use anabranch_common::pod::{PodMark, PodProblem};

use super::Pods;
use super::form::NoPod;
use super::member::Member;
use super::round::{Round, Stage};

impl Pods {
    /// An agent's part of an attempt is over. Returns false where that is not what it is at work on.
    pub(super) fn ended(&mut self, agent: AgentId, mark: PodMark, problem: Option<&PodProblem>, now_ms: u64) -> bool {
        if let Some(PodProblem { member, reason }) = problem
            && member.is_none_or(|member| member == agent)
        {
            self.failed_by_itself(agent, mark, reason, now_ms);
        }
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

    /// Counts an attempt that one of its members could not compute. Neighbours may have said before that they lost its link, so that
    /// the next attempt has begun.
    fn failed_by_itself(&mut self, agent: AgentId, mark: PodMark, reason: &str, now_ms: u64) {
        let Some(round) = self.rounds.get_mut(&mark.lease) else { return };
        if round.failed_by_itself(agent, mark.attempt) != Some(limits::POD_OWN_FAILURES) {
            return;
        }
        let reason = plain(reason, limits::POD_REASON_BYTES);
        let why = NoPod::GivenUp { lease: mark.lease, attempts: limits::POD_OWN_FAILURES, agent, reason };
        if let Some(owner) = self.members.get_mut(&round.owner) {
            owner.gives_up(why, now_ms);
        }
    }

    /// The current attempt has failed, as one of its members says.
    fn attempt_failed(&mut self, by: AgentId, mark: PodMark, over: Option<AgentId>, now_ms: u64) {
        let Some(round) = self.rounds.get_mut(&mark.lease) else { return };
        let owner = round.owner;
        let is_own = over.is_none_or(|over| over == by);
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
        // Unless it says that it has failed itself, which of the two is to blame cannot be known.
        if by != owner {
            self.failed(by, is_own, now_ms);
        }
        if let Some(over) = over.filter(|over| *over != by && *over != owner) {
            self.failed(over, true, now_ms);
        }
    }

    pub(super) fn failed(&mut self, agent: AgentId, accused: bool, now_ms: u64) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.failed(accused, now_ms);
        }
    }

    /// The round under `lease` of `owner` is computed: its update is on its way.
    pub(in crate::core) fn complete(&mut self, lease: LeaseId, owner: AgentId) {
        let Self { rounds, members, .. } = self;
        let round = rounds.entry(lease).or_insert_with(|| Round::new(owner, Stage::Complete, 0));
        if round.owner != owner {
            return;
        }
        round.stage = Stage::Complete;
        members.get_mut(&owner).into_iter().for_each(Member::computed_its_round);
        for helper in round.members() {
            members.get_mut(helper).into_iter().for_each(Member::succeeded);
        }
    }

    /// Of several owners that wait in vain for another attempt, all but that of the earliest lease give their rounds up for
    /// now, so that they can help it.
    pub(super) fn give_way(&mut self) {
        let mut others = self.rounds.values_mut().filter(|round| round.is_stuck()).skip(1).peekable();
        if others.peek().is_some() {
            others.for_each(|round| round.is_void = true);
            self.changed();
        }
    }

    /// Returns who is to be told that an attempt is over, and forgets the rounds of leases that are. `holder`: who holds a
    /// lease. While the run gives no leases (`runs`), no round is computed.
    pub(super) fn overs(&mut self, holder: impl Fn(LeaseId) -> Option<AgentId>, runs: bool) -> Vec<(AgentId, PodMark)> {
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
}
