//! What is told of pods: who is a member, and what each of them computes.

use anabranch_common::ids::LeaseId;
use anabranch_common::limits;
use anabranch_common::pod::{PodMark, PodPart};
use anabranch_common::status::{PodMemberState, PodPartStatus, PodState, PodStatus, PodsStatus};

use super::Pods;
use super::member::Member;
use super::round::{Round, Stage};

impl Pods {
    /// What `status` says, where the run has pods.
    pub(in crate::core) fn status(&self) -> Option<PodsStatus> {
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
            pods: self.listed(),
        })
    }

    /// The pods whose rounds are not computed yet, those at work first.
    fn listed(&self) -> Vec<PodStatus> {
        let held = |is_at_work: bool| {
            let rounds = self.rounds.iter().filter(|(_, round)| round.is_held());
            rounds.filter(move |(_, round)| round.current().is_some() == is_at_work)
        };
        let listed = held(true).chain(held(false)).take(limits::PODS_LISTED);
        listed.map(|(lease, round)| self.pod(*lease, round)).collect()
    }

    fn pod(&self, lease: LeaseId, round: &Round) -> PodStatus {
        let mark = PodMark { lease, attempt: round.newest };
        let is_at_work = round.current().is_some();
        let mut before = 0;
        let part = |part: &PodPart| {
            // Stages follow each other; each replica has all layers.
            let first = if before < part.end { before } else { 0 };
            before = part.end;
            let state = match self.members.get(&part.agent).filter(|member| member.is_connected()) {
                None => PodMemberState::Away,
                Some(member) if is_at_work && member.at_work == Some(mark) => PodMemberState::Computing,
                Some(_) => PodMemberState::Idle,
            };
            PodPartStatus { agent: part.agent, first, end: part.end, state }
        };
        PodStatus {
            owner: round.owner,
            lease,
            attempt: round.newest,
            state: if is_at_work { PodState::Computing } else { PodState::Waiting },
            parts: round.parts().iter().map(part).collect(),
            problem: round.problem.as_ref().map(ToString::to_string),
        }
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::AgentId;

    use super::*;

    #[test]
    fn pods_at_work_are_listed_first_and_pods_beyond_the_bound_are_not() {
        let mut pods = Pods::default();
        let last = LeaseId(limits::PODS_LISTED as u64 + 1);
        for lease in 0..last.0 {
            let stage = if lease == 0 { Stage::Complete } else { Stage::Broken };
            pods.rounds.insert(LeaseId(lease), Round::new(AgentId([1; 16]), stage, 1));
        }
        pods.rounds.insert(last, Round::new(AgentId([2; 16]), Stage::AtWork(3), 3));
        let listed = pods.listed();
        assert_eq!(listed.len(), limits::PODS_LISTED);
        let first = &listed[0];
        assert_eq!((first.lease, first.attempt, first.state, first.parts.len()), (last, 3, PodState::Computing, 0));
        assert_eq!((listed[1].lease, listed[1].state), (LeaseId(1), PodState::Waiting), "the first one is computed");
    }
}
