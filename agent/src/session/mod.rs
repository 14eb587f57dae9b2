//! The session of one agent process: a state machine without I/O, clock or entropy.
//!
//! ```text
//!            Event ──► Session::handle(now_ms, event) ──► Vec<Command>
//!
//!   connection  Down ──► Connecting ──► Greeting ──► Up          (link.rs)
//!                 ▲─────────┴────────────┴───────────┘  backoff, for as long as it takes
//!
//!   rounds      Asking ──► Fetching ──► Ready ──► Training ──► banking ──► outbox ──► offer ──► verdict     (rounds.rs)
//!                 lease      base        │           └─ goes on whether or not there is a connection
//!                                        └─ while the round before is computed
//! ```
//! Connection and rounds are independent: training continues while there is no connection, and its delta is durable before
//! it is offered. Each part owns its state; the session passes events to the parts and collects what they decide. Two runs
//! with the same events at the same times give the same commands.
//!
//! | file | owns |
//! |---|---|
//! | `link` | the connection, the wait before the next one, the renewal of the certificate |
//! | `membership` | what the coordinator has told: terms, branch, phase, epoch, numbers of updates |
//! | `model` | the trainer's tensors, and version 0 |
//! | `rounds` | the round that is computed, the one that is prepared, deltas on their way to the store; `tempo` times them |
//! | `seat` | the part of another agent's round that is computed here |
//! | `parts` | what that came to, until its update is decided |
//! | `evaluator` | evaluations |
//! | `replica` | the model that is held, and the fetch of another |
//! | `outbox` | durable updates without a verdict |
//! | `verdicts` | the latest verdicts, and which one is awaited |
//! | `life` | whether the process goes on, stops, or has ended |
//! | `messages`, `pods`, `work` | no state: what follows from a message, and what is started after an event |

pub mod command;
mod evaluator;
pub mod event;
mod life;
mod link;
mod membership;
mod messages;
mod model;
pub mod outbox;
mod parts;
mod pods;
pub mod replica;
mod rounds;
mod seat;
mod tempo;
mod tensors;
#[cfg(test)]
pub(crate) mod tests;
mod verdicts;
mod work;

/// A complete run specification.
#[cfg(test)]
pub(crate) const SPEC_FOR_TESTS: &str = include_str!("spec_for_tests.toml");

use std::sync::Arc;

use anabranch_common::ids::{AgentId, BranchId, Epoch, Incarnation, RunId};
use anabranch_common::journal::{Evaluation, Lease};
use anabranch_common::pod::PodOffer;
use anabranch_common::update::{UpdateKey, Verdict};
use anabranch_common::wire::message::{AgentHello, AgentMessage, RunPhase};

use command::{Command, Ending};
use evaluator::Evaluator;
use event::{Event, Kept, Problem};
use life::Life;
use link::Connection;
use membership::Membership;
use model::Model;
use outbox::Outbox;
use parts::Parts;
use replica::{Replica, Wanted};
use rounds::Rounds;
use seat::Seat;
use verdicts::Verdicts;

pub use link::Link;
pub use rounds::{InPod, Training};
pub use tempo::Waits;
pub use work::Activity;

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
    /// What it can do in a pod, if it joins pods; at work on nothing.
    pub pod: Option<PodOffer>,
    /// When the certificate wants renewal, on the clock of `now_ms`.
    pub renew_at_ms: u64,
    /// Seed of the jitter between attempts to connect.
    pub backoff_seed: u64,
    /// Whether the next lease and its base are obtained while a round is computed, where that saves time.
    pub overlap: bool,
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    connection: Connection,
    membership: Membership,
    model: Model,
    rounds: Rounds,
    seat: Seat,
    parts: Parts,
    evaluator: Evaluator,
    replica: Replica,
    outbox: Outbox,
    verdicts: Verdicts,
    /// Whether other runs use the device too.
    shares_device: bool,
    /// Whether the job that was given last waits for the device.
    awaits_turn: bool,
    /// Why no work is taken on, where the machine's owner needs it.
    hold: Option<String>,
    /// When the coordinator was last told how far the round is.
    progress_at_ms: Option<u64>,
    life: Life,
    last_problem: Option<String>,
}

impl Session {
    /// A session that has done nothing yet. Its first event must be [`Event::Started`].
    #[must_use]
    pub fn new(config: SessionConfig, kept: Kept) -> Self {
        Self {
            connection: Connection::new(config.renew_at_ms, config.backoff_seed),
            model: Model::new(config.train_examples > 0),
            config,
            membership: Membership::new(&kept),
            rounds: Rounds::default(),
            seat: Seat::default(),
            parts: Parts::default(),
            evaluator: Evaluator::default(),
            replica: Replica::default(),
            outbox: Outbox::new(kept.outbox),
            verdicts: Verdicts::default(),
            shares_device: false,
            awaits_turn: false,
            hold: None,
            progress_at_ms: None,
            life: Life::default(),
            last_problem: None,
        }
    }

    /// Goes on with a round that a crash has cut off, once the trainer is ready and the run goes on, if it still is the
    /// run's branch. Its lease need not be outstanding: what is trained under it is welcome while its base is recent.
    /// It has the plan that it was begun with.
    pub fn resume(&mut self, lease: Lease, base: Arc<[f32]>) {
        if lease.agent == self.config.agent && Some(lease.branch) == self.membership.branch() {
            self.rounds.resume(lease, base);
        }
    }

    /// Other runs use the device too: a job that is given waits until [`Event::TurnCame`].
    pub fn share_device(&mut self) {
        self.shares_device = true;
    }

    /// Takes one event and says what to do. After an `Exit` nothing more is said.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        if self.life.has_ended() {
            return out;
        }
        self.account(now_ms);
        self.connection.at(now_ms);
        self.apply(now_ms, event, &mut out);
        if !self.life.has_ended() {
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
            Event::Prepared { manifest } => {
                self.model.prepared(manifest);
                self.settle_model(out);
            }
            Event::InitialMade(model) => {
                self.model.made(model);
                self.settle_model(out);
            }
            Event::Unpacked { version, digest, content } => self.replica.unpacked(Wanted { version, digest }, content),
            Event::UnpackFailed { version, digest, problem } => {
                self.unpack_failed(now_ms, Wanted { version, digest }, &problem, out);
            }
            Event::Progress { lease, steps, examples_per_s } => {
                self.progress(now_ms, lease, steps, examples_per_s, out);
            }
            Event::Trained(outcome) => self.trained(now_ms, *outcome, out),
            Event::TrainingStopped { lease } => self.training_stopped(lease, out),
            Event::PodFailed { mark, problem } => self.pod_failed(now_ms, mark, problem, out),
            Event::Served { mark, problem, parts } => {
                let answer = self.parts.ended(mark, parts);
                out.extend(answer.filter(|_| self.connection.is_up()));
                self.served(now_ms, mark, problem, out);
            }
            Event::Evaluated { version, accuracy, loss, num_examples } => {
                let agent = self.config.agent;
                self.evaluator.evaluated(Evaluation { agent, version, accuracy, loss, num_examples });
            }
            Event::EvaluationFailed { version, problem } => self.evaluation_failed(version, &problem, out),
            Event::Banked(entry) => self.banked(now_ms, entry, out),
            Event::Discarded { lease, problem } => self.discarded(now_ms, lease, problem, out),
            Event::Settled { key } => self.outbox.settled(key),
            Event::CertificateStored { renew_at_ms } => self.connection.renewed(renew_at_ms),
            Event::Tick => self.tick(now_ms, out),
            Event::Hold { reason } => self.hold = reason,
            Event::TurnCame => {
                self.awaits_turn = false;
                self.rounds.turn_came(now_ms);
            }
            Event::Shutdown => self.stop(now_ms, Ending::Parked, out),
            Event::Failed(ending) => self.end(ending, out),
        }
    }

    fn connect(&mut self, after_ms: u64, out: &mut Vec<Command>) {
        self.connection.connecting();
        out.push(Command::Connect { after_ms });
    }

    fn connected(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        self.connection.greeting(now_ms);
        out.push(Command::Send(AgentMessage::Hello(AgentHello {
            run: self.config.run,
            branch: self.membership.branch(),
            incarnation: self.config.incarnation,
            software: self.config.software.clone(),
            train_examples: self.config.train_examples,
            eval_examples: self.config.eval_examples,
            device: self.config.device.clone(),
            pod: self.pod_offer(),
        })));
    }

    fn disconnected(&mut self, problem: Problem, out: &mut Vec<Command>) {
        self.connection.lost();
        self.outbox.disconnected();
        self.replica.disconnected();
        self.verdicts.disconnected();
        self.rounds.disconnected();
        self.parts.disconnected();
        match problem {
            Problem::Final(ending) => self.end(ending, out),
            Problem::Transient(problem) => {
                self.note(problem);
                if self.life.is_running() {
                    let after_ms = self.connection.next_wait_ms();
                    self.connect(after_ms, out);
                }
            }
        }
    }

    /// Closes the connection from this side, and opens another.
    fn give_up_link(&mut self, why: &str, out: &mut Vec<Command>) {
        out.push(Command::Disconnect { why: why.to_owned() });
        self.disconnected(Problem::Transient(why.to_owned()), out);
    }

    fn end(&mut self, ending: Ending, out: &mut Vec<Command>) {
        self.life.end();
        out.push(Command::Exit(ending));
    }

    fn note(&mut self, problem: String) {
        self.last_problem = Some(problem);
    }

    /// Returns how long the coordinator has for its answer to a request for a lease. While this agent computes for others
    /// it is given none.
    fn asking_until_ms(&self) -> Option<u64> {
        self.rounds.asking_until_ms().filter(|_| !self.seat.is_taken())
    }

    /// Ends what is due.
    fn tick(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let due = |deadline: Option<u64>| deadline.is_some_and(|deadline| deadline <= now_ms);
        if due(self.connection.greeting_until_ms()) {
            return self.give_up_link("the coordinator did not answer the greeting in time", out);
        }
        if self.connection.is_up() {
            if due(self.outbox.deadline_ms()) {
                return self.give_up_link("the coordinator gave no verdict in time", out);
            }
            if due(self.asking_until_ms()) {
                return self.give_up_link("the coordinator did not answer the request for a lease in time", out);
            }
            if due(self.replica.deadline_ms()) {
                self.ask_for_model(now_ms, out);
            }
            if due(self.connection.renewal_ms()) {
                out.push(Command::Renew(self.connection.renewing()));
            }
        }
        self.rounds.tick(now_ms);
        self.verdicts.tick(now_ms);
    }

    /// When the session wants a `Tick`, if nothing happens before.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.life.has_ended() {
            return None;
        }
        let (mut up, mut waits) = ([None; 5], [None; 2]);
        if self.connection.is_up() {
            let fetch = self.fetching().and_then(|_| self.replica.deadline_ms());
            let pod = self.rounds.pod_until_ms();
            up = [self.outbox.deadline_ms(), fetch, self.asking_until_ms(), self.ask_at_ms(), pod];
        }
        if self.life.is_running() && self.rounds.current().is_none() {
            waits = [self.rounds.wait_ends_ms(), self.verdicts.awaited_until_ms()];
        }
        let link = [self.life.deadline_ms(), self.connection.greeting_until_ms(), self.connection.renewal_ms()];
        link.into_iter().chain(up).chain(waits).flatten().min()
    }

    /// What it was told when it started.
    #[must_use]
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// The connection's state.
    #[must_use]
    pub fn link(&self) -> Link {
        self.connection.link()
    }

    /// What the time since the first round went into.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.rounds.waits()
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
        self.membership.epoch()
    }

    /// The branch that its work belongs to.
    #[must_use]
    pub fn branch(&self) -> Option<BranchId> {
        self.membership.branch()
    }

    /// The run's state as far as it is known here.
    #[must_use]
    pub fn phase(&self) -> RunPhase {
        self.membership.phase()
    }

    /// Why it takes on no work at present, where the machine's owner needs it.
    #[must_use]
    pub fn hold(&self) -> Option<&str> {
        self.hold.as_deref()
    }

    /// Whether the job that was given last waits for the device.
    #[must_use]
    pub fn awaits_turn(&self) -> bool {
        self.awaits_turn
    }

    /// Examples of a step, once the run's configuration is known.
    #[must_use]
    pub fn batch_size(&self) -> Option<u32> {
        self.membership.terms().map(|terms| terms.spec.train.batch_size)
    }

    /// The latest verdicts, oldest first.
    pub fn verdicts(&self) -> impl Iterator<Item = &(UpdateKey, Verdict)> {
        self.verdicts.latest()
    }

    /// Why the latest evaluation failed, until one succeeds.
    #[must_use]
    pub fn evaluation_problem(&self) -> Option<&str> {
        self.evaluator.problem()
    }

    /// The latest thing that went wrong and was dealt with.
    #[must_use]
    pub fn last_problem(&self) -> Option<&str> {
        self.last_problem.as_deref()
    }
}
