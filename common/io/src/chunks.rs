//! Bulk transfers: one unidirectional stream a chunk, a few at a time, the earlier ones first.
//!
//! ```text
//!  ┌─────────────────────────┬──────────────────────┐
//!  │ Chunk frame: transfer,  │ the chunk's bytes,   │ end of stream
//!  │ index, session          │ at most CHUNK_BYTES  │
//!  └─────────────────────────┴──────────────────────┘
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::limits::{CHUNK_BYTES, CHUNK_STREAMS};
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::transfer::{ChunkHeader, Missing, TransferManifest};
use quinn::{Connection, ReadToEndError, RecvStream, SendStream, StoppedError, VarInt};
use tokio::task::JoinSet;

use crate::frames::{BULK_PRIORITY, FrameIoError, recv_one, send};

/// Code of a stream that is given up by its sender: what arrived of the chunk is to be thrown away.
const GIVEN_UP: VarInt = VarInt::from_u32(1);

/// Code with which a receiver stops a stream whose transfer it does not want.
const NOT_WANTED: VarInt = VarInt::from_u32(0);

/// Why some chunks were not sent. The others were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} of the chunks were not sent: {first}", failed.len())]
pub struct SendChunksError {
    /// The chunks that were not sent, in order.
    pub failed: Vec<u32>,
    /// Why the first of them was not.
    #[source]
    pub first: FrameIoError,
}

/// Why chunks cannot be sent or received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The content is not what the manifest describes.
    #[error("content of {found} bytes for a transfer of {expected}")]
    Content {
        /// Its length.
        found: usize,
        /// The manifest's length.
        expected: u64,
    },
    /// Some were not sent.
    #[error(transparent)]
    Send(#[from] SendChunksError),
    /// The frame or the stream failed.
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    /// The stream carries more than a chunk.
    #[error("chunk of more than {CHUNK_BYTES} bytes")]
    TooLong,
}

/// Where chunks go: a connection, and the QUIC id of the control stream on it that their transfer belongs to.
#[derive(Debug, Clone)]
pub struct Route {
    /// The connection.
    pub connection: Connection,
    /// The control stream.
    pub session: u64,
}

/// Consecutive chunks of a transfer, with the piece of its content that they are cut from.
#[derive(Debug, Clone)]
pub struct Piece {
    /// [`TransferManifest::id`] of the whole transfer.
    pub transfer: Digest,
    /// The first of the chunks.
    pub first: u32,
    /// Their content.
    pub content: Arc<[u8]>,
}

impl Piece {
    /// Returns those chunks that are `missing`, counted from the first one, with their places in the piece.
    #[must_use]
    pub fn chunks(&self, missing: &Missing) -> Vec<(u32, Range<usize>)> {
        let chunk = |index: u32| {
            let start = (index as usize).checked_mul(CHUNK_BYTES)?;
            let end = self.content.len().min(start.checked_add(CHUNK_BYTES)?);
            Some((self.first.checked_add(index)?, start..end))
        };
        missing.indices(self.content.len().div_ceil(CHUNK_BYTES)).filter_map(chunk).collect()
    }
}

/// Sends the chunks of `content` that are `missing`, up to `CHUNK_STREAMS` streams at a time, behind control messages.
/// Returns how many arrived at the other end's connection. `deadline` is for one chunk to get through; a chunk may wait
/// behind others that are under way.
///
/// Earlier chunks go first: over a thin link, chunks that share it equally would all be half there when it breaks, and
/// none of them would count. Chunks of several transfers take turns, whole ones: the first `CHUNK_STREAMS - 1` of a
/// transfer go before the later ones of others, whatever their index.
///
/// When this future is dropped, chunks that are half sent are given up, never cut short.
///
/// # Errors
/// The content does not fit the manifest, or some chunks were not sent; the error names them.
pub async fn send_chunks(
    route: &Route,
    manifest: &TransferManifest,
    content: Arc<[u8]>,
    missing: &Missing,
    deadline: Duration,
) -> Result<usize, ChunkError> {
    if content.len() as u64 != manifest.bytes {
        return Err(ChunkError::Content { found: content.len(), expected: manifest.bytes });
    }
    let chunks = missing.indices(manifest.chunks.len()).filter_map(|index| Some((index, manifest.range(index)?)));
    send_ranges(route, (manifest.id(), content), chunks, deadline).await
}

/// Sends those chunks of a piece that are `missing`, counted from the piece's first one, as [`send_chunks`] does.
///
/// # Errors
/// Some chunks were not sent; the error names them.
pub async fn send_piece(
    route: &Route,
    piece: &Piece,
    missing: &Missing,
    deadline: Duration,
) -> Result<usize, ChunkError> {
    let content = (piece.transfer, Arc::clone(&piece.content));
    send_ranges(route, content, piece.chunks(missing).into_iter(), deadline).await
}

async fn send_ranges(
    Route { connection, session }: &Route,
    (transfer, content): (Digest, Arc<[u8]>),
    mut pending: impl Iterator<Item = (u32, Range<usize>)>,
    deadline: Duration,
) -> Result<usize, ChunkError> {
    let deadline = deadline * CHUNK_STREAMS;
    let mut tasks = JoinSet::new();
    let (mut opened, mut sent) = (0, 0);
    let mut failures: Vec<(u32, FrameIoError)> = Vec::new();
    // Ends early when the connection is gone; what is left in `pending` has then failed for the same reason.
    let lost = loop {
        if tasks.len() < CHUNK_STREAMS as usize
            && let Some((index, range)) = pending.next()
        {
            let stream = match open(connection, priority(opened), deadline).await {
                Ok(stream) => stream,
                Err(error) => {
                    failures.push((index, error.clone()));
                    break Some(error);
                }
            };
            opened = opened.saturating_add(1);
            let content = Arc::clone(&content);
            let header = ChunkHeader { transfer, index, session: *session };
            tasks.spawn(async move { (index, send_one(stream, header, &content[range], deadline).await) });
        } else {
            match tasks.join_next().await {
                Some(done) => tally(done, &mut sent, &mut failures),
                None => break None,
            }
        }
    };
    while let Some(done) = tasks.join_next().await {
        tally(done, &mut sent, &mut failures);
    }
    if let Some(error) = lost {
        failures.extend(pending.map(|(index, _)| (index, error.clone())));
    }
    failures.sort_by_key(|(index, _)| *index);
    match failures.first() {
        None => Ok(sent),
        Some((_, first)) => {
            let first = first.clone();
            Err(SendChunksError { failed: failures.into_iter().map(|(index, _)| index).collect(), first }.into())
        }
    }
}

/// The priority of the stream of a transfer before which so many were opened.
///
/// Streams of the same priority go one after the other, in the order in which they are filled (`tls` turns their fairness
/// off). An index as priority would let each new transfer starve the end of a long one.
fn priority(opened: u32) -> i32 {
    BULK_PRIORITY.saturating_sub_unsigned(opened.min(CHUNK_STREAMS - 1))
}

type Done = Result<(u32, Result<(), FrameIoError>), tokio::task::JoinError>;

fn tally(done: Done, sent: &mut usize, failures: &mut Vec<(u32, FrameIoError)>) {
    match done {
        Ok((_, Ok(()))) => *sent += 1,
        Ok((index, Err(error))) => failures.push((index, error)),
        // A sending task has no way to panic, and is aborted only with this future.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn open(connection: &Connection, priority: i32, deadline: Duration) -> Result<SendStream, FrameIoError> {
    let stream = tokio::time::timeout(deadline, connection.open_uni()).await.map_err(|_| FrameIoError::TimedOut)??;
    // Fails only on a stream that is closed already; the first write will say so.
    let _ = stream.set_priority(priority);
    Ok(stream)
}

/// quinn finishes a stream that is dropped, which would make half a chunk look like a whole one.
struct ResetOnDrop(Option<SendStream>);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if let Some(mut stream) = self.0.take() {
            // Fails only on a stream that is closed already.
            let _ = stream.reset(GIVEN_UP);
        }
    }
}

async fn send_one(
    stream: SendStream,
    header: ChunkHeader,
    bytes: &[u8],
    deadline: Duration,
) -> Result<(), FrameIoError> {
    let mut guard = ResetOnDrop(Some(stream));
    let Some(stream) = guard.0.as_mut() else {
        return Err(FrameIoError::Closed);
    };
    send(stream, FrameKind::Chunk, &header, limits::CHUNK_HEADER_BYTES, deadline).await?;
    tokio::time::timeout(deadline, stream.write_all(bytes)).await.map_err(|_| FrameIoError::TimedOut)??;
    stream.finish().map_err(|_| FrameIoError::Closed)?;
    let arrived = tokio::time::timeout(deadline, stream.stopped()).await.map_err(|_| FrameIoError::TimedOut)?;
    guard.0 = None;
    match arrived {
        // Taken, or not wanted any more: a receiver that has the chunk already may say so.
        Ok(_) => Ok(()),
        Err(StoppedError::ConnectionLost(error)) => Err(error.into()),
        Err(StoppedError::ZeroRttRejected) => Err(FrameIoError::Closed),
    }
}

/// Receives one chunk: at most `CHUNK_BYTES`, all of it within `deadline` for each of the chunks that it may share the
/// link with. Whether it belongs anywhere and matches its digest is for `Assembly::put` to say.
///
/// # Errors
/// The stream does not carry a chunk, or took too long.
pub async fn recv_chunk(stream: RecvStream, deadline: Duration) -> Result<(ChunkHeader, Vec<u8>), ChunkError> {
    // `None` is only for what is not wanted.
    recv_chunk_if(stream, deadline, |_| true).await?.ok_or(ChunkError::Frame(FrameIoError::Closed))
}

/// Like [`recv_chunk`], but of a chunk whose header is not `wanted` nothing more is taken, and the stream is stopped.
///
/// # Errors
/// As [`recv_chunk`].
pub async fn recv_chunk_if(
    mut stream: RecvStream,
    deadline: Duration,
    wanted: impl FnOnce(&ChunkHeader) -> bool,
) -> Result<Option<(ChunkHeader, Vec<u8>)>, ChunkError> {
    let deadline = deadline * CHUNK_STREAMS;
    let receive = async {
        let header: ChunkHeader = recv_one(&mut stream, FrameKind::Chunk, limits::CHUNK_HEADER_BYTES, deadline).await?;
        if !wanted(&header) {
            // Fails only on a stream that has ended.
            let _ = stream.stop(NOT_WANTED);
            return Ok(None);
        }
        match stream.read_to_end(CHUNK_BYTES).await {
            Ok(bytes) => Ok(Some((header, bytes))),
            Err(ReadToEndError::TooLong) => Err(ChunkError::TooLong),
            Err(ReadToEndError::Read(error)) => Err(FrameIoError::from(error).into()),
        }
    };
    tokio::time::timeout(deadline, receive).await.unwrap_or(Err(FrameIoError::TimedOut.into()))
}

#[cfg(test)]
mod tests;
