//! While the machine's owner needs it no work is taken on, and what was begun is finished and sent.

use super::*;

fn hold(reason: Option<&str>) -> Event {
    Event::Hold { reason: reason.map(str::to_owned) }
}

#[test]
fn an_agent_on_hold_asks_for_no_lease_until_the_reason_is_gone() {
    let mut session = Session::new(config(100, 0), Kept::default());
    session.handle(0, Event::Started);
    assert_eq!(session.handle(0, hold(Some("battery"))), []);
    session.handle(0, Event::Connected);
    session.handle(0, welcome(BRANCH, Some(digest(0)), RunPhase::Running));
    assert_eq!(session.handle(0, Event::Prepared { manifest: manifest("w") }), [], "it may not ask");
    assert_eq!(session.hold(), Some("battery"));
    assert_eq!(session.handle(1, hold(Some("load"))), [], "another reason is a reason");
    assert_eq!(session.handle(2, hold(None)), [send(AgentMessage::RequestLease)]);
    assert_eq!(session.hold(), None);
}

#[test]
fn a_round_under_way_is_finished_and_sent_while_on_hold() {
    let mut session = training();
    assert_eq!(session.handle(1, hold(Some("quiet hours"))), [], "it is not stopped");
    let lease = lease(1, 0);
    assert_eq!(session.handle(2, Event::Trained(Box::new(outcome(&lease)))), [bank(&lease, 0)]);
    let update = entry(0, &lease);
    assert_eq!(session.handle(3, Event::Banked(update.clone())), [offer(&update)]);
    let settle = Command::Settle { key: key(0), content: Settlement::Drop };
    assert_eq!(session.handle(4, decide(0, accepted())), [settle], "no lease is asked for");
    assert_eq!(session.handle(5, Event::Settled { key: key(0) }), []);
    assert_eq!(session.handle(6, hold(None)), [send(AgentMessage::RequestLease)]);
}

/// Evaluating costs the machine as much as training does: another evaluator is asked, and this one again later.
#[test]
fn an_evaluation_is_turned_down_while_on_hold() {
    let mut session = asking(config(0, 10), Kept::default());
    session.handle(1, hold(Some("load")));
    let wanted = || say(CoordinatorMessage::Evaluate { version: ModelVersion(3), digest: digest(3) });
    let reason = "takes on no work at present: load".to_owned();
    let failed = AgentMessage::EvaluationFailed { version: ModelVersion(3), reason };
    assert_eq!(session.handle(2, wanted()), [send(failed)]);
    assert_eq!(session.handle(3, hold(None)), []);
    let fetch = fetch_model(3, 3, FetchPurpose::Evaluate, None);
    assert_eq!(session.handle(4, wanted()), [send(fetch)]);
}

/// What has not begun goes back, however far it was prepared.
#[test]
fn a_round_that_has_not_begun_goes_back_while_on_hold() {
    let mut fetching = asking(config(100, 0), Kept::default());
    fetching.handle(0, grant(1, 0));
    assert_eq!(fetching.handle(1, hold(Some("load"))), [give_back(1)]);
    assert_eq!(fetching.handle(2, announce(0)), [], "it is not fetched any more");
    assert_eq!(fetching.handle(3, hold(None)), [send(AgentMessage::RequestLease)]);

    let mut requested = asking(config(100, 0), Kept::default());
    assert_eq!(requested.handle(1, hold(Some("load"))), []);
    assert_eq!(requested.handle(2, grant(1, 0)), [give_back(1)], "nothing is fetched for it");
}
