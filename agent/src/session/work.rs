//! What the session does with device, link and store once an event has been taken in: whatever can be started is started.

use std::sync::Arc;

use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::{LeaseId, ModelVersion};
use anabranch_common::journal::{Lease, LeaseEnd};
use anabranch_common::limits;
use anabranch_common::pod::PodRound;
use anabranch_common::wire::message::{AgentMessage, RunPhase};

use super::Session;
use super::command::{Bank, Command, Ending, StartedFrom};
use super::evaluator::Told;
use super::event::{OutboxEntry, Outcome};
use super::replica::Wanted;
use super::rounds::{Beginning, Conditions, Dropped, Overlap, Start, Training};
use super::tempo::Spent;

/// What an agent is doing, for people.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activity<'a> {
    /// Nothing.
    Idle,
    /// Waiting for a lease, or to hear that there is none.
    Asking,
    /// Fetching a model, and computing nothing meanwhile.
    Fetching,
    /// Evaluating a model.
    Evaluating,
    /// Computing a local round.
    Training(&'a Training),
    /// Computing a part of another agent's round.
    Serving(&'a PodRound),
}

impl Session {
    /// Starts whatever can be started now. Called after every event.
    pub(super) fn go_on(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if self.connection.is_up() {
            self.outbox.offer(now_ms, out);
            let told = self.evaluator.take_unsent();
            out.extend(
                told.map(|Told { evaluation, cost_ms }| Command::Send(AgentMessage::Evaluated { evaluation, cost_ms })),
            );
        }
        if !self.life.is_running() {
            return self.go_on_stopping(now_ms, out);
        }
        self.rounds.arrived(now_ms, &self.replica);
        self.evaluator.arrived(&self.replica);
        if self.model.manifest().is_some() {
            self.fetch_to_evaluate(now_ms, out);
            let idle = self.rounds.current().is_none() && !self.evaluator.is_evaluating();
            if idle && self.seat.serving().is_none() {
                self.use_device(now_ms, out);
            }
        }
        if self.ask_at_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            self.ask_or_resume(now_ms, out);
        }
    }

    /// Fetches what is to be evaluated, whether or not the device computes a round, once the link is not needed for a base.
    fn fetch_to_evaluate(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let may_fetch = self.connection.is_up()
            && self.hold.is_none()
            && !self.evaluator.is_busy()
            && self.rounds.leaves_link_free();
        if may_fetch && let Some(wanted) = self.evaluator.take_request() {
            self.evaluator.fetch(wanted);
            self.evaluator.arrived(&self.replica);
            if self.evaluator.fetching().is_some() {
                self.fetch(now_ms, wanted, FetchPurpose::Evaluate, out);
            }
        }
    }

    /// Gives the free device what there is to compute. Other members of a pod wait for this one. An evaluation whose model is
    /// here comes before a round. A round does not wait for a model that is on its way while the run goes on: afterwards
    /// that may be the run's result.
    fn use_device(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if self.hold.is_some() {
            return self.turn_down(now_ms, out);
        }
        if let Some(round) = self.seat.begin() {
            return self.serve(round, out);
        }
        if let Some((wanted, content)) = self.evaluator.begin_ready() {
            return self.give(Command::Evaluate { version: wanted.version, content }, out);
        }
        let run_goes_on = self.membership.phase() == RunPhase::Running;
        if self.evaluator.is_busy() && (!run_goes_on || self.rounds.evaluates_first()) {
            return;
        }
        match self.rounds.start(self.verdicts.merged_with(), self.config.eval_examples > 0) {
            Some(Start::Train(beginning)) => {
                let Lease { base_version: version, base_digest: digest, .. } = beginning.lease;
                self.replica.hold(Wanted { version, digest }, Arc::clone(&beginning.base));
                self.train(now_ms, beginning, out);
            }
            Some(Start::Evaluate { wanted, content }) => {
                self.replica.hold(wanted, Arc::clone(&content));
                self.evaluator.begin(wanted);
                self.give(Command::Evaluate { version: wanted.version, content }, out);
            }
            None => {}
        }
    }

    /// The machine's owner needs the device: what has not begun goes back. Another evaluator is asked, and this one again
    /// later.
    fn turn_down(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if let Some(reason) = self.hold.clone() {
            self.turn_down_seat(now_ms, &reason, out);
        }
        if self.connection.is_up()
            && let Some(reason) = &self.hold
            && let Some(wanted) = self.evaluator.turn_down()
        {
            let why = format!("takes on no work at present: {reason}");
            self.cannot_evaluate(wanted.version, &why, out);
        }
        if self.rounds.fetching().is_some() {
            self.replica.forget_fetch();
        }
        self.give_back_granted(out);
    }

    /// Requests the next lease. A round that a crash has cut off comes first.
    fn ask_or_resume(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if self.is_device_free()
            && let Some((lease, base)) = self.rounds.take_cut_off(self.membership.branch())
        {
            return self.train(now_ms, Beginning { lease, base, lead: None, pod: None }, out);
        }
        self.rounds.ask(now_ms);
        out.push(Command::Send(AgentMessage::RequestLease));
    }

    /// Returns when to request the next lease, if no event comes before.
    pub(super) fn ask_at_ms(&self) -> Option<u64> {
        self.rounds.ask_at_ms(&Conditions {
            may_work: self.connection.is_up() && self.wants_work() && self.model.is_ready(),
            overlap: self.overlap(),
            busy: self.evaluator.is_busy() || self.seat.is_taken(),
            fetches_to_evaluate: self.evaluator.fetching().is_some(),
            awaits_verdict: self.verdicts.are_awaited(),
            outbox: self.outbox.len(),
            unsent: self.outbox.unsent(),
            awaits_turn: self.awaits_turn,
        })
    }

    /// Returns what may be under way when a lease is requested.
    fn overlap(&self) -> Overlap {
        let in_turn = self.membership.terms().is_some_and(|terms| terms.spec.in_turn);
        // The base of a pod's round has the round before: it depends on no speed, so that a round that is computed again has the
        // same bits.
        if in_turn || self.trains_in_pods() {
            Overlap::Nothing
        } else if self.config.overlap {
            Overlap::Rounds
        } else {
            Overlap::Updates
        }
    }

    /// Whether the run, the owner of the machine and the process itself want this agent to train.
    fn wants_work(&self) -> bool {
        self.config.train_examples > 0
            && self.membership.phase() == RunPhase::Running
            && self.hold.is_none()
            && self.life.is_running()
    }

    /// Whether no round is computed, nothing for other agents, and no evaluation is under way or waits for its model.
    pub(super) fn is_device_free(&self) -> bool {
        self.rounds.current().is_none() && !self.evaluator.is_busy() && !self.seat.is_taken()
    }

    fn serve(&mut self, round: Box<PodRound>, out: &mut Vec<Command>) {
        let mut spec = self.membership.terms().expect("a pod comes only after a welcome").spec.clone();
        spec.train = round.plan.of(&spec.train);
        self.parts.give_way();
        self.give(Command::Serve { round, spec: Box::new(spec) }, out);
    }

    /// Gives the maths a job that takes a while.
    fn give(&mut self, job: Command, out: &mut Vec<Command>) {
        self.awaits_turn = self.shares_device;
        out.push(job);
    }

    fn train(&mut self, now_ms: u64, beginning: Beginning, out: &mut Vec<Command>) {
        let Beginning { lease, base, lead, pod } = beginning;
        self.parts.give_way();
        let mut spec = self.membership.terms().expect("a lease comes only after a welcome").spec.clone();
        spec.train = lease.plan.of(&spec.train);
        spec.upload.codec = lease.plan.codec;
        let from = StartedFrom { base: Arc::clone(&base), lead: lead.clone() };
        self.rounds.begin(now_ms, lease.clone(), spec.train.local_steps, from, pod.clone());
        self.give(Command::Train { lease: Box::new(lease), spec: Box::new(spec), base, lead, pod }, out);
    }

    pub(super) fn progress(&mut self, now_ms: u64, lease: LeaseId, steps: u32, speed: f32, out: &mut Vec<Command>) {
        let due = self.progress_at_ms.is_none_or(|last| now_ms >= last + limits::PROGRESS_MS);
        if self.rounds.progress(now_ms, lease, steps, speed) && due && self.connection.is_up() {
            self.progress_at_ms = Some(now_ms);
            out.push(Command::Send(AgentMessage::Progress { lease, steps, examples_per_s: speed }));
        }
    }

    pub(super) fn trained(&mut self, now_ms: u64, outcome: Outcome, out: &mut Vec<Command>) {
        let mark = self.rounds.mark_of(outcome.lease);
        let trained = self.rounds.trained(now_ms, self.membership.branch(), &outcome);
        // The end of what is stored is told when it is durable: a process that dies before computes it again.
        if self.rounds.mark_of(outcome.lease).is_none() {
            self.pods_ended(mark, out);
        }
        let Some((lease, started_from)) = trained else { return };
        let (epoch, seq) = self.membership.number();
        let upload = &self.membership.terms().expect("a lease comes only after a welcome").spec.upload;
        let (codec, policy, feedback_decay) = (lease.plan.codec, upload.policy.clone(), upload.feedback_decay);
        let bank = Bank { lease, epoch, seq, codec, policy, feedback_decay, outcome, started_from };
        out.push(Command::Bank(Box::new(bank)));
    }

    pub(super) fn training_stopped(&mut self, id: LeaseId, out: &mut Vec<Command>) {
        if let Some(stopped) = self.rounds.stopped(id) {
            self.round_stopped(id, stopped, out);
        }
    }

    pub(super) fn banked(&mut self, now_ms: u64, entry: OutboxEntry, out: &mut Vec<Command>) {
        let key = entry.meta.key;
        let mark = self.rounds.mark_of(entry.meta.lease);
        self.pods_ended(mark, out);
        let ended_ms = self.rounds.banked(entry.meta.lease);
        self.outbox.push(entry);
        if self.connection.is_up() {
            self.verdicts.offered(now_ms, key, ended_ms);
        }
    }

    pub(super) fn discarded(&mut self, now_ms: u64, id: LeaseId, problem: String, out: &mut Vec<Command>) {
        self.note(problem);
        let mark = self.rounds.mark_of(id);
        self.rounds.discarded(now_ms, id);
        self.give_back(id, out);
        self.pods_ended(mark, out);
    }

    pub(super) fn evaluation_failed(&mut self, version: ModelVersion, problem: &str, out: &mut Vec<Command>) {
        if self.evaluator.failed(version) {
            self.cannot_evaluate(version, problem, out);
        }
    }

    /// Reports that a version cannot be evaluated here, so that another evaluator is asked. Without a connection the
    /// coordinator has asked another one already.
    pub(super) fn cannot_evaluate(&mut self, version: ModelVersion, why: &str, out: &mut Vec<Command>) {
        let reason = self.evaluator.cannot(version, why);
        self.note(format!("version {version} cannot be evaluated: {reason}"));
        if self.connection.is_up() {
            out.push(Command::Send(AgentMessage::EvaluationFailed { version, reason }));
        }
    }

    /// Returns a lease, where it still counts.
    pub(super) fn give_back(&self, lease: LeaseId, out: &mut Vec<Command>) {
        if self.connection.is_up() {
            out.push(Command::Send(AgentMessage::ReturnLease { lease, why: LeaseEnd::Returned }));
        }
    }

    /// Gives up the round that is being prepared.
    pub(super) fn give_back_next(&mut self, out: &mut Vec<Command>) {
        if let Some(dropped) = self.rounds.drop_next() {
            self.give_back_dropped(dropped, out);
        }
    }

    fn give_back_granted(&mut self, out: &mut Vec<Command>) {
        if let Some(dropped) = self.rounds.drop_granted() {
            self.give_back_dropped(dropped, out);
        }
    }

    fn give_back_dropped(&self, Dropped { lease, pod }: Dropped, out: &mut Vec<Command>) {
        self.give_back(lease, out);
        self.pods_ended(pod, out);
    }

    /// Stops the rounds of another branch. Deltas that are durable stay: the coordinator refuses them with a reason.
    pub(super) fn abandon_round(&mut self, now_ms: u64, why: &str, out: &mut Vec<Command>) {
        let pod = self.rounds.drop_next().and_then(|dropped| dropped.pod);
        self.pods_ended(pod, out);
        self.leave_seat(now_ms, why, out);
        if self.rounds.stop() {
            out.push(Command::StopTraining);
        }
    }

    /// Starts to stop: no new work, the round that runs is given back, finished work is handed over.
    pub(super) fn stop(&mut self, now_ms: u64, ending: Ending, out: &mut Vec<Command>) {
        let why = format!("the agent ends: {ending}");
        if !self.life.stop(now_ms, ending) {
            return;
        }
        self.give_back_next(out);
        self.replica.forget_fetch();
        self.evaluator.stop();
        self.abandon_round(now_ms, &why, out);
    }

    fn go_on_stopping(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let is_busy = self.rounds.are_busy() || self.seat.serving().is_some();
        let handing_over = self.connection.is_up() && !self.outbox.is_empty();
        let Some(ending) = self.life.due(now_ms, is_busy || handing_over) else { return };
        if self.connection.is_up() {
            out.push(Command::Send(AgentMessage::Goodbye { reason: ending.to_string() }));
        }
        self.end(ending, out);
    }

    /// Accounts for the time until now.
    pub(super) fn account(&mut self, now_ms: u64) {
        if self.awaits_turn {
            // The device is busy, but not for this run.
            return self.rounds.spent(now_ms, Spent::Off);
        }
        let is_serving = self.seat.serving().is_some();
        if self.rounds.current().is_none() && !is_serving {
            self.evaluator.spent(self.rounds.unaccounted_ms(now_ms));
        }
        let how = if self.rounds.current().is_some() || self.evaluator.is_evaluating() || is_serving {
            Spent::Busy
        } else if self.wants_work() {
            Spent::Waiting
        } else {
            Spent::Off
        };
        self.rounds.spent(now_ms, how);
    }

    /// Returns what it is doing.
    #[must_use]
    pub fn activity(&self) -> Activity<'_> {
        if let Some(training) = self.rounds.current() {
            Activity::Training(training)
        } else if let Some(round) = self.seat.serving() {
            Activity::Serving(round)
        } else if self.evaluator.is_evaluating() {
            Activity::Evaluating
        } else if self.fetching().is_some() {
            Activity::Fetching
        } else if self.rounds.asking_until_ms().is_some() {
            Activity::Asking
        } else {
            Activity::Idle
        }
    }
}
