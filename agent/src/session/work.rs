//! What the session does: ask for a lease, fetch its base, train, bank the delta; evaluate in between; stop in order.

use std::sync::Arc;

use anabranch_common::bugs::{self, Bug};
use anabranch_common::ids::{LeaseId, ModelVersion};
use anabranch_common::journal::{Evaluation, Lease, LeaseEnd};
use anabranch_common::limits;
use anabranch_common::plain::plain;
use anabranch_common::wire::message::{AgentMessage, RunPhase};

use super::ahead::Ahead;
use super::command::{Bank, Command, Ending, Lead};
use super::event::{OutboxEntry, Outcome};
use super::replica::Wanted;
use super::{Session, Stopping, Trainer};

/// What a session is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Nothing.
    Idle,
    /// Waiting for a lease, or to hear that there is none.
    Asking {
        /// When to give up the connection.
        until_ms: u64,
    },
    /// Fetching a model.
    Fetching {
        /// Which.
        wanted: Wanted,
        /// What for.
        then: Next,
    },
    /// Evaluating a model.
    Evaluating {
        /// Which.
        wanted: Wanted,
        /// The lease whose base it is, if it is one.
        then: Option<Lease>,
        /// Whether the model still belongs to the run's branch: only then is the result told.
        of_this_branch: bool,
    },
    /// Running a local round.
    Training {
        /// Under this lease.
        lease: Lease,
        /// Since when.
        since_ms: u64,
        /// Steps that the lease asks for.
        all_steps: u32,
        /// Steps done,
        steps: u32,
        /// as of then.
        moved_ms: u64,
        /// Examples a second, lately.
        examples_per_s: f32,
        /// Whether it was told to stop.
        stopping: bool,
    },
}

/// What a fetched model is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// To train from, and to evaluate before that if asked.
    Train {
        /// The lease.
        lease: Lease,
        /// Whether to evaluate first.
        evaluate: bool,
    },
    /// To evaluate.
    Evaluate,
}

impl Session {
    /// Starts whatever can be started now. Called after every event.
    pub(super) fn go_on(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if self.is_up() {
            self.outbox.offer(now_ms, out);
            if let Some(evaluation) = self.unsent_evaluation.take() {
                out.push(Command::Send(AgentMessage::Evaluated(evaluation)));
            }
        }
        if self.stopping.is_some() {
            return self.go_on_stopping(now_ms, out);
        }
        if let Work::Fetching { wanted, then } = &self.work
            && self.replica.held() == Some(*wanted)
        {
            let (wanted, then) = (*wanted, then.clone());
            self.tempo.obtained(now_ms, true);
            self.fetched(now_ms, wanted, then, out);
        }
        self.go_ahead(now_ms, out);
        if self.work != Work::Idle || !matches!(self.trainer, Trainer::Ready(_)) {
            return;
        }
        if let Some(reason) = &self.hold {
            // Another evaluator is asked meanwhile, and this one again later.
            if self.is_up()
                && let Some(wanted) = self.evaluate_next.take()
            {
                let why = format!("takes on no work at present: {reason}");
                self.cannot_evaluate(wanted.version, &why, out);
            }
            return self.catch_up(now_ms, out);
        }
        if self.may_ask()
            && let Some((lease, base)) = self.cut_off.take().filter(|(lease, _)| Some(lease.branch) == self.branch)
        {
            return self.train_from(now_ms, lease, base, None, out);
        }
        // What is being fetched for the next round would be lost over another model.
        if self.is_up()
            && !matches!(self.ahead, Ahead::Asking { .. } | Ahead::Fetching { .. })
            && let Some(wanted) = self.evaluate_next.take()
        {
            return self.obtain(now_ms, wanted, Next::Evaluate, out);
        }
        self.catch_up(now_ms, out);
        if self.work == Work::Idle && self.may_ask() {
            self.work = Work::Asking { until_ms: now_ms + limits::REQUEST_TIMEOUT_MS };
            self.ask(now_ms, out);
        }
    }

    fn may_ask(&self) -> bool {
        self.is_up()
            && self.config.train_examples > 0
            && self.phase == RunPhase::Running
            && self.outbox.has_room()
            && self.banking.is_empty()
            && matches!(self.ahead, Ahead::Nothing)
            && self.no_lease_until_ms.is_none()
            && self.patience.is_none()
            && self.rest_until_ms.is_none()
    }

    /// Gets hold of a model, from here or from the coordinator.
    fn obtain(&mut self, now_ms: u64, wanted: Wanted, then: Next, out: &mut Vec<Command>) {
        if self.replica.held() == Some(wanted) {
            self.tempo.obtained(now_ms, false);
            return self.fetched(now_ms, wanted, then, out);
        }
        self.work = Work::Fetching { wanted, then };
        if let Some(ask) = self.replica.ask(now_ms, wanted) {
            out.push(Command::Send(ask));
        }
    }

    pub(super) fn fetched(&mut self, now_ms: u64, wanted: Wanted, then: Next, out: &mut Vec<Command>) {
        match then {
            Next::Train { lease, evaluate } if evaluate && self.config.eval_examples > 0 => {
                self.evaluate(wanted, Some(lease), out);
            }
            Next::Train { lease, .. } => self.train(now_ms, lease, out),
            Next::Evaluate => self.evaluate(wanted, None, out),
        }
    }

    fn evaluate(&mut self, wanted: Wanted, then: Option<Lease>, out: &mut Vec<Command>) {
        let Some(content) = self.replica.content(wanted) else {
            self.work = Work::Idle;
            match then {
                Some(lease) if self.is_up() => out.push(return_lease(lease.id)),
                Some(_) => {}
                None => self.cannot_evaluate(wanted.version, "its content is not here any more", out),
            }
            return;
        };
        self.work = Work::Evaluating { wanted, then, of_this_branch: true };
        out.push(Command::Evaluate { version: wanted.version, content });
    }

    fn train(&mut self, now_ms: u64, lease: Lease, out: &mut Vec<Command>) {
        let base = Wanted { version: lease.base_version, digest: lease.base_digest };
        let Some(base) = self.replica.content(base) else {
            // Whatever took its place, a round without its base is none.
            self.work = Work::Idle;
            if self.is_up() {
                out.push(return_lease(lease.id));
            }
            return;
        };
        let lead = self.lead(&lease.plan);
        self.train_from(now_ms, lease, base, lead, out);
    }

    fn train_from(&mut self, now_ms: u64, lease: Lease, base: Arc<[f32]>, lead: Option<Lead>, out: &mut Vec<Command>) {
        let mut spec = self.terms.as_ref().expect("a lease comes only after a welcome").spec.clone();
        spec.train = lease.plan.of(&spec.train);
        let all_steps = spec.train.local_steps;
        out.push(Command::Train { lease: Box::new(lease.clone()), spec: Box::new(spec), base, lead });
        self.work = Work::Training {
            lease,
            since_ms: now_ms,
            all_steps,
            steps: 0,
            moved_ms: now_ms,
            examples_per_s: 0.0,
            stopping: false,
        };
    }

    pub(super) fn leased(&mut self, now_ms: u64, lease: Lease, evaluate: bool, out: &mut Vec<Command>) {
        self.no_lease_until_ms = None;
        let ahead = matches!(self.ahead, Ahead::Asking { .. });
        let free = ahead || matches!(self.work, Work::Idle | Work::Asking { .. });
        let fits = Some(lease.branch) == self.branch && matches!(self.trainer, Trainer::Ready(_));
        if !free || !fits || self.stopping.is_some() {
            out.push(return_lease(lease.id));
            self.answered();
            return;
        }
        if ahead {
            return self.leased_ahead(now_ms, lease, evaluate, out);
        }
        let wanted = Wanted { version: lease.base_version, digest: lease.base_digest };
        self.obtain(now_ms, wanted, Next::Train { lease, evaluate }, out);
    }

    pub(super) fn no_lease(&mut self, now_ms: u64, phase: RunPhase, out: &mut Vec<Command>) {
        self.answered();
        self.enter(now_ms, phase, out);
        self.no_lease_until_ms = Some(now_ms + limits::REQUEST_TIMEOUT_MS);
    }

    /// Nothing is asked for any more.
    pub(super) fn answered(&mut self) {
        if matches!(self.work, Work::Asking { .. }) {
            self.work = Work::Idle;
        }
        if matches!(self.ahead, Ahead::Asking { .. }) {
            self.ahead = Ahead::Nothing;
        }
    }

    /// The model that is being fetched will not come: its lease goes back.
    fn give_up_fetch(&mut self, out: &mut Vec<Command>) {
        self.replica.forget_fetch();
        if matches!(self.ahead, Ahead::Fetching { .. }) {
            self.drop_ahead(true, out);
        }
        if let Work::Fetching { wanted, then } = &self.work {
            let version = wanted.version;
            match then {
                Next::Train { lease, .. } if self.is_up() => out.push(return_lease(lease.id)),
                Next::Train { .. } => {}
                Next::Evaluate => self.cannot_evaluate(version, "the coordinator did not send it", out),
            }
            self.work = Work::Idle;
        }
    }

    pub(super) fn model_gone(&mut self, version: ModelVersion, out: &mut Vec<Command>) {
        if self.fetching().is_some_and(|wanted| wanted.version == version) {
            self.give_up_fetch(out);
        }
    }

    pub(super) fn unpack_failed(
        &mut self,
        now_ms: u64,
        version: ModelVersion,
        problem: String,
        out: &mut Vec<Command>,
    ) {
        if self.replica.is_unpacking(version) {
            self.note(format!("version {version} is not what was announced: {problem}"));
            self.rest_until_ms = Some(now_ms + limits::AGENT_RETRY_MS);
            self.give_up_fetch(out);
        }
    }

    pub(super) fn progress(&mut self, now_ms: u64, id: LeaseId, done: u32, speed: f32, out: &mut Vec<Command>) {
        let Work::Training { lease, steps, moved_ms, examples_per_s, .. } = &mut self.work else { return };
        if lease.id != id {
            return;
        }
        (*steps, *moved_ms, *examples_per_s) = (done, now_ms, speed);
        let due = self.progress_at_ms.is_none_or(|last| now_ms >= last + limits::PROGRESS_MS);
        if due && self.is_up() {
            self.progress_at_ms = Some(now_ms);
            out.push(Command::Send(AgentMessage::Progress { lease: id, steps: done, examples_per_s: speed }));
        }
    }

    pub(super) fn trained(&mut self, now_ms: u64, outcome: Outcome, out: &mut Vec<Command>) {
        let Work::Training { lease, .. } = &self.work else { return };
        if lease.id != outcome.lease {
            return;
        }
        let lease = lease.clone();
        self.work = Work::Idle;
        if Some(lease.branch) != self.branch {
            return;
        }
        self.tempo.trained(outcome.local_steps, outcome.compute_ms);
        self.banking.push((lease.id, now_ms));
        self.keep_lead(lease.id, &outcome.delta);
        let seq = self.next_seq;
        if !bugs::is(Bug::NumberReused) {
            self.next_seq = seq.next();
        }
        let upload = &self.terms.as_ref().expect("a lease comes only after a welcome").spec.upload;
        out.push(Command::Bank(Box::new(Bank {
            lease,
            epoch: self.epoch.expect("a lease comes only after a welcome"),
            seq,
            codec: upload.codec,
            feedback_decay: upload.feedback_decay,
            outcome,
        })));
    }

    pub(super) fn training_stopped(&mut self, id: LeaseId, out: &mut Vec<Command>) {
        let Work::Training { lease, .. } = &self.work else { return };
        if lease.id != id {
            return;
        }
        if self.is_up() {
            out.push(return_lease(id));
        }
        self.work = Work::Idle;
    }

    pub(super) fn banked(&mut self, now_ms: u64, entry: OutboxEntry) {
        let key = entry.meta.key;
        let ended_ms = self.no_longer_banking(entry.meta.lease);
        self.outbox.push(entry);
        if self.is_up() {
            self.unjudged.extend(ended_ms.map(|ended_ms| (key, ended_ms)));
            self.patience = Some((key, now_ms + limits::VERDICT_PATIENCE_MS));
        }
    }

    /// The store is through with the delta of this lease; when its round ended, if it had it.
    fn no_longer_banking(&mut self, lease: LeaseId) -> Option<u64> {
        let at = self.banking.iter().position(|(banking, _)| *banking == lease)?;
        Some(self.banking.remove(at).1)
    }

    pub(super) fn discarded(&mut self, now_ms: u64, id: LeaseId, problem: String, out: &mut Vec<Command>) {
        self.note(problem);
        let banked = self.no_longer_banking(id).is_some();
        if let Work::Training { lease, .. } = &self.work
            && !banked
            && lease.id == id
        {
            self.work = Work::Idle;
        }
        self.rest_until_ms = Some(now_ms + limits::AGENT_RETRY_MS);
        if self.is_up() {
            out.push(return_lease(id));
        }
    }

    pub(super) fn evaluated(&mut self, now_ms: u64, evaluation: Evaluation, out: &mut Vec<Command>) {
        let Work::Evaluating { wanted, then, of_this_branch } = &self.work else { return };
        if wanted.version != evaluation.version {
            return;
        }
        let then = then.clone();
        if *of_this_branch {
            self.unsent_evaluation = Some(evaluation);
        }
        self.evaluation_problem = None;
        self.work = Work::Idle;
        if let Some(lease) = then {
            self.train(now_ms, lease, out);
        }
    }

    pub(super) fn evaluation_failed(
        &mut self,
        now_ms: u64,
        version: ModelVersion,
        problem: String,
        out: &mut Vec<Command>,
    ) {
        let Work::Evaluating { wanted, then, of_this_branch } = &self.work else { return };
        if wanted.version != version {
            return;
        }
        let (then, of_this_branch) = (then.clone(), *of_this_branch);
        if of_this_branch {
            self.cannot_evaluate(version, &problem, out);
        }
        self.work = Work::Idle;
        if let Some(lease) = then {
            self.train(now_ms, lease, out);
        }
    }

    /// Says that a version cannot be evaluated here, so that another evaluator is asked. Without a connection the coordinator
    /// has asked another one already.
    fn cannot_evaluate(&mut self, version: ModelVersion, why: &str, out: &mut Vec<Command>) {
        let problem = plain(why, limits::EVALUATION_REASON_BYTES);
        self.evaluation_problem = Some(format!("version {version}: {problem}"));
        self.note(format!("version {version} cannot be evaluated: {problem}"));
        if self.is_up() {
            out.push(Command::Send(AgentMessage::EvaluationFailed { version, reason: problem }));
        }
    }

    /// Stops what belongs to another branch. Deltas that are durable stay: the coordinator refuses them with a reason.
    pub(super) fn abandon_work(&mut self, out: &mut Vec<Command>) {
        self.drop_ahead(false, out);
        match &mut self.work {
            Work::Training { stopping, .. } => {
                if !std::mem::replace(stopping, true) {
                    out.push(Command::StopTraining);
                }
            }
            Work::Idle | Work::Asking { .. } | Work::Fetching { .. } => self.work = Work::Idle,
            Work::Evaluating { then, .. } => *then = None,
        }
    }

    /// Starts to stop: no new work, the round that runs is given back, finished work is handed over.
    pub(super) fn stop(&mut self, now_ms: u64, ending: Ending, out: &mut Vec<Command>) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Stopping { ending, deadline_ms: now_ms + limits::SHUTDOWN_FLUSH_MS });
        if let Work::Fetching { then: Next::Train { lease, .. }, .. } | Work::Evaluating { then: Some(lease), .. } =
            &self.work
            && self.is_up()
        {
            out.push(return_lease(lease.id));
        }
        self.drop_ahead(true, out);
        self.replica.forget_fetch();
        self.abandon_work(out);
    }

    fn go_on_stopping(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let Some(stopping) = &self.stopping else { return };
        let busy = matches!(self.work, Work::Training { .. }) || !self.banking.is_empty();
        let handing_over = self.is_up() && !self.outbox.is_empty();
        if (busy || handing_over) && now_ms < stopping.deadline_ms {
            return;
        }
        let ending = stopping.ending.clone();
        if self.is_up() {
            out.push(Command::Send(AgentMessage::Goodbye { reason: ending.to_string() }));
        }
        self.end(ending, out);
    }
}

pub(super) fn return_lease(lease: LeaseId) -> Command {
    Command::Send(AgentMessage::ReturnLease { lease, why: LeaseEnd::Returned })
}
