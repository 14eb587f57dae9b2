//! A run that had ended is started again with another target, and what is known of it afterwards.

use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::FinishReason;
use anabranch_common::spec::TargetSpec;
use anabranch_common::wire::message::{AgentMessage, RunPhase};
use anabranch_common::wire::operator::RunRequest;

use super::world::{World, spec};
use crate::core::event::{Event, PeerId, RequestId};

fn with_target(target: TargetSpec) -> anabranch_common::spec::RunSpec {
    anabranch_common::spec::RunSpec { target, ..spec() }
}

/// A run that ended at accuracy 0.97.
fn ended() -> World {
    let mut world = World::started_with_shards(&[(0, 10), (100, 0)]);
    world.published();
    world.message(1, AgentMessage::Evaluated { evaluation: world.evaluation(1, ModelVersion(0), 0.97), cost_ms: 0 });
    world.journal();
    assert!(world.state().finished.is_some());
    world
}

#[test]
fn a_run_goes_on_when_its_target_was_raised_and_ends_again_when_it_was_not() {
    let raised = TargetSpec { accuracy: Some(0.99), ..TargetSpec::default() };
    let mut world = ended().restarted_with(with_target(raised));
    assert_eq!((world.state().finished, world.status().state), (None, RunPhase::Running));
    assert_eq!(world.replayed(), *world.state(), "that it goes on is in the journal");
    world.connect_with(2, 100, 0);
    world.make_version(2, 0);

    let same = ended().restarted();
    assert_eq!(same.status().state, RunPhase::Finished);
    let lowered = TargetSpec { accuracy: Some(0.9), ..TargetSpec::default() };
    assert_eq!(ended().restarted_with(with_target(lowered)).status().state, RunPhase::Finished);
    // Another target that is reached would end it at once: it stays ended.
    let reached = TargetSpec { accuracy: Some(0.99), versions: Some(0), ..TargetSpec::default() };
    assert_eq!(ended().restarted_with(with_target(reached)).status().state, RunPhase::Finished);
}

#[test]
fn a_raised_number_of_versions_lets_the_run_go_on() {
    let two = with_target(TargetSpec { versions: Some(2), ..TargetSpec::default() });
    let mut world = World::started(1).restarted_with(two.clone());
    world.connect(PeerId(1), 1);
    world.make_version(1, 0);
    world.make_version(1, 1);
    assert_eq!(world.state().finished, Some((FinishReason::Versions, ModelVersion(2))));
    let world = world.restarted_with(two);
    assert_eq!(world.status().state, RunPhase::Finished);
    let three = with_target(TargetSpec { versions: Some(3), ..TargetSpec::default() });
    assert_eq!(world.restarted_with(three).status().state, RunPhase::Running);
}

#[test]
fn a_run_that_the_operator_has_stopped_stays_ended() {
    let mut world = World::started(1);
    world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Stop });
    let none = with_target(TargetSpec::default());
    assert_eq!(world.restarted_with(none).status().state, RunPhase::Finished);
}

/// What `status` and `agents list` show outlives the process.
#[test]
fn shards_and_bytes_sent_are_known_to_the_next_process() {
    let mut world = World::started_with_shards(&[(100, 10_000)]);
    world.handle(Event::ModelSent { peer: PeerId(1), bytes: 700, purpose: FetchPurpose::Train });
    world.handle(Event::ModelSent { peer: PeerId(1), bytes: 300, purpose: FetchPurpose::Train });
    world.handle(Event::ModelSent { peer: PeerId(1), bytes: 40, purpose: FetchPurpose::Evaluate });
    assert_eq!((world.status().downlink_bytes, world.status().evaluation_downlink_bytes), (1_000, 40));
    world.handle(Event::Park);
    world.handle(Event::ModelSent { peer: PeerId(1), bytes: 10, purpose: FetchPurpose::Train });
    assert_eq!(world.status().downlink_bytes, 1_010, "nothing is counted twice");
    let report = world.restarted().status();
    let agent = &report.agents[0];
    assert_eq!((agent.eval_examples, agent.train_examples, agent.downlink_bytes), (10_000, 100, 1_000));
    assert_eq!((report.downlink_bytes, report.raw_f32_downlink_bytes), (1_000, 2 * 4 * 4));
    assert_eq!((report.evaluation_downlink_bytes, agent.evaluation_downlink_bytes), (40, 40));
}
