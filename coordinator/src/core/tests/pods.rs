//! Pods: whom an owner gets, what happens when a member fails, and that a lease is the same one through all attempts.

mod faults;
mod given_up;
mod ranges;
mod replicas;
mod words;

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::journal::{Lease, LeaseEnd, RecordBody};
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::barrier::Barrier;
use anabranch_common::pod::cut::{self, Load};
use anabranch_common::pod::{PodMark, PodOffer, PodPart, PodPeer, PodProblem, PodRound, memory};
use anabranch_common::spec::{
    Activations, Labels, ModelKind, ModelSpec, PodSpec, RunSpec, ScheduleKind, StageCount, StagesSpec,
};
use anabranch_common::status::{PodMemberState, PodPartStatus, PodState, PodStatus};
use anabranch_common::update::Verdict;
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
    let pod = StagesSpec {
        stages: StageCount::Exactly(stages),
        schedule: ScheduleKind::Flush,
        weights: None,
        micro_batches: Some(1),
        activations: Activations::F32,
        labels,
        deadline_s: 10.0,
    };
    RunSpec { model, pod: Some(PodSpec::Stages(pod)), ..spec() }
}

fn offer(n: u8, flops_per_s: u64) -> PodOffer {
    let (address, site) = (format!("10.0.0.{n}:7"), String::new());
    PodOffer { address, memory_bytes: 1 << 30, flops_per_s, site, at_work: None }
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
        spec: pods(3, Labels::Stay).for_agents().digest().expect("short"),
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
    let part = |n, first, end| PodPartStatus { agent: agent(n), first, end, state: PodMemberState::Computing };
    let pod = PodStatus {
        owner: agent(1),
        lease: round.mark.lease,
        attempt: 1,
        state: PodState::Computing,
        parts: vec![part(1, 0, 1), part(2, 1, 3), part(3, 3, 5), part(1, 5, 6)],
        problem: None,
    };
    assert_eq!(status.pods, [pod]);
    leave(&mut world, 2);
    tick(&mut world, limits::POD_ABSENCE_MS + 1);
    let pods = world.status().pods.expect("the run has pods").pods;
    let states: Vec<_> = pods[0].parts.iter().map(|part| part.state).collect();
    let idle = PodMemberState::Idle;
    assert_eq!((pods[0].state, states), (PodState::Waiting, vec![idle, PodMemberState::Away, idle, idle]));
    assert_eq!(pods[0].problem.as_deref(), Some("a pod takes 2 helpers, and 1 of the agents that join pods are free"));
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
    for (n, speed, memory_bytes) in [(2, 3000, 17 << 20), (3, 2000, 0), (4, 1000, 17 << 20)] {
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

/// As few as the model fits, whoever is free; and never fewer than two.
#[test]
fn a_pod_of_any_size_has_as_few_members_as_the_model_fits() {
    let mut run = pods(2, Labels::Travel);
    let Some(PodSpec::Stages(stages)) = &mut run.pod else { panic!("it has pods") };
    stages.stages = StageCount::Auto;
    // What a machine takes whatever it computes is most of what this model takes.
    let layers = run.model.layers().expect("valid").expect("native");
    let load = Load::of(stages, &run.train, &run.upload);
    let whole = |members: usize, memory_bytes: u64| {
        let member = cut::Member { flops_per_s: NonZeroU64::MIN, memory_bytes };
        cut::cut(&cut::table(&layers), &vec![member; members], &load).is_ok()
    };
    let fits_three = (load.fixed_bytes..load.fixed_bytes + (1 << 20))
        .step_by(16)
        .find(|bytes| whole(3, *bytes))
        .expect("some memory is enough");
    assert!(!whole(2, fits_three), "two members have not enough of it");
    let small = |n| PodOffer { memory_bytes: fits_three, ..offer(n, 1000) };
    let mut world = World::pending(run.clone());
    join(&mut world, 1, 1, 100, offer(1, 1000));
    world.offer_model(PeerId(1));
    world.model_received(PeerId(1));
    world.journal();
    assert_eq!(world.ask(1), None);
    let problem = |world: &World| world.status().pods.and_then(|pods| pods.problem);
    let alone = "a pod takes 1 helpers, and 0 of the agents that join pods are free";
    assert_eq!(problem(&world).as_deref(), Some(alone));
    let sent = world.messages();
    helper(&mut world, 2);
    world.publish_if_asked();
    world.journal();
    assert!(world.leased_since(sent, 1).is_some());
    assert_eq!(told(&world, sent, 1)[0].members(), [agent(1), agent(2)], "two are enough");
    assert_eq!(world.status().pods.and_then(|pods| pods.sizes), Some([2, 2]));

    // Machines that are too small for half of the model.
    let mut world = World::pending(run);
    let owner_bytes = memory::owner_bytes(layers.manifest.params() as u64);
    join(&mut world, 1, 1, 100, PodOffer { memory_bytes: owner_bytes + fits_three, ..offer(1, 1000) });
    join(&mut world, 2, 2, 0, small(2));
    world.offer_model(PeerId(1));
    world.model_received(PeerId(1));
    world.journal();
    assert_eq!(world.ask(1), None);
    assert!(problem(&world).is_some_and(|why| why.contains("in 2 stages, and no cut fits")), "{:?}", problem(&world));
    let sent = world.messages();
    join(&mut world, 3, 3, 0, small(3));
    join(&mut world, 4, 4, 0, small(4));
    world.publish_if_asked();
    world.journal();
    assert!(world.leased_since(sent, 1).is_some());
    assert_eq!(told(&world, sent, 1)[0].members().len(), 3, "one more is needed, and the fourth is not");
    assert_eq!(world.status().pods.map(|pods| (pods.sizes, pods.free)), Some((Some([3, 3]), 1)));
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
        PodOffer { site: "x".repeat(limits::POD_SITE_BYTES + 1), ..offer(2, 1) },
        PodOffer { site: "east\n".into(), ..offer(2, 1) },
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
