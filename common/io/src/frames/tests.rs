use std::sync::Arc;

use anabranch_common::limits::{CONTROL_MESSAGE_BYTES, FRAME_READ_BYTES};
use anabranch_common::wire::frame::FrameError;
use anabranch_common::wire::handshake::{MAX_PROTOCOL, MIN_PROTOCOL, Propose, Purpose};
use anabranch_common::wire::message::AgentMessage;

use tokio::sync::Semaphore;

use super::*;
use crate::exit::ExitCode;
use crate::tls::tests::{Pair, connected_pair};

const DEADLINE: Duration = Duration::from_secs(20);

fn goodbye(text: &str) -> AgentMessage {
    AgentMessage::Goodbye { reason: text.to_owned() }
}

/// A stream from the client, which has to write first: QUIC tells the server of a stream with its first bytes.
async fn stream(pair: &Pair, first: &[u8]) -> (SendStream, RecvStream, SendStream, RecvStream) {
    let (mut send, recv) = pair.client.open_bi().await.expect("opens");
    send.write_all(first).await.expect("writes");
    let (back, arrived) = pair.server.accept_bi().await.expect("accepts");
    (send, recv, back, arrived)
}

fn framed(message: &AgentMessage) -> Vec<u8> {
    frame::encode(FrameKind::Agent, &schema::encode(message, CONTROL_MESSAGE_BYTES).expect("short")).expect("short")
}

#[tokio::test]
async fn messages_arrive_and_a_clean_end_is_no_error() {
    let pair = connected_pair().await;
    let (mut send_stream, _, _, mut arrived) = stream(&pair, &framed(&goodbye("one"))).await;
    send(&mut send_stream, FrameKind::Agent, &goodbye("two"), 1000, DEADLINE).await.expect("sends");
    send_stream.finish().expect("open");
    for text in ["one", "two"] {
        let message = recv(&mut arrived, FrameKind::Agent, 1000, DEADLINE).await.expect("arrives");
        assert_eq!(message, Some(goodbye(text)));
    }
    assert_eq!(recv::<AgentMessage>(&mut arrived, FrameKind::Agent, 1000, DEADLINE).await, Ok(None));
}

/// P5, P9: what is too long is refused by its header, before anything is allocated for it.
#[tokio::test]
async fn an_oversize_frame_is_refused_on_both_sides() {
    let pair = connected_pair().await;
    let (mut send_stream, _, _, mut arrived) = stream(&pair, &framed(&goodbye(&"x".repeat(500)))).await;
    let error = recv::<AgentMessage>(&mut arrived, FrameKind::Agent, 100, DEADLINE).await.expect_err("too long");
    assert!(matches!(error, FrameIoError::Frame(FrameError::TooLarge { max: 100, .. })), "{error}");
    assert!(error.is_protocol_violation());
    let long = goodbye(&"x".repeat(500));
    let error = send(&mut send_stream, FrameKind::Agent, &long, 100, DEADLINE).await.expect_err("too long");
    assert!(matches!(error, FrameIoError::Message(_)), "{error}");
}

#[tokio::test]
async fn a_frame_of_another_kind_or_cut_short_is_refused() {
    let pair = connected_pair().await;
    let (_send, _, _, mut arrived) = stream(&pair, &framed(&goodbye("x"))).await;
    let error = recv_part(&mut arrived, FrameKind::JoinRequest, 100, DEADLINE).await.expect_err("another kind");
    assert_eq!(error, FrameIoError::Frame(FrameError::Kind(FrameKind::Agent as u16)));
    let bytes = framed(&goodbye("x"));
    let (mut send_stream, _, _, mut arrived) = stream(&pair, &bytes[..bytes.len() - 1]).await;
    send_stream.finish().expect("open");
    let error = recv_part(&mut arrived, FrameKind::Agent, 100, DEADLINE).await.expect_err("cut short");
    assert_eq!(error, FrameIoError::Closed);
}

#[tokio::test]
async fn a_peer_that_stops_in_mid_frame_is_given_up() {
    let pair = connected_pair().await;
    let (_send, _recv, _back, arrived) = stream(&pair, &framed(&goodbye("x"))[..5]).await;
    let mut reader = FrameReader::<AgentMessage>::new(arrived, FrameKind::Agent, Duration::from_millis(50));
    assert_eq!(reader.next().await, Err(FrameIoError::TimedOut));
}

/// Guards `select!` loops: dropping `next` in the middle of a frame must lose nothing.
#[tokio::test]
async fn a_reader_that_is_cancelled_in_mid_frame_loses_nothing() {
    let pair = connected_pair().await;
    let bytes = framed(&goodbye("a longer one"));
    let (mut send_stream, _, _back, arrived) = stream(&pair, &bytes[..20]).await;
    let mut reader = FrameReader::<AgentMessage>::new(arrived, FrameKind::Agent, DEADLINE);
    for cut in [20, 25] {
        let next = tokio::time::timeout(Duration::from_millis(50), reader.next()).await;
        assert!(next.is_err(), "the frame is not complete");
        let end = if cut == 20 { 25 } else { bytes.len() };
        send_stream.write_all(&bytes[cut..end]).await.expect("writes");
    }
    assert_eq!(reader.next().await, Ok(Some(goodbye("a longer one"))));
    let mut writer = FrameWriter::new(send_stream, FrameKind::Agent, DEADLINE);
    let long = goodbye(&"y".repeat(CONTROL_MESSAGE_BYTES / 2));
    let (sent, received) = tokio::join!(writer.send(&long), reader.next());
    assert_eq!((sent, received), (Ok(()), Ok(Some(long))));
    let ((), end) = tokio::join!(writer.finish(), reader.next());
    assert_eq!(end, Ok(None));
}

/// Guards `limits::LARGE_FRAMES`: each of many streams used to hold a frame that never ended.
#[tokio::test]
async fn large_frames_of_readers_that_share_room_come_one_after_the_other() {
    let pair = connected_pair().await;
    let large = framed(&goodbye(&"y".repeat(2 * FRAME_READ_BYTES)));
    let room = Arc::new(Semaphore::new(1));
    let reader = |arrived| {
        let mut reader =
            FrameReader::<AgentMessage>::new(arrived, FrameKind::Agent, DEADLINE).at_most(FRAME_READ_BYTES);
        reader.share(Arc::clone(&room));
        reader
    };
    let (mut begun, _, _back, arrived) = stream(&pair, &large[..FRAME_READ_BYTES]).await;
    let mut first = reader(arrived);
    let is_waiting = |next: Result<_, tokio::time::error::Elapsed>| next.is_err();
    let shortly = Duration::from_millis(50);
    assert!(is_waiting(tokio::time::timeout(shortly, first.next()).await));
    assert_eq!(room.available_permits(), 0, "it has begun");

    let (_whole, _, _back, arrived) = stream(&pair, &large).await;
    let mut second = reader(arrived);
    assert!(is_waiting(tokio::time::timeout(shortly, second.next()).await), "there is no room");
    let (_small, _, _back, arrived) = stream(&pair, &framed(&goodbye("x"))).await;
    assert_eq!(reader(arrived).next().await, Ok(Some(goodbye("x"))), "a small one passes");

    begun.write_all(&large[FRAME_READ_BYTES..]).await.expect("writes");
    assert!(matches!(first.next().await, Ok(Some(_))));
    assert_eq!(room.available_permits(), 0, "its message is being dealt with");
    let (next, after) = tokio::join!(second.next(), tokio::time::timeout(shortly, first.next()));
    assert!(matches!(next, Ok(Some(_))) && is_waiting(after));
    drop(second);
    assert_eq!(room.available_permits(), 1);
}

#[tokio::test]
async fn a_message_beyond_the_reader_s_bound_is_refused() {
    let pair = connected_pair().await;
    let (_send, _, _back, arrived) = stream(&pair, &framed(&goodbye("twenty bytes or more"))).await;
    let mut reader = FrameReader::<AgentMessage>::new(arrived, FrameKind::Agent, DEADLINE).at_most(8);
    assert!(matches!(reader.next().await, Err(FrameIoError::Frame(_))));
}

#[tokio::test]
async fn both_sides_agree_on_a_version() {
    let pair = connected_pair().await;
    let client = async {
        let (mut send, mut recv) = pair.client.open_bi().await.expect("opens");
        propose(&mut send, &mut recv, Purpose::Agent, DEADLINE).await
    };
    let server = async {
        let (mut send, mut recv) = pair.server.accept_bi().await.expect("accepts");
        accept(&mut send, &mut recv, |purpose| purpose == Purpose::Agent, DEADLINE).await
    };
    let (client, server) = tokio::join!(client, server);
    assert_eq!((client, server), (Ok(MAX_PROTOCOL), Ok((Purpose::Agent, MAX_PROTOCOL))));
}

/// Fault 44: a version that is not spoken here is refused in words, on both sides.
#[tokio::test]
async fn no_common_version_and_a_wrong_purpose_are_told_to_both() {
    let pair = connected_pair().await;
    let meet = async |proposal: Propose| {
        let client = async {
            let (mut send, mut recv) = pair.client.open_bi().await.expect("opens");
            handshake::propose_this(&mut send, &mut recv, proposal, DEADLINE).await.expect_err("refused")
        };
        let server = async {
            let (mut send, mut recv) = pair.server.accept_bi().await.expect("accepts");
            let allowed = |purpose| purpose == Purpose::Agent;
            accept(&mut send, &mut recv, allowed, DEADLINE).await.expect_err("refused")
        };
        tokio::join!(client, server)
    };
    let next = MAX_PROTOCOL + 1;
    let (client, server) = meet(Propose { min: next, max: next + 1, purpose: Purpose::Agent }).await;
    assert_eq!(client, HandshakeError::Version { min: MIN_PROTOCOL, max: MAX_PROTOCOL });
    assert_eq!(server, HandshakeError::Version { min: next, max: next + 1 });
    assert_eq!(client.exit_code(), Some(ExitCode::Protocol));
    let (client, server) = meet(Propose::new(Purpose::Operator)).await;
    let forbidden = HandshakeError::Forbidden(Purpose::Operator);
    assert_eq!((&client, &server), (&forbidden, &forbidden));
    assert_eq!(client.exit_code(), Some(ExitCode::Identity));
}
