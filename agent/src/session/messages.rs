//! What the coordinator says, and what follows from it.

use anabranch_common::codec;
use anabranch_common::downlink::{FetchPurpose, ModelForm};
use anabranch_common::ids::Digest;
use anabranch_common::journal::Lease;
use anabranch_common::update::{UpdateKey, Verdict};
use anabranch_common::wire::message::{CoordinatorMessage, Rejection, RunPhase, Welcome};
use anabranch_common::wire::transfer::{Missing, TransferManifest};

use super::Session;
use super::command::{Command, Ending, RenewedCertificate};
use super::membership::Branch;
use super::parts::PartRequest;
use super::replica::{Announced, Arrival, Wanted};

impl Session {
    pub(super) fn message(&mut self, now_ms: u64, message: CoordinatorMessage, out: &mut Vec<Command>) {
        match message {
            CoordinatorMessage::Welcome(welcome) if self.connection.is_greeting() => {
                self.welcome(now_ms, *welcome, out);
            }
            CoordinatorMessage::Rejected(rejection) => self.rejected(rejection, out),
            message if self.connection.is_up() => self.message_when_up(now_ms, message, out),
            _ => self.give_up_link("the coordinator spoke before it answered the greeting", out),
        }
    }

    fn message_when_up(&mut self, now_ms: u64, message: CoordinatorMessage, out: &mut Vec<Command>) {
        match message {
            CoordinatorMessage::NeedChunks { transfer, missing } => self.need_chunks(now_ms, transfer, missing, out),
            CoordinatorMessage::ModelReady { manifest, digest } => {
                self.membership.set_model(manifest, digest);
                if self.membership.phase() == RunPhase::Pending {
                    self.enter(now_ms, RunPhase::Running, out);
                }
                self.settle_model(out);
            }
            CoordinatorMessage::Lease { lease, evaluate } => self.leased(now_ms, lease, evaluate, out),
            CoordinatorMessage::NoLease { state } => {
                self.rounds.forget_request();
                self.enter(now_ms, state, out);
                self.rounds.no_lease(now_ms);
            }
            CoordinatorMessage::LeaseDeferred => self.rounds.request_stands(now_ms),
            CoordinatorMessage::Pod(round) => self.pod(round, out),
            CoordinatorMessage::PodOver { mark } => self.pod_over(now_ms, mark, out),
            CoordinatorMessage::NeedPart { mark, part, transfer, bytes, first, missing } => {
                let request = PartRequest { mark, part, transfer, bytes, first, missing };
                let at_work = self.seat.serving().map(|round| round.mark);
                out.extend(self.parts.need(request, at_work));
            }
            CoordinatorMessage::PartDone { mark } => self.parts.done(mark),
            CoordinatorMessage::Evaluate { version, digest } => {
                if self.config.eval_examples > 0 {
                    self.evaluator.request(Wanted { version, digest });
                }
            }
            CoordinatorMessage::Model { version, digest, form, transfer } => {
                self.model_announced(now_ms, Wanted { version, digest }, (form, transfer), out);
            }
            CoordinatorMessage::ModelGone { version, digest } => self.model_gone(Wanted { version, digest }, out),
            CoordinatorMessage::Verdict { key, verdict } => self.verdict(now_ms, key, verdict, out),
            CoordinatorMessage::StateChanged { state } => self.enter(now_ms, state, out),
            CoordinatorMessage::Renewed { certificate_der, ca_ders } => {
                out.push(Command::StoreCertificate(RenewedCertificate { certificate_der, ca_ders }));
            }
            CoordinatorMessage::RenewNow { key } => self.connection.renew_now(key),
            CoordinatorMessage::Welcome(_) | CoordinatorMessage::Rejected(_) => {
                self.give_up_link("the coordinator answered the greeting twice", out);
            }
        }
    }

    fn welcome(&mut self, now_ms: u64, welcome: Welcome, out: &mut Vec<Command>) {
        if welcome.run != self.config.run {
            return self.end(Ending::WrongRun { enrolled: self.config.run, serving: welcome.run }, out);
        }
        self.connection.welcomed();
        let branch = self.membership.welcomed(&welcome);
        if branch == Branch::Other {
            self.abandon_round(now_ms, "the run is on another branch", out);
            self.evaluator.change_branch();
            self.replica.drop_all();
        }
        if branch != Branch::Same {
            out.push(Command::AdoptBranch { branch: welcome.branch });
        }
        let Welcome { spec, model, state, .. } = welcome;
        let prepare = self.membership.set_terms(spec, model);
        if let Some(terms) = self.membership.terms().filter(|_| prepare) {
            out.extend(self.model.prepare(&terms.spec));
        }
        self.outbox.offer(now_ms, out);
        self.settle_model(out);
        self.ask_for_model(now_ms, out);
        self.enter(now_ms, state, out);
    }

    fn rejected(&mut self, rejection: Rejection, out: &mut Vec<Command>) {
        let ending = match rejection {
            Rejection::Revoked => Ending::Revoked,
            Rejection::WrongRun { run } => Ending::WrongRun { enrolled: self.config.run, serving: run },
            Rejection::Unknown => Ending::Unknown,
            Rejection::Replaced => Ending::Replaced,
            Rejection::OldCertificate => Ending::OldCertificate,
            Rejection::Protocol(text) => Ending::Protocol(text),
            Rejection::OtherModel(difference) => Ending::Manifest(difference),
            Rejection::Busy => return self.give_up_link("the coordinator does not serve this run at present", out),
        };
        self.end(ending, out);
    }

    /// The run is in this phase now.
    fn enter(&mut self, now_ms: u64, phase: RunPhase, out: &mut Vec<Command>) {
        self.membership.enter(phase);
        self.rounds.may_be_leased();
        if phase == RunPhase::Finished {
            self.stop(now_ms, Ending::Finished, out);
        }
    }

    /// Takes a lease if there is use for it, and returns it otherwise.
    fn leased(&mut self, now_ms: u64, lease: Lease, evaluate: bool, out: &mut Vec<Command>) {
        self.rounds.may_be_leased();
        if self.rounds.granted_again(now_ms, &lease) {
            return;
        }
        let is_free = self.is_device_free();
        let is_of_use = self.rounds.wants_lease(is_free)
            && !(is_free && self.hold.is_some())
            && Some(lease.branch) == self.membership.branch()
            && self.model.manifest().is_some()
            && self.life.is_running();
        if !is_of_use {
            self.rounds.forget_request();
            return self.give_back(lease.id, out);
        }
        let company = self.company(now_ms);
        if let Some(base) = self.rounds.granted(now_ms, lease, evaluate, company, &self.replica) {
            self.fetch(now_ms, base, FetchPurpose::Train, out);
        }
    }

    /// The coordinator describes the chunks of a model. Its tensors are those of the trainer, and so bound its bytes. While
    /// the trainer is being built no model is taken; what was requested before is requested again.
    fn model_announced(
        &mut self,
        now_ms: u64,
        model: Wanted,
        what: (ModelForm, TransferManifest),
        out: &mut Vec<Command>,
    ) {
        let announced = match self.model.manifest() {
            Some(manifest) => self.replica.announced(now_ms, model, what, codec::max_payload_bytes(manifest)),
            None => Announced::Unexpected,
        };
        match announced {
            Announced::Receiving(arrival) => self.arrival(arrival, out),
            Announced::Restart(request) => out.push(Command::Send(*request)),
            Announced::Unexpected => self.note(format!("version {} came without being asked for", model.version)),
        }
    }

    pub(super) fn arrival(&mut self, arrival: Arrival, out: &mut Vec<Command>) {
        match arrival {
            Arrival::Partial => {}
            Arrival::Complete(wanted, onto, encoded) => {
                out.push(Command::Unpack { version: wanted.version, digest: wanted.digest, onto, encoded });
            }
            Arrival::Bad(problem) => {
                self.replica.forget_fetch();
                self.give_up_link(&format!("the coordinator's model cannot be received: {problem}"), out);
            }
        }
    }

    fn model_gone(&mut self, model: Wanted, out: &mut Vec<Command>) {
        if self.fetching().is_some_and(|(fetched, _)| fetched == model) {
            self.give_up_fetch(out);
        }
    }

    pub(super) fn unpack_failed(&mut self, now_ms: u64, model: Wanted, problem: &str, out: &mut Vec<Command>) {
        if self.replica.is_unpacking(model) {
            self.note(format!("version {} is not what was announced: {problem}", model.version));
            if self.connection.is_up()
                && let Some(request) = self.replica.ask_for_whole(now_ms, model)
            {
                return out.push(Command::Send(request));
            }
            self.rounds.rest(now_ms);
            self.give_up_fetch(out);
        }
    }

    /// The model that is being fetched will not come: its lease goes back.
    fn give_up_fetch(&mut self, out: &mut Vec<Command>) {
        self.replica.forget_fetch();
        if self.rounds.fetching().is_some() {
            self.give_back_next(out);
        }
        if let Some(version) = self.evaluator.give_up_fetch() {
            self.cannot_evaluate(version, "the coordinator did not send it", out);
        }
    }

    /// The model that is being fetched, for an evaluation or for a round.
    pub(super) fn fetching(&self) -> Option<(Wanted, FetchPurpose)> {
        let evaluated = self.evaluator.fetching().map(|wanted| (wanted, FetchPurpose::Evaluate));
        evaluated.or_else(|| self.rounds.fetching().map(|wanted| (wanted, FetchPurpose::Train)))
    }

    /// Requests what is missing of the model that is being fetched, if one is.
    pub(super) fn ask_for_model(&mut self, now_ms: u64, out: &mut Vec<Command>) {
        if let Some((wanted, purpose)) = self.fetching() {
            self.fetch(now_ms, wanted, purpose, out);
        }
    }

    pub(super) fn fetch(&mut self, now_ms: u64, wanted: Wanted, purpose: FetchPurpose, out: &mut Vec<Command>) {
        out.extend(self.replica.ask(now_ms, wanted, purpose).map(Command::Send));
    }

    /// Compares the trainer's tensors with the run's, or makes and offers version 0.
    pub(super) fn settle_model(&mut self, out: &mut Vec<Command>) {
        let Some(terms) = self.membership.terms() else { return };
        match self.model.settle(terms, self.connection.is_up(), &mut self.replica) {
            Ok(command) => out.extend(command),
            Err(ending) => self.end(ending, out),
        }
    }

    fn need_chunks(&mut self, now_ms: u64, transfer: Digest, missing: Missing, out: &mut Vec<Command>) {
        if !self.outbox.need(now_ms, transfer, missing.clone(), out) {
            out.extend(self.model.need(transfer, missing));
        }
    }

    fn verdict(&mut self, now_ms: u64, key: UpdateKey, verdict: Verdict, out: &mut Vec<Command>) {
        if self.outbox.decide(now_ms, key, &verdict, out)
            && let Some(took_ms) = self.verdicts.decided(now_ms, key, verdict)
        {
            self.rounds.judged(took_ms);
        }
    }
}
