//! The next round is made ready while the present one is computed, and begins where that one ends.

use super::*;
use crate::session::command::Lead;

/// When the round of [`slow_link`] began.
const BEGAN_MS: u64 = 400;
/// When it asks for the next lease: 5 s after it began, less the 400 ms that the base took to come, and a quarter more.
const ASKS_MS: u64 = BEGAN_MS + 5_000 - 501;

/// The request of an agent that holds the version before.
fn fetch(version: u64) -> Command {
    send(fetch_model(version, version, FetchPurpose::Train, version.checked_sub(1)))
}

fn fetch_to_evaluate(version: u64) -> Command {
    send(fetch_model(version, version, FetchPurpose::Evaluate, None))
}

/// A round on a base that was obtained while the one before ran. All updates so far were merged with weight `weight`.
fn train_ahead(lease: &Lease, weight: f32) -> Command {
    let Command::Train { lease, spec, base, .. } = train(lease) else { unreachable!("it is one") };
    let lead = Some(Lead { delta: Arc::from([0.5, 0.5]), weight });
    Command::Train { lease, spec, base, lead, pod: None }
}

/// The weight in the plan of every lease: that of an update that is not stale.
const ALPHA: f32 = 0.6;

fn trained(lease: &Lease) -> Event {
    Event::Trained(Box::new(outcome(lease)))
}

/// A session that has waited 400 ms for its base, and trains its first round at a second a step.
fn slow_link(config: SessionConfig) -> Session {
    let mut session = asking(config, Kept::default());
    session.handle(0, grant(1, 0));
    session.handle(0, announce(0));
    session.handle(0, chunk(0));
    assert_eq!(session.handle(BEGAN_MS, unpacked(0)), [train(&lease(1, 0))]);
    let progress = Event::Progress { lease: LeaseId(1), steps: 1, examples_per_s: 8.0 };
    assert_eq!(session.handle(BEGAN_MS + 1_000, progress).len(), 1, "it is told on");
    session
}

/// ... and has asked for the next lease.
fn asked(config: SessionConfig) -> Session {
    let mut session = slow_link(config);
    assert_eq!(session.deadline_ms(), Some(ASKS_MS));
    assert_eq!(session.handle(ASKS_MS - 1, Event::Tick), []);
    assert_eq!(session.handle(ASKS_MS, Event::Tick), [send(AgentMessage::RequestLease)]);
    session
}

/// ... and is fetching its base.
fn fetching() -> Session {
    let mut session = asked(config(100, 10));
    assert_eq!(session.handle(5_000, grant(2, 1)), [fetch(1)]);
    session.handle(5_000, announce(1));
    let unpack = Command::Unpack { version: ModelVersion(1), digest: digest(1), onto: None, encoded: encoded(1) };
    assert_eq!(session.handle(5_100, chunk(1)), [unpack]);
    session
}

/// ... and has it.
fn ready() -> Session {
    let mut session = fetching();
    assert_eq!(session.handle(5_200, unpacked(1)), [], "a round is running");
    session
}

#[test]
fn the_next_round_begins_where_the_last_one_ends() {
    let mut session = ready();
    let commands =
        session.handle(5_400, Event::Trained(Box::new(Outcome { compute_ms: 5_000, ..outcome(&lease(1, 0)) })));
    assert!(
        matches!(&commands[..], [Command::Bank(_), next] if *next == train_ahead(&lease(2, 1), ALPHA)),
        "{commands:?}"
    );
    let update = entry(0, &lease(1, 0));
    assert_eq!(session.handle(5_420, Event::Banked(update.clone())), [offer(&update)], "beside the training");
    let settle = Command::Settle { key: key(0), content: Settlement::Drop };
    assert_eq!(session.handle(5_900, decide(0, accepted())), [settle]);
    session.handle(5_900, Event::Settled { key: key(0) });
    // 5 s, less the 301 ms that the second base took, and a quarter more.
    assert_eq!(session.deadline_ms(), Some(5_400 + 5_000 - 377));
    assert_eq!(session.handle(5_400 + 5_000 - 377, Event::Tick), [send(AgentMessage::RequestLease)]);
    assert_eq!(session.waits().waiting_ms, 0);
}

/// The base has nothing of the round that ran meanwhile: without its delta the next round would do the same work again.
#[test]
fn a_round_on_a_base_from_before_the_last_delta_starts_ahead_of_it() {
    let lead = Lead { delta: Arc::from([0.5, -2.0]), weight: 0.25 };
    assert_eq!(lead.from(&[1.0, 1.0]), [1.125, 0.5]);

    let mut session = ready();
    let commands = session.handle(5_400, trained(&lease(1, 0)));
    // That round took 20 ms by its own account: the next one is soon over.
    assert_eq!(commands[1..], [train_ahead(&lease(2, 1), ALPHA), send(AgentMessage::RequestLease)]);
    session.handle(5_420, grant(3, 1));
    session.handle(5_430, Event::Banked(entry(0, &lease(1, 0))));
    let merged = Verdict::Accepted { position: Position(3), version: ModelVersion(2), weight: 0.125, staleness: 1 };
    session.handle(5_440, decide(0, merged));
    let commands = session.handle(5_500, trained(&lease(2, 1)));
    let began = [train_ahead(&lease(3, 1), 0.125), send(AgentMessage::RequestLease)];
    assert_eq!(commands[1..], began, "as the last one was weighted");

    // A lease that was asked for after the round has the delta in its base, or is about to.
    let mut in_turn = training();
    in_turn.handle(10, trained(&lease(1, 0)));
    in_turn.handle(10, Event::Banked(entry(0, &lease(1, 0))));
    in_turn.handle(20, decide(0, accepted()));
    assert_eq!(in_turn.handle(30, grant(2, 0)), [train(&lease(2, 0))]);
}

#[test]
fn what_has_not_come_when_the_round_ends_is_waited_for() {
    let mut while_fetching = fetching();
    assert_eq!(while_fetching.handle(5_400, trained(&lease(1, 0))), [bank(&lease(1, 0), 0)]);
    assert_eq!(while_fetching.handle(5_450, Event::Banked(entry(0, &lease(1, 0)))).len(), 1, "an offer");
    // No verdict is waited for; and the last round took 20 ms by its own account, so that this one is soon over.
    let commands = [train_ahead(&lease(2, 1), ALPHA), send(AgentMessage::RequestLease)];
    assert_eq!(while_fetching.handle(5_500, unpacked(1)), commands);
    assert_eq!(while_fetching.waits(), super::super::Waits { busy_ms: 5_000, waiting_ms: 100 });

    let mut while_asking = asked(config(100, 10));
    assert_eq!(while_asking.handle(5_400, trained(&lease(1, 0))), [bank(&lease(1, 0), 0)]);
    assert_eq!(while_asking.handle(5_500, grant(2, 1)), [fetch(1)]);
}

/// Two deltas wait for a slow disk: each has its number, and a third round does not begin.
#[test]
fn a_slow_store_holds_up_the_round_after_the_next() {
    let mut session = ready();
    let commands = session.handle(5_400, trained(&lease(1, 0)));
    assert_eq!(commands.last(), Some(&send(AgentMessage::RequestLease)), "the next round is soon over");
    session.handle(5_420, grant(3, 1));
    assert_eq!(session.handle(5_500, trained(&lease(2, 1))), [bank(&lease(2, 1), 1)]);
    let update = entry(0, &lease(1, 0));
    assert_eq!(
        session.handle(5_600, Event::Banked(update.clone())),
        [offer(&update), train_ahead(&lease(3, 1), ALPHA)],
        "two updates are on their way out"
    );
    let transfer = update.transfer.id();
    session.handle(5_610, say(CoordinatorMessage::NeedChunks { transfer, missing: Missing::all(1) }));
    assert_eq!(session.handle(5_620, Event::ChunksSent { transfer }), [send(AgentMessage::RequestLease)]);
}

#[test]
fn a_lease_for_later_goes_back_where_nothing_comes_of_it() {
    let mut held = ready();
    held.handle(5_300, Event::Hold { reason: Some("battery".into()) });
    assert_eq!(held.handle(5_400, trained(&lease(1, 0))), [bank(&lease(1, 0), 0), give_back(2)]);

    let mut stopped = ready();
    assert_eq!(stopped.handle(5_300, Event::Shutdown), [give_back(2), Command::StopTraining]);

    let mut gone = fetching();
    let failed = Event::UnpackFailed { version: ModelVersion(1), digest: digest(1), problem: "torn".into() };
    assert_eq!(gone.handle(5_300, failed), [give_back(2)]);

    let mut gone = asked(config(100, 0));
    gone.handle(5_000, grant(2, 1));
    let said = say(CoordinatorMessage::ModelGone { version: ModelVersion(1), digest: digest(1) });
    assert_eq!(gone.handle(5_300, said), [give_back(2), send(AgentMessage::RequestLease)], "there is time for another");

    let mut paused = asked(config(100, 0));
    assert_eq!(paused.handle(5_000, say(CoordinatorMessage::NoLease { state: RunPhase::Paused })), []);
    assert_eq!(paused.handle(5_400, trained(&lease(1, 0))), [bank(&lease(1, 0), 0)]);
}

/// The request went with its connection; a fetch is taken up again on the next one.
#[test]
fn a_lost_connection_takes_the_request_and_leaves_the_rest() {
    let mut requested = asked(config(100, 0));
    reconnect(&requested.handle(5_000, lost()));
    requested.handle(5_100, Event::Connected);
    let again = requested.handle(5_200, welcome(BRANCH, Some(digest(0)), RunPhase::Running));
    assert_eq!(again, [send(AgentMessage::RequestLease)], "the round is about to end");

    let mut half = asked(config(100, 0));
    half.handle(5_000, grant(2, 1));
    reconnect(&half.handle(5_100, lost()));
    half.handle(5_100, Event::Connected);
    assert_eq!(half.handle(5_200, welcome(BRANCH, Some(digest(0)), RunPhase::Running)), [fetch(1)]);

    let mut complete = ready();
    reconnect(&complete.handle(5_300, lost()));
    let commands = complete.handle(5_400, trained(&lease(1, 0)));
    assert_eq!(commands, [bank(&lease(1, 0), 0), train_ahead(&lease(2, 1), ALPHA)], "training needs no link");
}

#[test]
fn another_branch_takes_the_next_round_too() {
    let mut session = ready();
    reconnect(&session.handle(5_250, lost()));
    session.handle(5_250, Event::Connected);
    let other = BranchId([8; 16]);
    let commands = session.handle(5_260, welcome(other, Some(digest(0)), RunPhase::Running));
    assert_eq!(commands, [Command::StopTraining, Command::AdoptBranch { branch: other }]);
    let commands = session.handle(5_270, trained(&lease(1, 0)));
    assert_eq!(commands, [send(AgentMessage::RequestLease)], "neither delta nor lease are of this branch");
}

/// The evaluation that ends a run must not wait for another round, and the round not for a second download.
#[test]
fn an_evaluation_whose_model_is_here_comes_before_a_round_that_is_ready() {
    let mut session = ready();
    let wanted = say(CoordinatorMessage::Evaluate { version: ModelVersion(3), digest: digest(3) });
    assert_eq!(session.handle(5_300, wanted), [fetch_to_evaluate(3)]);
    session.handle(5_310, announce(3));
    session.handle(5_310, chunk(3));
    assert_eq!(session.handle(5_320, unpacked(3)), [], "a round is running");
    let evaluate = Command::Evaluate { version: ModelVersion(3), content: content(3) };
    assert_eq!(session.handle(5_400, trained(&lease(1, 0))), [bank(&lease(1, 0), 0), evaluate]);
    let (version, accuracy, loss, num_examples) = (ModelVersion(3), 0.75, 0.5, 10);
    let commands = session.handle(5_430, Event::Evaluated { version, accuracy, loss, num_examples });
    let began = [train_ahead(&lease(2, 1), ALPHA), send(AgentMessage::RequestLease)];
    assert_eq!(commands[0], told(3, 10, 30));
    assert_eq!(commands[1..], began);
}

/// The link has room for one model: a base that is asked for meanwhile would have to wait.
#[test]
fn a_round_that_is_ready_does_not_wait_for_a_model_to_evaluate_and_the_lease_after_it_does() {
    let mut session = ready();
    session.handle(5_300, say(CoordinatorMessage::Evaluate { version: ModelVersion(3), digest: digest(3) }));
    let commands = session.handle(5_400, trained(&lease(1, 0)));
    assert_eq!(commands, [bank(&lease(1, 0), 0), train_ahead(&lease(2, 1), ALPHA)]);
    session.handle(5_410, announce(3));
    session.handle(5_410, chunk(3));
    assert_eq!(session.handle(5_420, unpacked(3)), [send(AgentMessage::RequestLease)]);
}

/// A round that cannot be computed is no reason to ask for leases at the speed of the link.
#[test]
fn a_round_that_failed_rests_before_the_one_that_is_ready() {
    let mut session = ready();
    let failed = Event::Discarded { lease: LeaseId(1), problem: "diverged".into() };
    assert_eq!(session.handle(5_400, failed), [give_back(1)]);
    assert_eq!(session.deadline_ms(), Some(5_400 + limits::AGENT_RETRY_MS));
    assert_eq!(session.handle(5_400 + limits::AGENT_RETRY_MS, Event::Tick), [train(&lease(2, 1))]);
}

#[test]
fn nothing_is_asked_for_early_where_that_is_switched_off_or_gains_nothing() {
    let session = slow_link(SessionConfig { overlap: false, ..config(100, 0) });
    assert_eq!(session.deadline_ms(), Some(u64::MAX));

    // The base was here at once.
    let mut session = training();
    session.handle(1_000, Event::Progress { lease: LeaseId(1), steps: 1, examples_per_s: 8.0 });
    assert_eq!(session.deadline_ms(), Some(u64::MAX));
}

/// Where the base comes makes no difference: after the round before has ended, or while it still runs.
#[test]
fn a_base_that_comes_late_waits_as_one_that_was_ready_does() {
    let mut failed = fetching();
    failed.handle(5_150, Event::Discarded { lease: LeaseId(1), problem: "diverged".into() });
    assert_eq!(failed.handle(5_200, unpacked(1)), [], "what failed rests first");
    assert_eq!(failed.deadline_ms(), Some(5_150 + limits::AGENT_RETRY_MS));
    assert_eq!(failed.handle(5_150 + limits::AGENT_RETRY_MS, Event::Tick), [train(&lease(2, 1))]);

    let mut wanted = fetching();
    wanted.handle(5_150, trained(&lease(1, 0)));
    wanted.handle(5_160, say(CoordinatorMessage::Evaluate { version: ModelVersion(3), digest: digest(3) }));
    let commands = wanted.handle(5_200, unpacked(1));
    assert_eq!(commands, [fetch_to_evaluate(3), train_ahead(&lease(2, 1), ALPHA)], "whatever is to be evaluated");
}
