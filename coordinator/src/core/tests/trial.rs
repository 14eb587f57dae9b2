//! A run that is a trial: how far it goes, what is told of it, and which version is measured.

use anabranch_common::codec::Delta;
use anabranch_common::ids::{Digest, ModelVersion, RunId};
use anabranch_common::journal::{CopyMark, Evaluation, FinishReason, LeaseEnd, RecordBody};
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::update::{RefusalReason, Verdict};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage, NOT_FINITE, RunPhase};
use anabranch_common::wire::operator::RunRequest;

use super::world::{World, content, manifest, spec};
use crate::core::command::Command;
use crate::core::event::{Event, PeerId, RequestId};
use crate::core::trial::{LeaseLimit, Stuck, TrialNews, TrialOrder};

fn news(commands: &[Command]) -> Vec<TrialNews> {
    let news = commands.iter().filter_map(|command| match command {
        Command::Trial(news) => Some(news.clone()),
        _ => None,
    });
    news.collect()
}

/// Orders something, and everything becomes durable.
fn order(world: &mut World, order: TrialOrder) -> Vec<TrialNews> {
    let mut commands = world.handle(Event::Trial(order));
    commands.extend(world.journal());
    news(&commands)
}

/// Agent 1 contributes once, with its `seq`-th update.
fn contribute(world: &mut World, seq: u64) -> Vec<TrialNews> {
    let lease = world.lease(1);
    let meta = world.meta(1, seq, &lease);
    let mut commands = world.receive(1, &meta, [1.0; 4]);
    assert_eq!(news(&commands), [], "nothing is told of what is not durable");
    commands.extend(world.journal());
    news(&commands)
}

#[test]
fn a_trial_goes_to_its_limit_and_says_so_once_that_is_durable() {
    let mut world = World::started(1);
    assert_eq!(order(&mut world, TrialOrder::Limit(LeaseLimit::Held)), []);
    assert_eq!(world.ask(1), None, "it is held");
    let (_, last) = world.last_sent().expect("an answer");
    assert_eq!(last, CoordinatorMessage::NoLease { state: RunPhase::Paused });
    let until = |until| TrialOrder::Limit(LeaseLimit::Until(until));
    let sent = world.messages();
    assert_eq!(order(&mut world, until(2)), []);
    let woken = (PeerId(1), CoordinatorMessage::StateChanged { state: RunPhase::Running });
    assert_eq!(world.sent_since(sent), [woken]);
    assert_eq!(contribute(&mut world, 0), []);
    let reached = TrialNews::Reached { contributions: 2, version: ModelVersion(2) };
    assert_eq!(contribute(&mut world, 1), std::slice::from_ref(&reached));
    assert_eq!(world.ask(1), None);
    // After a restart the search says it again.
    assert_eq!(order(&mut world, until(2)), [reached]);
    assert_eq!(order(&mut world, until(3)), []);
    let reached = TrialNews::Reached { contributions: 3, version: ModelVersion(3) };
    assert_eq!(contribute(&mut world, 2), [reached]);
    assert_eq!(order(&mut world, TrialOrder::Limit(LeaseLimit::None)), []);
    assert!(world.ask(1).is_some(), "no search holds it any more");
}

/// Leases that are out are not waited for: what they bring belongs to the next rung.
#[test]
fn a_lease_that_is_out_brings_its_update_behind_the_limit() {
    let mut world = World::started(2);
    let slow = world.lease(2);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(1)));
    let reached = TrialNews::Reached { contributions: 1, version: ModelVersion(1) };
    assert_eq!(contribute(&mut world, 0), [reached]);
    let meta = world.meta(2, 0, &slow);
    world.receive(2, &meta, [1.0; 4]);
    assert_eq!(news(&world.journal()), [], "it was told");
    assert_eq!(world.state().totals.accepted, 2);
    assert_eq!(order(&mut world, TrialOrder::Limit(LeaseLimit::Until(3))), []);
}

#[test]
fn a_rule_that_buffers_goes_on_to_its_next_close() {
    let merge =
        MergeSpec::FedBuff { buffer_size: 2, server_lr: 1.0, staleness: Default::default(), participation: false };
    let mut world = World::started_with(anabranch_common::spec::RunSpec { merge, ..spec() }, 1);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(1)));
    assert_eq!(contribute(&mut world, 0), [], "it is part of no version");
    assert_eq!(contribute(&mut world, 1), [TrialNews::Reached { contributions: 2, version: ModelVersion(1) }]);
}

/// The run has gone on: version 1 is measured nevertheless, and no other version meanwhile.
#[test]
fn exactly_the_version_is_measured_that_was_asked_for() {
    let mut world = World::started_with_shards(&[(100, 0), (0, 10)]);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(2)));
    contribute(&mut world, 0);
    contribute(&mut world, 1);
    let (version, digest) = (ModelVersion(1), Digest([7; 32]));
    let sent = world.messages();
    assert_eq!(order(&mut world, TrialOrder::Measure { version, digest }), []);
    let asked = (PeerId(2), CoordinatorMessage::Evaluate { version, digest });
    assert!(world.sent_since(sent).contains(&asked), "{:?}", world.sent_since(sent));
    // The answer about an earlier request is no measurement of this version.
    let answer = |world: &mut World, version, accuracy| {
        let evaluation = Evaluation { num_examples: 10, ..world.evaluation(2, version, accuracy) };
        let mut commands = world.message(2, AgentMessage::Evaluated { evaluation, cost_ms: 1 });
        commands.extend(world.journal());
        news(&commands)
    };
    assert_eq!(answer(&mut world, ModelVersion(0), 0.25), []);
    let measured = TrialNews::Measured { version, accuracy: 0.75, loss: 0.1 };
    assert_eq!(answer(&mut world, version, 0.75), std::slice::from_ref(&measured));
    // After a restart: what was measured is in the journal.
    assert_eq!(order(&mut world, TrialOrder::Measure { version, digest }), [measured]);
}

#[test]
fn a_failed_evaluation_is_asked_for_again_and_a_missing_evaluator_is_told() {
    let mut world = World::started_with_shards(&[(100, 0), (0, 10)]);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(1)));
    contribute(&mut world, 0);
    let (version, digest) = (ModelVersion(1), Digest([7; 32]));
    order(&mut world, TrialOrder::Measure { version, digest });
    world.message(2, AgentMessage::EvaluationFailed { version, reason: "no GPU".into() });
    world.journal();
    let sent = world.messages();
    for _ in 0..4 {
        world.advance_ms(1_000);
        world.handle(Event::Tick);
        world.journal();
    }
    let asked = (PeerId(2), CoordinatorMessage::Evaluate { version, digest });
    assert_eq!(world.sent_since(sent), [asked]);
    assert_eq!(world.core().measure_problem(), None);
    world.leave(2);
    assert!(world.core().measure_problem().is_some_and(|problem| problem.contains("--eval-shard")));
}

/// The version that is measured at a rung, and the result of a search, can be rebuilt for as long as the trial waits there.
#[test]
fn a_trial_that_is_held_prunes_nothing() {
    let mut world = World::started(2);
    world.checkpoint_every_ms(1);
    let slow = world.lease(2);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(1)));
    contribute(&mut world, 0);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Held));
    let meta = world.meta(2, 0, &slow);
    world.receive(2, &meta, [1.0; 4]);
    world.journal();
    assert_eq!(world.state().version, ModelVersion(2), "a lease that was out has made another version");
    let checkpoints = |world: &mut World, event| {
        world.advance_ms(1_000);
        let mut commands = world.handle(event);
        commands.extend(world.journal());
        commands.iter().filter(|command| matches!(command, Command::Checkpoint(_))).count()
    };
    assert_eq!(checkpoints(&mut world, Event::Tick), 0);
    assert_eq!(checkpoints(&mut world, Event::Trial(TrialOrder::Limit(LeaseLimit::Until(4)))), 1, "it goes on");
    let mut world = World::started(1);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Held));
    assert_eq!(checkpoints(&mut world, Event::Park), 0, "nor does one that is parked meanwhile");
}

/// Its rounds fail on every agent, as those of a learning rate that is far too high do.
#[test]
fn a_trial_is_stuck_once_every_agent_has_given_back_its_leases_in_a_row() {
    let mut world = World::started(2);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(2)));
    let give_back = |world: &mut World, agent| {
        let lease = world.lease(agent).id;
        let mut commands = world.message(agent, AgentMessage::ReturnLease { lease, why: LeaseEnd::Returned });
        commands.extend(world.journal());
        news(&commands)
    };
    let give_back_often = |world: &mut World, agent| {
        (0..limits::TRIAL_ATTEMPTS).flat_map(|_| give_back(world, agent)).collect::<Vec<_>>()
    };
    assert_eq!(give_back_often(&mut world, 1), [], "the other agent may do better");
    assert_eq!(contribute(&mut world, 0), [], "it does better itself");
    assert_eq!(give_back_often(&mut world, 2), []);
    assert_eq!(give_back_often(&mut world, 1), [TrialNews::Stuck(Stuck::NoUpdates)]);
    assert_eq!(give_back_often(&mut world, 1), [], "it was told");
    assert_eq!(order(&mut world, TrialOrder::Limit(LeaseLimit::Until(3))), []);
    assert_eq!(give_back_often(&mut world, 2), [], "attempts are counted anew");
}

/// An owner who needs the machine, or a lack of memory, says nothing of the version: it is asked for again.
#[test]
fn a_version_whose_figures_are_not_finite_to_any_evaluator_is_told() {
    let mut world = World::started_with_shards(&[(100, 0), (0, 10)]);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(1)));
    contribute(&mut world, 0);
    let (version, digest) = (ModelVersion(1), Digest([7; 32]));
    order(&mut world, TrialOrder::Measure { version, digest });
    let mut decline = |reason: String| {
        let mut commands = world.message(2, AgentMessage::EvaluationFailed { version, reason });
        commands.extend(world.journal());
        world.advance_ms(60_000);
        world.handle(Event::Tick);
        world.journal();
        news(&commands)
    };
    for _ in 0..20 {
        assert_eq!(decline("takes on no work at present".to_owned()), []);
    }
    let not_finite = format!("{NOT_FINITE}: accuracy 0.1, loss NaN");
    assert_eq!(decline(not_finite.clone()), [TrialNews::Stuck(Stuck::NotFinite { version })]);
    assert_eq!(decline(not_finite), [], "it was told");
}

#[test]
fn the_end_of_a_trial_is_told_unless_its_search_has_ended_it() {
    let mut world = World::started(1);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Held));
    let mut commands = world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Stop });
    commands.extend(world.journal());
    let finished = || TrialNews::Finished { reason: FinishReason::Stopped };
    assert_eq!(news(&commands), [finished()]);
    // The search may have been opened after its run.
    assert_eq!(order(&mut world, TrialOrder::Limit(LeaseLimit::Held)), [finished()]);

    let mut world = World::started(1);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(2)));
    contribute(&mut world, 0);
    contribute(&mut world, 1);
    assert_eq!(order(&mut world, TrialOrder::End { result: Some(ModelVersion(1)) }), []);
    assert_eq!(world.state().finished, Some((FinishReason::Stopped, ModelVersion(1))));
    // A second time changes nothing.
    let position = world.position();
    assert_eq!(order(&mut world, TrialOrder::End { result: None }), []);
    assert_eq!(world.position(), position);
    assert_eq!(world.replayed(), *world.state());
}

/// A copy of another trial's version: rung 1, version 9 of another run.
fn copy() -> Event {
    let values = vec![3.0, 0.0, -4.0, 0.0];
    let mark = CopyMark { rung: 1, from: RunId([9; 16]), version: ModelVersion(9) };
    let digest = Digest::of_f32(&values);
    Event::Copy { mark, manifest: manifest(), digest, model: content(Delta::Dense(values)) }
}

#[test]
fn a_copy_takes_the_models_place_once_and_what_was_trained_before_it_is_stale() {
    let mut world = World::started(1);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(1)));
    contribute(&mut world, 0);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Until(2)));
    let lease = world.lease(1);
    let meta = world.meta(1, 1, &lease);
    order(&mut world, TrialOrder::Limit(LeaseLimit::Held));
    let told = news(&world.handle(copy()));
    assert!(matches!(&told[..], [TrialNews::NotCopied { reason }] if reason.contains("connected")), "{told:?}");

    world.leave(1);
    world.journal();
    let commands = world.handle(copy());
    let records = World::appended(&commands);
    let [record] = &records[..] else { panic!("{commands:?}") };
    let expected = CopyMark { rung: 1, from: RunId([9; 16]), version: ModelVersion(9) };
    assert!(
        matches!(record.body, RecordBody::Imported { version: ModelVersion(2), norm: 5.0, copied: Some(mark), .. } if mark == expected),
        "{record:?}"
    );
    assert_eq!(news(&commands), []);
    assert_eq!(news(&world.journal()), [TrialNews::Copied { rung: 1 }]);
    assert_eq!(
        (world.state().copied, world.state().version, world.state().totals.accepted),
        (Some(1), ModelVersion(2), 1)
    );
    assert_eq!(world.replayed(), *world.state());

    // A second time changes nothing.
    let position = world.position();
    let mut commands = world.handle(copy());
    commands.extend(world.journal());
    assert_eq!((news(&commands), world.position()), (vec![TrialNews::Copied { rung: 1 }], position));

    world.connect(PeerId(1), 1);
    world.journal();
    world.receive(1, &meta, [1.0; 4]);
    world.journal();
    assert_eq!(world.last_verdict(), Some(Verdict::Refused { reason: RefusalReason::Stale }));
    assert_eq!(world.state().totals.accepted, 1);
}
