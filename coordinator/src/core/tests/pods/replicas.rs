//! Replicas: the agents of a site that hold data compute together, and go on without those that are gone.

use anabranch_common::spec::ReplicasSpec;

use super::*;

/// A run of pods of at most `members` replicas.
fn replicas(members: u32) -> RunSpec {
    let pod = PodSpec::Replicas(ReplicasSpec { members, deadline_s: 10.0 });
    RunSpec { pod: Some(pod), ..pods(2, Labels::Travel) }
}

fn of_site(n: u8, site: &str) -> PodOffer {
    PodOffer { site: site.to_owned(), ..offer(n, 1000) }
}

/// Agent `n` of a site comes, with data.
fn replica(world: &mut World, n: u8, site: &str) {
    join(world, n, n, 100, of_site(n, site));
}

/// Agents 1 to `n` of one site, with data.
fn site(members: u32, n: u8) -> World {
    let mut world = World::pending(replicas(members));
    (1..=n).for_each(|n| replica(&mut world, n, "east"));
    world.offer_model(PeerId(1));
    world.model_received(PeerId(1));
    world.journal();
    world
}

fn problem_of(world: &World) -> Option<String> {
    world.status().pods.and_then(|pods| pods.problem)
}

#[test]
fn a_pod_is_the_agents_of_one_site_that_hold_data_each_with_the_whole_model() {
    let mut world = site(4, 2);
    replica(&mut world, 3, "west");
    join(&mut world, 4, 4, 0, of_site(4, "east"));
    let (lease, round) = begun(&mut world);
    let part = |n| PodPart { end: LAYERS, agent: agent(n) };
    assert_eq!(round.parts, [part(1), part(2)], "agent 3 is elsewhere, and agent 4 has no data");
    assert_eq!((round.mark, round.owner, members(&round)), (mark(&lease, 1), agent(1), vec![agent(1), agent(2)]));
    assert_eq!(round.address_of(agent(2)), Some("10.0.0.2:7"));
    assert_eq!(world.ask(3), None);
    let why = "no other agent of site \"west\" is connected that joins pods and has a training shard";
    assert_eq!(problem_of(&world).as_deref(), Some(why));
}

#[test]
fn no_more_than_the_configured_members_compute_and_the_fastest_do() {
    let mut world = site(3, 1);
    for (n, speed) in [(2, 1000), (3, 3000), (4, 2000)] {
        join(&mut world, n, n, 100, PodOffer { flops_per_s: speed, ..of_site(n, "east") });
    }
    let (_, round) = begun(&mut world);
    assert_eq!(members(&round), [agent(1), agent(3), agent(4)]);
}

#[test]
fn members_that_are_at_work_are_waited_for() {
    let mut world = site(3, 3);
    let (_, round) = begun(&mut world);
    assert_eq!(members(&round), [agent(1), agent(2), agent(3)]);
    replica(&mut world, 4, "east");
    assert_eq!(world.ask(4), None, "two of the other three have to be free");
    let why = "a pod takes 2 helpers, and 0 of the agents that join pods are free";
    assert_eq!(problem_of(&world).as_deref(), Some(why));
    let sent = world.messages();
    end(&mut world, 2, round.mark, None);
    assert_eq!(told(&world, sent, 4), []);
    end(&mut world, 3, round.mark, None);
    assert_eq!(told(&world, sent, 4).iter().map(members).collect::<Vec<_>>(), [[agent(4), agent(2), agent(3)]]);
}

#[test]
fn those_who_are_left_compute_the_round_again_and_who_is_back_takes_part_in_the_next_one() {
    let mut world = site(3, 3);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    // The process is killed: its neighbour notices, and the coordinator does.
    end(&mut world, 2, round.mark, problem(Some(3)));
    leave(&mut world, 3);
    let again = told(&world, sent, 1);
    let attempts: Vec<_> = again.iter().map(|round| (round.mark, members(round))).collect();
    assert_eq!(attempts, [(mark(&lease, 2), vec![agent(1), agent(2)])], "who says so is not left out");
    join(&mut world, 3, 9, 100, of_site(3, "east"));
    end(&mut world, 2, mark(&lease, 2), None);
    end(&mut world, 1, mark(&lease, 2), None);
    tick(&mut world, limits::POD_REST_MS.0);
    let sent = world.messages();
    world.lease(2);
    assert_eq!(told(&world, sent, 3).iter().map(members).collect::<Vec<_>>(), [[agent(2), agent(1), agent(3)]]);
}

#[test]
fn a_silent_member_that_is_still_connected_is_left_out_and_so_is_one_that_blames_itself() {
    for (by, over) in [(1, Some(3)), (3, Some(3)), (3, None)] {
        let mut world = site(3, 3);
        let (lease, round) = begun(&mut world);
        let sent = world.messages();
        end(&mut world, by, round.mark, problem(over));
        let again = told(&world, sent, 1);
        let attempts: Vec<_> = again.iter().map(|round| (round.mark, members(round))).collect();
        assert_eq!(attempts, [(mark(&lease, 2), vec![agent(1), agent(2)])], "{by} names {over:?}");
    }
    // Where it is the only other one it is tried again.
    let mut world = site(3, 2);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    end(&mut world, 1, round.mark, problem(Some(2)));
    assert_eq!(told(&world, sent, 2).iter().map(|round| round.mark).collect::<Vec<_>>(), [mark(&lease, 2)]);
}

#[test]
fn a_lease_goes_back_after_attempts_in_which_the_only_other_replica_blames_itself() {
    let mut world = site(3, 2);
    let sent = world.messages();
    let (lease, _) = begun(&mut world);
    for attempt in 1..=limits::POD_OWN_FAILURES {
        assert_eq!(world.lease_of(1), Some(lease.id), "before attempt {attempt} has failed");
        let newest = told(&world, sent, 1).last().expect("an attempt was to begin").mark;
        end(&mut world, 2, newest, problem(Some(2)));
        tick(&mut world, limits::POD_RETRY_MS.1);
    }
    assert_eq!(world.lease_of(1), None);
}

#[test]
fn a_replica_has_room_for_the_whole_model() {
    let small = |n| PodOffer { memory_bytes: 100, ..of_site(n, "east") };
    let mut world = site(3, 1);
    join(&mut world, 2, 2, 100, small(2));
    assert_eq!(world.ask(1), None);
    let why = problem_of(&world).expect("a reason");
    assert!(
        why.starts_with("a replica takes ") && why.ends_with("agents of site \"east\" may use 100 at most"),
        "{why}"
    );
    let sent = world.messages();
    replica(&mut world, 3, "east");
    world.publish_if_asked();
    world.journal();
    assert_eq!(told(&world, sent, 1).iter().map(members).collect::<Vec<_>>(), [[agent(1), agent(3)]]);
    // The owner of a round holds more of it.
    let mut world = site(3, 2);
    join(&mut world, 1, 8, 100, small(1));
    assert_eq!(world.ask(1), None);
    assert!(problem_of(&world).is_some_and(|why| why.starts_with("the owner of a round holds ")));
}
