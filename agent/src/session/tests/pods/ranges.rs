//! Members send their own ranges of an update: what a helper keeps and sends, and what the owner offers.

use anabranch_common::pod::PodSections;

use super::*;
use crate::session::event::PartContent;

/// What part 1 came to: a chunk and a half.
fn content() -> Arc<[u8]> {
    vec![7; limits::CHUNK_BYTES + limits::CHUNK_BYTES / 2].into()
}

fn computed(mark: PodMark) -> Event {
    Event::Served { mark, problem: None, parts: vec![PartContent { part: 1, payload: content() }] }
}

fn need_of(mark: PodMark, part: u32, bytes: usize) -> Event {
    let (transfer, missing) = (digest(5), Missing::all(2));
    say(CoordinatorMessage::NeedPart { mark, part, transfer, bytes: bytes as u64, first: 3, missing })
}

fn need(mark: PodMark) -> Event {
    need_of(mark, 1, content().len())
}

fn sends() -> Command {
    Command::SendPart { content: content(), transfer: digest(5), first: 3, missing: Missing::all(2) }
}

fn not_here() -> Command {
    send(AgentMessage::PartNotHere { transfer: digest(5) })
}

#[test]
fn a_helper_sends_what_its_part_came_to_until_the_update_is_decided() {
    let mut session = helping(joins(0, 0));
    assert_eq!(session.handle(1, computed(mark(7, 1))), [ended(mark(7, 1))]);
    assert_eq!(session.handle(2, need(mark(7, 1))), [sends()]);
    assert_eq!(session.handle(3, Event::ChunksSent { transfer: digest(5) }), []);
    assert_eq!(reconnected(&mut session, 4), (None, vec![]));
    assert_eq!(session.handle(5, need(mark(7, 1))), [sends()], "the owner has offered it again");
    assert_eq!(session.handle(6, say(CoordinatorMessage::PartDone { mark: mark(7, 2) })), []);
    assert_eq!(session.handle(6, need(mark(7, 1))), [sends()], "that is another one");
    assert_eq!(session.handle(7, say(CoordinatorMessage::PartDone { mark: mark(7, 1) })), []);
    assert_eq!(session.handle(8, need(mark(7, 1))), [not_here()]);
}

#[test]
fn a_helper_has_nothing_but_that_part_of_that_attempt() {
    let mut session = helping(joins(0, 0));
    session.handle(1, computed(mark(7, 1)));
    let length = content().len();
    let others =
        [(mark(7, 2), 1, length), (mark(8, 1), 1, length), (mark(7, 1), 2, length), (mark(7, 1), 1, length - 1)];
    for (mark, part, bytes) in others {
        assert_eq!(session.handle(2, need_of(mark, part, bytes)), [not_here()], "{mark:?} {part} {bytes}");
    }
    assert_eq!(session.handle(3, need(mark(7, 1))), [sends()]);
    assert_eq!(ready(joins(0, 0)).handle(1, need(mark(7, 1))), [not_here()], "a process that has computed nothing");
}

/// Its owner may be through before a helper has heard that everything has arrived.
#[test]
fn a_helper_that_is_not_through_answers_when_it_is() {
    let mut session = helping(joins(0, 0));
    assert_eq!(session.handle(1, need(mark(7, 1))), []);
    assert_eq!(session.handle(1, need(mark(7, 1))), [], "it is the same question");
    assert_eq!(session.handle(2, computed(mark(7, 1))), [sends(), ended(mark(7, 1))]);

    let mut failed = helping(joins(0, 0));
    failed.handle(1, need(mark(7, 1)));
    let problem = Event::Served { mark: mark(7, 1), problem: Some(problem()), parts: vec![] };
    assert_eq!(failed.handle(2, problem)[0], not_here());

    let mut gone = helping(joins(0, 0));
    gone.handle(1, need(mark(7, 1)));
    assert_eq!(reconnected(&mut gone, 2), (Some(mark(7, 1)), vec![]));
    assert_eq!(gone.handle(3, computed(mark(7, 1))), [ended(mark(7, 1))], "the question was of another connection");
    assert_eq!(gone.handle(4, need(mark(7, 1))), [sends()]);
}

/// Memory is for the round that is computed.
#[test]
fn another_attempt_takes_the_place_of_what_is_kept() {
    let mut session = helping(joins(0, 0));
    session.handle(1, computed(mark(7, 1)));
    assert_eq!(session.handle(2, pod(others(8, 1))), [serve(others(8, 1))]);
    assert_eq!(session.handle(3, need(mark(7, 1))), [not_here()]);
    session.handle(4, computed(mark(8, 1)));
    assert_eq!(session.handle(5, need(mark(8, 1))), [sends()]);
}

/// An update whose second section is also a helper's.
fn shared() -> OutboxEntry {
    let transfer = TransferManifest::in_sections(&[0; 10], vec![4]);
    let sections = Some(Box::new(PodSections { mark: mark(1, 1), parts: vec![None, Some(1)] }));
    OutboxEntry { transfer, sections, ..entry(0, &lease(1, 0)) }
}

#[test]
fn an_owner_offers_what_its_helpers_have_and_waits_for_them() {
    let mut session = computing();
    session.handle(1, trained(&lease(1, 0)));
    let update = shared();
    let offered = super::super::offer(&update);
    let commands = session.handle(2, Event::Banked(update.clone()));
    assert!(commands.contains(&offered), "{commands:?}");
    let transfer = update.transfer.id();
    // Nothing of it is left for the owner to send.
    let none = Missing::all(0);
    session.handle(3, say(CoordinatorMessage::NeedChunks { transfer, missing: none }));
    session.handle(4, Event::ChunksSent { transfer });
    assert_eq!(session.outbox.deadline_ms(), Some(3 + update.transfer.deadline_ms()), "as long as the upload may take");
    // A helper has failed.
    let missing = Missing::all(2);
    let commands = session.handle(5, say(CoordinatorMessage::NeedChunks { transfer, missing: missing.clone() }));
    let source = ChunkSource::Update(key(0));
    assert_eq!(commands, [Command::SendChunks { source, transfer: update.transfer.clone(), missing }]);
    let (_, commands) = reconnected(&mut session, 6);
    assert!(commands.contains(&offered), "with the same sections: {commands:?}");
}
