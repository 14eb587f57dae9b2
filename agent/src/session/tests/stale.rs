//! Answers that come after what they answer was given up, and waits that are as long as what is waited for.

use super::*;

fn fetching(version: u64) -> Session {
    let mut session = asking(config(100, 10), Kept::default());
    session.handle(0, grant(1, version));
    session.handle(0, announce(version));
    let commands = session.handle(0, chunk(version));
    assert!(matches!(&commands[..], [Command::Unpack { .. }]), "{commands:?}");
    session
}

/// A download that was given up is decoded later than the one that took its place: it used to replace it, and the
/// round after that had no base.
#[test]
fn a_model_that_is_no_longer_wanted_does_not_replace_the_one_that_is() {
    let mut session = fetching(5);
    session.handle(1, say(CoordinatorMessage::ModelGone { version: ModelVersion(5), digest: digest(5) }));
    let evaluating = say(CoordinatorMessage::Lease { lease: lease(2, 7), evaluate: true });
    session.handle(2, evaluating);
    session.handle(2, announce(7));
    session.handle(2, chunk(7));
    let commands = session.handle(3, unpacked(7));
    assert!(matches!(&commands[..], [Command::Evaluate { version: ModelVersion(7), .. }]), "{commands:?}");
    assert_eq!(session.handle(4, unpacked(5)), []);
    let commands = session.handle(5, evaluated(7));
    let evaluation = Evaluation { agent: AGENT, version: ModelVersion(7), accuracy: 0.5, loss: 1.0, num_examples: 10 };
    assert_eq!(commands, [send(AgentMessage::Evaluated { evaluation, cost_ms: 2 }), train(&lease(2, 7))]);
}

#[test]
fn a_download_that_failed_after_it_was_given_up_changes_nothing() {
    let mut session = fetching(5);
    session.handle(1, say(CoordinatorMessage::ModelGone { version: ModelVersion(5), digest: digest(5) }));
    session.handle(2, grant(2, 7));
    let failed = Event::UnpackFailed { version: ModelVersion(5), digest: digest(5), problem: "torn".into() };
    assert_eq!(session.handle(3, failed), []);
    session.handle(4, announce(7));
    assert!(matches!(&session.handle(4, chunk(7))[..], [Command::Unpack { version: ModelVersion(7), .. }]));
}

fn evaluated(version: u64) -> Event {
    Event::Evaluated { version: ModelVersion(version), accuracy: 0.5, loss: 1.0, num_examples: 10 }
}

/// The same version number of another branch is another model: its figures would end up in the wrong history.
#[test]
fn an_evaluation_that_runs_while_the_branch_changes_is_not_told() {
    let mut session = asking(config(0, 10), Kept::default());
    session.handle(0, say(CoordinatorMessage::Evaluate { version: ModelVersion(3), digest: digest(3) }));
    session.handle(0, announce(3));
    session.handle(0, chunk(3));
    assert!(matches!(&session.handle(0, unpacked(3))[..], [Command::Evaluate { .. }]));
    reconnect(&session.handle(1, lost()));
    session.handle(2, Event::Connected);
    session.handle(3, welcome(BranchId([8; 16]), Some(digest(0)), RunPhase::Running));
    assert_eq!(session.handle(4, evaluated(3)), []);
    // What is asked for on the new branch is told.
    session.handle(5, say(CoordinatorMessage::Evaluate { version: ModelVersion(3), digest: digest(4) }));
    assert!(matches!(session.activity(), super::super::Activity::Fetching));
}

fn large(seq: u64, fill: u8) -> OutboxEntry {
    let mut large = entry(seq, &lease(seq, 0));
    large.transfer = TransferManifest { bytes: 64 << 20, chunks: vec![Digest([fill; 32]); 64], sections: vec![] };
    large
}

/// Fault 25: 64 MiB over 256 kbit/s take more than half an hour, and the connection must not be given up over that.
#[test]
fn an_upload_may_take_as_long_as_its_bytes_do_and_those_behind_it_wait() {
    let (first, second) = (large(0, 1), large(1, 2));
    let kept = Kept { branch: Some(BRANCH), outbox: vec![first.clone(), second.clone()], ..Kept::default() };
    let mut session = asking(config(0, 0), kept);
    assert_eq!(session.deadline_ms(), Some(limits::OFFER_TIMEOUT_MS));
    let need = |entry: &OutboxEntry| {
        say(CoordinatorMessage::NeedChunks { transfer: entry.transfer.id(), missing: Missing::all(64) })
    };
    session.handle(10, need(&first));
    let through_ms = 10 + first.transfer.deadline_ms();
    assert_eq!(session.deadline_ms(), Some(through_ms));
    assert!(through_ms > 40 * 60 * 1000);
    session.handle(2_000_000, Event::ChunksSent { transfer: first.transfer.id() });
    assert_eq!(session.deadline_ms(), Some(2_000_000 + limits::OFFER_TIMEOUT_MS), "both are owed an answer");
    session.handle(2_100_000, decide(0, accepted()));
    assert_eq!(session.deadline_ms(), Some(2_100_000 + limits::OFFER_TIMEOUT_MS), "the second one's turn comes now");
    let commands = session.handle(2_100_000 + limits::OFFER_TIMEOUT_MS, Event::Tick);
    assert!(matches!(&commands[..], [Command::Disconnect { .. }, Command::Connect { .. }]), "{commands:?}");
}

/// An offer that the coordinator has forgotten is made again, however busy it is with later ones.
#[test]
fn an_update_that_was_overtaken_is_not_forgotten_for_ever() {
    let outbox: Vec<_> = (0..3).map(|seq| entry(seq, &lease(1 + seq, 0))).collect();
    let mut session = asking(config(0, 0), Kept { branch: Some(BRANCH), outbox, ..Kept::default() });
    let late_ms = limits::OFFER_FORGOTTEN_MS - 1;
    session.handle(late_ms, decide(1, accepted()));
    assert_eq!(session.deadline_ms(), Some(limits::OFFER_FORGOTTEN_MS), "the first one waits since the beginning");
    let commands = session.handle(limits::OFFER_FORGOTTEN_MS, Event::Tick);
    assert!(matches!(&commands[..], [Command::Disconnect { .. }, Command::Connect { .. }]), "{commands:?}");
}

/// Chunks that left over a connection that is gone do not count as an offer on the next one.
#[test]
fn chunks_of_a_connection_that_is_gone_do_not_keep_an_update_from_being_offered() {
    let first = entry(0, &lease(1, 0));
    let kept = Kept { branch: Some(BRANCH), outbox: vec![first.clone()], ..Kept::default() };
    let mut session = asking(config(0, 0), kept);
    let missing = Missing::all(1);
    session.handle(1, say(CoordinatorMessage::NeedChunks { transfer: first.transfer.id(), missing }));
    reconnect(&session.handle(2, lost()));
    session.handle(3, Event::ChunksSent { transfer: first.transfer.id() });
    session.handle(4, Event::Connected);
    let commands = session.handle(5, welcome(BRANCH, Some(digest(0)), RunPhase::Running));
    let offered = |command: &Command| matches!(command, Command::Send(AgentMessage::OfferUpdate { .. }));
    assert!(commands.iter().any(offered), "{commands:?}");
}

/// Two updates with the same content (a frozen model gives the same delta twice) are one transfer.
#[test]
fn equal_content_travels_once_and_each_update_gets_its_verdict() {
    let (first, second) = (entry(0, &lease(1, 0)), entry(1, &lease(2, 0)));
    let mut same = second;
    same.transfer = first.transfer.clone();
    let kept = Kept { branch: Some(BRANCH), outbox: vec![first.clone(), same], ..Kept::default() };
    let mut session = asking(config(0, 0), kept);
    let need = say(CoordinatorMessage::NeedChunks { transfer: first.transfer.id(), missing: Missing::all(1) });
    let commands = session.handle(1, need.clone());
    assert!(
        matches!(&commands[..], [Command::SendChunks { source: ChunkSource::Update(of), .. }] if *of == key(0)),
        "{commands:?}"
    );
    session.handle(2, decide(0, accepted()));
    // The first one is being deleted when the chunks are asked for again, for the second one.
    let commands = session.handle(3, need);
    assert!(
        matches!(&commands[..], [Command::SendChunks { source: ChunkSource::Update(of), .. }] if *of == key(1)),
        "{commands:?}"
    );
}
