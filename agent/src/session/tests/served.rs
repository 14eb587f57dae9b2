//! What is evaluated of a version is another vector than the base that agents train from. It does not take the base's place.

use super::*;

/// The content of what users are given of version 5 is that of version 90 elsewhere.
const SERVED: u64 = 90;

/// The request of an agent that holds nothing to train from.
fn fetch(content: u64) -> Command {
    let purpose = if content == SERVED { FetchPurpose::Evaluate } else { FetchPurpose::Train };
    send(fetch_model(5, content, purpose, None))
}

fn evaluate() -> Event {
    say(CoordinatorMessage::Evaluate { version: ModelVersion(5), digest: digest(SERVED) })
}

fn gone(content: u64) -> Event {
    say(CoordinatorMessage::ModelGone { version: ModelVersion(5), digest: digest(content) })
}

fn cannot(reason: &str) -> Command {
    send(AgentMessage::EvaluationFailed { version: ModelVersion(5), reason: reason.into() })
}

/// The content comes as version 5 and is unpacked. Returns what follows.
fn comes(session: &mut Session, now_ms: u64, content_of: u64) -> Vec<Command> {
    let (version, digest) = (ModelVersion(5), digest(content_of));
    let transfer = TransferManifest::of(&encoded(content_of));
    session.handle(now_ms, say(CoordinatorMessage::Model { version, digest, form: ModelForm::Snapshot, transfer }));
    let unpack = Command::Unpack { version, digest, onto: None, encoded: encoded(content_of) };
    assert_eq!(session.handle(now_ms, chunk(content_of)), [unpack]);
    session.handle(now_ms, Event::Unpacked { version, digest, content: content(content_of) })
}

/// What follows when the evaluation of version 5 is over, whose cost is told first.
fn evaluated(session: &mut Session, now_ms: u64, cost_ms: u64) -> Vec<Command> {
    let (version, accuracy, loss, num_examples) = (ModelVersion(5), 0.75, 0.5, 10);
    let mut commands = session.handle(now_ms, Event::Evaluated { version, accuracy, loss, num_examples });
    assert_eq!(commands.remove(0), told(5, 10, cost_ms));
    commands
}

/// A session that trains from version 5, and fetches what is to be evaluated of that version.
fn fetching() -> Session {
    let mut session = asking(config(100, 10), Kept::default());
    assert_eq!(session.handle(0, grant(1, 5)), [fetch(5)]);
    assert_eq!(session.handle(0, evaluate()), [], "the base comes first");
    assert_eq!(comes(&mut session, 0, 5), [fetch(SERVED), train(&lease(1, 5))], "the round does not wait");
    session
}

/// The round of [`fetching`] is over, its update merged, and no verdict awaited.
fn ended(session: &mut Session, now_ms: u64) -> Vec<Command> {
    let mut commands = session.handle(now_ms, Event::Trained(Box::new(outcome(&lease(1, 5)))));
    assert_eq!(commands.remove(0), bank(&lease(1, 5), 0));
    commands.extend(session.handle(now_ms, Event::Banked(entry(0, &lease(1, 5)))).into_iter().skip(1));
    commands.extend(session.handle(now_ms, decide(0, accepted())).into_iter().skip(1));
    commands
}

const EVALUATE: fn() -> Command = || Command::Evaluate { version: ModelVersion(5), content: content(SERVED) };

/// No round used to be computed from the request until the model had come and was evaluated.
#[test]
fn a_model_comes_while_a_round_is_computed_and_costs_what_its_evaluation_takes() {
    let mut session = fetching();
    assert_eq!(comes(&mut session, 3_000, SERVED), [], "a round is running");
    assert_eq!(ended(&mut session, 5_000), [EVALUATE()]);
    assert_eq!(evaluated(&mut session, 5_200, 200), [send(AgentMessage::RequestLease)]);
    assert_eq!(session.handle(5_210, grant(2, 5)), [train(&lease(2, 5))], "the base is here still");
}

#[test]
fn a_model_that_comes_after_the_round_costs_the_wait_for_it_too() {
    let mut session = fetching();
    assert_eq!(ended(&mut session, 5_000), [], "no base is asked for that would have to wait for it");
    assert_eq!(comes(&mut session, 6_000, SERVED), [EVALUATE()]);
    assert_eq!(evaluated(&mut session, 6_200, 1_200), [send(AgentMessage::RequestLease)]);
}

/// That of the run's result must not wait for a round that nobody needs.
#[test]
fn an_evaluation_comes_before_a_round_once_the_run_has_ended() {
    let mut session = asking(config(100, 10), Kept::default());
    session.handle(0, grant(1, 5));
    session.handle(0, say(CoordinatorMessage::StateChanged { state: RunPhase::Paused }));
    session.handle(0, evaluate());
    assert_eq!(comes(&mut session, 0, 5), [fetch(SERVED)]);
    assert_eq!(comes(&mut session, 1, SERVED), [EVALUATE()]);
    assert_eq!(evaluated(&mut session, 2, 2), [train(&lease(1, 5))]);
}

/// The owner of the machine needs it while the model is on its way.
#[test]
fn a_model_that_came_for_an_evaluation_is_turned_down_while_on_hold() {
    let mut session = fetching();
    session.handle(1, Event::Hold { reason: Some("load".into()) });
    assert_eq!(comes(&mut session, 2, SERVED), [], "a round is running");
    let commands = session.handle(3, Event::Trained(Box::new(outcome(&lease(1, 5)))));
    assert_eq!(commands, [bank(&lease(1, 5), 0), cannot("takes on no work at present: load")]);
}

#[test]
fn the_round_goes_on_where_it_does_not_come() {
    let mut session = fetching();
    assert_eq!(session.handle(1, gone(5)), [], "that is the other vector of the version");
    let failed = Event::UnpackFailed { version: ModelVersion(5), digest: digest(5), problem: "torn".into() };
    assert_eq!(session.handle(1, failed), [], "so is that");
    assert_eq!(session.handle(2, gone(SERVED)), [cannot("the coordinator did not send it")]);
    assert_eq!(ended(&mut session, 3), [send(AgentMessage::RequestLease)]);
}

#[test]
fn the_round_goes_on_where_the_evaluation_is_turned_down() {
    let mut session = asking(config(100, 10), Kept::default());
    session.handle(0, grant(1, 5));
    session.handle(0, evaluate());
    let commands = session.handle(1, Event::Hold { reason: Some("load".into()) });
    assert_eq!(commands, [cannot("takes on no work at present: load"), give_back(1)]);
    assert_eq!(session.handle(2, Event::Hold { reason: None }), [send(AgentMessage::RequestLease)]);
    assert_eq!(session.handle(3, grant(2, 5)), [fetch(5)]);
    assert_eq!(comes(&mut session, 4, 5), [train(&lease(2, 5))]);
}

/// A coordinator that was started again has nothing of what was asked for.
#[test]
fn the_round_goes_on_where_the_coordinator_was_started_again() {
    let mut session = fetching();
    reconnect(&session.handle(1, lost()));
    session.handle(2, Event::Connected);
    assert_eq!(session.handle(3, welcome(BRANCH, Some(digest(0)), RunPhase::Running)), [fetch(SERVED)]);
    assert_eq!(session.handle(4, gone(SERVED)), [cannot("the coordinator did not send it")]);
    assert_eq!(ended(&mut session, 5), [send(AgentMessage::RequestLease)]);
}

#[test]
fn another_branch_drops_both_vectors() {
    for has_come in [false, true] {
        let mut session = fetching();
        if has_come {
            comes(&mut session, 1, SERVED);
        }
        let other = BranchId([8; 16]);
        comes_back_on(&mut session, other);
        let stopped = session.handle(3, Event::TrainingStopped { lease: LeaseId(1) });
        assert_eq!(stopped, [give_back(1), send(AgentMessage::RequestLease)]);
        let lease = Lease { branch: other, ..lease(2, 5) };
        let granted = session.handle(4, say(CoordinatorMessage::Lease { lease: lease.clone(), evaluate: false }));
        assert_eq!(granted, [fetch(5)]);
        assert_eq!(comes(&mut session, 5, 5), [train(&lease)]);
    }
}
