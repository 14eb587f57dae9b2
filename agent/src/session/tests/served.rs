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

/// What follows when the evaluation of version 5 is over, without what is told of it.
fn evaluated(session: &mut Session, now_ms: u64) -> Vec<Command> {
    let (version, accuracy, loss, num_examples) = (ModelVersion(5), 0.75, 0.5, 10);
    let mut commands = session.handle(now_ms, Event::Evaluated { version, accuracy, loss, num_examples });
    let told = AgentMessage::Evaluated(Evaluation { agent: AGENT, version, accuracy, loss, num_examples });
    assert_eq!(commands.remove(0), send(told));
    commands
}

/// A session with a lease on version 5 and its base, which fetches what is to be evaluated of that version.
fn fetching() -> Session {
    let mut session = asking(config(100, 10), Kept::default());
    assert_eq!(session.handle(0, grant(1, 5)), [fetch(5)]);
    assert_eq!(session.handle(0, evaluate()), [], "the base comes first");
    assert_eq!(comes(&mut session, 0, 5), [fetch(SERVED)], "an evaluation comes before the round");
    session
}

#[test]
fn it_is_evaluated_before_the_round_which_has_its_base() {
    let mut session = fetching();
    let evaluate = Command::Evaluate { version: ModelVersion(5), content: content(SERVED) };
    assert_eq!(comes(&mut session, 1, SERVED), [evaluate]);
    assert_eq!(evaluated(&mut session, 2), [train(&lease(1, 5))]);
}

#[test]
fn the_next_lease_on_the_same_version_has_its_base() {
    let mut session = asking(config(100, 10), Kept::default());
    session.handle(0, grant(1, 5));
    assert_eq!(comes(&mut session, 0, 5), [train(&lease(1, 5))]);
    assert_eq!(session.handle(1, evaluate()), [], "a round is running");
    let commands = session.handle(2, Event::Trained(Box::new(outcome(&lease(1, 5)))));
    assert_eq!(commands, [bank(&lease(1, 5), 0), fetch(SERVED)]);
    session.handle(3, Event::Banked(entry(0, &lease(1, 5))));
    session.handle(4, decide(0, accepted()));
    assert!(matches!(&comes(&mut session, 5, SERVED)[..], [Command::Evaluate { .. }]));
    assert_eq!(evaluated(&mut session, 6), [send(AgentMessage::RequestLease)]);
    assert_eq!(session.handle(7, grant(2, 5)), [train(&lease(2, 5))]);
}

#[test]
fn the_round_goes_on_where_it_does_not_come() {
    let mut session = fetching();
    assert_eq!(session.handle(1, gone(5)), [], "that is the other vector of the version");
    let failed = Event::UnpackFailed { version: ModelVersion(5), digest: digest(5), problem: "torn".into() };
    assert_eq!(session.handle(1, failed), [], "so is that");
    assert_eq!(session.handle(2, gone(SERVED)), [cannot("the coordinator did not send it"), train(&lease(1, 5))]);
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
    assert_eq!(session.handle(4, gone(SERVED)), [cannot("the coordinator did not send it"), train(&lease(1, 5))]);
}

#[test]
fn another_branch_drops_both_vectors() {
    let mut session = fetching();
    reconnect(&session.handle(1, lost()));
    session.handle(2, Event::Connected);
    let other = BranchId([8; 16]);
    assert_eq!(
        session.handle(3, welcome(other, Some(digest(0)), RunPhase::Running)),
        [Command::AdoptBranch { branch: other }, send(AgentMessage::RequestLease)]
    );
    let lease = Lease { branch: other, ..lease(2, 5) };
    assert_eq!(session.handle(4, say(CoordinatorMessage::Lease { lease: lease.clone(), evaluate: false })), [fetch(5)]);
    assert_eq!(comes(&mut session, 5, 5), [train(&lease)]);
}
