//! Who the session talks to: connecting, greeting, what the coordinator says, and how it ends.

use anabranch_common::codec;
use anabranch_common::ids::{Digest, ModelVersion, UpdateSeq};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::Verdict;
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage, Rejection, RunPhase, Welcome};
use anabranch_common::wire::transfer::{Missing, TransferManifest};

use super::command::{ChunkSource, Command, Ending};
use super::event::{InitialModel, Problem};
use super::replica::{Announced, Arrival, Wanted};
use super::tensors::{self, Compared};
use super::{Initial, Session, Terms, Trainer, UpdateKey, Work};

/// State of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// None, and none is being opened.
    Down,
    /// Being opened, perhaps after a wait.
    Connecting,
    /// Open; `Hello` is sent and not answered.
    Greeting {
        /// When to give it up.
        until_ms: u64,
    },
    /// Open, and the coordinator has welcomed us.
    Up,
}

impl Session {
    pub(super) fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    pub(super) fn connect(&mut self, after_ms: u64, out: &mut Vec<Command>) {
        self.link = Link::Connecting;
        out.push(Command::Connect { after_ms });
    }

    pub(super) fn connected(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        self.link = Link::Greeting { until_ms: now_ms + limits::HANDSHAKE_TIMEOUT_MS };
        out.push(Command::Send(AgentMessage::Hello(AgentHello {
            run: self.config.run,
            branch: self.branch,
            incarnation: self.config.incarnation,
            software: self.config.software.clone(),
            train_examples: self.config.train_examples,
            eval_examples: self.config.eval_examples,
            device: self.config.device.clone(),
        })));
    }

    pub(super) fn disconnected(&mut self, problem: Problem, out: &mut Vec<Command>) {
        self.link_lost();
        match problem {
            Problem::Final(ending) => self.end(ending, out),
            Problem::Transient(problem) => {
                self.note(problem);
                if self.stopping.is_none() {
                    let after_ms = self.backoff.next_ms();
                    self.connect(after_ms, out);
                }
            }
        }
    }

    /// Closes the connection from this side, and opens another.
    pub(super) fn give_up_link(&mut self, why: &str, out: &mut Vec<Command>) {
        out.push(Command::Disconnect { why: why.to_owned() });
        self.disconnected(Problem::Transient(why.to_owned()), out);
    }

    fn link_lost(&mut self) {
        self.link = Link::Down;
        self.outbox.disconnected();
        self.replica.disconnected();
        self.no_lease_until_ms = None;
        self.patience = None;
        self.unjudged.clear();
        self.renewing = false;
        self.answered();
    }

    pub(super) fn message(&mut self, now_ms: u64, message: CoordinatorMessage, out: &mut Vec<Command>) {
        match (message, self.link) {
            (CoordinatorMessage::Welcome(welcome), Link::Greeting { .. }) => self.welcome(now_ms, *welcome, out),
            (CoordinatorMessage::Rejected(rejection), _) => self.rejected(rejection, out),
            (message, Link::Up) => self.message_when_up(now_ms, message, out),
            (_, Link::Down | Link::Connecting | Link::Greeting { .. }) => {
                self.give_up_link("the coordinator spoke before it answered the greeting", out);
            }
        }
    }

    fn message_when_up(&mut self, now_ms: u64, message: CoordinatorMessage, out: &mut Vec<Command>) {
        match message {
            CoordinatorMessage::NeedChunks { transfer, missing } => self.need_chunks(now_ms, transfer, missing, out),
            CoordinatorMessage::ModelReady { manifest, digest } => self.model_ready(now_ms, manifest, digest, out),
            CoordinatorMessage::Lease { lease, evaluate } => self.leased(now_ms, lease, evaluate, out),
            CoordinatorMessage::NoLease { state } => self.no_lease(now_ms, state, out),
            CoordinatorMessage::Evaluate { version, digest } => {
                if self.config.eval_examples > 0 {
                    self.evaluate_next = Some(Wanted { version, digest });
                }
            }
            CoordinatorMessage::Model { version, digest, transfer } => {
                self.model_announced(now_ms, Wanted { version, digest }, transfer, out);
            }
            CoordinatorMessage::ModelGone { version } => self.model_gone(version, out),
            CoordinatorMessage::Verdict { key, verdict } => self.verdict(now_ms, key, verdict, out),
            CoordinatorMessage::StateChanged { state } => self.enter(now_ms, state, out),
            CoordinatorMessage::Renewed { certificate_der } => out.push(Command::StoreCertificate { certificate_der }),
            CoordinatorMessage::Welcome(_) | CoordinatorMessage::Rejected(_) => {
                self.give_up_link("the coordinator answered the greeting twice", out);
            }
        }
    }

    /// The coordinator says what the chunks of a model are. Its tensors are those of the trainer,
    /// and so bound its bytes; a trainer that is being built asks for no model, and what was
    /// asked for before is asked for again.
    fn model_announced(&mut self, now_ms: u64, model: Wanted, transfer: TransferManifest, out: &mut Vec<Command>) {
        let announced = match &self.trainer {
            Trainer::Ready(manifest) => {
                let max_bytes = codec::max_payload_bytes(manifest);
                self.replica.announced(now_ms, model, transfer, max_bytes)
            }
            Trainer::Unbuilt | Trainer::Building => Announced::Unexpected,
        };
        let version = model.version;
        match announced {
            Announced::Receiving(arrival) => self.arrival(arrival, out),
            Announced::Restart => out.push(Command::Send(AgentMessage::FetchModel { version, missing: None })),
            Announced::Unexpected => self.note(format!("version {version} came without being asked for")),
        }
    }

    fn welcome(&mut self, now_ms: u64, welcome: Welcome, out: &mut Vec<Command>) {
        if welcome.run != self.config.run {
            return self.end(Ending::WrongRun { enrolled: self.config.run, serving: welcome.run }, out);
        }
        self.link = Link::Up;
        self.backoff.reset();
        if self.epoch != Some(welcome.epoch) {
            self.epoch = Some(welcome.epoch);
            let kept = self.kept_counter.filter(|(epoch, _)| *epoch == welcome.epoch);
            self.next_seq = kept.map_or(UpdateSeq(0), |(_, seq)| seq);
        }
        if self.branch != Some(welcome.branch) {
            if self.branch.is_some() {
                self.abandon_work(out);
                if let Work::Evaluating { of_this_branch, .. } = &mut self.work {
                    *of_this_branch = false;
                }
                self.replica.drop_all();
                self.evaluate_next = None;
                self.unsent_evaluation = None;
            }
            self.branch = Some(welcome.branch);
            out.push(Command::AdoptBranch { branch: welcome.branch });
        }
        let rebuild = self.terms.as_ref().is_none_or(|terms| terms.spec.model != welcome.spec.model);
        if rebuild && !matches!(self.trainer, Trainer::Building) {
            self.trainer = Trainer::Building;
            out.push(Command::Prepare(Box::new(welcome.spec.clone())));
        }
        self.terms = Some(Terms { spec: welcome.spec, model: welcome.model });
        self.outbox.offer(now_ms, out);
        self.take_up_model(out);
        self.ask_for_model(now_ms, out);
        self.enter(now_ms, welcome.state, out);
    }

    fn rejected(&mut self, rejection: Rejection, out: &mut Vec<Command>) {
        let ending = match rejection {
            Rejection::Revoked => Ending::Revoked,
            Rejection::WrongRun { run } => Ending::WrongRun { enrolled: self.config.run, serving: run },
            Rejection::Unknown => Ending::Unknown,
            Rejection::Replaced => Ending::Replaced,
            Rejection::Protocol(text) => Ending::Protocol(text),
            Rejection::OtherModel(difference) => Ending::Manifest(difference),
            Rejection::Busy => return self.give_up_link("the coordinator has too many connections at present", out),
        };
        self.end(ending, out);
    }

    /// With the trainer built and the coordinator's word on version 0 known: check it, or make and offer it.
    fn take_up_model(&mut self, out: &mut Vec<Command>) {
        let (Some(terms), Trainer::Ready(manifest)) = (&self.terms, &self.trainer) else { return };
        if let Some((theirs, digest)) = &terms.model {
            match tensors::compare(manifest, theirs) {
                Compared::Same => {}
                Compared::OtherOrder => {
                    let order = Box::new(theirs.clone());
                    self.trainer = Trainer::Building;
                    return out.push(Command::Reorder(order));
                }
                Compared::Other(difference) => return self.end(Ending::Manifest(difference), out),
            }
            if let Initial::Made(model) = std::mem::replace(&mut self.initial, Initial::None)
                && model.digest == *digest
                && self.replica.held().is_none()
            {
                self.replica.hold(Wanted { version: ModelVersion(0), digest: *digest }, model.content);
            }
            return;
        }
        match &self.initial {
            Initial::None => {
                out.push(Command::MakeInitial { seed: terms.spec.seed });
                self.initial = Initial::Making;
            }
            Initial::Making => {}
            Initial::Made(model) => {
                if self.is_up() {
                    out.push(Command::Send(AgentMessage::OfferModel {
                        manifest: manifest.clone(),
                        digest: model.digest,
                        transfer: model.transfer.clone(),
                    }));
                }
            }
        }
    }

    pub(super) fn prepared(&mut self, manifest: ModelManifest, out: &mut Vec<Command>) {
        self.trainer = Trainer::Ready(manifest);
        self.take_up_model(out);
    }

    pub(super) fn initial_made(&mut self, model: InitialModel, out: &mut Vec<Command>) {
        self.initial = Initial::Made(model);
        self.take_up_model(out);
    }

    fn model_ready(&mut self, now_ms: u64, manifest: ModelManifest, digest: Digest, out: &mut Vec<Command>) {
        if let Some(terms) = &mut self.terms {
            terms.model = Some((manifest, digest));
        }
        if self.phase == RunPhase::Pending {
            self.enter(now_ms, RunPhase::Running, out);
        }
        self.take_up_model(out);
    }

    fn need_chunks(&mut self, now_ms: u64, transfer: Digest, missing: Missing, out: &mut Vec<Command>) {
        if self.outbox.need(now_ms, transfer, missing.clone(), out) {
            return;
        }
        if let Initial::Made(model) = &self.initial
            && model.transfer.id() == transfer
        {
            let source = ChunkSource::Initial(model.encoded.clone());
            out.push(Command::SendChunks { source, transfer: model.transfer.clone(), missing });
        }
    }

    fn verdict(&mut self, now_ms: u64, key: UpdateKey, verdict: Verdict, out: &mut Vec<Command>) {
        if !self.outbox.decide(now_ms, key, &verdict, out) {
            return;
        }
        if let Some(at) = self.unjudged.iter().position(|(unjudged, _)| *unjudged == key)
            && let Some((_, ended_ms)) = self.unjudged.drain(..=at).next_back()
        {
            self.tempo.judged(now_ms.saturating_sub(ended_ms));
        }
        if self.patience.is_some_and(|(awaited, _)| awaited == key) {
            self.patience = None;
        }
        if let Verdict::Accepted { weight, .. } = verdict {
            self.merged_with = Some(weight);
        }
        if self.verdicts.len() == limits::AGENT_VERDICTS_SHOWN {
            self.verdicts.pop_front();
        }
        self.verdicts.push_back((key, verdict));
    }

    pub(super) fn arrival(&mut self, arrival: Arrival, out: &mut Vec<Command>) {
        match arrival {
            Arrival::Partial => {}
            Arrival::Complete(wanted, encoded) => {
                out.push(Command::Unpack { version: wanted.version, digest: wanted.digest, encoded });
            }
            Arrival::Bad(problem) => {
                self.replica.forget_fetch();
                self.give_up_link(&format!("the coordinator's model cannot be received: {problem}"), out);
            }
        }
    }

    /// Asks for what is missing of the model that is being fetched, if one is.
    fn ask_for_model(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if let Some(wanted) = self.fetching()
            && let Some(ask) = self.replica.ask(now_ms, wanted)
        {
            out.push(Command::Send(ask));
        }
    }

    pub(super) fn renewal_ms(&self) -> Option<u64> {
        (!self.renewing).then_some(self.config.renew_at_ms)
    }

    pub(super) fn tick(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        let due = |deadline: Option<u64>| deadline.is_some_and(|deadline| deadline <= now_ms);
        if let Link::Greeting { until_ms } = self.link
            && until_ms <= now_ms
        {
            return self.give_up_link("the coordinator did not answer the greeting in time", out);
        }
        if self.is_up() && due(self.outbox.deadline_ms()) {
            return self.give_up_link("the coordinator gave no verdict in time", out);
        }
        if due(self.asking_until_ms()) {
            return self.give_up_link("the coordinator did not answer the request for a lease in time", out);
        }
        if self.is_up() && due(self.replica.deadline_ms()) {
            self.ask_for_model(now_ms, out);
        }
        if self.is_up() && due(self.renewal_ms()) {
            self.renewing = true;
            out.push(Command::Renew);
        }
        if due(self.no_lease_until_ms) {
            self.no_lease_until_ms = None;
        }
        if due(self.rest_until_ms) {
            self.rest_until_ms = None;
        }
        if due(self.patience.map(|(_, until_ms)| until_ms)) {
            self.patience = None;
        }
    }

    /// The run is in this state now.
    pub(super) fn enter(&mut self, now_ms: u64, phase: RunPhase, out: &mut Vec<Command>) {
        self.phase = phase;
        self.no_lease_until_ms = None;
        if phase == RunPhase::Finished {
            self.stop(now_ms, Ending::Finished, out);
        }
    }
}
