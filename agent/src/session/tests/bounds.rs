//! What a coordinator can make an agent allocate (promise P5).

use anabranch_common::codec;

use super::*;

/// What a session that fetches version 0 does when its chunks are announced as `bytes` bytes.
fn announced(bytes: u64) -> (Session, Vec<Command>) {
    let mut session = asking(config(100, 0), Kept::default());
    session.handle(0, grant(1, 0));
    let chunks = usize::try_from(bytes.div_ceil(limits::CHUNK_BYTES as u64)).expect("few");
    let transfer = TransferManifest { bytes, chunks: vec![Digest([9; 32]); chunks], sections: vec![] };
    let model =
        CoordinatorMessage::Model { version: ModelVersion(0), digest: digest(0), form: ModelForm::Snapshot, transfer };
    let commands = session.handle(0, say(model));
    (session, commands)
}

#[test]
fn a_model_that_its_tensors_cannot_make_is_refused_before_anything_is_allocated() {
    let longest = codec::max_payload_bytes(&manifest("w"));
    let (session, commands) = announced(longest);
    assert_eq!((commands, session.replica.fetching()), (vec![], Some((ModelVersion(0), 0, 1))));
    for bytes in [longest + 1, limits::TRANSFER_BYTES] {
        let (session, commands) = announced(bytes);
        assert!(
            matches!(commands[..], [Command::Disconnect { .. }, Command::Connect { .. }]),
            "{bytes} bytes for {longest}: {commands:?}"
        );
        assert_eq!(session.replica.fetching(), None);
    }
}

/// The trainer says which tensors the model has; without it there is no bound yet, and nothing to
/// fetch for.
#[test]
fn no_model_is_received_while_the_trainer_is_built_anew() {
    let mut session = asking(config(100, 0), Kept::default());
    session.handle(0, grant(1, 0));
    session.handle(0, lost());
    session.handle(0, Event::Connected);
    let mut other = welcome(BRANCH, Some(digest(0)), RunPhase::Running);
    if let Event::Message(CoordinatorMessage::Welcome(welcome)) = &mut other {
        welcome.spec.model.classes += 1;
    }
    let commands = session.handle(0, other);
    assert!(commands.iter().any(|command| matches!(command, Command::Prepare(_))), "{commands:?}");
    assert_eq!(session.handle(0, announce(0)), []);
    assert_eq!(session.replica.fetching(), Some((ModelVersion(0), 0, 0)), "it is still asked for");
    session.handle(0, Event::Prepared { manifest: manifest("w") });
    assert_eq!(session.handle(0, announce(0)), []);
    assert_eq!(session.replica.fetching(), Some((ModelVersion(0), 0, 1)));
}
