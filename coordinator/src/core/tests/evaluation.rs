//! Who is asked to evaluate, what a failed evaluation costs, and what decides on a target.

use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::journal::{Evaluation, FinishReason, LeaseEnd, RecordBody};
use anabranch_common::limits;
use anabranch_common::spec::{EvaluateSpec, RunSpec};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::operator::RunRequest;

use super::world::{World, agent, served, spec};
use crate::core::command::Command;
use crate::core::event::{Event, PeerId, RequestId};

/// Peers that are asked to evaluate, and which version.
fn asked(commands: &[Command]) -> Vec<(u64, u64)> {
    let asked = commands.iter().filter_map(|command| match command {
        Command::Send { peer, message: CoordinatorMessage::Evaluate { version, .. } } => Some((peer.0, version.0)),
        _ => None,
    });
    asked.collect()
}

/// The vectors that peers are asked to evaluate.
fn vectors(commands: &[Command]) -> Vec<(u64, Digest)> {
    let asked = commands.iter().filter_map(|command| match command {
        Command::Send { peer, message: CoordinatorMessage::Evaluate { digest, .. } } => Some((peer.0, *digest)),
        _ => None,
    });
    asked.collect()
}

fn kinds(commands: &[Command]) -> Vec<&'static str> {
    World::appended(commands).iter().map(|record| record.body.kind()).collect()
}

/// Agent `n`, which holds `examples`, answers, and everything becomes durable.
fn answer(world: &mut World, n: u8, version: u64, accuracy: f64, examples: u64) -> Vec<Command> {
    answer_at_cost(world, (n, version), accuracy, examples, 0)
}

/// ... and says how long it has computed no round because of it.
fn answer_at_cost(
    world: &mut World,
    (n, version): (u8, u64),
    accuracy: f64,
    examples: u64,
    cost_ms: u64,
) -> Vec<Command> {
    let evaluation = Evaluation { num_examples: examples, ..world.evaluation(n, ModelVersion(version), accuracy) };
    let mut commands = world.message(n, AgentMessage::Evaluated { evaluation, cost_ms });
    commands.extend(world.journal());
    commands
}

/// Agent `n` says that it cannot evaluate, and everything becomes durable.
fn fail(world: &mut World, n: u8, version: u64) -> Vec<Command> {
    let message = AgentMessage::EvaluationFailed { version: ModelVersion(version), reason: "no\nGPU".into() };
    let mut commands = world.message(n, message);
    commands.extend(world.journal());
    commands
}

/// The newest version is published, and the record of that is durable.
fn published(world: &mut World) -> Vec<Command> {
    let mut commands = world.published();
    commands.extend(world.journal());
    commands
}

fn tick(world: &mut World, ms: u64) -> Vec<Command> {
    world.advance_ms(ms);
    let mut commands = world.handle(Event::Tick);
    commands.extend(world.publish_if_asked());
    commands.extend(world.journal());
    commands
}

/// Evaluators of 150 examples and of 1: the smaller one used to be asked alone where its identity is smaller, and its word
/// ended the run.
#[test]
fn an_evaluator_of_few_examples_does_not_decide_the_run() {
    let mut world = World::started_with_shards(&[(0, 1), (0, 150)]);
    assert_eq!(asked(&published(&mut world)), [(1, 0), (2, 0)], "both are asked for the same version");
    assert_eq!(kinds(&answer(&mut world, 1, 0, 1.0, 1)), ["evaluated"], "1 example of 151 decides on nothing");
    assert_eq!(kinds(&answer(&mut world, 2, 0, 0.5, 150)), ["evaluated", "aggregated"]);
    let (_, aggregate) = *world.state().aggregates.back().expect("an aggregate");
    assert!((aggregate.accuracy - 76.0 / 151.0).abs() < 1e-12, "{aggregate:?}");
    assert_eq!((aggregate.evaluators, aggregate.covered_examples, aggregate.known_examples), (2, 151, 151));
    assert_eq!(world.state().finished, None);
    assert_eq!(world.replayed(), *world.state());
}

#[test]
fn an_aggregate_that_reaches_the_target_ends_the_run_with_its_figure() {
    let mut world = World::started_with_shards(&[(0, 50), (0, 150)]);
    world.published();
    answer(&mut world, 2, 0, 0.96, 150);
    assert_eq!(world.state().finished, None, "the other evaluator is at work, and may say otherwise");
    answer(&mut world, 1, 0, 1.0, 50);
    let reason = FinishReason::Accuracy { reached: 0.75 * 0.96 + 0.25 };
    assert_eq!(world.state().finished, Some((reason, ModelVersion(0))));
}

/// An evaluator cannot weigh more than the shard that it said it holds.
#[test]
fn examples_beyond_the_shard_do_not_weigh() {
    let mut world = World::started_with_shards(&[(0, 50), (0, 150)]);
    world.published();
    answer(&mut world, 1, 0, 1.0, u64::MAX);
    answer(&mut world, 2, 0, 0.5, 150);
    let (_, aggregate) = *world.state().aggregates.back().expect("an aggregate");
    assert_eq!((aggregate.num_examples, aggregate.accuracy), (200, 0.625));
}

/// It used to take 120 s until anything was asked again.
#[test]
fn a_failed_evaluation_goes_to_another_evaluator_at_once() {
    let mut world = World::started_with_shards(&[(100, 60), (100, 50), (100, 50)]);
    world.message(2, AgentMessage::RequestLease);
    let mut commands = world.published();
    commands.extend(world.journal());
    assert!(
        commands.iter().any(|command| matches!(
            command,
            Command::Send { peer: PeerId(2), message: CoordinatorMessage::Lease { evaluate: true, .. } }
        )),
        "it evaluates the base of its lease, which it fetches anyhow: {commands:?}"
    );
    assert_eq!(asked(&commands), [(1, 0)], "the largest shard of the others; 110 of 160 examples are enough");
    let commands = fail(&mut world, 1, 0);
    assert_eq!(kinds(&commands), ["evaluation_failed"]);
    assert_eq!(asked(&commands), [(3, 0)]);
    let status = world.status();
    let problem = status.agents[0].evaluation_problem.as_ref().expect("status shows it");
    assert_eq!((problem.version, problem.reason.as_str(), problem.failures), (ModelVersion(0), "no GPU", 1));
    answer(&mut world, 2, 0, 0.5, 50);
    assert_eq!(kinds(&answer(&mut world, 3, 0, 0.5, 50)), ["evaluated", "aggregated"]);
    assert_eq!(world.replayed(), *world.state());
}

#[test]
fn an_evaluation_whose_agent_leaves_goes_to_another_evaluator_at_once() {
    let mut world = World::started_with_shards(&[(100, 60), (100, 50), (100, 50)]);
    world.lease(2);
    let mut commands = world.handle(Event::Disconnected { peer: PeerId(1) });
    commands.extend(world.journal());
    assert_eq!((kinds(&commands), asked(&commands)), (vec!["evaluation_failed"], vec![(3, 0)]));
}

#[test]
fn a_lease_that_is_given_back_before_its_base_was_evaluated_is_a_failed_evaluation() {
    let mut world = World::started_with_shards(&[(100, 60), (100, 50), (100, 50)]);
    let lease = world.lease(3).id;
    let mut commands = world.message(3, AgentMessage::ReturnLease { lease, why: LeaseEnd::Returned });
    commands.extend(world.journal());
    assert_eq!(kinds(&commands), ["lease_ended", "evaluation_failed"]);
    assert_eq!(asked(&commands), [(2, 0)]);
}

/// No busy loop: the next version, and after each failure a longer wait; none for the same version.
#[test]
fn an_evaluator_that_keeps_failing_is_asked_less_and_less_often() {
    let mut world = World::started_with_shards(&[(0, 10), (100, 0)]);
    assert_eq!(asked(&published(&mut world)), [(1, 0)]);
    fail(&mut world, 1, 0);
    assert_eq!(asked(&tick(&mut world, 10 * limits::EVALUATION_RETRY_MS.1)), [], "the same version is not asked for");
    world.make_version(2, 0);
    assert_eq!(asked(&tick(&mut world, 1)), [(1, 1)], "the next version is due at once");
    for (seq, wait_ms) in [(1, 2_000), (2, 4_000), (3, 8_000)] {
        fail(&mut world, 1, seq);
        world.make_version(2, seq);
        assert_eq!(asked(&tick(&mut world, wait_ms - 1)), []);
        assert_eq!(asked(&tick(&mut world, limits::EVALUATION_LOOK_MS)), [(1, seq + 1)]);
    }
    let problem = world.status().target_problem.expect("status says so");
    assert!(problem.contains("the evaluations of every connected evaluator fail"), "{problem}");
    assert_eq!(kinds(&answer(&mut world, 1, 4, 0.5, 10)), ["evaluated", "aggregated"]);
    assert_eq!((world.status().target_problem, world.state().agents[&agent(1)].evaluation_failures), (None, 0));
}

/// Of two evaluators with as many examples each, one always fails: after three failures its examples do not count, and
/// the other one's word ends the run.
#[test]
fn an_evaluator_that_always_fails_does_not_keep_a_sound_one_from_ending_the_run() {
    let mut world = World::started_with_shards(&[(0, 10_000), (0, 10_000), (100, 0)]);
    world.published();
    let mut version = 0;
    let mut waited_ms = 0;
    while world.state().finished.is_none() {
        assert!(waited_ms < 10_000, "it takes seconds, not the time-out of a silent agent");
        fail(&mut world, 1, version);
        answer(&mut world, 2, version, 0.97, 10_000);
        if world.state().finished.is_none() {
            world.make_version(3, version);
            version += 1;
            while asked(&tick(&mut world, 500)).is_empty() {
                waited_ms += 500;
            }
        }
    }
    let (_, aggregate) = *world.state().aggregates.back().expect("an aggregate");
    assert_eq!((aggregate.covered_examples, aggregate.known_examples), (10_000, 10_000));
}

#[test]
fn only_a_silent_agent_is_waited_for_and_work_is_no_silence() {
    let mut world = World::started_with_shards(&[(0, 10), (0, 20)]);
    world.published();
    answer(&mut world, 1, 0, 0.5, 10);
    let lease = anabranch_common::ids::LeaseId(1);
    world.advance_ms(limits::EVALUATION_TIMEOUT_MS - 1);
    world.message(2, AgentMessage::Progress { lease, steps: 1, examples_per_s: 1.0 });
    assert_eq!(kinds(&tick(&mut world, 1)), Vec::<&str>::new(), "it works on its local round");
    let commands = tick(&mut world, limits::EVALUATION_TIMEOUT_MS);
    assert_eq!(kinds(&commands), ["evaluation_failed", "aggregated"], "its 20 examples no longer count");
    let RecordBody::EvaluationFailed { reason, .. } = &World::appended(&commands)[0].body else {
        panic!("{commands:?}")
    };
    assert_eq!(reason, "no answer within 120 s");
    assert_eq!(kinds(&answer(&mut world, 2, 0, 0.5, 20)), ["evaluated"], "a late answer is kept");
}

/// The wait for an evaluator that is away is bounded.
#[test]
fn an_absent_evaluators_examples_count_for_a_while() {
    let mut world = World::started_with_shards(&[(0, 1), (0, 150), (100, 0)]);
    world.published();
    answer(&mut world, 1, 0, 0.5, 1);
    answer(&mut world, 2, 0, 0.5, 150);
    world.handle(Event::Disconnected { peer: PeerId(2) });
    (0..10).for_each(|seq| world.make_version(3, seq));
    assert_eq!(asked(&tick(&mut world, limits::EVALUATOR_AWAY_MS - 1)), [], "1 example of 151 would decide on nothing");
    assert_eq!(asked(&tick(&mut world, limits::EVALUATION_LOOK_MS)), [(1, 10)]);
    assert_eq!(asked(&world.connect_with(2, 0, 150)), [(2, 10)], "one that comes back in time is asked as well");
}

/// The record of the aggregate is what counts: a process that was killed before it could end the run ends it later.
#[test]
fn a_target_that_was_reached_before_a_crash_ends_the_run_after_it() {
    let mut world = World::started_with_shards(&[(0, 10)]);
    world.published();
    answer(&mut world, 1, 0, 0.97, 10);
    let finished = world.state().finished;
    assert!(finished.is_some());
    let world = world.restarted_without(1, spec());
    assert_eq!(world.state().finished, finished);
}

#[test]
fn a_target_that_nobody_can_judge_is_said() {
    let mut world = World::started_with_shards(&[(100, 0)]);
    let said = "target.accuracy = 0.95 cannot be reached: no agent with an evaluation shard is connected";
    assert_eq!(world.status().target_problem.as_deref(), Some(said));
    world.connect_with(2, 0, 10);
    assert_eq!(world.status().target_problem, None);
    world.handle(Event::Disconnected { peer: PeerId(2) });
    assert_eq!(world.status().target_problem.as_deref(), Some(said), "also when the last one has left");
}

#[test]
fn a_failure_that_nobody_asked_about_is_not_recorded() {
    let mut world = World::started_with_shards(&[(0, 10), (100, 0)]);
    world.published();
    assert_eq!(kinds(&fail(&mut world, 1, 7)), Vec::<&str>::new());
    assert_eq!(kinds(&fail(&mut world, 2, 0)), Vec::<&str>::new());
    let long = AgentMessage::EvaluationFailed { version: ModelVersion(0), reason: "x".repeat(100_000) };
    let commands = world.message(1, long);
    let RecordBody::EvaluationFailed { reason, .. } = &World::appended(&commands)[0].body else {
        panic!("{commands:?}")
    };
    assert_eq!(reason.len(), limits::EVALUATION_REASON_BYTES);
}

/// Evaluating takes no more of the trainers' time than when one of them evaluates every tenth version.
#[test]
fn a_measurement_that_interrupts_two_trainers_makes_the_next_one_due_later() {
    let mut world = World::started_with_shards(&[(100, 10), (100, 10)]);
    let mut asked_at = Vec::new();
    for version in 0..50 {
        let lease = world.lease(1);
        if let Some((_, CoordinatorMessage::Evaluate { .. })) = world.last_sent() {
            asked_at.push(version);
            answer(&mut world, 1, version, 0.5, 10);
            answer(&mut world, 2, version, 0.5, 10);
        }
        world.receive(1, &world.meta(1, version, &lease), [1.0; 4]);
        world.journal();
    }
    assert_eq!(asked_at, [0, 20, 40], "every twentieth version, by both");
}

/// Agent 1 evaluates for so long, and says what that has cost. It makes a version a second, or agent 2 does where agent 1
/// does not train. A round is due with every version. Returns the seconds in which agent 1 evaluated.
fn evaluated_at_s(shard: u64, took_ms: u64, cost_ms: u64) -> Vec<u64> {
    let mut world = measured_often(&[(shard, 10), (100, 0)]);
    let trainer = if shard > 0 { 1 } else { 2 };
    let mut seconds = Vec::new();
    for second in 0..60 {
        let idle = !asked(&tick(&mut world, 0)).is_empty();
        let (version, lease) = (world.state().version.0, world.lease(trainer));
        let first = matches!(world.last_sent(), Some((_, CoordinatorMessage::Lease { evaluate: true, .. })));
        if idle || first {
            seconds.push(second);
            world.advance_ms(took_ms);
            answer_at_cost(&mut world, (1, version), 0.5, 10, cost_ms);
        }
        world.receive(trainer, &world.meta(trainer, second, &lease), [1.0; 4]);
        world.journal();
        world.advance_ms(if idle || first { 1_000 - took_ms } else { 1_000 });
    }
    seconds
}

/// A world in which every version is to be measured.
fn measured_often(examples: &[(u64, u64)]) -> World {
    let evaluate = EvaluateSpec { every_versions: 1, every_s: 1.0 };
    World::started_as(RunSpec { evaluate, ..spec() }, examples)
}

/// An agent that evaluated whenever it was due made fewer updates than its peers: 11 of 165 with two others.
#[test]
fn evaluating_takes_a_twentieth_of_the_time_of_an_agent_that_trains() {
    assert_eq!(evaluated_at_s(100, 500, 500), [0, 10, 20, 30, 40, 50], "half a second in ten");
    assert_eq!(evaluated_at_s(100, 50, 50)[..3], [0, 1, 2], "what takes little is asked for whenever it is due");
    assert_eq!(evaluated_at_s(100, 900, 50)[..3], [0, 2, 4], "it was at work for the rest of the time");
}

#[test]
fn an_agent_cannot_put_evaluations_off_by_what_it_says_they_cost() {
    assert_eq!(evaluated_at_s(100, 500, u64::MAX), [0, 10, 20, 30, 40, 50]);
}

#[test]
fn an_agent_that_only_evaluates_is_asked_whatever_it_costs() {
    assert_eq!(evaluated_at_s(0, 900, 900)[..5], [0, 1, 2, 3, 4]);
}

/// What it has cost says nothing of another evaluator.
#[test]
fn an_evaluator_that_has_left_puts_nothing_off() {
    let mut world = measured_often(&[(100, 10), (100, 0)]);
    world.lease(1);
    world.advance_ms(10_000);
    answer_at_cost(&mut world, (1, 0), 0.5, 10, 10_000);
    world.make_version(2, 0);
    world.handle(Event::Disconnected { peer: PeerId(1) });
    world.advance_ms(limits::EVALUATOR_AWAY_MS);
    world.connect_with(3, 0, 10);
    assert_eq!(asked(&world.journal()), [], "the version is published first");
    assert_eq!(asked(&tick(&mut world, limits::EVALUATION_LOOK_MS)), [(3, 1)]);
}

/// The figures used to be those of the model that agents train from, and the export another vector.
#[test]
fn agents_evaluate_what_users_are_given() {
    let mut world = World::started_with_shards(&[(0, 150), (100, 0)]).averaging();
    assert_eq!(vectors(&published(&mut world)), [(1, served(0))]);
    assert_eq!(kinds(&answer(&mut world, 1, 0, 0.5, 150)), ["evaluated", "aggregated"]);
}

/// The base of a lease is no vector that users are given.
#[test]
fn agents_that_train_are_asked_for_what_users_are_given_apart_from_their_leases() {
    let mut world = World::started_with_shards(&[(100, 60), (100, 50), (100, 50)]).averaging();
    let publish = |commands: &[Command]| {
        let asked = commands.iter().filter_map(|command| match command {
            Command::Publish { served } => Some(*served),
            _ => None,
        });
        asked.collect::<Vec<_>>()
    };
    assert_eq!(publish(&world.message(2, AgentMessage::RequestLease)), [false]);
    let commands = published(&mut world);
    let granted = |evaluate: bool| {
        let is_lease = move |command: &&Command| {
            let Command::Send { message: CoordinatorMessage::Lease { evaluate: said, .. }, .. } = command else {
                return false;
            };
            *said == evaluate
        };
        commands.iter().filter(is_lease).count()
    };
    assert_eq!((granted(false), granted(true)), (1, 0));
    assert_eq!(
        (asked(&commands), publish(&commands)),
        (vec![], vec![true]),
        "nobody waits for the vector but the round"
    );
    let commands = published(&mut world);
    assert_eq!(kinds(&commands), Vec::<&str>::new(), "the version is published already");
    assert_eq!(vectors(&commands), [(1, served(0)), (2, served(0))], "110 of 160 examples are enough");
    world.lease(3);
    let last = world.last_sent();
    assert!(matches!(last, Some((_, CoordinatorMessage::Lease { evaluate: false, .. }))), "{last:?}");
    answer(&mut world, 1, 0, 0.5, 60);
    assert_eq!(kinds(&answer(&mut world, 2, 0, 0.5, 50)), ["evaluated", "aggregated"]);
    assert_eq!(world.replayed(), *world.state());
}

#[test]
fn a_round_waits_for_what_users_are_given_where_only_the_model_is_on_its_way() {
    let mut world = World::started_with_shards(&[(100, 0)]).averaging();
    world.message(1, AgentMessage::RequestLease);
    world.connect_with(2, 0, 10);
    let commands = published(&mut world);
    assert_eq!(asked(&commands), []);
    assert!(commands.contains(&Command::Publish { served: true }), "{commands:?}");
    assert_eq!(vectors(&published(&mut world)), [(2, served(0))]);
}

/// One version was on its way to be published when the run ended with the next one, and was measured in the place of the
/// result.
#[test]
fn the_result_is_measured_also_where_an_older_version_was_asked_for_before_the_end() {
    for averages in [false, true] {
        let mut world = World::started_with_shards(&[(100, 0), (100, 0), (0, 10)]);
        if averages {
            world = world.averaging();
        }
        published(&mut world);
        answer(&mut world, 3, 0, 0.5, 10);
        let leases = [1, 2].map(|n| world.lease(n));
        for (n, lease) in (1..).zip(&leases) {
            world.receive(n, &world.meta(n, 0, lease), [1.0; 4]);
            world.journal();
            let asks = world.message(n, AgentMessage::RequestLease);
            let publishes = asks.iter().filter(|command| matches!(command, Command::Publish { .. })).count();
            assert_eq!(publishes, usize::from(n == 1), "version 1 is still on its way when version 2 is made");
        }
        world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Stop });
        world.journal();
        let mut commands = world.published_as(ModelVersion(1));
        commands.extend(world.journal());
        assert_eq!(asked(&commands), []);
        assert!(commands.contains(&Command::Publish { served: true }), "{commands:?}");
        assert_eq!(asked(&published(&mut world)), [(3, 2)]);
        assert_eq!(kinds(&answer(&mut world, 3, 2, 0.75, 10)), ["evaluated", "aggregated"]);
    }
}
