//! What the core does with events, as exact lists of commands.

mod barrier;
mod bounds;
mod ending;
mod evaluation;
mod extreme;
mod memories;
mod plans;
mod pods;
mod recall;
mod reopened;
mod replaced;
mod trial;
mod updates;
mod world;

use anabranch_common::ids::{Digest, Epoch, ModelVersion, Position};
use anabranch_common::journal::{FinishReason, LeaseEnd, Publication, PublicationForm, RecordBody};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage, Rejection, RunPhase};
use anabranch_common::wire::operator::RunRequest;

use super::command::{Command, ExitReason};
use super::event::{Event, PeerId, RequestId};
use world::{World, agent, breaks_the_protocol, hello};

#[test]
fn the_first_model_offered_becomes_record_0_and_nobody_hears_of_it_before_it_is_durable() {
    let mut world = World::new();
    let commands = world.connect(PeerId(1), 1);
    let [Command::Send { peer: PeerId(1), message: CoordinatorMessage::Welcome(welcome) }] = &commands[..] else {
        panic!("expected a welcome, got {commands:?}");
    };
    assert_eq!((&welcome.model, welcome.state, welcome.epoch), (&None, RunPhase::Pending, Epoch(1)));

    let commands = world.offer_model(PeerId(1));
    assert!(matches!(commands[..], [Command::ReceiveModel { peer: PeerId(1), .. }]), "{commands:?}");

    let commands = world.model_received(PeerId(1));
    assert!(matches!(commands[0], Command::AppendModel { .. }), "{commands:?}");
    let kinds: Vec<_> = World::appended(&commands).iter().map(|record| record.body.kind()).collect();
    assert_eq!(kinds, ["genesis", "agent_joined", "epoch_started"]);
    assert_eq!(commands.len(), kinds.len(), "records, and no message");

    let commands = world.handle(Event::Journalled { upto: Position(1) });
    let [Command::Merge { record, content: Some(_) }] = &commands[..] else {
        panic!("record 2 is not durable yet: {commands:?}")
    };
    assert_eq!(record.body.kind(), "genesis", "the merger has the model as soon as it is durable");
    let commands = world.handle(Event::Journalled { upto: Position(2) });
    assert!(
        matches!(commands[..], [Command::Send { message: CoordinatorMessage::ModelReady { .. }, .. }]),
        "{commands:?}"
    );
}

/// A model may be decoded while its agent is revoked.
#[test]
fn an_initial_model_of_an_agent_that_has_gone_begins_no_run() {
    let peer = PeerId(1);
    for gone in [Event::Disconnected { peer }, Event::AgentRevoked { agent: agent(1), request: None }] {
        let mut world = World::new();
        world.connect(peer, 1);
        world.offer_model(peer);
        world.handle(gone);
        assert_eq!(world.model_received(peer), []);
        assert!(!world.has_begun());
        world.connect(PeerId(2), 2);
        world.offer_model(PeerId(2));
        world.model_received(PeerId(2));
        assert!(world.has_begun());
    }
}

#[test]
fn when_the_offering_agent_leaves_the_next_offer_is_taken() {
    let mut world = World::new();
    world.connect(PeerId(1), 1);
    world.connect(PeerId(2), 2);
    world.offer_model(PeerId(1));
    assert_eq!(world.offer_model(PeerId(2)), [], "one model at a time");
    let commands = world.handle(Event::Disconnected { peer: PeerId(1) });
    assert!(matches!(commands[..], [Command::ReceiveModel { peer: PeerId(2), .. }]), "{commands:?}");
}

#[test]
fn a_lease_is_granted_on_the_newest_published_version_after_it_is_durable() {
    let mut world = World::started(1);
    assert_eq!(world.message(1, AgentMessage::RequestLease), [Command::Publish { served: false }]);
    let commands = world.published();
    let [Command::Append { record: published }, Command::Append { record }] = &commands[..] else {
        panic!("expected two records, got {commands:?}")
    };
    let publication =
        Publication { version: ModelVersion(0), form: PublicationForm::Snapshot, digest: Digest::of_f32(&[0.0; 4]) };
    assert_eq!(published.body, RecordBody::Published(publication));
    let RecordBody::LeaseGranted(lease) = &record.body else { panic!("expected a lease, got {record:?}") };
    assert_eq!((lease.base_version, lease.agent), (ModelVersion(0), agent(1)));
    let commands = world.journal();
    let send = CoordinatorMessage::Lease { lease: lease.clone(), evaluate: false };
    assert_eq!(commands, [Command::Send { peer: PeerId(1), message: send }]);
    // The same version again needs no publishing, and the lease that was lost ends.
    let commands = world.message(1, AgentMessage::RequestLease);
    let kinds: Vec<_> = World::appended(&commands).iter().map(|record| record.body.kind()).collect();
    assert_eq!(kinds, ["lease_ended", "lease_granted"]);
}

/// A process that was started again makes the newest version ready once more; the journal says already that it was.
#[test]
fn a_version_is_published_once_in_the_journal() {
    let mut world = World::started(1);
    world.lease(1);
    let mut world = world.restarted();
    world.connect(PeerId(1), 1);
    world.message(1, AgentMessage::RequestLease);
    world.journal();
    let commands = world.publish_if_asked();
    let kinds: Vec<_> = World::appended(&commands).iter().map(|record| record.body.kind()).collect();
    assert_eq!(kinds, ["lease_granted"]);
}

#[test]
fn a_restarted_process_gets_a_new_epoch_and_a_reconnected_one_keeps_its_own() {
    let mut world = World::started(1);
    world.handle(Event::Disconnected { peer: PeerId(1) });
    let again = world.hello(PeerId(5), 1, hello(1, 1));
    assert_eq!(World::appended(&again).len(), 0, "the same incarnation");
    let restarted = world.hello(PeerId(6), 1, hello(1, 2));
    let records = World::appended(&restarted);
    assert!(matches!(records[0].body, RecordBody::EpochStarted { epoch: Epoch(2), .. }), "{records:?}");
    let message = CoordinatorMessage::Rejected(Rejection::Replaced);
    let turned_away = [Command::Send { peer: PeerId(5), message }, Command::Close { peer: PeerId(5) }];
    assert!(turned_away.iter().all(|command| restarted.contains(command)), "{restarted:?}");
    assert!(matches!(world.journal()[..], [Command::Send { peer: PeerId(6), .. }]), "the welcome waits for the epoch");
}

/// A member that has not said hello in this run is none of the run's.
#[test]
fn an_agent_is_journalled_at_its_first_hello() {
    let mut world = World::started(1);
    assert_eq!(world.state().agents.keys().copied().collect::<Vec<_>>(), [agent(1)]);
    let commands = world.connect(PeerId(2), 2);
    let bodies: Vec<_> = World::appended(&commands).iter().map(|record| record.body.clone()).collect();
    let [RecordBody::AgentJoined { agent: joined, name }, RecordBody::EpochStarted { epoch: Epoch(1), .. }] =
        &bodies[..]
    else {
        panic!("expected two records, got {bodies:?}")
    };
    assert_eq!((*joined, name.as_str()), (agent(2), "agent-2"));
    world.handle(Event::Disconnected { peer: PeerId(2) });
    assert_eq!(World::appended(&world.connect(PeerId(3), 2)).len(), 0, "it is known");
}

#[test]
fn a_revocation_is_durable_before_anyone_hears_of_it_and_closes_the_connection() {
    let mut world = World::started(1);
    let commands = world.handle(Event::AgentRevoked { agent: agent(1), request: Some(RequestId(7)) });
    let [Command::Append { record }] = &commands[..] else { panic!("expected a record, got {commands:?}") };
    assert_eq!(record.body, RecordBody::AgentRevoked { agent: agent(1) });
    let message = CoordinatorMessage::Rejected(Rejection::Revoked);
    let told = [
        Command::Send { peer: PeerId(1), message },
        Command::Close { peer: PeerId(1) },
        Command::Revoked { request: RequestId(7) },
    ];
    assert_eq!(world.journal(), told);
}

#[test]
fn an_agent_that_the_run_does_not_know_or_that_was_revoked_before_is_revoked_without_a_record() {
    let mut world = World::started(1);
    world.handle(Event::AgentRevoked { agent: agent(1), request: None });
    world.journal();
    for (n, request) in [(1, RequestId(8)), (2, RequestId(9))] {
        let commands = world.handle(Event::AgentRevoked { agent: agent(n), request: Some(request) });
        assert_eq!(commands, [Command::Revoked { request }]);
    }
    let mut pending = World::new();
    let commands = pending.handle(Event::AgentRevoked { agent: agent(1), request: Some(RequestId(1)) });
    assert_eq!(commands, [Command::Revoked { request: RequestId(1) }], "there is no journal yet");
}

#[test]
fn an_expired_lease_ends_and_a_paused_run_gives_none() {
    let mut world = World::started(1);
    let lease = world.lease(1);
    world.advance_ms(world::LEASE_TTL_MS + 1);
    let commands = world.handle(Event::Tick);
    let records = World::appended(&commands);
    assert_eq!(records[0].body, RecordBody::LeaseEnded { lease: lease.id, why: LeaseEnd::Expired });

    world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Pause });
    world.journal();
    world.message(1, AgentMessage::RequestLease);
    let sent = CoordinatorMessage::NoLease { state: RunPhase::Paused };
    assert_eq!(world.last_sent(), Some((PeerId(1), sent)));
    world.handle(Event::Operator { request: RequestId(2), operation: RunRequest::Resume });
    let commands = world.journal();
    let sent = CoordinatorMessage::StateChanged { state: RunPhase::Running };
    assert!(commands.contains(&Command::Send { peer: PeerId(1), message: sent }), "{commands:?}");
}

#[test]
fn reaching_the_accuracy_target_ends_the_run_at_the_version_that_was_evaluated() {
    let mut world = World::started_with_shards(&[(100, 10)]);
    world.lease(1);
    let evaluated = AgentMessage::Evaluated { evaluation: world.evaluation(1, ModelVersion(0), 0.97), cost_ms: 0 };
    let commands = world.message(1, evaluated);
    let records = World::appended(&commands);
    let reason = FinishReason::Accuracy { reached: 0.97 };
    assert_eq!(records[2].body, RecordBody::Finished { reason, result: ModelVersion(0) });
    let commands = world.journal();
    assert!(commands.iter().any(|command| matches!(command, Command::Checkpoint(_))), "{commands:?}");
    let told = CoordinatorMessage::StateChanged { state: RunPhase::Finished };
    assert!(commands.contains(&Command::Send { peer: PeerId(1), message: told }), "{commands:?}");
    world.leave(1);
    let checkpointed =
        Event::Checkpointed { position: world.position(), version: ModelVersion(0), oldest: ModelVersion(0) };
    let commands = world.handle(checkpointed);
    assert_eq!(commands, [Command::Exit(ExitReason::Finished { reason, result: ModelVersion(0) })]);
}

#[test]
fn parking_takes_a_checkpoint_first() {
    let mut world = World::started(1);
    let commands = world.handle(Event::Park);
    assert!(matches!(commands[..], [Command::Checkpoint(_)]), "{commands:?}");
    let position = world.position();
    let version = ModelVersion(0);
    let commands = world.handle(Event::Checkpointed { position, version, oldest: version });
    assert_eq!(commands, [Command::Exit(ExitReason::Parked)]);
}

#[test]
fn an_impossible_evaluation_is_a_breach_of_protocol() {
    let mut world = World::started(1);
    let ahead = world.evaluation(1, ModelVersion(9), 0.5);
    assert_eq!(
        world.message(1, AgentMessage::Evaluated { evaluation: ahead, cost_ms: 0 }),
        [],
        "a version that was rolled back is nobody's fault"
    );
    let impossible = world.evaluation(1, ModelVersion(0), 1.5);
    let commands = world.message(1, AgentMessage::Evaluated { evaluation: impossible, cost_ms: 0 });
    assert!(breaks_the_protocol(&commands), "{commands:?}");
}

#[test]
fn a_target_that_was_reached_by_an_overflow_is_no_result() {
    let mut world = World::started(1);
    world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Stop });
    world.journal();
    let commands = world.handle(Event::NonFinite { version: ModelVersion(0) });
    let records = World::appended(&commands);
    let reason = FinishReason::NonFinite;
    assert_eq!(records[0].body, RecordBody::Finished { reason, result: ModelVersion(0) });
    world.journal();
    let commands = world.leave(1);
    assert!(
        commands.contains(&Command::Exit(ExitReason::Finished { reason, result: ModelVersion(0) })),
        "the process ends with the reason that counts: {commands:?}"
    );
}

/// The error is what `run` and `config check` print: it names every key that differs, as it is written in run.toml.
#[test]
fn another_model_or_seed_than_the_runs_is_refused_key_by_key() {
    let world = World::started(1);
    assert!(world.resumed(world::spec()).is_ok());
    let mut other = world::spec();
    (other.seed, other.model.hidden, other.model.input_scale) = (2, vec![64, 8], 0.5);
    let error = world.resumed(other).expect_err("another model");
    assert_eq!(
        error.to_string(),
        "this is not the model of the run in this directory: run.seed is 2 in run.toml and 1 in the run; model.hidden is \
         [64, 8] in run.toml and [] in the run; model.input_scale is 0.5 in run.toml and 1.0 in the run"
    );
}
