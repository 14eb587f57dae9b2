//! Pods: whom an owner gets, what happens when a member fails, and that a lease is the same one through all attempts.

use std::collections::BTreeMap;

use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::journal::{Lease, LeaseEnd, RecordBody};
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::barrier::Barrier;
use anabranch_common::pod::{PodMark, PodOffer, PodPart, PodPeer, PodProblem, PodRound};
use anabranch_common::spec::{Activations, Labels, ModelKind, ModelSpec, PodKind, PodSpec, RunSpec, ScheduleKind};
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage};
use anabranch_common::wire::operator::RunRequest;
use proptest::prelude::*;

use super::world::{LEASE_TTL_MS, World, agent, breaks_the_protocol, hello, spec};
use crate::core::command::Command;
use crate::core::event::{Event, PeerId, RequestId};

/// Layers of the model.
const LAYERS: u32 = 6;

/// A run of pods of `stages` members.
pub(super) fn pods(stages: u32, labels: Labels) -> RunSpec {
    let model = ModelSpec {
        kind: ModelKind::Mlp,
        input: vec![2],
        classes: 2,
        hidden: vec![4; LAYERS as usize - 1],
        ..ModelSpec::default()
    };
    let pod = PodSpec {
        kind: PodKind::Stages,
        stages,
        schedule: ScheduleKind::Flush,
        weights: None,
        micro_batches: Some(1),
        activations: Activations::F32,
        labels,
        deadline_s: 10.0,
    };
    RunSpec { model, pod: Some(pod), ..spec() }
}

fn offer(n: u8, flops_per_s: u64) -> PodOffer {
    PodOffer { address: format!("10.0.0.{n}:7"), memory_bytes: 1 << 30, flops_per_s, at_work: None }
}

/// Agent `n` connects as peer `n`, in its process `incarnation`.
fn join(world: &mut World, n: u8, incarnation: u8, train_examples: u64, pod: PodOffer) {
    world.hello(PeerId(n.into()), n, AgentHello { train_examples, pod: Some(pod), ..hello(n, incarnation) });
    if world.has_begun() {
        world.journal();
    }
}

fn helper(world: &mut World, n: u8) {
    join(world, n, n, 0, offer(n, 1000));
}

fn owner(world: &mut World, n: u8) {
    join(world, n, n, 100, offer(n, 1000));
}

/// Agent 1 owns rounds, agents 2 to `n` help.
fn started(spec: RunSpec, n: u8) -> World {
    let mut world = World::pending(spec);
    owner(&mut world, 1);
    (2..=n).for_each(|n| helper(&mut world, n));
    world.offer_model(PeerId(1));
    world.model_received(PeerId(1));
    world.journal();
    world
}

fn leave(world: &mut World, n: u8) {
    world.handle(Event::Disconnected { peer: PeerId(n.into()) });
    world.journal();
}

fn tick(world: &mut World, ms: u64) {
    world.advance_ms(ms);
    world.handle(Event::Tick);
    world.publish_if_asked();
    world.journal();
}

fn end(world: &mut World, n: u8, mark: PodMark, problem: Option<PodProblem>) -> Vec<Command> {
    let commands = world.message(n, AgentMessage::PodEnded { mark, problem });
    world.journal();
    commands
}

fn problem(member: Option<u8>) -> Option<PodProblem> {
    Some(PodProblem { member: member.map(agent), reason: "the link was lost".into() })
}

/// The rounds that agent `n` was told of since so many messages were sent.
fn told(world: &World, sent: usize, n: u8) -> Vec<PodRound> {
    let to_it = world.sent_since(sent).iter().filter(|(peer, _)| *peer == PeerId(n.into()));
    to_it
        .filter_map(|(_, message)| match message {
            CoordinatorMessage::Pod(round) => Some((**round).clone()),
            _ => None,
        })
        .collect()
}

/// Who was told since so many messages were sent that which attempt is over.
fn over(world: &World, sent: usize) -> Vec<(u64, PodMark)> {
    let over = world.sent_since(sent).iter().filter_map(|(peer, message)| match message {
        CoordinatorMessage::PodOver { mark } => Some((peer.0, *mark)),
        _ => None,
    });
    over.collect()
}

fn mark(lease: &Lease, attempt: u32) -> PodMark {
    PodMark { lease: lease.id, attempt }
}

fn members(round: &PodRound) -> Vec<AgentId> {
    round.members()
}

/// Agent 1's lease with the first attempt at it.
fn begun(world: &mut World) -> (Lease, PodRound) {
    let sent = world.messages();
    let lease = world.lease(1);
    let rounds = told(world, sent, 1);
    let [round] = &rounds[..] else { panic!("one attempt was to begin: {rounds:?}") };
    (lease, round.clone())
}

fn records(world: &World) -> u64 {
    world.position().0
}

#[test]
fn an_owners_lease_comes_with_the_pod_that_computes_it() {
    let mut world = started(pods(3, Labels::Stay), 3);
    world.message(1, AgentMessage::RequestLease);
    let commands = world.publish_if_asked();
    let kinds: Vec<_> = World::appended(&commands).iter().map(|record| record.body.kind()).collect();
    assert_eq!(kinds, ["published", "lease_granted"], "nothing of the pod is journalled");
    let RecordBody::LeaseGranted(lease) = &World::appended(&commands)[1].body else { panic!("{commands:?}") };
    let commands = world.journal();
    let part = |end, n| PodPart { end, agent: agent(n) };
    let peer = |n| PodPeer { agent: agent(n), address: format!("10.0.0.{n}:7") };
    let round = PodRound {
        mark: mark(lease, 1),
        owner: agent(1),
        // The owner's two parts have half of its speed each.
        parts: vec![part(1, 1), part(3, 2), part(5, 3), part(6, 1)],
        peers: vec![peer(2), peer(3)],
        plan: lease.plan,
    };
    let send = |n, message| Command::Send { peer: PeerId(n), message };
    let pod = || CoordinatorMessage::Pod(Box::new(round.clone()));
    let expected = [
        send(1, CoordinatorMessage::Lease { lease: lease.clone(), evaluate: false }),
        send(1, pod()),
        send(2, pod()),
        send(3, pod()),
    ];
    assert_eq!(commands, expected);
    let status = world.status().pods.expect("the run has pods");
    assert_eq!((status.computing, status.members, status.at_work, status.free, status.problem), (1, 3, 3, 0, None));
}

#[test]
fn labels_that_travel_make_one_part_a_member() {
    let mut world = started(pods(3, Labels::Travel), 3);
    let (_, round) = begun(&mut world);
    assert_eq!((round.ends(), members(&round)), (vec![2, 4, 6], vec![agent(1), agent(2), agent(3)]));
}

#[test]
fn an_agent_that_joins_no_pods_trains_alone_and_every_agent_does_where_there_are_none() {
    let mut world = started(pods(2, Labels::Travel), 2);
    world.connect(PeerId(3), 3);
    world.journal();
    let sent = world.messages();
    world.lease(3);
    assert_eq!(told(&world, sent, 3), []);
    let (_, round) = begun(&mut world);
    assert_eq!(members(&round), [agent(1), agent(2)]);
    let mut alone = started(spec(), 2);
    let sent = alone.messages();
    alone.lease(1);
    assert_eq!((told(&alone, sent, 1), alone.status().pods), (vec![], None));
}

#[test]
fn fast_helpers_come_first_and_those_without_rounds_of_their_own() {
    let mut world = started(pods(2, Labels::Travel), 1);
    join(&mut world, 2, 2, 100, offer(2, 9000));
    for (n, speed) in [(3, 1000), (4, 2000), (5, 2000)] {
        join(&mut world, n, n, 0, offer(n, speed));
    }
    let (_, round) = begun(&mut world);
    assert_eq!(members(&round), [agent(1), agent(4)]);
    // 3 layers a second each would be even; the faster member takes more.
    assert_eq!(round.ends(), [2, 6]);
}

#[test]
fn where_the_model_does_not_fit_those_with_memory_are_taken() {
    let mut world = started(pods(3, Labels::Travel), 1);
    for (n, speed, memory_bytes) in [(2, 3000, 9 << 20), (3, 2000, 0), (4, 1000, 9 << 20)] {
        join(&mut world, n, n, 0, PodOffer { memory_bytes, ..offer(n, speed) });
    }
    let (_, round) = begun(&mut world);
    assert_eq!(members(&round), [agent(1), agent(2), agent(4)], "agent 3 is faster, and has no room");
}

#[test]
fn an_owner_waits_for_helpers_and_hears_that_its_request_stands() {
    let mut world = started(pods(3, Labels::Travel), 2);
    assert_eq!(world.ask(1), None);
    let status = world.status().pods.expect("the run has pods");
    assert_eq!((status.waiting, status.free), (1, 2));
    let why = "a pod takes 2 helpers, and 1 of the agents that join pods are free";
    assert_eq!(status.problem.as_deref(), Some(why));
    let position = records(&world);
    (0..30).for_each(|_| tick(&mut world, 1_000));
    let deferrals = 30_000 / usize::try_from(limits::LEASE_DEFERRED_MS).expect("small");
    assert_eq!((world.deferrals(), records(&world)), (deferrals, position));
    assert_eq!(world.ask(1), None, "it has asked before");
    let sent = world.messages();
    helper(&mut world, 3);
    world.publish_if_asked();
    world.journal();
    assert!(world.leased_since(sent, 1).is_some());
    assert_eq!(told(&world, sent, 3).len(), 1);
    assert_eq!(world.status().pods.map(|pods| (pods.waiting, pods.problem)), Some((0, None)));
}

#[test]
fn a_model_that_fits_nowhere_is_told() {
    let mut world = World::pending(pods(2, Labels::Stay));
    join(&mut world, 1, 1, 100, PodOffer { memory_bytes: 100, ..offer(1, 1000) });
    join(&mut world, 2, 2, 0, PodOffer { memory_bytes: 100, ..offer(2, 1000) });
    world.offer_model(PeerId(1));
    world.model_received(PeerId(1));
    world.journal();
    assert_eq!(world.ask(1), None);
    let why = world.status().pods.and_then(|pods| pods.problem).expect("a reason");
    assert!(why.starts_with("the owner of a round holds ") && why.ends_with(" and may use 100"), "{why}");
    // A larger machine takes its place.
    let sent = world.messages();
    leave(&mut world, 1);
    owner(&mut world, 1);
    assert_eq!(world.ask(1), None);
    let why = world.status().pods.and_then(|pods| pods.problem).expect("a reason");
    assert!(why.contains("in 3 stages, and no cut fits: members have "), "{why}");
    assert_eq!(told(&world, sent, 2), []);
}

#[test]
fn a_failed_attempt_begins_anew_under_the_same_lease_without_a_record() {
    let mut world = started(pods(3, Labels::Travel), 4);
    let (lease, first) = begun(&mut world);
    assert_eq!(members(&first), [agent(1), agent(2), agent(3)]);
    let (position, sent) = (records(&world), world.messages());
    end(&mut world, 3, first.mark, problem(Some(2)));
    let again = PodRound { mark: mark(&lease, 2), ..first.clone() };
    let members = [agent(1), agent(3), agent(4)];
    for n in [1, 3, 4] {
        let [round] = &told(&world, sent, n)[..] else { panic!("agent {n} was to be told once") };
        assert_eq!((round.mark, round.members(), &round.plan), (again.mark, members.to_vec(), &again.plan));
    }
    assert_eq!((told(&world, sent, 2), over(&world, sent)), (vec![], vec![(2, first.mark)]), "it is left out");
    assert_eq!((records(&world), world.lease_of(1)), (position, Some(lease.id)));
    // What the others say of the first attempt is old.
    let sent = world.messages();
    end(&mut world, 1, first.mark, problem(Some(2)));
    end(&mut world, 2, first.mark, None);
    assert_eq!(world.messages(), sent);
    assert_eq!(world.replayed(), *world.state());
}

#[test]
fn a_member_that_failed_is_taken_where_no_other_one_is_free_and_rests_for_longer_each_time() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    end(&mut world, 1, round.mark, problem(Some(2)));
    assert_eq!(told(&world, sent, 2).len(), 1, "there is no other one");
    // It rests for 1 s; of two that do not rest the first is taken.
    helper(&mut world, 3);
    tick(&mut world, 10_000);
    let sent = world.messages();
    end(&mut world, 1, mark(&lease, 2), problem(Some(2)));
    assert_eq!(told(&world, sent, 1)[0].members(), [agent(1), agent(3)], "agent 2 rests");
    tick(&mut world, 1_999);
    let sent = world.messages();
    end(&mut world, 1, mark(&lease, 3), problem(None));
    tick(&mut world, 0);
    assert_eq!(told(&world, sent, 1), [], "two attempts in a row that fail at once are followed by a pause");
    tick(&mut world, limits::POD_RETRY_MS.0);
    assert_eq!(told(&world, sent, 1)[0].members(), [agent(1), agent(2)], "its 2 s are over");
    assert_eq!(told(&world, sent, 1)[0].mark, mark(&lease, 4));
}

#[test]
fn a_member_that_is_gone_for_a_while_or_starts_again_breaks_its_attempt() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    leave(&mut world, 2);
    tick(&mut world, limits::POD_ABSENCE_MS - 1);
    join(&mut world, 2, 2, 0, PodOffer { at_work: Some(round.mark), ..offer(2, 1000) });
    tick(&mut world, limits::POD_ABSENCE_MS);
    assert_eq!((told(&world, sent, 1), over(&world, sent)), (vec![], vec![]), "it went on meanwhile");
    leave(&mut world, 2);
    tick(&mut world, limits::POD_ABSENCE_MS);
    assert_eq!(told(&world, sent, 1), [], "there is no other one");
    let status = world.status().pods.expect("the run has pods");
    assert_eq!((status.computing, status.waiting, status.problem.is_some()), (0, 1, true));
    helper(&mut world, 2);
    assert_eq!(told(&world, sent, 1).iter().map(|round| round.mark).collect::<Vec<_>>(), [mark(&lease, 2)]);
    // The new process of a helper replaces the old one's connection.
    join(&mut world, 2, 9, 0, offer(2, 1000));
    assert_eq!(told(&world, sent, 1).len(), 2);
    assert_eq!(told(&world, sent, 2).last().map(|round| round.mark), Some(mark(&lease, 3)));
    // So does one that joins no pods any more.
    world.hello(PeerId(2), 2, AgentHello { train_examples: 0, ..hello(2, 10) });
    helper(&mut world, 3);
    assert_eq!(told(&world, sent, 3).last().map(|round| round.members()), Some(vec![agent(1), agent(3)]));
}

#[test]
fn a_revoked_member_is_replaced_at_once() {
    let mut world = started(pods(2, Labels::Travel), 3);
    let (lease, round) = begun(&mut world);
    assert_eq!(members(&round), [agent(1), agent(2)]);
    let sent = world.messages();
    world.handle(Event::AgentRevoked { agent: agent(2), request: None });
    world.journal();
    let again = told(&world, sent, 3);
    assert_eq!(again.iter().map(|round| round.mark).collect::<Vec<_>>(), [mark(&lease, 2)]);
    assert_eq!(members(&again[0]), [agent(1), agent(3)]);
    assert_eq!(again[0].address_of(agent(2)), None, "the others do not let it in");
}

#[test]
fn an_owner_that_starts_again_gets_the_same_lease_with_another_attempt() {
    let mut world = started(pods(2, Labels::Stay), 2);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    join(&mut world, 1, 9, 100, offer(1, 1000));
    assert_eq!(over(&world, sent), [(2, round.mark)], "its helper need not wait for the silence");
    let position = records(&world);
    let again = world.lease(1);
    assert_eq!(again, lease, "the same id, seed, base and plan");
    assert_eq!(records(&world), position, "no record says so");
    let rounds = told(&world, sent, 1);
    assert_eq!(rounds, [PodRound { mark: mark(&lease, 2), ..round }]);
    assert_eq!(told(&world, sent, 2), rounds, "the first attempt is given up for it");
}

#[test]
fn an_owner_that_is_cut_off_is_awaited_and_one_that_forgot_its_round_asks_for_it() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    let at_work = Some(round.mark);
    leave(&mut world, 1);
    tick(&mut world, 1_000);
    let sent = world.messages();
    join(&mut world, 1, 1, 100, PodOffer { at_work, ..offer(1, 1000) });
    tick(&mut world, 10_000);
    assert_eq!((told(&world, sent, 2), over(&world, sent)), (vec![], vec![]), "it is still computed");
    leave(&mut world, 1);
    tick(&mut world, limits::POD_ABSENCE_MS);
    assert_eq!(over(&world, sent), [(2, round.mark)]);
    owner(&mut world, 1);
    end(&mut world, 2, round.mark, None);
    assert_eq!(world.lease(1), lease);
    assert_eq!(told(&world, sent, 1).last().map(|round| round.mark), Some(mark(&lease, 2)));
}

#[test]
fn a_lease_whose_base_is_out_of_reach_is_not_given_again() {
    let barrier = MergeSpec::FedAvg { server_lr: 1.0, barrier: Barrier::default() };
    let mut world = started(RunSpec { merge: barrier, ..pods(2, Labels::Travel) }, 2);
    let (lease, round) = begun(&mut world);
    world.connect(PeerId(3), 3);
    world.journal();
    let other = world.lease(3);
    // The round closes without the owner, whose lease has been returned for it to close.
    world.message(1, AgentMessage::ReturnLease { lease: lease.id, why: LeaseEnd::Returned });
    end(&mut world, 1, round.mark, None);
    end(&mut world, 2, round.mark, None);
    world.receive(3, &world.meta(3, 0, &other), [1.0; 4]);
    world.journal();
    let (next, _) = begun(&mut world);
    assert_ne!((next.id, next.base_version), (lease.id, lease.base_version));

    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    world.connect(PeerId(3), 3);
    world.journal();
    (0..4).for_each(|seq| world.make_version(3, seq));
    let sent = world.messages();
    end(&mut world, 1, round.mark, problem(Some(2)));
    assert_eq!(world.lease_of(1), None, "an update from version 0 would be stale");
    let mut told_over = over(&world, sent);
    told_over.sort_unstable();
    assert_eq!(told_over, [(1, round.mark), (2, round.mark)]);
    end(&mut world, 2, round.mark, None);
    let (next, round) = begun(&mut world);
    assert_eq!((next.base_version, round.mark), (world.state().version, mark(&next, 1)));
    assert!(next.id > lease.id);
}

#[test]
fn a_round_that_is_computed_is_not_given_again() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    end(&mut world, 2, round.mark, None);
    end(&mut world, 1, round.mark, None);
    assert_eq!(over(&world, sent), []);
    let (next, second) = begun(&mut world);
    assert_ne!(next.id, lease.id, "its update is on its way");
    // The owner's process ends after its update was stored: it is offered before the next lease is asked for.
    join(&mut world, 1, 9, 100, offer(1, 1000));
    world.offer(1, &world.meta(1, 0, &next));
    assert!(over(&world, sent).contains(&(2, second.mark)));
    end(&mut world, 2, second.mark, None);
    let (third, _) = begun(&mut world);
    assert_ne!(third.id, next.id);
}

#[test]
fn the_end_of_a_lease_frees_every_member() {
    type Ending = fn(&mut World, &Lease);
    let endings: [(&str, Ending); 4] = [
        ("returned", |world, lease| {
            world.message(1, AgentMessage::ReturnLease { lease: lease.id, why: LeaseEnd::Returned });
        }),
        ("expired", |world, _| tick(world, LEASE_TTL_MS + 1)),
        ("paused", |world, _| {
            world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Pause });
        }),
        ("stopped", |world, _| {
            world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Stop });
        }),
    ];
    for (how, ending) in endings {
        let mut world = started(pods(3, Labels::Travel), 3);
        let (lease, round) = begun(&mut world);
        let sent = world.messages();
        ending(&mut world, &lease);
        world.journal();
        let everyone = [1, 2, 3].map(|n| (n, round.mark));
        assert_eq!(over(&world, sent), everyone, "{how}");
        tick(&mut world, 1_000);
        assert_eq!(over(&world, sent).len(), 3, "{how}: once");
        (1..=3).for_each(|n| _ = end(&mut world, n, round.mark, None));
        assert_eq!(world.status().pods.map(|pods| (pods.free, pods.computing)), Some((3, 0)), "{how}");
    }
}

#[test]
fn the_verdict_on_an_update_frees_helpers_that_are_left() {
    let mut world = started(pods(3, Labels::Travel), 3);
    let (lease, round) = begun(&mut world);
    end(&mut world, 2, round.mark, None);
    let sent = world.messages();
    end(&mut world, 1, round.mark, None);
    world.receive(1, &world.meta(1, 0, &lease), [1.0; 4]);
    world.journal();
    assert_eq!(over(&world, sent), [(3, round.mark)]);
}

#[test]
fn a_paused_run_gives_the_same_lease_when_it_goes_on() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    world.handle(Event::Operator { request: RequestId(1), operation: RunRequest::Pause });
    world.journal();
    // It stops, and says so; that is no result.
    end(&mut world, 1, round.mark, None);
    end(&mut world, 2, round.mark, None);
    assert_eq!(world.ask(1), None);
    world.handle(Event::Operator { request: RequestId(2), operation: RunRequest::Resume });
    let (again, round) = begun(&mut world);
    assert_eq!((again, round.mark), (lease.clone(), mark(&lease, 2)));
}

#[test]
fn a_coordinator_that_starts_again_learns_who_is_at_work() {
    let mut world = started(pods(2, Labels::Travel), 3);
    let (lease, round) = begun(&mut world);
    let at_work = |attempt| Some(mark(&lease, attempt));
    tick(&mut world, 700);
    let mut world = world.checkpointed().restarted();
    let sent = world.messages();
    join(&mut world, 1, 1, 100, PodOffer { at_work: at_work(1), ..offer(1, 1000) });
    helper(&mut world, 3);
    join(&mut world, 2, 2, 0, PodOffer { at_work: at_work(1), ..offer(2, 1000) });
    tick(&mut world, 60);
    assert_eq!((told(&world, sent, 1), over(&world, sent)), (vec![], vec![]), "it goes on");
    let status = world.status().pods.expect("the run has pods");
    assert_eq!((status.computing, status.at_work, status.free), (1, 2, 1));
    end(&mut world, 1, round.mark, problem(Some(2)));
    let again = told(&world, sent, 1);
    assert_eq!(
        again.iter().map(|round| (round.mark, round.members())).collect::<Vec<_>>(),
        [(mark(&lease, 2), vec![agent(1), agent(3)])]
    );
    // An owner that has forgotten it, and a helper that has heard of later attempts than anybody else.
    let mut world = world.restarted();
    let sent = world.messages();
    owner(&mut world, 1);
    join(&mut world, 2, 2, 0, PodOffer { at_work: at_work(7), ..offer(2, 1000) });
    assert_eq!(over(&world, sent), [(2, mark(&lease, 7))]);
    assert_eq!(world.lease(1), lease);
    assert_eq!(told(&world, sent, 2).last().map(|round| round.mark), at_work(8));
    // Nobody says what attempts there were: seconds since the lease was granted are more than those.
    let mut world = world.restarted();
    tick(&mut world, 20_000);
    owner(&mut world, 1);
    helper(&mut world, 2);
    let sent = world.messages();
    assert_eq!(world.lease(1), lease);
    assert_eq!(told(&world, sent, 1)[0].mark, mark(&lease, 20));
}

#[test]
fn an_attempt_at_a_lease_that_is_over_ends() {
    let mut world = started(pods(2, Labels::Travel), 1);
    let sent = world.messages();
    let stale = PodMark { lease: LeaseId(77), attempt: 3 };
    join(&mut world, 2, 2, 0, PodOffer { at_work: Some(stale), ..offer(2, 1000) });
    assert_eq!(over(&world, sent), [(2, stale)]);
    assert_eq!(world.ask(1), None, "it is not free before it says so");
    assert_eq!(end(&mut world, 2, PodMark { attempt: 2, ..stale }, None), [], "that is another attempt");
    assert_eq!(world.leased_since(sent, 1), None);
    end(&mut world, 2, stale, None);
    assert!(world.leased_since(sent, 1).is_some());
}

#[test]
fn two_pods_compute_at_once_and_owners_help_each_other_in_turn() {
    let mut world = started(pods(2, Labels::Travel), 1);
    owner(&mut world, 2);
    helper(&mut world, 3);
    helper(&mut world, 4);
    let sent = world.messages();
    let leases = [1, 2].map(|n| world.lease(n));
    let rounds = [1, 2].map(|n| told(&world, sent, n).remove(0));
    assert_eq!(rounds.clone().map(|round| round.members()), [[agent(1), agent(3)], [agent(2), agent(4)]]);
    assert_eq!(rounds.map(|round| round.mark), [mark(&leases[0], 1), mark(&leases[1], 1)]);
    assert_eq!(world.status().pods.map(|pods| (pods.computing, pods.free)), Some((2, 0)));

    // Two owners alone: the second one's request stands while it helps the first.
    let mut world = started(pods(2, Labels::Travel), 1);
    owner(&mut world, 2);
    let (_, round) = begun(&mut world);
    assert_eq!(members(&round), [agent(1), agent(2)]);
    let sent = world.messages();
    assert_eq!(world.ask(2), None);
    end(&mut world, 2, round.mark, None);
    end(&mut world, 1, round.mark, None);
    assert!(world.leased_since(sent, 2).is_some(), "its request has waited");
    assert_eq!(told(&world, sent, 1)[0].members(), [agent(2), agent(1)]);
    assert_eq!(world.ask(1), None, "and now the first one's does");
}

#[test]
fn a_bad_offer_is_a_breach_of_protocol() {
    let bad = [
        PodOffer { address: String::new(), ..offer(2, 1) },
        PodOffer { address: "x".repeat(limits::POD_ADDRESS_BYTES + 1), ..offer(2, 1) },
        PodOffer { address: "host\n:1".into(), ..offer(2, 1) },
        offer(2, 0),
        PodOffer { at_work: Some(PodMark { lease: LeaseId(1), attempt: 0 }), ..offer(2, 1) },
        PodOffer { at_work: Some(PodMark { lease: LeaseId(1), attempt: u32::MAX }), ..offer(2, 1) },
    ];
    for pod in bad {
        let mut world = started(pods(2, Labels::Travel), 1);
        let hello = AgentHello { pod: Some(pod.clone()), ..hello(2, 2) };
        let commands = world.hello(PeerId(2), 2, hello);
        assert!(breaks_the_protocol(&commands), "{pod:?}: {commands:?}");
        assert_eq!(world.status().pods.map(|pods| pods.members), Some(1));
    }
}

/// What agents of the property below are at work on, as they know themselves, and whether the round is their own.
type AtWork = BTreeMap<u8, (PodMark, bool)>;

/// Carries out what was sent since: agents begin what they are told of, and give up what they are told is over. Checks every
/// round on the way.
fn hear(
    world: &World,
    sent: usize,
    at_work: &mut AtWork,
    newest: &mut BTreeMap<LeaseId, u32>,
) -> Result<(), TestCaseError> {
    let mut rounds: BTreeMap<PodMark, PodRound> = BTreeMap::new();
    for (peer, message) in world.sent_since(sent) {
        let n = u8::try_from(peer.0).expect("agents are few");
        let CoordinatorMessage::Pod(round) = message else { continue };
        let mark = round.mark;
        if let Some(known) = rounds.get(&mark) {
            prop_assert_eq!(known, &**round, "every member is told the same");
        } else {
            let attempt = newest.insert(mark.lease, mark.attempt).unwrap_or(0);
            prop_assert!(mark.attempt > attempt, "attempt {} after {}", mark.attempt, attempt);
            rounds.insert(mark, (**round).clone());
            let ends = round.ends();
            prop_assert!(ends.is_sorted_by(|before, after| before < after) && ends[0] > 0, "{ends:?}");
            prop_assert_eq!(ends.last(), Some(&(LAYERS as usize)));
            prop_assert_eq!(round.parts[0].agent, round.owner);
            prop_assert_eq!(round.members().len(), 3);
            prop_assert_eq!(world.state().holder(mark.lease), Some(round.owner));
        }
        let before = at_work.insert(n, (mark, round.owner == agent(n)));
        let same = before.is_none_or(|(before, _)| before.lease == mark.lease);
        prop_assert!(same, "agent {} left {:?} for {:?}", n, before, mark);
    }
    Ok(())
}

/// One thing that happens to agent `n` of five, of which the first two own rounds.
fn happens(world: &mut World, n: u8, what: u8, at_work: &mut AtWork, connected: &mut [bool; 6]) {
    let is_here = connected[usize::from(n)];
    let (mine, is_own) = at_work.get(&n).copied().map_or((None, false), |(mark, is_own)| (Some(mark), is_own));
    let train_examples = if n <= 2 { 100 } else { 0 };
    match (what % 12, mine) {
        (0, _) if is_here => {
            connected[usize::from(n)] = false;
            world.handle(Event::Disconnected { peer: PeerId(n.into()) });
        }
        (1, _) => {
            // A new process.
            at_work.remove(&n);
            connected[usize::from(n)] = true;
            join(world, n, what, train_examples, offer(n, 1000 + u64::from(what)));
        }
        (2 | 3, _) if !is_here => {
            connected[usize::from(n)] = true;
            join(world, n, n, train_examples, PodOffer { at_work: mine, ..offer(n, 1000) });
        }
        (4, Some(mark)) if is_here => {
            at_work.remove(&n);
            end(world, n, mark, problem(Some(1 + what % 5)));
        }
        (5 | 6, Some(mark)) if is_here => {
            at_work.remove(&n);
            end(world, n, mark, None);
        }
        // An owner asks when it computes no round of its own; its part in another one goes on meanwhile.
        (7 | 8, mine) if is_here && n <= 2 => {
            let holds = |mark: PodMark| world.state().holder(mark.lease) == Some(agent(n));
            if !is_own || !mine.is_some_and(holds) {
                if is_own {
                    at_work.remove(&n);
                }
                world.message(n, AgentMessage::RequestLease);
            }
        }
        (9, _) => world.advance_ms(u64::from(what) * 20),
        (10, Some(mark)) if is_here && is_own => {
            world.message(n, AgentMessage::ReturnLease { lease: mark.lease, why: LeaseEnd::Returned });
        }
        _ => {}
    }
    world.handle(Event::Tick);
    world.publish_if_asked();
    world.journal();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Whatever becomes of members: parts are consecutive and cover the model, attempts of a lease only get larger, and no
    /// agent is told of an attempt while its part in another round goes on.
    #[test]
    fn a_member_computes_one_round_at_a_time(steps in prop::collection::vec((1_u8..=5, any::<u8>()), 1..80)) {
        let mut world = started(pods(3, Labels::Stay), 5);
        owner(&mut world, 2);
        let (mut at_work, mut connected, mut newest) = (AtWork::new(), [true; 6], BTreeMap::new());
        for (n, what) in steps {
            let sent = world.messages();
            happens(&mut world, n, what, &mut at_work, &mut connected);
            hear(&world, sent, &mut at_work, &mut newest)?;
        }
        prop_assert_eq!(world.replayed(), world.state().clone());
    }
}
