//! Pods: what the coordinator says of them, and what it is told of this agent's part, be it the owner's or a helper's.
//!
//! Each attempt that the coordinator names to this agent is answered with one `PodEnded`, unless a later attempt takes its
//! place or the connection is lost before. Without a connection nothing is told: the next hello has what is at work here.

use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::limits;
use anabranch_common::plain::plain;
use anabranch_common::pod::{PodMark, PodOffer, PodPart, PodProblem, PodRound};
use anabranch_common::spec::PodSpec;
use anabranch_common::wire::message::AgentMessage;

use super::Session;
use super::command::Command;
use super::rounds::{Company, Failed, Over, PodCame, Stopped};
use super::seat::{Ended, Left, Seated};

impl Session {
    /// Returns what this agent can do in a pod, with what it is at work on now.
    pub(super) fn pod_offer(&self) -> Option<PodOffer> {
        let at_work = self.rounds.at_work().or(self.seat.at_work());
        self.config.pod.clone().map(|offer| PodOffer { at_work, ..offer })
    }

    /// Whether the own rounds of this agent are computed in pods.
    pub(super) fn trains_in_pods(&self) -> bool {
        self.config.pod.is_some() && self.membership.terms().is_some_and(|terms| terms.spec.pod.is_some())
    }

    /// Returns who computes the round of a lease that has just come.
    pub(super) fn company(&self, now_ms: u64) -> Company {
        if self.trains_in_pods() { Company::awaited(now_ms) } else { Company::Alone }
    }

    /// The coordinator names this agent as a member of a pod.
    pub(super) fn pod(&mut self, round: Box<PodRound>, out: &mut Vec<Command>) {
        let mark = round.mark;
        let taken = self.may_join(&round).and_then(|()| {
            if round.owner == self.config.agent {
                self.pod_of_own_round(round, out)
            } else {
                self.take_seat(round, out)
            }
        });
        if let Err(problem) = taken {
            self.pod_ended(mark, Some(problem), out);
        }
    }

    fn may_join(&self, round: &PodRound) -> Result<(), PodProblem> {
        let pod = self.membership.terms().and_then(|terms| terms.spec.pod.as_ref());
        check(round, self.config.agent, pod)
            .map_err(|reason| PodProblem { member: None, reason: reason.to_owned() })?;
        if !self.trains_in_pods() {
            return Err(self.own_problem("this agent joins no pods of this run"));
        }
        let told = self.membership.terms().and_then(|terms| terms.spec.digest().ok());
        if told != Some(round.spec) {
            return Err(self.own_problem("this agent was told of another configuration of the run"));
        }
        if !self.life.is_running() {
            return Err(self.own_problem("this agent is stopping"));
        }
        Ok(())
    }

    fn pod_of_own_round(&mut self, round: Box<PodRound>, out: &mut Vec<Command>) -> Result<(), PodProblem> {
        let mark = round.mark;
        let is_delivered = self.outbox.entries().any(|entry| entry.meta.lease == mark.lease);
        match self.rounds.pod_came(round) {
            PodCame::Taken | PodCame::Late => {}
            PodCame::Stop => out.push(Command::StopTraining),
            PodCame::Unknown if is_delivered => self.pod_ended(mark, None, out),
            PodCame::Unknown => return Err(self.own_problem("the owner has no round under this lease")),
        }
        Ok(())
    }

    fn take_seat(&mut self, round: Box<PodRound>, out: &mut Vec<Command>) -> Result<(), PodProblem> {
        if self.rounds.have_work() {
            return Err(self.own_problem("this agent has a round of its own"));
        }
        match self.seat.take(round) {
            Seated::Waits | Seated::Known => {}
            Seated::Stop => out.push(Command::StopTraining),
            Seated::Late => return Err(self.own_problem("this agent computes a later round of a pod")),
        }
        Ok(())
    }

    /// An attempt is over, whoever this agent is in it.
    pub(super) fn pod_over(&mut self, now_ms: u64, mark: PodMark, out: &mut Vec<Command>) {
        match self.rounds.pod_over(mark) {
            Over::Forgotten => return self.pod_ended(mark, None, out),
            Over::Stop => return out.push(Command::StopTraining),
            Over::Stopping => return,
            Over::Unknown => {}
        }
        match self.seat.over(mark) {
            Left::Waiting(waiting) => self.seat_left(now_ms, waiting, None, out),
            Left::Stop => out.push(Command::StopTraining),
            Left::Stopping => {}
            // The coordinator counts this agent as at work on it.
            Left::Empty => self.pod_ended(mark, None, out),
        }
    }

    /// The own round has stopped.
    pub(super) fn round_stopped(&mut self, id: LeaseId, stopped: Stopped, out: &mut Vec<Command>) {
        match stopped {
            Stopped::GiveBack(mark) => {
                // In this order: the end of an owner's part would be answered with another attempt.
                self.give_back(id, out);
                self.pods_ended(mark, out);
            }
            Stopped::Again => {}
            Stopped::Forget(mark) => self.pod_ended(mark, None, out),
        }
    }

    /// An attempt at the own round came to nothing.
    pub(super) fn pod_failed(&mut self, now_ms: u64, mark: PodMark, problem: PodProblem, out: &mut Vec<Command>) {
        match self.rounds.pod_failed(now_ms, mark) {
            Some(Failed::Waits) => {
                let problem = cleaned(problem);
                self.note(format!("attempt {} at lease {} of a pod: {}", mark.attempt, mark.lease, problem.reason));
                self.pod_ended(mark, Some(problem), out);
                if !self.connection.is_up() {
                    self.rounds.forget_incomplete_pod();
                }
            }
            Some(Failed::Stopped(lease, stopped)) => self.round_stopped(lease, stopped, out),
            None => {}
        }
    }

    /// This agent's part of another agent's round has ended.
    pub(super) fn served(&mut self, now_ms: u64, mark: PodMark, problem: Option<PodProblem>, out: &mut Vec<Command>) {
        let problem = match self.seat.ended(mark) {
            None => return,
            Some(Ended::Replaced) => return self.rounds.request_stands(now_ms),
            Some(Ended::Over) => None,
            Some(Ended::GivenUp(reason)) => Some(self.own_problem(&reason)),
            Some(Ended::Itself) => problem.map(cleaned),
        };
        if let Some(problem) = &problem {
            self.note(format!("attempt {} at lease {} of a pod: {}", mark.attempt, mark.lease, problem.reason));
        }
        self.seat_left(now_ms, mark, problem, out);
    }

    /// The machine's owner needs the device: another helper is taken.
    pub(super) fn turn_down_seat(&mut self, now_ms: u64, reason: &str, out: &mut Vec<Command>) {
        if let Some(mark) = self.seat.turn_down() {
            let problem = self.own_problem(&format!("takes on no work at present: {reason}"));
            self.seat_left(now_ms, mark, Some(problem), out);
        }
    }

    /// Gives up whatever is computed for other agents.
    pub(super) fn leave_seat(&mut self, now_ms: u64, reason: &str, out: &mut Vec<Command>) {
        if let Some(mark) = self.seat.turn_down() {
            let problem = self.own_problem(reason);
            self.seat_left(now_ms, mark, Some(problem), out);
        }
        match self.seat.give_up(reason) {
            Left::Stop => out.push(Command::StopTraining),
            Left::Waiting(_) | Left::Stopping | Left::Empty => {}
        }
    }

    /// A request of this agent has stood while it computed for others.
    fn seat_left(&mut self, now_ms: u64, mark: PodMark, problem: Option<PodProblem>, out: &mut Vec<Command>) {
        self.rounds.request_stands(now_ms);
        self.pod_ended(mark, problem, out);
    }

    /// Tells the end of an own round's attempt, if a pod computed the round.
    pub(super) fn pods_ended(&self, mark: Option<PodMark>, out: &mut Vec<Command>) {
        if let Some(mark) = mark {
            self.pod_ended(mark, None, out);
        }
    }

    fn pod_ended(&self, mark: PodMark, problem: Option<PodProblem>, out: &mut Vec<Command>) {
        if self.connection.is_up() {
            out.push(Command::Send(AgentMessage::PodEnded { mark, problem }));
        }
    }

    fn own_problem(&self, reason: &str) -> PodProblem {
        cleaned(PodProblem { member: Some(self.config.agent), reason: reason.to_owned() })
    }
}

fn cleaned(problem: PodProblem) -> PodProblem {
    PodProblem { reason: plain(&problem.reason, limits::POD_REASON_BYTES), ..problem }
}

/// Checks that `me` can take part in `round` as far as a round and the run's `[pod]` can tell.
pub(super) fn check(round: &PodRound, me: AgentId, pod: Option<&PodSpec>) -> Result<(), &'static str> {
    let PodRound { mark, owner, parts, peers, .. } = round;
    if mark.attempt == 0 {
        return Err("attempts are counted from 1");
    }
    if parts.is_empty() || parts.len() > limits::POD_MEMBERS + 1 {
        return Err("the number of parts is not one that a pod can have");
    }
    if let Some(PodSpec::Replicas(_)) = pod {
        check_replicas(parts)?;
    } else if parts[0].end == 0 || parts.windows(2).any(|pair| pair[0].end >= pair[1].end) {
        return Err("the ends of the parts do not increase");
    }
    if parts[0].agent != *owner {
        return Err("the first part is not the owner's");
    }
    let members = round.members();
    let Some(at) = members.iter().position(|member| *member == me) else {
        return Err("this agent is no member");
    };
    if peers.len() > limits::POD_MEMBERS || peers.iter().any(|peer| peer.address.len() > limits::POD_ADDRESS_BYTES) {
        return Err("there are too many addresses, or too long ones");
    }
    // The owner dials every other member, and each of these the next one.
    let dialled = if at == 0 { &members[1..] } else { members.get(at + 1..at + 2).unwrap_or_default() };
    if dialled.iter().any(|member| round.address_of(*member).is_none_or(str::is_empty)) {
        return Err("the address of a member that is to be dialled is missing");
    }
    Ok(())
}

/// Each member has the whole model, once.
fn check_replicas(parts: &[PodPart]) -> Result<(), &'static str> {
    if parts[0].end == 0 || parts.iter().any(|part| part.end != parts[0].end) {
        return Err("a replica is not the whole model");
    }
    let is_twice = |(at, part): (usize, &PodPart)| parts[..at].iter().any(|other| other.agent == part.agent);
    if parts.iter().enumerate().any(is_twice) {
        return Err("a member has two replicas");
    }
    Ok(())
}
