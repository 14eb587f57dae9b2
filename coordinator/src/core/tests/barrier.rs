//! Barriers: when a round closes, who waits for that, and that nothing waits for ever.

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{Close, CloseReason, Lease, LeaseEnd, RecordBody};
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::barrier::Barrier;
use anabranch_common::spec::{AdmitSpec, RunSpec};
use anabranch_common::update::{RefusalReason, Verdict};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};

use super::world::{LEASE_TTL_MS, World, spec};
use crate::core::command::Command;
use crate::core::event::{Event, PeerId};

fn fedavg(barrier: Barrier) -> RunSpec {
    RunSpec { merge: MergeSpec::FedAvg { server_lr: 1.0, barrier }, ..spec() }
}

/// Agents behind a barrier without a deadline.
fn waiting(agents: u8) -> World {
    World::started_with(fedavg(Barrier::default()), agents)
}

/// Agents behind a barrier with a deadline of 2.5 s and this quorum.
fn hurried(agents: u8, quorum: f64) -> World {
    World::started_with(fedavg(Barrier { quorum, deadline_s: Some(2.5) }), agents)
}

/// Agent `n` sends its `seq`-th update. What is closed by that, and the verdict.
fn deliver(world: &mut World, n: u8, seq: u64, lease: &Lease) -> (Option<Close>, Verdict) {
    let commands = world.receive(n, &world.meta(n, seq, lease), [1.0; 4]);
    let closed = closed(&commands);
    world.journal();
    let Some(verdict) = world.last_verdict() else { panic!("no verdict for agent {n}") };
    (closed, verdict)
}

fn closed(commands: &[Command]) -> Option<Close> {
    World::appended(commands).iter().find_map(|record| match &record.body {
        RecordBody::Closed(close) => Some(*close),
        _ => None,
    })
}

fn tick(world: &mut World) -> Option<Close> {
    let commands = world.handle(Event::Tick);
    let closed = closed(&commands);
    world.publish_if_asked();
    world.journal();
    closed
}

fn close(version: u64, contributions: u32, why: CloseReason) -> Option<Close> {
    Some(Close { version: ModelVersion(version), contributions, why, is_base: true })
}

const STALE: Verdict = Verdict::Refused { reason: RefusalReason::Stale };

#[test]
fn a_round_closes_with_its_last_update_and_those_who_wait_are_granted_the_next() {
    let mut world = waiting(3);
    let leases = [1, 2, 3].map(|n| world.lease(n));
    assert!(leases.iter().all(|lease| lease.base_version == ModelVersion(0)));
    let (closed, verdict) = deliver(&mut world, 1, 0, &leases[0]);
    assert!(closed.is_none() && matches!(verdict, Verdict::Accepted { version: ModelVersion(0), .. }), "{verdict:?}");
    assert_eq!(world.ask(1), None, "it has delivered, and waits");
    assert_eq!(deliver(&mut world, 3, 0, &leases[2]).0, None);
    assert_eq!(world.ask(3), None);
    world.advance_ms(1_000_000 - 1);
    let sent = world.messages();
    assert_eq!(deliver(&mut world, 2, 0, &leases[1]).0, close(1, 3, CloseReason::Complete));
    world.publish_if_asked();
    world.journal();
    let next = [1, 3].map(|n| world.leased_since(sent, n).map(|lease| lease.base_version));
    assert_eq!(next, [Some(ModelVersion(1)); 2], "their requests had waited");
    assert_eq!(world.replayed(), *world.state(), "the records say it all");
}

/// Agent `n` sends its first update. Returns what it weighs in the mean, and how many examples are credited to it.
fn weighed(world: &mut World, n: u8, lease: &Lease) -> Option<(u64, u64)> {
    let commands = world.receive(n, &world.meta(n, 0, lease), [1.0; 4]);
    World::appended(&commands).iter().find_map(|record| match &record.body {
        RecordBody::Contribution(update) => Some((update.mean_weight, update.credited_examples)),
        _ => None,
    })
}

#[test]
fn a_mean_weighs_by_examples_held() {
    let mut world = waiting(2);
    let lease = world.lease(2);
    assert_eq!(weighed(&mut world, 2, &lease), Some((200, 32)), "agent 2 holds 200 examples, and has trained on 32");
}

#[test]
fn a_claim_of_examples_counts_up_to_a_multiple_of_the_median() {
    for (max_influence, counted) in [(1.5, 1_600), (0.0, 9_000)] {
        let admit = AdmitSpec { max_influence, max_examples: 1_000_000, ..spec().admit };
        let mut world = World::started_with(RunSpec { admit, ..fedavg(Barrier::default()) }, 2);
        world.connect_with(3, 9_000, 0);
        world.journal();
        let leases = [1, 2, 3].map(|n| (n, world.lease(n)));
        let weights = leases.map(|(n, lease)| weighed(&mut world, n, &lease).map(|(examples, _)| examples));
        assert_eq!(weights, [Some(100), Some(200), Some(counted)]);
    }
}

#[test]
fn the_deadline_closes_with_a_quorum_and_what_comes_late_is_stale() {
    let mut world = hurried(3, 0.5);
    let leases = [1, 2, 3].map(|n| world.lease(n));
    assert_eq!(deliver(&mut world, 1, 0, &leases[0]).0, None);
    world.advance_ms(2_499);
    assert_eq!(tick(&mut world), None);
    world.advance_ms(1);
    assert_eq!(tick(&mut world), None, "one of three is no half");
    world.advance_ms(10_000);
    assert_eq!(deliver(&mut world, 2, 0, &leases[1]).0, close(1, 2, CloseReason::Deadline));
    assert_eq!(deliver(&mut world, 3, 0, &leases[2]), (None, STALE));
    assert!(RefusalReason::Stale.content_returns(), "the agent adds it to its next update");
    assert_eq!(world.state().round.contributions, 0);
}

#[test]
fn a_late_agent_counts_for_the_quorum_and_holds_no_round() {
    let mut world = hurried(2, 0.5);
    let [quick, slow] = [1, 2].map(|n| world.lease(n));
    deliver(&mut world, 1, 0, &quick);
    world.advance_ms(2_500);
    assert_eq!(tick(&mut world), close(1, 1, CloseReason::Deadline));
    world.advance_ms(30_000);
    let again = world.lease(1);
    assert_eq!(again.base_version, ModelVersion(1));
    // Agent 2 is at work on version 0 still. The round of version 1 has one agent, and is complete without it.
    assert_eq!(deliver(&mut world, 1, 1, &again).0, close(2, 1, CloseReason::Complete));
    assert_eq!(deliver(&mut world, 2, 0, &slow), (None, STALE));
    let mut world = hurried(2, 1.0);
    let [quick, _] = [1, 2].map(|n| world.lease(n));
    deliver(&mut world, 1, 0, &quick);
    world.advance_ms(5_000);
    assert_eq!(tick(&mut world), None, "a quorum of all waits for all");
}

#[test]
fn leases_that_are_lost_hold_no_round() {
    let mut world = waiting(3);
    let leases = [1, 2, 3].map(|n| world.lease(n));
    deliver(&mut world, 1, 0, &leases[0]);
    let back = AgentMessage::ReturnLease { lease: leases[1].id, why: LeaseEnd::Returned };
    assert_eq!(closed(&world.message(2, back)), None, "agent 3 is at work");
    world.advance_ms(LEASE_TTL_MS);
    assert_eq!(tick(&mut world), None);
    world.advance_ms(1);
    assert_eq!(tick(&mut world), close(1, 1, CloseReason::Complete), "its lease has expired");
    assert_eq!(deliver(&mut world, 3, 0, &leases[2]), (None, STALE));
}

#[test]
fn a_round_takes_one_update_of_each_agent() {
    let mut world = waiting(2);
    let [first, _other] = [1, 2].map(|n| world.lease(n));
    // It asks again, as after a crash, and both updates arrive.
    let second = world.lease(1);
    assert_eq!(second.base_version, first.base_version);
    assert!(matches!(deliver(&mut world, 1, 0, &first).1, Verdict::Accepted { .. }));
    assert_eq!(deliver(&mut world, 1, 1, &second), (None, STALE));
    assert_eq!(world.state().round.contributions, 1);
}

#[test]
fn agents_that_have_the_next_request_on_its_way_are_waited_for() {
    let mut world = waiting(2);
    let leases = [1, 2].map(|n| world.lease(n));
    deliver(&mut world, 1, 0, &leases[0]);
    assert_eq!(deliver(&mut world, 2, 0, &leases[1]).0, close(1, 2, CloseReason::Complete));
    let quick = world.lease(1);
    assert_eq!(deliver(&mut world, 1, 1, &quick).0, None, "agent 2 has not asked yet");
    world.advance_ms(limits::ROUND_REJOIN_MS - 1);
    assert_eq!(tick(&mut world), None);
    world.advance_ms(1);
    assert_eq!(tick(&mut world), close(2, 1, CloseReason::Complete));
    let quick = world.lease(1);
    assert_eq!(
        deliver(&mut world, 1, 2, &quick).0,
        close(3, 1, CloseReason::Complete),
        "it was not in the round before"
    );
    let mut gone = waiting(2);
    let leases = [1, 2].map(|n| gone.lease(n));
    (1..).zip(&leases).for_each(|(n, lease)| _ = deliver(&mut gone, n, 0, lease));
    gone.handle(Event::Disconnected { peer: PeerId(2) });
    let quick = gone.lease(1);
    assert_eq!(deliver(&mut gone, 1, 1, &quick).0, close(2, 1, CloseReason::Complete), "nobody waits for the gone");
}

#[test]
fn a_deferred_request_is_confirmed_now_and_then() {
    let mut world = waiting(2);
    let leases = [1, 2].map(|n| world.lease(n));
    deliver(&mut world, 1, 0, &leases[0]);
    world.ask(1);
    let mut told = 0;
    for _ in 0..30 {
        world.advance_ms(1_000);
        tick(&mut world);
        told += usize::from(matches!(world.last_sent(), Some((PeerId(1), CoordinatorMessage::LeaseDeferred))));
    }
    assert!(told >= 3, "told {told} times");
    let expected = 30_000 / usize::try_from(limits::LEASE_DEFERRED_MS).expect("small");
    assert_eq!(world.deferrals(), expected);
}

#[test]
fn a_round_that_has_lasted_for_the_life_of_a_lease_takes_no_new_ones() {
    let mut world = waiting(4);
    let leases = [1, 2].map(|n| world.lease(n));
    deliver(&mut world, 1, 0, &leases[0]);
    world.advance_ms(LEASE_TTL_MS - 1);
    let joins = world.lease(3);
    world.advance_ms(1);
    assert_eq!(world.ask(4), None, "it could hold the round for another life of a lease");
    world.advance_ms(1);
    assert_eq!(tick(&mut world), None, "agent 3 is at work");
    let sent = world.messages();
    assert_eq!(deliver(&mut world, 3, 0, &joins).0, close(1, 2, CloseReason::Complete));
    world.publish_if_asked();
    world.journal();
    assert!(world.leased_since(sent, 4).is_some(), "its request has waited");
}

#[test]
fn a_restart_knows_who_has_delivered_and_begins_the_deadline_anew() {
    let mut world = hurried(2, 0.5);
    let [first, second] = [1, 2].map(|n| world.lease(n));
    deliver(&mut world, 1, 0, &first);
    world.advance_ms(2_400);
    let mut world = world.checkpointed().restarted();
    (1..=2).for_each(|n| _ = world.connect(PeerId(u64::from(n)), n));
    assert_eq!(world.ask(1), None, "it has delivered");
    world.advance_ms(2_499);
    assert_eq!(tick(&mut world), None, "2.5 s count from the start");
    world.advance_ms(1);
    assert_eq!(tick(&mut world), close(1, 1, CloseReason::Deadline));
    assert_eq!(deliver(&mut world, 2, 0, &second), (None, STALE));
}

#[test]
fn a_version_that_was_overtaken_while_it_was_made_ready_is_not_leased() {
    let mut world = waiting(2);
    let lease = world.lease(1);
    let mut world = world.restarted();
    (1..=2).for_each(|n| _ = world.connect(PeerId(u64::from(n)), n));
    // The new process makes version 0 ready once more, and meanwhile the round of version 0 closes.
    world.message(2, AgentMessage::RequestLease);
    let commands = world.receive(1, &world.meta(1, 0, &lease), [1.0; 4]);
    assert_eq!(closed(&commands), close(1, 1, CloseReason::Complete));
    let sent = world.messages();
    world.published_as(ModelVersion(0));
    world.journal();
    assert_eq!(world.leased_since(sent, 2), None, "nothing could come of it");
    world.publish_if_asked();
    world.journal();
    assert_eq!(world.leased_since(sent, 2).map(|lease| lease.base_version), Some(ModelVersion(1)));
}

/// The rest of the rules close as before: no barrier is in their way.
#[test]
fn without_a_barrier_nobody_waits() {
    let mut world = World::started(2);
    let lease = world.lease(1);
    assert!(deliver(&mut world, 1, 0, &lease).0.is_some());
    assert_eq!(world.lease(1).base_version, ModelVersion(1));
}
