//! What goes wrong with members, owners and the coordinator, and how a round goes on.

use super::*;

#[test]
fn a_failed_attempt_begins_anew_under_the_same_lease_without_a_record() {
    let mut world = started(pods(3, Labels::Travel), 4);
    let (lease, first) = begun(&mut world);
    assert_eq!(members(&first), [agent(1), agent(2), agent(3)]);
    let (position, sent) = (records(&world), world.messages());
    end(&mut world, 3, first.mark, problem(Some(2)));
    let again = PodRound { mark: mark(&lease, 2), ..first.clone() };
    // Agent 3, which says so, comes after one of whom nothing is said, and before the one that it names.
    let members = [agent(1), agent(4), agent(3)];
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
    assert_eq!(told(&world, sent, 1).len(), 1, "it rests, and the second attempt in a row has failed at once");
    tick(&mut world, limits::POD_RETRY_MS.0);
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
    let endings: [(&str, Ending); 3] = [
        ("returned", |world, lease| {
            world.message(1, AgentMessage::ReturnLease { lease: lease.id, why: LeaseEnd::Returned });
        }),
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
        [(mark(&lease, limits::POD_ATTEMPTS_PER_START), vec![agent(1), agent(3)])],
        "each process has numbers of its own"
    );
    // An owner that has forgotten it, and a helper that speaks of an attempt that was never begun.
    let mut world = world.restarted();
    let sent = world.messages();
    owner(&mut world, 1);
    join(&mut world, 2, 2, 0, PodOffer { at_work: at_work(7), ..offer(2, 1000) });
    assert_eq!(over(&world, sent), [(2, mark(&lease, 7))]);
    assert_eq!(world.lease(1), lease);
    assert_eq!(told(&world, sent, 2).last().map(|round| round.mark), at_work(2 * limits::POD_ATTEMPTS_PER_START));
    // Nobody says what attempts there were.
    let mut world = world.restarted();
    owner(&mut world, 1);
    helper(&mut world, 2);
    let sent = world.messages();
    assert_eq!(world.lease(1), lease);
    assert_eq!(told(&world, sent, 1)[0].mark, mark(&lease, 3 * limits::POD_ATTEMPTS_PER_START));
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
fn a_member_that_starts_again_ends_a_long_pause_although_it_rests() {
    let mut world = started(pods(2, Labels::Travel), 2);
    let (lease, _) = begun(&mut world);
    let sent = world.messages();
    for (attempt, incarnation) in (1..=6).zip(10..) {
        let newest = told(&world, sent, 1).last().map_or(1, |round| round.mark.attempt);
        assert_eq!(newest, attempt, "lease {}", lease.id);
        join(&mut world, 2, incarnation, 0, offer(2, 1000));
        tick(&mut world, limits::POD_RETRY_MS.0);
    }
    assert_eq!(told(&world, sent, 1).last().map(|round| round.mark), Some(mark(&lease, 7)));
    // Without a new process the pause is as long as six attempts in a row have made it.
    end(&mut world, 1, mark(&lease, 7), problem(Some(2)));
    tick(&mut world, limits::POD_RETRY_MS.0);
    assert_eq!(told(&world, sent, 1).last().map(|round| round.mark), Some(mark(&lease, 7)));
}
