//! Rounds that members cannot compute: the lease goes back after a number of attempts, and its owner rests.

use super::*;

/// The attempt that agent 1 was told of last since so many messages were sent.
fn latest(world: &World, sent: usize) -> PodMark {
    told(world, sent, 1).last().expect("an attempt was to begin").mark
}

/// Agent `n` says so often that it cannot compute its part of the newest attempt, which agent 1 was told of after `sent`.
fn fails(world: &mut World, sent: usize, n: u8, times: u32) {
    for _ in 0..times {
        let mark = latest(world, sent);
        end(world, n, mark, problem(None));
        tick(world, limits::POD_RETRY_MS.1);
    }
}

/// How the lease has ended, if it has.
fn ended(world: &World, lease: &Lease) -> Option<LeaseEnd> {
    world.records().iter().find_map(|record| match record.body {
        RecordBody::LeaseEnded { lease: id, why } if id == lease.id => Some(why),
        _ => None,
    })
}

#[test]
fn a_lease_goes_back_after_attempts_that_a_member_could_not_compute_and_its_owner_rests() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let sent = world.messages();
    let (lease, _) = begun(&mut world);
    fails(&mut world, sent, 2, limits::POD_OWN_FAILURES - 1);
    assert_eq!((world.lease_of(1), ended(&world, &lease)), (Some(lease.id), None));
    let last = latest(&world, sent);
    end(&mut world, 2, last, problem(None));
    assert_eq!((world.lease_of(1), ended(&world, &lease)), (None, Some(LeaseEnd::Returned)), "at once");
    assert!(over(&world, sent).contains(&(1, last)));
    end(&mut world, 1, last, None);
    assert_eq!(world.ask(1), None, "it rests");
    let status = world.status().pods.expect("the run has pods");
    let why = status.problem.expect("it says why");
    assert!(
        why.contains("8 attempts") && why.contains("the link was lost") && why.contains("start the agent again"),
        "{why}"
    );
    tick(&mut world, limits::POD_OWNER_REST_MS.0 - 1);
    assert_eq!(world.lease_of(1), None);
    let sent = world.messages();
    tick(&mut world, 1);
    let next = world.leased_since(sent, 1).expect("its rest is over");
    // The next rest is twice as long, unless an agent's new process joins.
    fails(&mut world, sent, 2, limits::POD_OWN_FAILURES);
    let last = latest(&world, sent);
    assert_eq!(ended(&world, &next), Some(LeaseEnd::Returned));
    end(&mut world, 1, last, None);
    assert_eq!(world.ask(1), None);
    tick(&mut world, limits::POD_OWNER_REST_MS.0);
    assert_eq!(world.lease_of(1), None);
    let sent = world.messages();
    join(&mut world, 2, 9, 0, offer(2, 1000));
    world.publish_if_asked();
    world.journal();
    assert!(world.leased_since(sent, 1).is_some(), "the helper has another trainer");
    assert_eq!(world.replayed(), *world.state());
}

#[test]
fn a_round_that_is_computed_ends_the_count_of_rests() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let give_up = |world: &mut World, sent: usize| {
        fails(world, sent, 2, limits::POD_OWN_FAILURES);
        let last = latest(world, sent);
        end(world, 1, last, None);
        assert_eq!(world.ask(1), None);
        let sent = world.messages();
        tick(world, limits::POD_OWNER_REST_MS.0);
        assert!(world.leased_since(sent, 1).is_some(), "the first rest");
        sent
    };
    let sent = world.messages();
    begun(&mut world);
    let sent = give_up(&mut world, sent);
    let mark = latest(&world, sent);
    end(&mut world, 2, mark, None);
    end(&mut world, 1, mark, None);
    let sent = world.messages();
    begun(&mut world);
    give_up(&mut world, sent);
}

/// A neighbour may say first that it lost the link to the member that fails.
#[test]
fn a_member_says_that_it_failed_after_the_next_attempt_has_begun() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let sent = world.messages();
    let (lease, _) = begun(&mut world);
    for _ in 0..limits::POD_OWN_FAILURES {
        let mark = latest(&world, sent);
        end(&mut world, 1, mark, problem(Some(2)));
        tick(&mut world, limits::POD_RETRY_MS.1);
        assert_ne!(latest(&world, sent), mark);
        end(&mut world, 2, mark, problem(None));
        // Each attempt counts once.
        end(&mut world, 2, mark, problem(None));
    }
    assert_eq!(ended(&world, &lease), None, "an attempt is under way");
    let mark = latest(&world, sent);
    end(&mut world, 1, mark, problem(Some(2)));
    assert_eq!(ended(&world, &lease), Some(LeaseEnd::Returned));
}

#[test]
fn members_that_are_lost_and_agents_that_are_no_members_end_no_lease() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let sent = world.messages();
    let (lease, _) = begun(&mut world);
    helper(&mut world, 3);
    for _ in 0..3 * limits::POD_OWN_FAILURES {
        let round = told(&world, sent, 1).pop().expect("an attempt was to begin");
        let other = if round.members().contains(&agent(2)) { 3 } else { 2 };
        end(&mut world, other, round.mark, problem(None));
        end(&mut world, 1, round.mark, problem(Some(5 - other)));
        tick(&mut world, limits::POD_RETRY_MS.1);
    }
    assert_eq!(world.lease_of(1), Some(lease.id));
}

/// An owner that forgot the round asks for its lease.
#[test]
fn a_lease_that_was_given_up_is_not_given_again() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let sent = world.messages();
    let (lease, _) = begun(&mut world);
    fails(&mut world, sent, 2, limits::POD_OWN_FAILURES - 1);
    let last = latest(&world, sent);
    // The owner is gone, and then the helper fails once more.
    world.message(1, AgentMessage::PodEnded { mark: last, problem: problem(Some(1)) });
    world.message(2, AgentMessage::PodEnded { mark: last, problem: problem(None) });
    world.journal();
    assert_eq!(world.ask(1), None, "it rests");
    let sent = world.messages();
    tick(&mut world, limits::POD_OWNER_REST_MS.0);
    assert!(world.leased_since(sent, 1).is_some_and(|next| next.id != lease.id));
    assert_eq!(ended(&world, &lease), Some(LeaseEnd::Returned));
}
