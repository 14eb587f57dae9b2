//! What the session does: ask for a lease, fetch its base, train, bank the delta; evaluate in between; stop in order.

use anabranch_common::bugs::{self, Bug};
use anabranch_common::ids::{LeaseId, ModelVersion};
use anabranch_common::journal::{Evaluation, Lease, LeaseEnd};
use anabranch_common::limits;
use anabranch_common::wire::message::{AgentMessage, RunPhase};

use super::command::{Bank, Command, Ending};
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
        /// Steps done.
        steps: u32,
        /// Examples a second, lately.
        examples_per_s: f32,
        /// Whether it was told to stop.
        stopping: bool,
    },
    /// Making the delta durable.
    Banking {
        /// Under this lease.
        lease: Lease,
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
            self.fetched(wanted, then, out);
        }
        if self.work != Work::Idle || self.hold.is_some() || !matches!(self.trainer, Trainer::Ready(_)) {
            return;
        }
        if self.may_ask()
            && let Some(lease) = self.cut_off.take().filter(|lease| Some(lease.branch) == self.branch)
        {
            return self.train(lease, out);
        }
        if self.is_up()
            && let Some(wanted) = self.evaluate_next.take()
        {
            return self.obtain(now_ms, wanted, Next::Evaluate, out);
        }
        if self.may_ask() {
            self.work = Work::Asking { until_ms: now_ms + limits::REQUEST_TIMEOUT_MS };
            out.push(Command::Send(AgentMessage::RequestLease));
        }
    }

    fn may_ask(&self) -> bool {
        self.is_up()
            && self.config.train_examples > 0
            && self.phase == RunPhase::Running
            && self.outbox.has_room()
            && self.no_lease_until_ms.is_none()
            && self.patience.is_none()
            && self.rest_until_ms.is_none()
    }

    /// Gets hold of a model, from here or from the coordinator.
    fn obtain(&mut self, now_ms: u64, wanted: Wanted, then: Next, out: &mut Vec<Command>) {
        if self.replica.held() == Some(wanted) {
            return self.fetched(wanted, then, out);
        }
        self.work = Work::Fetching { wanted, then };
        if let Some(ask) = self.replica.ask(now_ms, wanted) {
            out.push(Command::Send(ask));
        }
    }

    fn fetched(&mut self, wanted: Wanted, then: Next, out: &mut Vec<Command>) {
        match then {
            Next::Train { lease, evaluate } if evaluate && self.config.eval_examples > 0 => {
                self.evaluate(wanted, Some(lease), out);
            }
            Next::Train { lease, .. } => self.train(lease, out),
            Next::Evaluate => self.evaluate(wanted, None, out),
        }
    }

    fn evaluate(&mut self, wanted: Wanted, then: Option<Lease>, out: &mut Vec<Command>) {
        let Some(content) = self.replica.content(wanted) else {
            self.work = Work::Idle;
            if let Some(lease) = then.filter(|_| self.is_up()) {
                out.push(return_lease(lease.id));
            }
            return;
        };
        self.work = Work::Evaluating { wanted, then, of_this_branch: true };
        out.push(Command::Evaluate { version: wanted.version, content });
    }

    fn train(&mut self, lease: Lease, out: &mut Vec<Command>) {
        let base = Wanted { version: lease.base_version, digest: lease.base_digest };
        let Some(base) = self.replica.content(base) else {
            // Whatever took its place, a round without its base is none.
            self.work = Work::Idle;
            if self.is_up() {
                out.push(return_lease(lease.id));
            }
            return;
        };
        let spec = self.terms.as_ref().expect("a lease comes only after a welcome").spec.clone();
        out.push(Command::Train { lease: Box::new(lease.clone()), spec: Box::new(spec), base });
        self.work = Work::Training { lease, steps: 0, examples_per_s: 0.0, stopping: false };
    }

    pub(super) fn leased(&mut self, now_ms: u64, lease: Lease, evaluate: bool, out: &mut Vec<Command>) {
        self.no_lease_until_ms = None;
        let free = matches!(self.work, Work::Idle | Work::Asking { .. });
        let fits = Some(lease.branch) == self.branch && matches!(self.trainer, Trainer::Ready(_));
        if !free || !fits || self.stopping.is_some() {
            out.push(return_lease(lease.id));
            if matches!(self.work, Work::Asking { .. }) {
                self.work = Work::Idle;
            }
            return;
        }
        let wanted = Wanted { version: lease.base_version, digest: lease.base_digest };
        self.obtain(now_ms, wanted, Next::Train { lease, evaluate }, out);
    }

    pub(super) fn no_lease(&mut self, now_ms: u64, phase: RunPhase, out: &mut Vec<Command>) {
        if matches!(self.work, Work::Asking { .. }) {
            self.work = Work::Idle;
        }
        self.enter(now_ms, phase, out);
        self.no_lease_until_ms = Some(now_ms + limits::REQUEST_TIMEOUT_MS);
    }

    pub(super) fn model_gone(&mut self, version: ModelVersion, out: &mut Vec<Command>) {
        let Work::Fetching { wanted, then } = &self.work else { return };
        if wanted.version != version {
            return;
        }
        if let Next::Train { lease, .. } = then {
            out.push(return_lease(lease.id));
        }
        self.replica.forget_fetch();
        self.work = Work::Idle;
    }

    pub(super) fn unpack_failed(
        &mut self,
        now_ms: u64,
        version: ModelVersion,
        problem: String,
        out: &mut Vec<Command>,
    ) {
        if !self.replica.is_unpacking(version) {
            return;
        }
        self.note(format!("version {version} is not what was announced: {problem}"));
        self.replica.forget_fetch();
        self.rest_until_ms = Some(now_ms + limits::AGENT_RETRY_MS);
        if let Work::Fetching { then: Next::Train { lease, .. }, .. } = &self.work
            && self.is_up()
        {
            out.push(return_lease(lease.id));
        }
        if matches!(self.work, Work::Fetching { .. }) {
            self.work = Work::Idle;
        }
    }

    pub(super) fn progress(&mut self, now_ms: u64, id: LeaseId, done: u32, speed: f32, out: &mut Vec<Command>) {
        let Work::Training { lease, steps, examples_per_s, .. } = &mut self.work else { return };
        if lease.id != id {
            return;
        }
        (*steps, *examples_per_s) = (done, speed);
        let due = self.progress_at_ms.is_none_or(|last| now_ms >= last + PROGRESS_EVERY_MS);
        if due && self.is_up() {
            self.progress_at_ms = Some(now_ms);
            out.push(Command::Send(AgentMessage::Progress { lease: id, steps: done, examples_per_s: speed }));
        }
    }

    pub(super) fn trained(&mut self, outcome: Outcome, out: &mut Vec<Command>) {
        let Work::Training { lease, .. } = &self.work else { return };
        if lease.id != outcome.lease {
            return;
        }
        let lease = lease.clone();
        if Some(lease.branch) != self.branch {
            self.work = Work::Idle;
            return;
        }
        let upload = &self.terms.as_ref().expect("a lease comes only after a welcome").spec.upload;
        out.push(Command::Bank(Box::new(Bank {
            lease: lease.clone(),
            epoch: self.epoch.expect("a lease comes only after a welcome"),
            seq: self.next_seq,
            codec: upload.codec,
            feedback_decay: upload.feedback_decay,
            outcome,
        })));
        self.work = Work::Banking { lease };
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
        if self.epoch == Some(key.epoch) && !bugs::is(Bug::NumberReused) {
            self.next_seq = key.seq.next();
        }
        if matches!(self.work, Work::Banking { .. }) {
            self.work = Work::Idle;
        }
        self.outbox.push(entry);
        if self.is_up() {
            self.patience = Some((key, now_ms + limits::VERDICT_PATIENCE_MS));
        }
    }

    pub(super) fn discarded(&mut self, now_ms: u64, lease: LeaseId, problem: String, out: &mut Vec<Command>) {
        self.note(problem);
        if matches!(self.work, Work::Training { .. } | Work::Banking { .. }) {
            self.work = Work::Idle;
        }
        self.rest_until_ms = Some(now_ms + limits::AGENT_RETRY_MS);
        if self.is_up() {
            out.push(return_lease(lease));
        }
    }

    pub(super) fn evaluated(&mut self, evaluation: Evaluation, out: &mut Vec<Command>) {
        let Work::Evaluating { wanted, then, of_this_branch } = &self.work else { return };
        if wanted.version != evaluation.version {
            return;
        }
        let then = then.clone();
        if *of_this_branch {
            self.unsent_evaluation = Some(evaluation);
        }
        self.work = Work::Idle;
        if let Some(lease) = then {
            self.train(lease, out);
        }
    }

    pub(super) fn evaluation_failed(&mut self, version: ModelVersion, problem: String, out: &mut Vec<Command>) {
        let Work::Evaluating { wanted, then, .. } = &self.work else { return };
        if wanted.version != version {
            return;
        }
        let then = then.clone();
        self.note(format!("version {version} cannot be evaluated: {problem}"));
        self.work = Work::Idle;
        if let Some(lease) = then {
            self.train(lease, out);
        }
    }

    /// Stops what belongs to another branch. Deltas that are durable stay: the coordinator refuses them with a reason.
    pub(super) fn abandon_work(&mut self, out: &mut Vec<Command>) {
        match &mut self.work {
            Work::Training { stopping, .. } => {
                if !std::mem::replace(stopping, true) {
                    out.push(Command::StopTraining);
                }
            }
            Work::Banking { .. } => {}
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
        self.replica.forget_fetch();
        self.abandon_work(out);
    }

    fn go_on_stopping(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let Some(stopping) = &self.stopping else { return };
        let busy = matches!(self.work, Work::Training { .. } | Work::Banking { .. });
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

/// At most one `Progress` in this time.
const PROGRESS_EVERY_MS: u64 = 1_000;

fn return_lease(lease: LeaseId) -> Command {
    Command::Send(AgentMessage::ReturnLease { lease, why: LeaseEnd::Returned })
}
