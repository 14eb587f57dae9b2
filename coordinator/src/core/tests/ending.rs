//! The end of a run: everybody hears of it, and nobody is waited for who has.

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::FinishReason;
use anabranch_common::limits;
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage, RunPhase};
use anabranch_common::wire::operator::RunRequest;

use super::world::{World, hello};
use crate::core::command::{Command, ExitReason};
use crate::core::event::{Event, PeerId, RequestId};
use crate::core::lifecycle::HEARING_MS;

const ENDED: ExitReason = ExitReason::Finished { reason: FinishReason::Stopped, result: ModelVersion(0) };

/// Ends the run at version 0, with its last checkpoint written.
fn stop(world: &mut World) -> Vec<Command> {
    world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Stop });
    let mut commands = world.journal();
    let (position, version) = (world.position(), ModelVersion(0));
    commands.extend(world.handle(Event::Checkpointed { position, version, oldest: version }));
    commands
}

fn is_told(commands: &[Command], peer: u64) -> bool {
    commands.iter().any(|command| match command {
        Command::Send { peer: to, message: CoordinatorMessage::StateChanged { state: RunPhase::Finished } } => {
            *to == PeerId(peer)
        }
        Command::Send { peer: to, message: CoordinatorMessage::Welcome(welcome) } => {
            *to == PeerId(peer) && welcome.state == RunPhase::Finished
        }
        _ => false,
    })
}

#[test]
fn the_process_goes_as_soon_as_the_last_agent_has_said_goodbye() {
    let mut world = World::started(2);
    let commands = stop(&mut world);
    assert!(is_told(&commands, 1) && is_told(&commands, 2), "{commands:?}");
    assert!(!commands.contains(&Command::Exit(ENDED)), "{commands:?}");
    assert_eq!(world.leave(1), []);
    assert_eq!(world.leave(2), [Command::Exit(ENDED)]);
}

/// An agent at its longest backoff tries within `RECONNECT_MS.1`, and an attempt takes its time: that long it is waited
/// for, and no longer. Agent 3 has joined and never come; nobody waits for it.
#[test]
fn an_agent_that_is_away_at_the_end_is_waited_for_until_it_has_heard() {
    let mut world = World::started(2);
    world.handle(Event::Disconnected { peer: PeerId(2) });
    stop(&mut world);
    assert_eq!(world.leave(1), [], "agent 2 is away and has said nothing");
    world.advance_ms(limits::RECONNECT_MS.1);
    assert_eq!(world.handle(Event::Tick), []);
    let commands = world.hello(PeerId(4), 2, hello(2, 2));
    assert!(is_told(&commands, 4), "{commands:?}");
    let goodbye = AgentMessage::Goodbye { reason: "test".into() };
    assert_eq!(world.handle(Event::Message { peer: PeerId(4), message: goodbye }), [Command::Exit(ENDED)]);
}

#[test]
fn an_agent_that_never_comes_back_is_given_up() {
    let mut world = World::started(1);
    world.handle(Event::Disconnected { peer: PeerId(1) });
    stop(&mut world);
    world.advance_ms(HEARING_MS - 1);
    assert_eq!(world.handle(Event::Tick), []);
    world.advance_ms(1);
    assert_eq!(world.handle(Event::Tick), [Command::Exit(ENDED)]);
}

#[test]
fn who_said_goodbye_before_the_end_is_not_waited_for_unless_it_came_back_since() {
    let mut world = World::started(2);
    world.leave(2);
    world.connect(PeerId(5), 2);
    world.handle(Event::Disconnected { peer: PeerId(5) });
    stop(&mut world);
    assert_eq!(world.leave(1), [], "agent 2 came back after its goodbye, and was lost");

    let mut world = World::started(2);
    world.leave(2);
    stop(&mut world);
    assert_eq!(world.leave(1), [Command::Exit(ENDED)]);
}

#[test]
fn a_run_that_had_ended_is_served_again_for_those_who_have_not_heard() {
    let mut world = World::started(2);
    stop(&mut world);
    let mut world = world.restarted();
    assert_eq!(world.handle(Event::Tick), [], "who was told before is not known, so both are waited for");
    let commands = world.connect(PeerId(1), 1);
    assert!(is_told(&commands, 1), "{commands:?}");
    world.leave(1);
    world.advance_ms(limits::RECONNECT_MS.1);
    assert_eq!(world.handle(Event::Tick), []);
    world.connect(PeerId(2), 2);
    assert!(world.leave(2).contains(&Command::Exit(ENDED)));
}

#[test]
fn sigterm_ends_the_waiting_and_says_that_the_run_has_ended() {
    let mut world = World::started(1);
    stop(&mut world);
    assert_eq!(world.handle(Event::Park), [Command::Exit(ENDED)]);
}

/// Agents leave when they hear of the end. The one that is asked for the last evaluation must hear of it later.
#[test]
fn a_request_for_a_lease_does_not_send_the_last_evaluator_away() {
    let mut world = World::new();
    let evaluator = AgentHello { eval_examples: 10, ..hello(1, 1) };
    world.hello(PeerId(1), 1, evaluator);
    world.offer_model(PeerId(1));
    world.model_received(PeerId(1));
    world.journal();
    assert!(!is_told(&stop(&mut world), 1));
    world.message(1, AgentMessage::RequestLease);
    let none = CoordinatorMessage::NoLease { state: RunPhase::Paused };
    assert_eq!(world.last_sent(), Some((PeerId(1), none)));
    world.published();
    let commands = world.journal();
    assert!(
        matches!(
            commands[..],
            [Command::Send { message: CoordinatorMessage::Evaluate { version: ModelVersion(0), .. }, .. }]
        ),
        "{commands:?}"
    );
    let evaluated = AgentMessage::Evaluated { evaluation: world.evaluation(1, ModelVersion(0), 0.5), cost_ms: 0 };
    world.message(1, evaluated);
    assert!(is_told(&world.journal(), 1));
}
