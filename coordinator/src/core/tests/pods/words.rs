//! What agents say of pods, which may be wrong: it ends no lease of another agent, and no attempt that the agent is not in.

use super::*;

fn revoke(world: &mut World, n: u8) {
    world.handle(Event::AgentRevoked { agent: agent(n), request: None });
    world.journal();
}

fn claims(world: &mut World, n: u8, mark: PodMark) {
    join(world, n, n, 0, PodOffer { at_work: Some(mark), ..offer(n, 1000) });
}

#[test]
fn an_agent_ends_no_lease_and_no_attempt_of_others() {
    let mut world = started(pods(2, Labels::Travel), 3);
    world.connect(PeerId(4), 4);
    world.journal();
    let alone = world.lease(4);
    claims(&mut world, 2, mark(&alone, 1));
    end(&mut world, 2, mark(&alone, 1), problem(Some(4)));
    assert_eq!(world.lease_of(4), Some(alone.id));
    // Agent 3 is no member of the attempt that it names.
    let (lease, round) = begun(&mut world);
    assert_eq!(members(&round), [agent(1), agent(2)]);
    let sent = world.messages();
    claims(&mut world, 3, round.mark);
    assert_eq!(over(&world, sent), [(3, round.mark)]);
    end(&mut world, 3, round.mark, problem(Some(2)));
    tick(&mut world, 1_000);
    assert_eq!((told(&world, sent, 1), world.lease_of(1)), (vec![], Some(lease.id)));
    let mut plain = started(spec(), 2);
    let lease = plain.lease(1);
    let sent = plain.messages();
    claims(&mut plain, 2, mark(&lease, 1));
    assert_eq!(over(&plain, sent), [(2, mark(&lease, 1))], "a run without pods");
    end(&mut plain, 2, mark(&lease, 1), problem(Some(1)));
    assert_eq!(plain.lease_of(1), Some(lease.id));
}

#[test]
fn attempts_that_were_never_begun_are_over_and_change_no_number() {
    for attempt in [0, 1 << 20, u32::MAX] {
        let mut world = started(pods(2, Labels::Travel), 2);
        let (lease, round) = begun(&mut world);
        let sent = world.messages();
        claims(&mut world, 3, mark(&lease, attempt));
        assert_eq!(over(&world, sent), [(3, mark(&lease, attempt))]);
        end(&mut world, 1, round.mark, problem(Some(2)));
        assert_eq!(told(&world, sent, 1)[0].mark, mark(&lease, 2));
    }
}

#[test]
fn a_result_that_was_lost_with_its_process_is_computed_again() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    end(&mut world, 2, round.mark, None);
    end(&mut world, 1, round.mark, None);
    join(&mut world, 1, 9, 100, offer(1, 1000));
    let (again, second) = begun(&mut world);
    assert_eq!((again, second.mark), (lease.clone(), mark(&lease, 2)), "its outbox was empty");
}

#[test]
fn an_owner_that_is_not_back_yet_keeps_its_lease() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    tick(&mut world, 50);
    let mut world = world.restarted();
    let sent = world.messages();
    claims(&mut world, 2, round.mark);
    assert_eq!(over(&world, sent), [], "its owner may say so too");
    end(&mut world, 2, round.mark, problem(Some(1)));
    tick(&mut world, 1_000);
    assert_eq!(world.lease_of(1), Some(lease.id));
    owner(&mut world, 1);
    assert_eq!(world.lease(1), lease);
}

#[test]
fn what_a_revoked_agent_has_helped_to_compute_does_not_count() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    revoke(&mut world, 2);
    assert_eq!(over(&world, sent), [(1, round.mark)], "there is no other helper");
    end(&mut world, 1, round.mark, None);
    helper(&mut world, 3);
    let (again, second) = begun(&mut world);
    assert_eq!((again, second.mark, members(&second)), (lease.clone(), mark(&lease, 2), vec![agent(1), agent(3)]));
    // After a restart the members of an attempt are not known.
    tick(&mut world, 50);
    let mut world = world.restarted();
    join(&mut world, 1, 1, 100, PodOffer { at_work: Some(second.mark), ..offer(1, 1000) });
    let sent = world.messages();
    helper(&mut world, 4);
    revoke(&mut world, 3);
    assert_eq!(told(&world, sent, 1)[0].members(), [agent(1), agent(4)]);
}

#[test]
fn of_two_owners_without_helpers_one_helps_the_other() {
    let mut world = started(pods(2, Labels::Travel), 1);
    owner(&mut world, 2);
    helper(&mut world, 3);
    helper(&mut world, 4);
    let leases = [1, 2].map(|n| world.lease(n));
    let sent = world.messages();
    for n in [3, 4] {
        world.hello(PeerId(n), u8::try_from(n).expect("small"), hello(3, 9));
    }
    end(&mut world, 1, mark(&leases[0], 1), problem(Some(3)));
    assert_eq!(told(&world, sent, 2), [], "an owner with a round of its own is no helper");
    assert_eq!(over(&world, sent), [(2, mark(&leases[1], 1))]);
    end(&mut world, 2, mark(&leases[1], 1), None);
    tick(&mut world, limits::POD_RETRY_MS.0);
    assert_eq!(told(&world, sent, 1)[0].members(), [agent(1), agent(2)]);
    assert_eq!(world.ask(2), None);
    let attempt = told(&world, sent, 1)[0].mark;
    end(&mut world, 2, attempt, None);
    end(&mut world, 1, attempt, None);
    assert_eq!(world.lease_of(2), Some(leases[1].id), "it has the same lease");
    assert_eq!(told(&world, sent, 2).last().map(|round| round.mark), Some(mark(&leases[1], 2)));
}

#[test]
fn a_helper_that_arrives_ends_the_pause_after_failures() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, _) = begun(&mut world);
    let sent = world.messages();
    for attempt in 1..=4 {
        end(&mut world, 1, mark(&lease, attempt), problem(Some(2)));
        if attempt < 4 {
            tick(&mut world, limits::POD_RETRY_MS.1 / 2);
        }
    }
    assert_eq!(told(&world, sent, 1).last().map(|round| round.mark), Some(mark(&lease, 4)), "it pauses");
    helper(&mut world, 3);
    let last = told(&world, sent, 1).pop().expect("attempts were begun");
    assert_eq!((last.mark, last.members()), (mark(&lease, 5), vec![agent(1), agent(3)]));
}

#[test]
fn a_helper_that_misses_the_owner_begins_no_attempt() {
    let mut world = started(pods(2, Labels::Travel), 3);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    end(&mut world, 2, round.mark, problem(Some(1)));
    (0..5).for_each(|_| tick(&mut world, 400));
    assert_eq!(told(&world, sent, 1), [], "the owner says nothing");
    end(&mut world, 1, round.mark, problem(Some(2)));
    assert_eq!(told(&world, sent, 1)[0].mark, mark(&lease, 2));
    // An owner that names itself asks for its lease when it can compute.
    let sent = world.messages();
    end(&mut world, 1, mark(&lease, 2), problem(Some(1)));
    assert_eq!((told(&world, sent, 1), over(&world, sent)[0]), (vec![], (1, mark(&lease, 2))));
    end(&mut world, 1, mark(&lease, 2), None);
    assert_eq!(world.lease(1), lease);
}

#[test]
fn accuser_and_accused_rest_and_so_does_a_helper_that_dies() {
    let mut world = started(pods(3, Labels::Travel), 3);
    let (_, round) = begun(&mut world);
    helper(&mut world, 4);
    helper(&mut world, 5);
    let sent = world.messages();
    end(&mut world, 3, round.mark, problem(Some(2)));
    assert_eq!(told(&world, sent, 1)[0].members(), [agent(1), agent(4), agent(5)]);
    // A new process of a helper does not make up for the old one's end.
    let mut dying = started(pods(2, Labels::Travel), 3);
    let (_, round) = begun(&mut dying);
    assert_eq!(members(&round), [agent(1), agent(2)]);
    let sent = dying.messages();
    join(&mut dying, 2, 9, 0, offer(2, 1000));
    assert_eq!(told(&dying, sent, 1)[0].members(), [agent(1), agent(3)]);
    // A helper that says early that its part is done can still be named.
    let mut world = started(pods(2, Labels::Travel), 3);
    let (_, round) = begun(&mut world);
    end(&mut world, 2, round.mark, None);
    let sent = world.messages();
    end(&mut world, 1, round.mark, problem(Some(2)));
    assert_eq!(told(&world, sent, 1)[0].members(), [agent(1), agent(3)]);
}

#[test]
fn a_round_that_is_computed_outlives_the_time_of_its_lease() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, round) = begun(&mut world);
    let sent = world.messages();
    (0..4).for_each(|_| tick(&mut world, LEASE_TTL_MS));
    assert_eq!((over(&world, sent), world.lease_of(1)), (vec![], Some(lease.id)));
    end(&mut world, 2, round.mark, None);
    end(&mut world, 1, round.mark, None);
    world.receive(1, &world.meta(1, 0, &lease), [1.0; 4]);
    world.journal();
    assert!(matches!(world.last_verdict(), Some(Verdict::Accepted { .. })), "{:?}", world.last_verdict());
    // Where no attempt is under way, the lease is over with its time.
    let mut world = started(pods(2, Labels::Travel), 2);
    let (_, round) = begun(&mut world);
    end(&mut world, 2, round.mark, problem(Some(1)));
    tick(&mut world, LEASE_TTL_MS + 1);
    assert_eq!(world.lease_of(1), None);
}

#[test]
fn attempts_by_another_configuration_are_over() {
    let before = pods(2, Labels::Travel);
    let mut world = started(before.clone(), 2);
    let (lease, round) = begun(&mut world);
    tick(&mut world, 50);
    let mut train = before.train.clone();
    train.batch_size += 1;
    let mut world = world.restarted_with(RunSpec { train, ..before });
    let sent = world.messages();
    join(&mut world, 1, 1, 100, PodOffer { at_work: Some(round.mark), ..offer(1, 1000) });
    claims(&mut world, 2, round.mark);
    assert_eq!(over(&world, sent), [(1, round.mark), (2, round.mark)]);
    end(&mut world, 1, round.mark, None);
    end(&mut world, 2, round.mark, None);
    let (again, second) = begun(&mut world);
    assert_eq!(again.id, lease.id);
    assert_ne!(second.spec, round.spec);
}
