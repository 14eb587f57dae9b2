//! Behind a barrier a version gets one update of each agent: nothing overtakes an update, and a deferred request stands.

use super::forms::fetch_model;
use super::*;

/// A session that trains its first round in a run whose versions are closed behind a barrier, or not. A step takes a second,
/// and the base has taken 400 ms.
fn training_in_rounds(barrier: bool) -> Session {
    let mut session = Session::new(config(100, 0), Kept::default());
    session.handle(0, Event::Started);
    session.handle(0, Event::Connected);
    let Event::Message(CoordinatorMessage::Welcome(mut welcome)) = welcome(BRANCH, Some(digest(0)), RunPhase::Running)
    else {
        unreachable!("it is one")
    };
    welcome.spec.in_turn = barrier;
    session.handle(0, say(CoordinatorMessage::Welcome(welcome)));
    session.handle(0, Event::Prepared { manifest: manifest("w") });
    session.handle(0, grant(1, 0));
    session.handle(0, announce(0));
    session.handle(0, chunk(0));
    assert!(matches!(session.handle(400, unpacked(0))[..], [Command::Train { .. }]));
    session.handle(1_400, Event::Progress { lease: LeaseId(1), steps: 1, examples_per_s: 8.0 });
    session
}

fn asks(commands: &[Command]) -> bool {
    commands.contains(&send(AgentMessage::RequestLease))
}

#[test]
fn a_request_overtakes_neither_a_round_nor_its_update() {
    assert!(
        asks(&training_in_rounds(false).handle(5_399, Event::Tick)),
        "elsewhere the next base is fetched meanwhile"
    );
    let mut session = training_in_rounds(true);
    assert!(!asks(&session.handle(5_399, Event::Tick)), "a round is computed");
    session.handle(5_400, Event::Trained(Box::new(outcome(&lease(1, 0)))));
    assert!(!asks(&session.handle(5_500, Event::Banked(entry(0, &lease(1, 0))))), "its update has no verdict");
    let late_ms = 5_500 + limits::VERDICT_PATIENCE_MS;
    assert!(!asks(&session.handle(late_ms, Event::Tick)), "however long that takes");
    session.handle(late_ms + 1, decide(0, accepted()));
    assert!(asks(&session.handle(late_ms + 2, Event::Settled { key: key(0) })));
}

#[test]
fn a_deferred_request_keeps_the_connection() {
    let asked = || {
        let mut session = training_in_rounds(true);
        session.handle(5_400, Event::Trained(Box::new(outcome(&lease(1, 0)))));
        session.handle(5_500, Event::Banked(entry(0, &lease(1, 0))));
        session.handle(5_600, decide(0, accepted()));
        assert!(asks(&session.handle(6_000, Event::Settled { key: key(0) })));
        session
    };
    let gives_up = |commands: &[Command]| commands.iter().any(|command| matches!(command, Command::Disconnect { .. }));
    let until_ms = 6_000 + limits::REQUEST_TIMEOUT_MS;
    assert!(gives_up(&asked().handle(until_ms, Event::Tick)), "nobody answers");
    let mut session = asked();
    let mut now_ms = 6_000;
    for _ in 0..20 {
        now_ms += limits::REQUEST_TIMEOUT_MS - 1;
        assert_eq!(session.handle(now_ms, Event::Tick), []);
        assert_eq!(session.handle(now_ms, say(CoordinatorMessage::LeaseDeferred)), []);
    }
    assert_eq!(session.deadline_ms(), Some(now_ms + limits::REQUEST_TIMEOUT_MS));
    let fetch = fetch_model(1, 1, FetchPurpose::Train, Some(0));
    assert_eq!(session.handle(now_ms + 1, grant(2, 1)), [send(fetch)], "the round is closed");
    assert_eq!(session.handle(now_ms + 2, say(CoordinatorMessage::LeaseDeferred)), [], "late news changes nothing");
}
