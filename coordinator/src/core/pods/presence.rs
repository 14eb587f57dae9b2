//! Agents that come, go, and are at work on attempts.

use anabranch_common::ids::{AgentId, Incarnation};
use anabranch_common::limits;
use anabranch_common::pod::{PodMark, PodOffer};

use super::member::Member;
use super::round::{Round, Stage};
use super::{Known, Pods};
use crate::core::event::PeerId;

impl Pods {
    /// An agent has connected with its process `incarnation`, and joins pods.
    pub(super) fn arrived(
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
        if is_new_process {
            // It may have what the others lacked. Where processes end over and over, attempts follow them, and not each other.
            let soon_ms = now_ms.saturating_add(limits::POD_RETRY_MS.0);
            self.rounds.values_mut().for_each(|round| round.retries_by(soon_ms));
            self.members.values_mut().for_each(Member::trains_again);
        }
        self.changed();
    }

    /// The owner of a lease says that it is at work on this attempt.
    fn claimed(&mut self, owner: AgentId, mark: PodMark) {
        let stage = if self.voids_earlier { Stage::Dropped } else { Stage::AtWork(mark.attempt) };
        self.rounds.entry(mark.lease).or_insert_with(|| Round::new(owner, stage, 0)).claimed(mark.attempt);
    }

    /// An agent's connection is gone. What it is at work on goes on for a while without it.
    pub(in crate::core) fn left(&mut self, agent: AgentId, peer: PeerId, now_ms: u64) {
        self.requests.forget(peer);
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
    pub(in crate::core) fn withdrawn(&mut self, agent: AgentId, now_ms: u64) {
        let Some(member) = self.members.remove(&agent) else { return };
        if let Some(mark) = member.at_work {
            self.lost(agent, mark, now_ms);
        }
        self.drop_rounds(agent);
        self.changed();
    }

    /// An agent was revoked. Attempts that it helps with count for nothing, nor do those whose members are not known.
    pub(in crate::core) fn revoked(&mut self, agent: AgentId, now_ms: u64) {
        self.withdrawn(agent, now_ms);
        for round in self.rounds.values_mut().filter(|round| round.is_held()) {
            if round.is_inherited() || round.members().contains(&agent) {
                round.broke();
                round.is_void = true;
            }
        }
    }

    pub(super) fn drop_rounds(&mut self, owner: AgentId) {
        for round in self.rounds.values_mut().filter(|round| round.owner == owner && round.is_held()) {
            round.stage = Stage::Dropped;
        }
    }

    /// Members that have been away for too long are no members any more, and owners that have rested train again.
    pub(super) fn expire(&mut self, now_ms: u64) {
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
        let rested = self.members.values_mut().filter_map(|member| member.has_rested(now_ms).then_some(())).count();
        if !lost.is_empty() || rested > 0 {
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
}
