//! A coordinator that refuses the session for good, or is silent.

use super::*;

#[test]
fn what_cannot_get_better_ends_the_process() {
    let cases = [
        (Rejection::Revoked, Ending::Revoked),
        (Rejection::Unknown, Ending::Unknown),
        (Rejection::Replaced, Ending::Replaced),
        (Rejection::OldCertificate, Ending::OldCertificate),
        (Rejection::Protocol("x".into()), Ending::Protocol("x".into())),
        (Rejection::OtherModel("x".into()), Ending::Manifest("x".into())),
        (Rejection::WrongRun { run: RunId([9; 16]) }, Ending::WrongRun { enrolled: RUN, serving: RunId([9; 16]) }),
    ];
    for (rejection, ending) in cases {
        let mut session = asking(config(100, 0), Kept::default());
        assert_eq!(session.handle(0, say(CoordinatorMessage::Rejected(rejection))), [Command::Exit(ending)]);
    }
    let mut busy = asking(config(100, 0), Kept::default());
    let commands = busy.handle(0, say(CoordinatorMessage::Rejected(Rejection::Busy)));
    assert!(matches!(&commands[..], [Command::Disconnect { .. }, Command::Connect { .. }]), "{commands:?}");
}

/// A silent coordinator is given up, whatever it owes: nothing waits for ever.
#[test]
fn every_wait_for_the_coordinator_has_an_end() {
    let mut greeting = Session::new(config(100, 0), Kept::default());
    greeting.handle(0, Event::Started);
    greeting.handle(0, Event::Connected);
    assert_eq!(greeting.deadline_ms(), Some(limits::HANDSHAKE_TIMEOUT_MS));
    let commands = greeting.handle(limits::HANDSHAKE_TIMEOUT_MS, Event::Tick);
    assert!(matches!(&commands[..], [Command::Disconnect { .. }, Command::Connect { .. }]), "{commands:?}");

    let mut asking = asking(config(100, 0), Kept::default());
    assert_eq!(asking.deadline_ms(), Some(limits::REQUEST_TIMEOUT_MS));
    let commands = asking.handle(limits::REQUEST_TIMEOUT_MS, Event::Tick);
    assert!(matches!(&commands[..], [Command::Disconnect { .. }, Command::Connect { .. }]), "{commands:?}");
}
