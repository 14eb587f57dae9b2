//! The session of one agent process: a state machine without I/O, clock or entropy.
//!
//! ```text
//!            Event ──► Session::handle(now_ms, event) ──► Vec<Command>
//!
//!   link   Down ──► Connecting ──► Greeting ──► Up                    (link.rs: who we talk to)
//!             ▲─────────┴────────────┴──────────┘  backoff, for as long as it takes
//!
//!   work   Idle ──► Asking ──► Fetching ──► Evaluating ──► Training ──► Idle                (work.rs)
//!            ▲       lease       model       if asked        │   │
//!            │                                               │   └─► banking ──► outbox ──► offer ──► verdict
//!            │                                               └─ goes on whether or not there is a link
//!   ahead  Nothing ──► Asking ──► Fetching ──► Ready         while the round before is computed (ahead.rs)
//! ```
//! Link and work are independent: training goes on while there is no connection, and its delta is durable before
//! anybody is told of it. The next round begins as soon as a delta is out of the trainer, if its base is there by then. Two
//! runs with the same events at the same times give the same commands.

mod ahead;
pub mod command;
pub mod event;
mod link;
pub mod outbox;
pub mod replica;
mod tempo;
mod tensors;
#[cfg(test)]
mod tests;
mod work;

/// A complete run specification.
#[cfg(test)]
pub(crate) const SPEC_FOR_TESTS: &str = include_str!("spec_for_tests.toml");

use std::collections::VecDeque;
use std::sync::Arc;

use anabranch_common::backoff::Backoff;
use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, RunId, UpdateSeq};
use anabranch_common::journal::{Evaluation, Lease};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::AgentSpec;
use anabranch_common::update::{UpdateKey, Verdict};
use anabranch_common::wire::message::RunPhase;

use ahead::Ahead;
use command::{Command, Ending};
use event::{Event, InitialModel, Kept};
use outbox::Outbox;
use replica::{Replica, Wanted};
use tempo::Tempo;

pub use link::Link;
pub use tempo::Waits;
pub use work::Work;

/// What a session is told when it starts.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The run this agent was enrolled in.
    pub run: RunId,
    /// Its identity.
    pub agent: AgentId,
    /// Drawn by the driver when the process started.
    pub incarnation: Incarnation,
    /// Version of the software.
    pub software: String,
    /// Examples in the training shard (0: does not train).
    pub train_examples: u64,
    /// Examples in the evaluation shard (0: does not evaluate).
    pub eval_examples: u64,
    /// Device, for people.
    pub device: String,
    /// When the certificate wants renewal, on the clock of `now_ms`.
    pub renew_at_ms: u64,
    /// Seed of the jitter between attempts to connect.
    pub backoff_seed: u64,
    /// Whether the next lease and its base are obtained while a round is computed, where that saves time.
    pub overlap: bool,
}

/// What the coordinator said in its latest welcome.
#[derive(Debug)]
struct Terms {
    spec: AgentSpec,
    model: Option<(ModelManifest, Digest)>,
}

/// How far the trainer is.
#[derive(Debug)]
enum Trainer {
    Unbuilt,
    Building,
    Ready(ModelManifest),
}

/// Which part this agent plays in making version 0.
#[derive(Debug)]
enum Initial {
    None,
    Making,
    Made(InitialModel),
}

#[derive(Debug)]
struct Stopping {
    ending: Ending,
    deadline_ms: u64,
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    link: Link,
    backoff: Backoff,
    terms: Option<Terms>,
    branch: Option<BranchId>,
    epoch: Option<Epoch>,
    next_seq: UpdateSeq,
    kept_counter: Option<(Epoch, UpdateSeq)>,
    phase: RunPhase,
    trainer: Trainer,
    initial: Initial,
    outbox: Outbox,
    replica: Replica,
    work: Work,
    ahead: Ahead,
    /// The rounds whose deltas are being made durable, and when they ended.
    banking: Vec<(LeaseId, u64)>,
    tempo: Tempo,
    now_ms: u64,
    /// The lease of a round that a crash has cut off, to go on with before another is asked for.
    cut_off: Option<(Lease, Arc<[f32]>)>,
    /// The round during which the latest lease was asked for.
    asked_in: Option<LeaseId>,
    /// The latest complete round, if the next lease was asked for while it ran: its delta is not in that lease's base.
    lacking: Option<Arc<[f32]>>,
    /// The weight of the latest merged update.
    merged_with: Option<f32>,
    /// Set while the coordinator has no lease for us: when to ask again unasked.
    no_lease_until_ms: Option<u64>,
    /// Set while it is worth waiting for the verdict on this update before asking for the next lease.
    patience: Option<(UpdateKey, u64)>,
    /// Updates that have no verdict on this connection, and when their rounds ended.
    unjudged: VecDeque<(UpdateKey, u64)>,
    /// Set while what failed here rests before it is tried again.
    rest_until_ms: Option<u64>,
    /// Why no work is taken on, where the machine's owner needs it.
    hold: Option<String>,
    evaluate_next: Option<Wanted>,
    unsent_evaluation: Option<Evaluation>,
    /// Why the latest evaluation failed, until one succeeds.
    evaluation_problem: Option<String>,
    progress_at_ms: Option<u64>,
    renewing: bool,
    stopping: Option<Stopping>,
    ended: bool,
    verdicts: VecDeque<(UpdateKey, Verdict)>,
    last_problem: Option<String>,
}

impl Session {
    /// A session that has done nothing yet. Its first event must be [`Event::Started`].
    #[must_use]
    pub fn new(config: SessionConfig, kept: Kept) -> Self {
        let (first_ms, max_ms) = limits::RECONNECT_MS;
        let backoff = Backoff::new(first_ms, max_ms, config.backoff_seed);
        Self {
            config,
            link: Link::Down,
            backoff,
            terms: None,
            branch: kept.branch,
            epoch: None,
            next_seq: UpdateSeq(0),
            kept_counter: kept.counter,
            phase: RunPhase::Pending,
            trainer: Trainer::Unbuilt,
            initial: Initial::None,
            outbox: Outbox::new(kept.outbox),
            replica: Replica::default(),
            work: Work::Idle,
            ahead: Ahead::Nothing,
            banking: Vec::new(),
            tempo: Tempo::default(),
            now_ms: 0,
            cut_off: None,
            asked_in: None,
            lacking: None,
            merged_with: None,
            no_lease_until_ms: None,
            patience: None,
            unjudged: VecDeque::new(),
            rest_until_ms: None,
            hold: None,
            evaluate_next: None,
            unsent_evaluation: None,
            evaluation_problem: None,
            progress_at_ms: None,
            renewing: false,
            stopping: None,
            ended: false,
            verdicts: VecDeque::new(),
            last_problem: None,
        }
    }

    /// Goes on with a round that a crash has cut off, once the trainer is ready and the run goes on, if it still is the
    /// run's branch. Its lease need not be outstanding: what is trained under it is welcome while its base is recent.
    /// It has the plan that it was begun with.
    pub fn resume(&mut self, lease: Lease, base: Arc<[f32]>) {
        if lease.agent == self.config.agent && Some(lease.branch) == self.branch {
            self.cut_off = Some((lease, base));
        }
    }

    /// Takes one event and says what to do. After an `Exit` nothing more is said.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        if self.ended {
            return out;
        }
        self.account(now_ms);
        self.apply(now_ms, event, &mut out);
        if !self.ended {
            self.go_on(now_ms, &mut out);
        }
        out
    }

    fn apply(&mut self, now_ms: u64, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Started => self.connect(0, out),
            Event::Connected => self.connected(now_ms, out),
            Event::Disconnected(problem) => self.disconnected(problem, out),
            Event::Message(message) => self.message(now_ms, message, out),
            Event::Chunk { transfer, index, bytes } => {
                let arrival = self.replica.put(now_ms, transfer, index, bytes);
                self.arrival(arrival, out);
            }
            Event::ChunksSent { transfer } => self.outbox.sent(now_ms, transfer),
            Event::Prepared { manifest } => self.prepared(manifest, out),
            Event::InitialMade(model) => self.initial_made(model, out),
            Event::Unpacked { version, digest, content } => self.replica.unpacked(Wanted { version, digest }, content),
            Event::UnpackFailed { version, problem } => self.unpack_failed(now_ms, version, problem, out),
            Event::Progress { lease, steps, examples_per_s } => {
                self.progress(now_ms, lease, steps, examples_per_s, out);
            }
            Event::Trained(outcome) => self.trained(now_ms, *outcome, out),
            Event::TrainingStopped { lease } => self.training_stopped(lease, out),
            Event::Evaluated { version, accuracy, loss, num_examples } => {
                let agent = self.config.agent;
                self.evaluated(now_ms, Evaluation { agent, version, accuracy, loss, num_examples }, out);
            }
            Event::EvaluationFailed { version, problem } => self.evaluation_failed(now_ms, version, problem, out),
            Event::Banked(entry) => self.banked(now_ms, entry),
            Event::Discarded { lease, problem } => self.discarded(now_ms, lease, problem, out),
            Event::Settled { key } => self.outbox.settled(key),
            Event::CertificateStored { renew_at_ms } => {
                self.renewing = false;
                self.config.renew_at_ms = renew_at_ms;
            }
            Event::Tick => self.tick(now_ms, out),
            Event::Hold { reason } => self.hold = reason,
            Event::Shutdown => self.stop(now_ms, Ending::Parked, out),
            Event::Failed(ending) => self.end(ending, out),
        }
    }

    fn end(&mut self, ending: Ending, out: &mut Vec<Command>) {
        self.ended = true;
        out.push(Command::Exit(ending));
    }

    fn note(&mut self, problem: String) {
        self.last_problem = Some(problem);
    }

    /// When the session wants a `Tick`, if nothing happens before.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.ended {
            return None;
        }
        let stop = self.stopping.as_ref().map(|stopping| stopping.deadline_ms);
        let link = match self.link {
            Link::Greeting { until_ms } => Some(until_ms),
            Link::Up => {
                let fetch = self.fetching().and_then(|_| self.replica.deadline_ms());
                let waits = [self.outbox.deadline_ms(), fetch, self.renewal_ms(), self.asking_until_ms()];
                waits.into_iter().chain([self.ask_ahead_ms()]).flatten().min()
            }
            Link::Down | Link::Connecting => None,
        };
        let asking = match self.work {
            Work::Idle if self.is_up() && self.stopping.is_none() => {
                let patience = self.patience.map(|(_, until_ms)| until_ms);
                [self.no_lease_until_ms, patience, self.rest_until_ms].into_iter().flatten().min()
            }
            _ => None,
        };
        [stop, link, asking].into_iter().flatten().min()
    }

    /// What it was told when it started.
    #[must_use]
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// The connection's state.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link
    }

    /// What it is doing.
    #[must_use]
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// What waits for a verdict.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The model it holds or fetches.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Its epoch, once the coordinator has numbered it.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The branch that its work belongs to.
    #[must_use]
    pub fn branch(&self) -> Option<BranchId> {
        self.branch
    }

    /// The run's state as far as it is known here.
    #[must_use]
    pub fn phase(&self) -> RunPhase {
        self.phase
    }

    /// Why it takes on no work at present, where the machine's owner needs it.
    #[must_use]
    pub fn hold(&self) -> Option<&str> {
        self.hold.as_deref()
    }

    /// Examples of a step, once the run's configuration is known.
    #[must_use]
    pub fn batch_size(&self) -> Option<u32> {
        self.terms.as_ref().map(|terms| terms.spec.train.batch_size)
    }

    /// The latest verdicts, oldest first.
    pub fn verdicts(&self) -> impl Iterator<Item = &(UpdateKey, Verdict)> {
        self.verdicts.iter()
    }

    /// Why the latest evaluation failed, until one succeeds.
    #[must_use]
    pub fn evaluation_problem(&self) -> Option<&str> {
        self.evaluation_problem.as_deref()
    }

    /// The latest thing that went wrong and was dealt with.
    #[must_use]
    pub fn last_problem(&self) -> Option<&str> {
        self.last_problem.as_deref()
    }
}
