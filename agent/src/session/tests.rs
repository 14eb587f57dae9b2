//! Exact command lists: what the session does is its contract with the driver, and with the simulator.

mod ahead;
mod barrier;
mod bounds;
mod ends;
mod extreme;
mod forms;
mod hold;
mod memory;
mod plan;
mod pod_world;
mod pods;
mod refused;
mod served;
mod stale;

use std::sync::Arc;

use anabranch_common::codec::CodecId;
use anabranch_common::downlink::{FetchPurpose, ModelForm};
use anabranch_common::ids::UpdateSeq;
use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, RunId};
use anabranch_common::journal::{Evaluation, Lease, LeaseEnd, Plan};
use anabranch_common::limits;
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::spec::AgentSpec;
use anabranch_common::update::{MemoryMark, RefusalReason, UpdateKey, UpdateMeta, Verdict};
use anabranch_common::wire::message::{
    AgentHello, AgentMessage, CoordinatorMessage, Rejection, RenewalKey, RunPhase, Welcome,
};
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_testkit::lease::PLAN;

use super::command::{Bank, ChunkSource, Command, Ending, Settlement};
use super::event::{Event, InitialModel, Kept, OutboxEntry, Outcome, Problem};
use super::{Session, SessionConfig};
use forms::fetch_model;

pub(crate) const RUN: RunId = RunId([1; 16]);
pub(crate) const AGENT: AgentId = AgentId([2; 16]);
pub(crate) const BRANCH: BranchId = BranchId([3; 16]);
const EPOCH: Epoch = Epoch(4);

pub(crate) fn spec() -> AgentSpec {
    AgentSpec::from_toml(super::SPEC_FOR_TESTS).expect("a complete spec")
}

pub(crate) fn manifest(name: &str) -> ModelManifest {
    ModelManifest::new(vec![TensorSpec { name: name.into(), shape: vec![2] }]).expect("valid")
}

pub(crate) fn config(train_examples: u64, eval_examples: u64) -> SessionConfig {
    SessionConfig {
        run: RUN,
        agent: AGENT,
        incarnation: Incarnation([5; 16]),
        software: "0".into(),
        train_examples,
        eval_examples,
        device: "cpu".into(),
        pod: None,
        renew_at_ms: u64::MAX,
        backoff_seed: 1,
        overlap: true,
    }
}

fn hello(branch: Option<BranchId>, train_examples: u64, eval_examples: u64) -> Command {
    send(AgentMessage::Hello(AgentHello {
        run: RUN,
        branch,
        incarnation: Incarnation([5; 16]),
        software: "0".into(),
        train_examples,
        eval_examples,
        device: "cpu".into(),
        pod: None,
    }))
}

fn send(message: AgentMessage) -> Command {
    Command::Send(message)
}

pub(crate) fn welcome(branch: BranchId, model: Option<Digest>, state: RunPhase) -> Event {
    say(CoordinatorMessage::Welcome(Box::new(Welcome {
        run: RUN,
        branch,
        agent: AGENT,
        name: "a".into(),
        epoch: EPOCH,
        spec: spec(),
        model: model.map(|digest| (manifest("w"), digest)),
        state,
    })))
}

pub(crate) fn say(message: CoordinatorMessage) -> Event {
    Event::Message(message)
}

pub(crate) fn content(version: u64) -> Arc<[f32]> {
    Arc::from(vec![version as f32, 1.0])
}

pub(crate) fn digest(version: u64) -> Digest {
    Digest::of_f32(&content(version))
}

pub(crate) fn encoded(version: u64) -> Vec<u8> {
    content(version).iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn lease(id: u64, version: u64) -> Lease {
    Lease {
        id: LeaseId(id),
        agent: AGENT,
        epoch: EPOCH,
        branch: BRANCH,
        base_version: ModelVersion(version),
        base_digest: digest(version),
        seed: 99,
        expires_at_ms: 0,
        plan: Plan {
            local_steps: spec().train.local_steps,
            round: id,
            weight: 0.6,
            codec: spec().upload.codec,
            ..PLAN
        },
    }
}

pub(crate) fn key(seq: u64) -> UpdateKey {
    UpdateKey { run: RUN, agent: AGENT, epoch: EPOCH, seq: UpdateSeq(seq) }
}

pub(crate) fn entry(seq: u64, lease: &Lease) -> OutboxEntry {
    let payload = vec![u8::try_from(seq).expect("small"); 10];
    OutboxEntry {
        meta: UpdateMeta {
            key: key(seq),
            branch: lease.branch,
            lease: lease.id,
            base_version: lease.base_version,
            base_digest: lease.base_digest,
            codec: CodecId(0),
            payload_bytes: 10,
            payload_digest: Digest::of(&payload),
            num_examples: 40,
            local_steps: 5,
            train_loss: 0.5,
            compute_ms: 20,
            base_dot: None,
            residual_ratio: None,
            memory: None,
        },
        transfer: TransferManifest::of(&payload),
        sections: None,
    }
}

fn offer(entry: &OutboxEntry) -> Command {
    let OutboxEntry { meta, transfer, sections } = entry.clone();
    send(AgentMessage::OfferUpdate { meta, transfer, sections })
}

pub(crate) fn outcome(lease: &Lease) -> Outcome {
    Outcome {
        lease: lease.id,
        delta: Arc::from([0.5, 0.5]),
        num_examples: 40,
        local_steps: 5,
        train_loss: 0.5,
        compute_ms: 20,
        encoded: None,
        pod: None,
    }
}

fn train(lease: &Lease) -> Command {
    let base = content(lease.base_version.0);
    Command::Train { lease: Box::new(lease.clone()), spec: Box::new(spec()), base, lead: None, pod: None }
}

fn bank(lease: &Lease, seq: u64) -> Command {
    Command::Bank(Box::new(Bank {
        lease: lease.clone(),
        epoch: EPOCH,
        seq: UpdateSeq(seq),
        codec: spec().upload.codec,
        policy: spec().upload.policy,
        feedback_decay: 0.9,
        outcome: outcome(lease),
        started_from: None,
    }))
}

fn give_back(id: u64) -> Command {
    send(AgentMessage::ReturnLease { lease: LeaseId(id), why: LeaseEnd::Returned })
}

pub(crate) fn grant(id: u64, version: u64) -> Event {
    say(CoordinatorMessage::Lease { lease: lease(id, version), evaluate: false })
}

fn announce(version: u64) -> Event {
    say(CoordinatorMessage::Model {
        version: ModelVersion(version),
        digest: digest(version),
        form: ModelForm::Snapshot,
        transfer: TransferManifest::of(&encoded(version)),
    })
}

fn chunk(version: u64) -> Event {
    let bytes = encoded(version);
    Event::Chunk { transfer: TransferManifest::of(&bytes).id(), index: 0, bytes }
}

fn unpacked(version: u64) -> Event {
    Event::Unpacked { version: ModelVersion(version), digest: digest(version), content: content(version) }
}

pub(crate) fn accepted() -> Verdict {
    Verdict::Accepted { position: Position(3), version: ModelVersion(1), weight: 1.0, staleness: 0 }
}

fn refused(reason: RefusalReason) -> Verdict {
    Verdict::Refused { reason }
}

pub(crate) fn decide(seq: u64, verdict: Verdict) -> Event {
    say(CoordinatorMessage::Verdict { key: key(seq), verdict })
}

fn lost() -> Event {
    Event::Disconnected(Problem::Transient("cable".into()))
}

/// The wait in a list that consists of one `Connect`.
fn reconnect(commands: &[Command]) -> u64 {
    match commands {
        [Command::Connect { after_ms }] => *after_ms,
        other => panic!("expected one Connect, found {other:?}"),
    }
}

/// A session that is welcome, has its trainer, and has asked for a lease.
fn asking(config: SessionConfig, kept: Kept) -> Session {
    let mut session = Session::new(config, kept);
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    session.handle(0, welcome(BRANCH, Some(digest(0)), RunPhase::Running));
    session.handle(0, Event::Prepared { manifest: manifest("w") });
    session
}

/// A session that trains under lease 1 from version 0.
fn training() -> Session {
    let mut session = asking(config(100, 0), Kept::default());
    session.handle(0, grant(1, 0));
    session.handle(0, announce(0));
    session.handle(0, chunk(0));
    assert_eq!(session.handle(0, unpacked(0)), [train(&lease(1, 0))]);
    session
}

/// The whole life of a first round: version 0 is made here, and the delta is durable before it is offered.
#[test]
fn a_first_start_makes_the_model_trains_and_offers_only_what_is_durable() {
    let mut session = Session::new(config(100, 0), Kept::default());
    assert_eq!(session.handle(0, Event::Started), [Command::Connect { after_ms: 0 }]);
    assert_eq!(session.handle(1, Event::Connected), [hello(None, 100, 0)]);
    assert_eq!(
        session.handle(2, welcome(BRANCH, None, RunPhase::Pending)),
        [Command::AdoptBranch { branch: BRANCH }, Command::Prepare(Box::new(spec()))]
    );
    assert_eq!(session.handle(3, Event::Prepared { manifest: manifest("w") }), [Command::MakeInitial { seed: 7 }]);
    let bytes: Arc<[u8]> = encoded(0).into();
    let transfer = TransferManifest::of(&bytes);
    let initial =
        InitialModel { content: content(0), digest: digest(0), encoded: bytes.clone(), transfer: transfer.clone() };
    assert_eq!(
        session.handle(4, Event::InitialMade(initial)),
        [send(AgentMessage::OfferModel { manifest: manifest("w"), digest: digest(0), transfer: transfer.clone() })]
    );
    let missing = Missing::all(1);
    assert_eq!(
        session.handle(5, say(CoordinatorMessage::NeedChunks { transfer: transfer.id(), missing: missing.clone() })),
        [Command::SendChunks { source: ChunkSource::Initial(bytes), transfer, missing }]
    );
    assert_eq!(
        session.handle(6, say(CoordinatorMessage::ModelReady { manifest: manifest("w"), digest: digest(0) })),
        [send(AgentMessage::RequestLease)]
    );
    assert_eq!(session.handle(7, grant(1, 0)), [train(&lease(1, 0))], "version 0 is here already");
    let update = entry(0, &lease(1, 0));
    assert_eq!(session.handle(8, Event::Trained(Box::new(outcome(&lease(1, 0))))), [bank(&lease(1, 0), 0)]);
    assert_eq!(session.handle(9, Event::Banked(update.clone())), [offer(&update)], "the verdict is worth a wait");
    let need = CoordinatorMessage::NeedChunks { transfer: update.transfer.id(), missing: Missing::all(1) };
    assert_eq!(
        session.handle(10, say(need)),
        [Command::SendChunks {
            source: ChunkSource::Update(key(0)),
            transfer: update.transfer,
            missing: Missing::all(1)
        }]
    );
    assert_eq!(
        session.handle(11, decide(0, accepted())),
        [Command::Settle { key: key(0), content: Settlement::Drop }, send(AgentMessage::RequestLease)]
    );
    assert_eq!(session.handle(12, decide(0, accepted())), [], "a repeated verdict is not settled twice");
    assert_eq!(session.handle(12, Event::Settled { key: key(0) }), []);
    assert!(session.outbox().is_empty());
}

/// Guards "a thin link is not worth an idle machine": without a verdict the next lease is asked for after a while.
#[test]
fn patience_for_a_verdict_ends() {
    let mut session = training();
    session.handle(10, Event::Trained(Box::new(outcome(&lease(1, 0)))));
    session.handle(10, Event::Banked(entry(0, &lease(1, 0))));
    assert_eq!(session.deadline_ms(), Some(10 + limits::VERDICT_PATIENCE_MS));
    assert_eq!(session.handle(10 + limits::VERDICT_PATIENCE_MS, Event::Tick), [send(AgentMessage::RequestLease)]);
}

/// Faults 31 and 32: an update that was half sent is offered again under its old key, and nothing else is.
#[test]
fn a_reconnect_in_mid_upload_offers_the_same_update_again() {
    let mut session = training();
    let update = entry(0, &lease(1, 0));
    session.handle(0, Event::Trained(Box::new(outcome(&lease(1, 0)))));
    session.handle(0, Event::Banked(update.clone()));
    let need = |missing| say(CoordinatorMessage::NeedChunks { transfer: update.transfer.id(), missing });
    session.handle(0, need(Missing::all(1)));
    let wait = reconnect(&session.handle(5, lost()));
    assert!((50..=100).contains(&wait), "the first wait is at most 100 ms, found {wait}");
    assert_eq!(session.handle(60, Event::Connected), [hello(Some(BRANCH), 100, 0)]);
    assert_eq!(
        session.handle(61, welcome(BRANCH, Some(digest(0)), RunPhase::Running)),
        [offer(&update), send(AgentMessage::RequestLease)]
    );
    assert!(matches!(&session.handle(62, need(Missing::all(1)))[..], [Command::SendChunks { .. }]));
}

/// Promise P1 from the agent's side: refused content returns exactly when its reason says so.
#[test]
fn refused_content_returns_where_its_reason_says_so() {
    for reason in RefusalReason::ALL {
        let kept = Kept { branch: Some(BRANCH), outbox: vec![entry(0, &lease(1, 0))], ..Kept::default() };
        let mut session = asking(config(100, 0), kept);
        let content = if reason.content_returns() { Settlement::Return } else { Settlement::Drop };
        let commands = session.handle(0, decide(0, refused(reason)));
        assert_eq!(commands, [Command::Settle { key: key(0), content }], "{reason:?}");
    }
}

#[test]
fn training_goes_on_while_disconnected_and_its_delta_is_offered_on_reconnect() {
    let mut session = training();
    reconnect(&session.handle(1, lost()));
    assert_eq!(session.handle(2, Event::Trained(Box::new(outcome(&lease(1, 0))))), [bank(&lease(1, 0), 0)]);
    let update = entry(0, &lease(1, 0));
    assert_eq!(session.handle(3, Event::Banked(update.clone())), []);
    let first = reconnect(&session.handle(4, lost()));
    let second = reconnect(&session.handle(5, lost()));
    assert!(first <= 200 && (200..=400).contains(&second), "waits grow: {first}, {second}");
    session.handle(6, Event::Connected);
    assert_eq!(
        session.handle(7, welcome(BRANCH, Some(digest(0)), RunPhase::Running)),
        [offer(&update), send(AgentMessage::RequestLease)]
    );
}

/// Guards `limits::OUTBOX_UPDATES`: with a full outbox no lease is asked for.
#[test]
fn a_full_outbox_pauses_training() {
    let last = limits::OUTBOX_UPDATES as u64 - 1;
    let outbox: Vec<_> = (0..=last).map(|seq| entry(seq, &lease(1, 0))).collect();
    let kept = Kept { branch: Some(BRANCH), counter: Some((EPOCH, UpdateSeq(last + 1))), outbox: outbox.clone() };
    let mut session = Session::new(config(100, 0), kept);
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    let commands = session.handle(0, welcome(BRANCH, Some(digest(0)), RunPhase::Running));
    let offers = outbox.iter().map(offer);
    let expected: Vec<_> = [Command::Prepare(Box::new(spec()))].into_iter().chain(offers).collect();
    assert_eq!(commands, expected);
    assert_eq!(session.handle(0, Event::Prepared { manifest: manifest("w") }), []);
    for update in &outbox {
        let transfer = update.transfer.id();
        session.handle(0, say(CoordinatorMessage::NeedChunks { transfer, missing: Missing::all(1) }));
        assert_eq!(session.handle(0, Event::ChunksSent { transfer }), [], "the outbox is full");
    }
    session.handle(0, decide(0, accepted()));
    assert_eq!(session.handle(0, Event::Settled { key: key(0) }), [send(AgentMessage::RequestLease)]);
}

/// Guards `limits::UNSENT_UPDATES`: on a thin line further updates would only get older.
#[test]
fn updates_that_wait_for_the_line_pause_training() {
    let outbox: Vec<_> = (0..limits::UNSENT_UPDATES as u64).map(|seq| entry(seq, &lease(1 + seq, 0))).collect();
    let seq = UpdateSeq(limits::UNSENT_UPDATES as u64);
    let kept = Kept { branch: Some(BRANCH), counter: Some((EPOCH, seq)), outbox: outbox.clone() };
    let mut session = Session::new(config(100, 0), kept);
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    session.handle(0, welcome(BRANCH, Some(digest(0)), RunPhase::Running));
    assert_eq!(session.handle(0, Event::Prepared { manifest: manifest("w") }), [], "none of them is sent");
    let transfer = outbox[0].transfer.id();
    let chunks = session.handle(0, say(CoordinatorMessage::NeedChunks { transfer, missing: Missing::all(1) }));
    assert!(matches!(chunks[..], [Command::SendChunks { .. }]), "{chunks:?}");
    assert_eq!(session.handle(9, Event::ChunksSent { transfer }), [send(AgentMessage::RequestLease)]);
}

#[test]
fn a_finished_run_hands_over_what_is_done_and_leaves() {
    let mut session = training();
    session.handle(0, Event::Trained(Box::new(outcome(&lease(1, 0)))));
    session.handle(0, Event::Banked(entry(0, &lease(1, 0))));
    let finished = say(CoordinatorMessage::StateChanged { state: RunPhase::Finished });
    assert_eq!(session.handle(1, finished), [], "an update is undecided");
    session.handle(2, decide(0, refused(RefusalReason::Finished)));
    assert_eq!(
        session.handle(3, Event::Settled { key: key(0) }),
        [send(AgentMessage::Goodbye { reason: "the run has ended".into() }), Command::Exit(Ending::Finished)]
    );
    assert_eq!(session.handle(4, Event::Tick), [], "nothing is said after the end");
}

#[test]
fn a_paused_run_keeps_the_round_that_runs_and_asks_again_when_it_resumes() {
    let mut session = training();
    let state = |state| say(CoordinatorMessage::StateChanged { state });
    assert_eq!(session.handle(1, state(RunPhase::Paused)), []);
    session.handle(2, Event::Trained(Box::new(outcome(&lease(1, 0)))));
    session.handle(3, Event::Banked(entry(0, &lease(1, 0))));
    let settle = Command::Settle { key: key(0), content: Settlement::Drop };
    assert_eq!(session.handle(4, decide(0, accepted())), [settle], "no lease is asked for");
    assert_eq!(session.handle(5, state(RunPhase::Running)), [send(AgentMessage::RequestLease)]);
    assert_eq!(session.handle(6, say(CoordinatorMessage::NoLease { state: RunPhase::Paused })), []);
    assert_eq!(session.handle(7, state(RunPhase::Running)), [send(AgentMessage::RequestLease)]);
}

/// The coordinator is away and comes back on another branch, while a round is running.
fn comes_back_on(session: &mut Session, branch: BranchId) {
    reconnect(&session.handle(1, lost()));
    session.handle(2, Event::Connected);
    assert_eq!(
        session.handle(3, welcome(branch, Some(digest(0)), RunPhase::Running)),
        [Command::StopTraining, Command::AdoptBranch { branch }]
    );
}

/// Architecture, consequence 5: work from another branch is dropped, and durable updates get their verdict.
#[test]
fn another_branch_drops_replica_and_round_and_goes_on() {
    let mut session = training();
    let other = BranchId([8; 16]);
    comes_back_on(&mut session, other);
    assert_eq!(
        session.handle(4, Event::TrainingStopped { lease: LeaseId(1) }),
        [give_back(1), send(AgentMessage::RequestLease)]
    );
    let lease = Lease { branch: other, ..lease(2, 0) };
    assert_eq!(
        session.handle(5, say(CoordinatorMessage::Lease { lease, evaluate: false })),
        [send(fetch_model(0, 0, FetchPurpose::Train, None))],
        "the same version of another branch is fetched afresh"
    );
}

#[test]
fn a_model_that_is_gone_gives_the_lease_back_and_asks_for_another() {
    let mut session = asking(config(100, 0), Kept::default());
    let fetch = send(fetch_model(5, 5, FetchPurpose::Train, None));
    assert_eq!(session.handle(0, grant(1, 5)), [fetch]);
    assert_eq!(
        session.handle(1, say(CoordinatorMessage::ModelGone { version: ModelVersion(5), digest: digest(5) })),
        [give_back(1), send(AgentMessage::RequestLease)]
    );
}

/// What is told of version `version`, which was evaluated on `num_examples` at so great a cost.
fn told(version: u64, num_examples: u64, cost_ms: u64) -> Command {
    let version = ModelVersion(version);
    let evaluation = Evaluation { agent: AGENT, version, accuracy: 0.75, loss: 0.5, num_examples };
    send(AgentMessage::Evaluated { evaluation, cost_ms })
}

/// An agent with only an evaluation shard never asks for a lease, and reports what it measured.
#[test]
fn an_evaluator_only_evaluates() {
    let mut session = Session::new(config(0, 50), Kept { branch: Some(BRANCH), ..Kept::default() });
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    session.handle(0, welcome(BRANCH, Some(digest(0)), RunPhase::Running));
    assert_eq!(session.handle(0, Event::Prepared { manifest: manifest("w") }), []);
    let evaluate = CoordinatorMessage::Evaluate { version: ModelVersion(3), digest: digest(3) };
    let fetch = send(fetch_model(3, 3, FetchPurpose::Evaluate, None));
    assert_eq!(session.handle(0, say(evaluate)), [fetch]);
    session.handle(0, announce(3));
    session.handle(0, chunk(3));
    assert_eq!(session.handle(0, unpacked(3)), [Command::Evaluate { version: ModelVersion(3), content: content(3) }]);
    let (version, accuracy, loss, num_examples) = (ModelVersion(3), 0.75, 0.5, 50);
    assert_eq!(session.handle(0, Event::Evaluated { version, accuracy, loss, num_examples }), [told(3, 50, 0)]);
}

/// The coordinator used to hear nothing, and waited.
#[test]
fn a_failed_evaluation_is_told_at_once() {
    let mut session = asking(config(0, 50), Kept::default());
    let evaluate =
        |version| say(CoordinatorMessage::Evaluate { version: ModelVersion(version), digest: digest(version) });
    let failed = |version, reason: &str| {
        send(AgentMessage::EvaluationFailed { version: ModelVersion(version), reason: reason.to_owned() })
    };
    session.handle(0, evaluate(3));
    session.handle(0, announce(3));
    session.handle(0, chunk(3));
    session.handle(0, unpacked(3));
    let problem = "ValueError:\nno GPU".to_owned();
    let event = Event::EvaluationFailed { version: ModelVersion(3), problem };
    assert_eq!(session.handle(0, event), [failed(3, "ValueError: no GPU")]);
    assert_eq!(session.evaluation_problem(), Some("version 3: ValueError: no GPU"));
    session.handle(0, evaluate(4));
    let gone = say(CoordinatorMessage::ModelGone { version: ModelVersion(4), digest: digest(4) });
    assert_eq!(session.handle(0, gone), [failed(4, "the coordinator did not send it")]);
    session.handle(0, evaluate(3));
    session.handle(0, announce(3));
    session.handle(0, chunk(3));
    session.handle(0, unpacked(3));
    let (version, accuracy, loss, num_examples) = (ModelVersion(3), 0.75, 0.5, 50);
    session.handle(0, Event::Evaluated { version, accuracy, loss, num_examples });
    assert_eq!(session.evaluation_problem(), None, "one that succeeds takes it back");
}
