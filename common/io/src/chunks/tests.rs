use anabranch_common::ids::Digest;
use anabranch_common::wire::transfer::Assembly;

use super::*;
use crate::tls::tests::connected_pair;

const DEADLINE: Duration = Duration::from_secs(30);

/// To the fifth control stream of a connection.
fn route(connection: &Connection) -> Route {
    Route { connection: connection.clone(), session: 16 }
}

fn content(bytes: usize) -> Arc<[u8]> {
    (0..bytes).map(|index| index.to_le_bytes()[2] ^ u8::try_from(index % 251).expect("below 251")).collect()
}

/// Guards resumption: only what is missing travels, and the content is whole in the end.
#[tokio::test]
async fn five_mebibytes_arrive_of_which_some_were_there() {
    let pair = connected_pair().await;
    let content = content(5 * CHUNK_BYTES - 77);
    let manifest = TransferManifest::of(&content);
    let mut assembly = Assembly::new(manifest.clone(), u64::MAX).expect("valid");
    for index in [1, 4] {
        let range = manifest.range(index).expect("exists");
        assembly.put(index, &content[range]).expect("fits");
    }
    let missing = assembly.missing().clone();
    let route = route(&pair.client);
    let sending = send_chunks(&route, &manifest, Arc::clone(&content), &missing, DEADLINE);
    let receiving = async {
        let mut arrived = Vec::new();
        loop {
            let stream = pair.server.accept_uni().await.expect("a stream");
            let (header, bytes) = recv_chunk(stream, DEADLINE).await.expect("a chunk");
            assert_eq!((header.transfer, header.session), (manifest.id(), 16));
            arrived.push(header.index);
            if assembly.put(header.index, &bytes).expect("fits") {
                arrived.sort_unstable();
                return (arrived, assembly.finish());
            }
        }
    };
    let (sent, (arrived, whole)) = tokio::join!(sending, receiving);
    assert_eq!(sent, Ok(3));
    assert_eq!(arrived, [0, 2, 3]);
    assert_eq!(whole.as_deref(), Some(&content[..]));
}

/// A helper of a pod sends a section of another agent's update.
#[tokio::test]
async fn a_piece_has_the_chunks_of_the_whole_transfer() {
    let pair = connected_pair().await;
    let whole = content(4 * CHUNK_BYTES);
    let starts = [5, 2 * CHUNK_BYTES + 105];
    let manifest = TransferManifest::in_sections(&whole, starts.map(|start| start as u64).to_vec());
    let section = manifest.sections().nth(1).expect("there are three");
    let piece = Piece {
        transfer: manifest.id(),
        first: section.chunks.start,
        content: Arc::from(&whole[starts[0]..starts[1]]),
    };
    let mut missing = Missing::all(section.chunks.len());
    missing.arrived(1);
    // One that does not exist is not sent.
    missing.join(&Missing::all(8).take(7..8));
    let route = route(&pair.client);
    let sending = send_piece(&route, &piece, &missing, DEADLINE);
    let receiving = async {
        let mut arrived = Vec::new();
        for _ in 0..2 {
            let stream = pair.server.accept_uni().await.expect("a stream");
            let (header, bytes) = recv_chunk(stream, DEADLINE).await.expect("a chunk");
            assert_eq!(header.transfer, manifest.id());
            assert_eq!(manifest.matches(header.index, &bytes), Ok(()));
            arrived.push(header.index);
        }
        arrived.sort_unstable();
        arrived
    };
    let (sent, arrived) = tokio::join!(sending, receiving);
    assert_eq!((sent, arrived), (Ok(2), vec![1, 3]));
}

/// More chunks than streams: a slot is used again as soon as a chunk is through.
#[tokio::test]
async fn more_chunks_than_streams_arrive() {
    let pair = connected_pair().await;
    let content = content(20 * CHUNK_BYTES);
    let manifest = TransferManifest::of(&content);
    let missing = Missing::all(manifest.chunks.len());
    let route = route(&pair.client);
    let sending = send_chunks(&route, &manifest, Arc::clone(&content), &missing, DEADLINE);
    let receiving = async {
        let mut assembly = Assembly::new(manifest.clone(), u64::MAX).expect("valid");
        loop {
            let stream = pair.server.accept_uni().await.expect("a stream");
            let (header, bytes) = recv_chunk(stream, DEADLINE).await.expect("a chunk");
            if assembly.put(header.index, &bytes).expect("fits") {
                return assembly.finish();
            }
        }
    };
    let (sent, whole) = tokio::join!(sending, receiving);
    assert_eq!(sent, Ok(20));
    assert_eq!(whole.as_deref(), Some(&content[..]));
}

#[tokio::test]
async fn a_lost_connection_says_what_was_not_sent() {
    let pair = connected_pair().await;
    let content = content(3 * CHUNK_BYTES);
    let manifest = TransferManifest::of(&content);
    pair.server.close(VarInt::from_u32(0), b"enough");
    pair.client.closed().await;
    let missing = Missing::all(3);
    let error = send_chunks(&route(&pair.client), &manifest, content, &missing, DEADLINE).await.expect_err("lost");
    let ChunkError::Send(error) = error else { panic!("{error}") };
    assert_eq!(error.failed, [0, 1, 2]);
    assert!(error.to_string().contains("enough"), "{error}");
}

#[tokio::test]
async fn content_that_does_not_fit_its_manifest_is_not_sent() {
    let pair = connected_pair().await;
    let manifest = TransferManifest::of(&content(100));
    let longer = content(101);
    let missing = Missing::all(1);
    let error = send_chunks(&route(&pair.client), &manifest, longer, &missing, DEADLINE).await.expect_err("refused");
    assert_eq!(error, ChunkError::Content { found: 101, expected: 100 });
}

/// P5: a stream that goes on and on is cut at the size of a chunk.
#[tokio::test]
async fn a_chunk_that_is_too_long_or_too_slow_is_refused() {
    let pair = connected_pair().await;
    let header = ChunkHeader { transfer: Digest::default(), index: 0, session: 0 };
    let mut stream = pair.client.open_uni().await.expect("opens");
    let sending = async {
        send(&mut stream, FrameKind::Chunk, &header, limits::CHUNK_HEADER_BYTES, DEADLINE).await.expect("sends");
        // The receiver stops the stream in the middle, which is an error here.
        let _ = stream.write_all(&vec![0; CHUNK_BYTES + 1]).await;
        let _ = stream.finish();
    };
    let receiving = async { recv_chunk(pair.server.accept_uni().await.expect("a stream"), DEADLINE).await };
    let ((), received) = tokio::join!(sending, receiving);
    assert_eq!(received, Err(ChunkError::TooLong));

    let mut stream = pair.client.open_uni().await.expect("opens");
    send(&mut stream, FrameKind::Chunk, &header, limits::CHUNK_HEADER_BYTES, DEADLINE).await.expect("sends");
    let slow = pair.server.accept_uni().await.expect("a stream");
    assert_eq!(recv_chunk(slow, Duration::from_millis(50)).await, Err(ChunkError::Frame(FrameIoError::TimedOut)));
}

/// A chunk whose sender is cancelled must not look like a short one.
#[tokio::test]
async fn a_cancelled_sender_gives_its_chunk_up() {
    let pair = connected_pair().await;
    let mut guard = ResetOnDrop(Some(pair.client.open_uni().await.expect("opens")));
    let header = ChunkHeader { transfer: Digest::default(), index: 0, session: 0 };
    let stream = guard.0.as_mut().expect("just put there");
    send(stream, FrameKind::Chunk, &header, limits::CHUNK_HEADER_BYTES, DEADLINE).await.expect("sends");
    stream.write_all(&[7; CHUNK_BYTES / 2]).await.expect("writes");
    drop(guard);
    let stream = pair.server.accept_uni().await.expect("a stream");
    assert_eq!(recv_chunk(stream, DEADLINE).await, Err(ChunkError::Frame(FrameIoError::Closed)));
}

/// Guards "control messages never wait behind bulk": the receiver takes no chunk at all until it has answered, and the
/// connection has been given more bulk than it may carry meanwhile.
#[tokio::test]
async fn a_message_and_its_answer_pass_a_bulk_transfer_that_nobody_reads() {
    let pair = connected_pair().await;
    let content = content(24 * CHUNK_BYTES);
    let manifest = TransferManifest::of(&content);
    let missing = Missing::all(manifest.chunks.len());
    let mut bulk = {
        let (client, content) = (pair.client.clone(), Arc::clone(&content));
        tokio::spawn(async move { send_chunks(&route(&client), &manifest, content, &missing, DEADLINE).await })
    };
    // The bulk is under way before the first word is said.
    let first = pair.server.accept_uni().await.expect("a stream");
    let (mut ask, mut answer) = pair.client.open_bi().await.expect("opens");
    ask.set_priority(crate::frames::CONTROL_PRIORITY).expect("open");
    let ping = ChunkHeader { transfer: Digest::default(), index: 77, session: 0 };
    for _ in 0..3 {
        send(&mut ask, FrameKind::Chunk, &ping, limits::CHUNK_HEADER_BYTES, DEADLINE).await.expect("sends");
    }
    let (mut reply, mut asked) = pair.server.accept_bi().await.expect("a stream");
    reply.set_priority(crate::frames::CONTROL_PRIORITY).expect("open");
    for _ in 0..3 {
        let heard: ChunkHeader =
            recv_one(&mut asked, FrameKind::Chunk, limits::CHUNK_HEADER_BYTES, DEADLINE).await.expect("a message");
        send(&mut reply, FrameKind::Chunk, &heard, limits::CHUNK_HEADER_BYTES, DEADLINE).await.expect("sends");
        let back: ChunkHeader =
            recv_one(&mut answer, FrameKind::Chunk, limits::CHUNK_HEADER_BYTES, DEADLINE).await.expect("the answer");
        assert_eq!(back, ping);
    }
    assert!(!bulk.is_finished(), "24 chunks cannot be through while none was read");
    recv_chunk(first, DEADLINE).await.expect("a chunk");
    for _ in 1..24 {
        let stream = pair.server.accept_uni().await.expect("a stream");
        recv_chunk(stream, DEADLINE).await.expect("a chunk");
    }
    assert_eq!((&mut bulk).await.expect("no panic"), Ok(24));
}

/// Fault 25 and 31: over a thin link the first chunks are whole long before the last ones, so that a cut costs little.
#[tokio::test]
async fn earlier_chunks_are_whole_before_later_ones() {
    let pair = connected_pair().await;
    let content = content(8 * CHUNK_BYTES);
    let manifest = TransferManifest::of(&content);
    let missing = Missing::all(8);
    let route = route(&pair.client);
    let sending = send_chunks(&route, &manifest, content, &missing, DEADLINE);
    let receiving = async {
        let mut tasks = JoinSet::new();
        let mut order = Vec::new();
        for _ in 0..8 {
            let stream = pair.server.accept_uni().await.expect("a stream");
            tasks.spawn(async move { recv_chunk(stream, DEADLINE).await.expect("a chunk").0.index });
        }
        while let Some(index) = tasks.join_next().await {
            order.push(index.expect("no panic"));
        }
        order
    };
    let (sent, order) = tokio::join!(sending, receiving);
    assert_eq!(sent, Ok(8));
    let first_half: Vec<u32> = order[..4].to_vec();
    assert!(first_half.iter().filter(|index| **index < 4).count() >= 3, "{order:?}");
}

/// The end of a long transfer used to wait for all of every shorter one: its streams had its chunks' index as priority.
#[test]
fn the_end_of_a_long_transfer_takes_turns_with_other_transfers() {
    let first: Vec<i32> = (0..CHUNK_STREAMS).map(priority).collect();
    assert!(first.is_sorted_by(|earlier, later| earlier > later), "{first:?}");
    assert_eq!(priority(150), priority(CHUNK_STREAMS - 1));
    assert_eq!(priority(u32::MAX), priority(CHUNK_STREAMS - 1));
}
