//! A shutdown, and a model that a lost connection has cut off.

use super::*;

/// Chunks overtake the message that announces them; a half-received model is resumed, another transfer is not.
#[test]
fn a_half_received_model_is_resumed() {
    let big: Vec<u8> = vec![9; limits::CHUNK_BYTES + 4];
    let transfer = TransferManifest::of(&big);
    let model = |transfer: &TransferManifest| {
        say(CoordinatorMessage::Model {
            version: ModelVersion(5),
            digest: digest(5),
            form: ModelForm::Snapshot,
            transfer: transfer.clone(),
        })
    };
    let part = |index: u32| {
        let bytes = big[transfer.range(index).expect("exists")].to_vec();
        Event::Chunk { transfer: transfer.id(), index, bytes }
    };
    let tensor = TensorSpec { name: "w".into(), shape: vec![limits::CHUNK_BYTES as u64 / 4] };
    let large = ModelManifest::new(vec![tensor]).expect("valid");
    let welcome = || {
        let mut event = welcome(BRANCH, Some(digest(0)), RunPhase::Running);
        if let Event::Message(CoordinatorMessage::Welcome(welcome)) = &mut event {
            welcome.model = Some((large.clone(), digest(0)));
        }
        event
    };
    let mut session = Session::new(config(100, 0), Kept::default());
    for event in [Event::Started, Event::Connected, welcome(), Event::Prepared { manifest: large.clone() }] {
        session.handle(0, event);
    }
    session.handle(0, grant(1, 5));
    assert_eq!(session.handle(0, part(1)), [], "it came before its announcement");
    assert_eq!(session.handle(0, model(&transfer)), []);
    reconnect(&session.handle(0, lost()));
    session.handle(0, Event::Connected);
    let mut missing = Missing::all(2);
    missing.arrived(1);
    assert_eq!(
        session.handle(0, welcome()),
        [send(AgentMessage::FetchModel {
            version: ModelVersion(5),
            digest: digest(5),
            purpose: FetchPurpose::Train,
            held: None,
            missing: Some(missing)
        })]
    );
    session.handle(0, model(&transfer));
    assert_eq!(
        session.handle(0, part(0)),
        [Command::Unpack { version: ModelVersion(5), digest: digest(5), onto: None, encoded: big.clone() }]
    );
}

/// SIGTERM in mid-round: the round is stopped and given back, then goodbye.
#[test]
fn a_shutdown_gives_the_lease_back_and_says_goodbye() {
    let mut session = training();
    assert_eq!(session.handle(1, Event::Shutdown), [Command::StopTraining]);
    let reason = Ending::Parked.to_string();
    assert_eq!(
        session.handle(2, Event::TrainingStopped { lease: LeaseId(1) }),
        [give_back(1), send(AgentMessage::Goodbye { reason }), Command::Exit(Ending::Parked)]
    );
}

/// A delta that was faster than the stop is not lost: it is banked, and offered as long as there is time.
#[test]
fn a_shutdown_banks_the_round_that_finished_first() {
    let mut session = training();
    session.handle(1, Event::Shutdown);
    assert_eq!(session.handle(2, Event::Trained(Box::new(outcome(&lease(1, 0))))), [bank(&lease(1, 0), 0)]);
    let update = entry(0, &lease(1, 0));
    assert_eq!(session.handle(3, Event::Banked(update.clone())), [offer(&update)]);
    let late = 1 + limits::SHUTDOWN_FLUSH_MS;
    assert_eq!(session.deadline_ms(), Some(late));
    let commands = session.handle(late, Event::Tick);
    assert_eq!(commands.last(), Some(&Command::Exit(Ending::Parked)), "the update stays in the store");
}
