//! What one agent can make the coordinator hold, wait for or write (promises P5 and P8).

use std::sync::Arc;

use anabranch_common::codec::{self, CodecSpec, Delta};
use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::{Digest, Incarnation, ModelVersion, Position};
use anabranch_common::journal::{LeaseEnd, Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::spec::{ModelKind, ModelSpec, RunSpec, TensorCodec, TensorPolicy, UploadSpec};
use anabranch_common::update::{RefusalReason, Verdict};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage, Rejection};
use anabranch_common::wire::operator::RunRequest;
use anabranch_common::wire::transfer::TransferManifest;

use super::world::{World, agent, breaks_the_protocol, content, hello, manifest, spec};
use crate::core::admit::{Decision, admit};
use crate::core::command::Command;
use crate::core::event::{Event, PeerId, RequestId};
use crate::core::state::RunState;

const BURST: u64 = limits::AGENT_RECORDS_BURST;

fn kinds(commands: &[Command]) -> Vec<&'static str> {
    World::appended(commands).iter().map(|record| record.body.kind()).collect()
}

#[test]
fn an_agent_that_offers_a_model_and_stays_silent_makes_way_for_the_next() {
    let mut world = World::new();
    world.connect(PeerId(1), 1);
    world.connect(PeerId(2), 2);
    world.offer_model(PeerId(1));
    world.offer_model(PeerId(2));
    world.advance_ms(limits::UPLOAD_BUSY_GRACE_MS - 1);
    assert_eq!(world.handle(Event::Tick), []);
    world.advance_ms(1);
    let commands = world.handle(Event::Tick);
    assert!(
        matches!(commands[..], [Command::ReceiveModel { peer: PeerId(2), .. }, Command::Close { peer: PeerId(1) }]),
        "{commands:?}"
    );
    world.model_received(PeerId(2));
    assert_eq!(world.state().position, Position(2), "genesis, and the agent that is still here with its epoch");
}

#[test]
fn a_model_whose_bytes_its_tensors_cannot_make_is_not_asked_for() {
    let mut world = World::new();
    world.connect(PeerId(1), 1);
    let bytes = codec::max_payload_bytes(&manifest()) + 1;
    let transfer = TransferManifest { bytes, chunks: vec![Digest::default()], sections: vec![] };
    let message = AgentMessage::OfferModel { manifest: manifest(), digest: Digest::default(), transfer };
    let commands = world.message(1, message);
    assert!(breaks_the_protocol(&commands), "{commands:?}");
}

/// While the disk stalls, answers wait in the gate: a peer that goes on asking must not fill the
/// memory with them.
#[test]
fn a_peer_that_asks_on_while_the_disk_stalls_is_cut_off() {
    let mut world = World::started(2);
    world.message(1, AgentMessage::RequestLease);
    world.published();
    let fetch = || AgentMessage::FetchModel {
        version: ModelVersion(0),
        digest: Digest::default(),
        purpose: FetchPurpose::Train,
        held: None,
        missing: None,
    };
    let asked = (0..2 * limits::PEER_QUEUE_MESSAGES).flat_map(|_| world.message(1, fetch())).count();
    assert_eq!(asked, 0, "everything waits for the record of the lease");
    assert_eq!(world.gated_for(PeerId(1)), limits::PEER_QUEUE_MESSAGES + 1);
    assert_eq!(world.message(2, fetch()), [], "the other peer's answer waits too");
    let commands = world.journal();
    let is_for = |wanted| move |command: &&Command| command.peer() == Some(PeerId(wanted));
    assert_eq!(commands.iter().rfind(is_for(1)), Some(&Command::Close { peer: PeerId(1) }));
    assert!(matches!(commands.iter().rfind(is_for(2)), Some(Command::SendModel { .. })), "{commands:?}");
    assert_eq!(world.gated_for(PeerId(1)), 0);
}

/// An agent that comes again and again pays for no record. Each greeting holds a description of the model.
#[test]
fn while_the_disk_stalls_nothing_waits_for_a_connection_that_is_gone() {
    let mut world = World::started(1);
    world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Pause });
    world.handle(Event::Disconnected { peer: PeerId(1) });
    for number in 10..20 {
        world.connect(PeerId(number), 1);
        assert_eq!(world.gated_for(PeerId(number)), 1, "its welcome waits");
        world.handle(Event::Disconnected { peer: PeerId(number) });
        assert_eq!(world.gated_for(PeerId(number)), 0);
    }
    let commands = world.journal();
    assert!(commands.iter().all(|command| command.peer().is_none()), "{commands:?}");
}

/// Each agent may cause a few records a second, however long the disk stalls: together they must not fill the memory.
#[test]
fn while_too_many_records_wait_for_the_disk_agents_cause_none() {
    let mut world = World::started(1);
    world.leave(1);
    let before = world.position();
    for number in 0..limits::UNWRITTEN_RECORDS {
        let operation = if number % 2 == 0 { RunRequest::Pause } else { RunRequest::Resume };
        world.handle(Event::Operator { request: RequestId(number), operation });
    }
    let stalled = world.position();
    assert_eq!(stalled.0 - before.0, limits::UNWRITTEN_RECORDS);
    world.connect(PeerId(2), 2);
    // A process that is known costs no record.
    world.connect(PeerId(1), 1);
    world.message(1, AgentMessage::RequestLease);
    assert_eq!(world.position(), stalled);
    let commands = world.journal();
    let busy = CoordinatorMessage::Rejected(Rejection::Busy);
    assert!(commands.contains(&Command::Send { peer: PeerId(2), message: busy }), "{commands:?}");
    let commands = world.publish_if_asked();
    assert!(kinds(&commands).contains(&"lease_granted"), "{commands:?}");
}

#[test]
fn a_signing_request_is_as_long_as_one_that_joins_at_most() {
    let mut world = World::started(2);
    let renew = |bytes| AgentMessage::Renew { csr_der: vec![0; bytes] };
    let commands = world.message(1, renew(limits::SIGNING_REQUEST_BYTES));
    assert!(matches!(commands[..], [Command::Renew { .. }]), "{commands:?}");
    let commands = world.message(2, renew(limits::SIGNING_REQUEST_BYTES + 1));
    assert!(breaks_the_protocol(&commands), "{commands:?}");
}

#[test]
fn an_update_larger_than_any_codec_makes_it_is_refused_before_a_byte_is_asked_for() {
    let mut world = World::started(1);
    let lease = world.lease(1);
    let mut meta = world.meta(1, 0, &lease);
    meta.payload_bytes = codec::max_payload_bytes(&manifest()) + 1;
    let commands = world.offer(1, &meta);
    assert_eq!(kinds(&commands), ["refused"], "{commands:?}");
    world.journal();
    let Some((_, CoordinatorMessage::Verdict { verdict, .. })) = world.last_sent() else { panic!("no verdict") };
    assert_eq!(verdict, Verdict::Refused { reason: RefusalReason::OverLimit });
}

#[test]
fn asking_for_leases_and_using_none_is_paid_from_a_bucket_that_is_the_agents_own() {
    let mut world = World::started(2);
    world.lease(1);
    let before = world.position();
    for _ in 0..10 * BURST {
        world.message(1, AgentMessage::RequestLease);
        world.journal();
    }
    let grown = world.position().0 - before.0;
    assert!(grown <= 2 * BURST, "{grown} records");
    let leases = world.state().leases().count();
    assert!(leases <= limits::ENDED_LEASES_KEPT + 1, "{leases} leases");
    // The other agent does not notice, and the first one gets its lease a little later, unasked.
    world.lease(2);
    world.advance_ms(1000 / limits::AGENT_RECORDS_PER_S);
    assert!(kinds(&world.handle(Event::Tick)).contains(&"lease_granted"));
    assert_eq!(world.replayed(), *world.state());
}

#[test]
fn refusals_beyond_the_bucket_are_not_recorded_and_cut_the_agent_off() {
    let mut world = World::started(2);
    let lease = world.lease(1);
    let position = world.position();
    let mut closed = false;
    for seq in 0..10 * BURST {
        let mut meta = world.meta(1, seq, &lease);
        meta.base_digest = Digest::default();
        closed |= world.offer(1, &meta).contains(&Command::Close { peer: PeerId(1) });
        closed |= world.journal().contains(&Command::Close { peer: PeerId(1) });
    }
    assert!(closed);
    assert!(world.position().0 - position.0 <= BURST);
    world.lease(2);
}

#[test]
fn a_process_that_restarts_all_the_time_is_asked_to_come_later() {
    let mut world = World::started(1);
    let position = world.position();
    let mut busy = 0;
    for round in 0..2 * BURST {
        let mut hello = hello(1, 1);
        hello.incarnation =
            Incarnation([u8::try_from(round % 250).expect("below 250"), 9, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
        let commands = world.hello(PeerId(100 + round), 1, hello);
        world.journal();
        busy += u64::from(commands.iter().any(|command| {
            matches!(command, Command::Send { message: CoordinatorMessage::Rejected(Rejection::Busy), .. })
        }));
    }
    assert!(busy >= BURST / 2, "{busy} were turned away");
    assert!(world.position().0 - position.0 <= BURST);
}

#[test]
fn the_fastest_honest_agent_is_never_slowed_down() {
    let mut world = World::started(1);
    for seq in 0..4 * BURST {
        let lease = world.lease(1);
        world.receive(1, &world.meta(1, seq, &lease), [1.0; 4]);
        world.journal();
    }
    assert_eq!(world.state().totals.accepted, 4 * BURST);
}

#[test]
fn evaluations_that_nobody_asked_for_are_paid_from_the_bucket_and_the_others_are_free() {
    let mut world = World::started_with_shards(&[(100, 10)]);
    let mut asked = 0;
    for seq in 0..11 * BURST {
        let lease = world.lease(1);
        let Some((_, CoordinatorMessage::Lease { evaluate, .. })) = world.last_sent() else { panic!("no lease") };
        if evaluate {
            let commands = world.message(
                1,
                AgentMessage::Evaluated { evaluation: world.evaluation(1, lease.base_version, 0.5), cost_ms: 0 },
            );
            assert_eq!(kinds(&commands), ["evaluated", "aggregated"], "evaluation {asked} was asked for");
            asked += 1;
        }
        world.receive(1, &world.meta(1, seq, &lease), [1.0; 4]);
        world.journal();
    }
    assert!(asked > BURST);
    let position = world.position();
    for _ in 0..4 * BURST {
        world.message(
            1,
            AgentMessage::Evaluated { evaluation: world.evaluation(1, Default::default(), 0.5), cost_ms: 0 },
        );
        world.journal();
    }
    let grown = world.position().0 - position.0;
    assert!((BURST - 1..=BURST + 1).contains(&grown), "{grown}");
}

fn change(state: &mut RunState, spec: RunSpec) {
    let body = RecordBody::ConfigChanged { spec: Box::new(spec) };
    let record = Record::new(state.position.next(), 0, body, Arc::from([]));
    state.apply(&record).expect("it follows");
}

#[test]
fn norms_are_forgotten_when_updates_become_others() {
    let mut state = World::started(1).state().clone();
    (1..=3).for_each(|number| state.recent.accepted(agent(number), 2.0, u64::from(number)));
    let mut other = spec();
    other.admit.max_staleness = 7;
    change(&mut state, other.clone());
    assert_eq!(state.recent.median_norm(0), Some(2.0), "who is admitted does not change what comes");
    other.upload.codec = CodecSpec::F32;
    change(&mut state, other);
    assert_eq!(state.recent.median_norm(0), None);
}

/// Found by simulation (seeds 590, 8652): what is a million times too large, before anybody has shown what is usual, made
/// the model of zeros so large that honest differences were no longer finite.
#[test]
fn the_first_updates_to_a_model_of_zeros_have_a_measure() {
    let mut world = World::started(1);
    let lease = world.lease(1);
    let meta = world.meta(1, 0, &lease);
    let weight = |clip_norm_ratio, value, reference_norm| {
        let mut state = world.state().clone();
        state.reference_norm = reference_norm;
        let mut clipping = spec();
        clipping.admit.clip_norm_ratio = clip_norm_ratio;
        change(&mut state, clipping);
        match admit(&state, &meta, Some(&Ok(&*content(Delta::Dense(vec![value; 4]))))) {
            Decision::Accept(update) => update.weight,
            other => panic!("{other:?}"),
        }
    };
    let whole = weight(0.0, 1e6, 0.0);
    assert_eq!(weight(1.0, 0.5, 0.0), whole, "training is not touched");
    let scaled = weight(1.0, 1e6, 0.0) / whole;
    assert!((scaled - 1e-6).abs() < 1e-9, "{scaled}");
    assert_eq!(weight(1.0, 5.0, 10.0), whole, "the initial model is the better measure");
}

#[test]
fn a_lease_that_was_given_back_long_ago_is_stale_and_its_work_not_lost() {
    let mut world = World::started(1);
    let first = world.lease(1);
    for _ in 0..=limits::ENDED_LEASES_KEPT {
        let lease = world.lease(1);
        world.message(1, AgentMessage::ReturnLease { lease: lease.id, why: LeaseEnd::Returned });
        world.journal();
    }
    world.offer(1, &world.meta(1, 0, &first));
    world.journal();
    let Some((_, CoordinatorMessage::Verdict { verdict, .. })) = world.last_sent() else { panic!("no verdict") };
    assert_eq!(verdict, Verdict::Refused { reason: RefusalReason::Stale });
    assert!(RefusalReason::Stale.content_returns());
}

#[test]
fn of_what_an_agent_says_about_itself_little_is_kept() {
    let mut world = World::started(1);
    let device = "é".repeat(limits::CONTROL_MESSAGE_BYTES / 4);
    let words = anabranch_common::wire::message::AgentHello { software: device.clone(), device, ..hello(2, 2) };
    world.hello(PeerId(2), 2, words);
    let shown = world.agents().into_iter().find(|status| status.agent == agent(2)).expect("it is enrolled");
    assert_eq!(shown.device, "é".repeat(limits::AGENT_WORDS_BYTES / 2));
}

/// What a clip is measured by must not depend on when the process started: a restart made it 47 times looser.
#[test]
fn the_norm_of_the_first_model_is_the_measure_before_and_after_a_restart() {
    let mut clipping = spec();
    clipping.admit.clip_norm_ratio = 1.0;
    let mut world = World::of(clipping, vec![0.25; 4]);
    let lease = world.lease(1);
    let meta = world.meta(1, 0, &lease);
    let huge = content(Delta::Dense(vec![50.0; 4]));
    let before = world.judge(&meta, &huge);
    let Some(Decision::Accept(update)) = &before else { panic!("{before:?}") };
    // A norm of 100 is scaled to that of the model, 0.5; alpha is 0.5.
    assert!((update.weight - 0.5 * 0.5 / 100.0).abs() < 1e-9, "{}", update.weight);
    let mut world = world.restarted();
    assert_eq!(world.judge(&meta, &huge), before);
    world = world.checkpointed();
    assert_eq!(world.judge(&meta, &huge), before);
    assert_eq!(world.replayed(), *world.state());
}

#[test]
fn a_native_models_tensors_follow_from_the_configuration() {
    let model = ModelSpec { kind: ModelKind::Mlp, input: vec![2], classes: 2, hidden: vec![3], ..ModelSpec::default() };
    let manifest_of = |hidden| {
        let model = ModelSpec { hidden, ..model.clone() };
        model.layers().expect("valid").expect("native").manifest
    };
    let mut world = World::pending(RunSpec { model: model.clone(), ..spec() });
    world.connect(PeerId(1), 1);
    let offer = |manifest| AgentMessage::OfferModel {
        manifest,
        digest: Digest::default(),
        transfer: TransferManifest::of(&[0; 16]),
    };
    let commands = world.message(1, offer(manifest_of(vec![4])));
    let why = "tensor 0 of what was offered is \"fc1.weight\" [4, 2], expected \"fc1.weight\" [3, 2]".to_owned();
    let refused = CoordinatorMessage::Rejected(Rejection::OtherModel(why));
    assert_eq!(commands, [Command::Send { peer: PeerId(1), message: refused }, Command::Close { peer: PeerId(1) }]);
    world.connect(PeerId(2), 2);
    let commands = world.message(2, offer(manifest_of(vec![3])));
    assert!(matches!(commands[..], [Command::ReceiveModel { peer: PeerId(2), .. }]), "{commands:?}");
}

/// The tensors of a custom model are known when it is offered, and no earlier.
#[test]
fn a_custom_model_without_tensors_that_have_codecs_of_their_own_begins_nothing() {
    let policy =
        |tensors: &str| TensorPolicy::new(vec![TensorCodec { tensors: tensors.into(), codec: CodecSpec::F32 }]);
    let with = |tensors| RunSpec { upload: UploadSpec { policy: policy(tensors), ..spec().upload }, ..spec() };
    let mut world = World::pending(with("*bias"));
    world.connect(PeerId(1), 1);
    let commands = world.offer_model(PeerId(1));
    let why =
        "upload.policy of run.toml: entry 1 (\"*bias\") matches no tensor of the model, which has \"w\"".to_owned();
    let refused = CoordinatorMessage::Rejected(Rejection::OtherModel(why));
    assert_eq!(commands, [Command::Send { peer: PeerId(1), message: refused }, Command::Close { peer: PeerId(1) }]);
    let mut world = World::pending(with("w"));
    world.connect(PeerId(1), 1);
    let commands = world.offer_model(PeerId(1));
    assert!(matches!(commands[..], [Command::ReceiveModel { peer: PeerId(1), .. }]), "{commands:?}");

    let world = World::started(1);
    assert!(world.resumed(with("*")).is_ok());
    let error = world.resumed(with("*bias")).expect_err("no such tensor").to_string();
    assert!(error.starts_with("upload.policy entry 1 (\"*bias\") matches no tensor of the model"), "{error}");
}

/// With chunks it earns time; without them its turn is short.
#[test]
fn an_agent_that_trickles_a_model_makes_way_and_is_not_asked_again_before_the_others() {
    let mut world = World::new();
    for n in 1..=2 {
        world.connect(PeerId(u64::from(n)), n);
        world.offer_model(PeerId(u64::from(n)));
    }
    let earned_ms = 1000;
    world.handle(Event::ModelChunk { peer: PeerId(1), bytes: limits::UPLOAD_BUSY_MIN_BYTES_PER_S });
    world.advance_ms(limits::UPLOAD_BUSY_GRACE_MS + earned_ms - 1);
    assert_eq!(world.handle(Event::Tick), []);
    world.advance_ms(1);
    let commands = world.handle(Event::Tick);
    assert!(commands.contains(&Command::Close { peer: PeerId(1) }), "{commands:?}");
    // It comes back at once, on a new connection, and the honest one fails over a bad line: the third is next.
    world.connect(PeerId(3), 1);
    world.offer_model(PeerId(3));
    world.connect(PeerId(4), 3);
    world.offer_model(PeerId(4));
    let commands = world.handle(Event::Disconnected { peer: PeerId(2) });
    assert!(matches!(commands[..], [Command::ReceiveModel { peer: PeerId(4), .. }]), "{commands:?}");
}
