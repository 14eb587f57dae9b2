//! The two halves of a long-lived control stream.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::limits::{CONTROL_MESSAGE_BYTES, FRAME_HEADER_BYTES};
use anabranch_common::schema;
use anabranch_common::schema::Layout;
use anabranch_common::wire::frame;
use quinn::{RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{CONTROL_PRIORITY, Format, FrameIoError, error, send};

/// Reads messages `T` from a control stream. [`Self::next`] is cancel-safe: what was read so far is kept here.
#[derive(Debug)]
pub struct FrameReader<T> {
    stream: RecvStream,
    format: Format,
    deadline: Duration,
    /// What has arrived of the next frame. Never more than that frame.
    buffer: Vec<u8>,
    /// When the first byte of the next frame arrived.
    since: Option<Instant>,
    last_bytes: usize,
    /// The longest payload.
    max_bytes: usize,
    /// Room for frames of more than `limits::FRAME_READ_BYTES`, where it is bounded.
    large: Option<Arc<Semaphore>>,
    /// Its part in it: until the message that is returned has been dealt with.
    room: Option<OwnedSemaphorePermit>,
    messages: PhantomData<fn() -> T>,
}

impl<T: Layout> FrameReader<T> {
    /// Messages come in frames of `format`. Waiting for one may take for ever (the connection's idle timeout watches over
    /// that), but once it has begun it must be complete within `deadline`.
    #[must_use]
    pub fn new(stream: RecvStream, format: impl Into<Format>, deadline: Duration) -> Self {
        let format = format.into();
        Self {
            stream,
            format,
            deadline,
            buffer: Vec::new(),
            since: None,
            last_bytes: 0,
            max_bytes: CONTROL_MESSAGE_BYTES,
            large: None,
            room: None,
            messages: PhantomData,
        }
    }

    /// Refuses messages of more than `max_bytes`.
    #[must_use]
    pub fn at_most(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Reads messages of up to `CONTROL_MESSAGE_BYTES` from now on. Each frame of more than `limits::FRAME_READ_BYTES` waits
    /// for a permit of `large`, and has it until [`Self::next`] is called again. Its deadline counts from the permit on.
    pub fn share(&mut self, large: Arc<Semaphore>) {
        self.max_bytes = CONTROL_MESSAGE_BYTES;
        self.large = Some(large);
    }

    /// Bytes of the frame of the message that [`Self::next`] returned last.
    #[must_use]
    pub fn last_bytes(&self) -> usize {
        self.last_bytes
    }

    /// What follows the message that [`Self::next`] returned last: a reader takes no byte beyond the frame it reads.
    pub fn stream(&mut self) -> &mut RecvStream {
        &mut self.stream
    }

    /// The next message, or nothing at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// See [`FrameIoError`]. The stream is of no further use after one.
    pub async fn next(&mut self) -> Result<Option<T>, FrameIoError> {
        if self.buffer.is_empty() {
            self.room = None;
        }
        loop {
            let wanted = match self.wanted()? {
                0 => {
                    self.since = None;
                    let payload = std::mem::take(&mut self.buffer);
                    self.last_bytes = payload.len();
                    let message = &payload[FRAME_HEADER_BYTES..];
                    return Ok(Some(schema::decode_as(self.format.version, message, self.max_bytes)?));
                }
                wanted => wanted,
            };
            if self.room.is_none()
                && self.buffer.len() == FRAME_HEADER_BYTES
                && wanted > limits::FRAME_READ_BYTES
                && let Some(large) = self.large.clone()
            {
                // Nothing closes this semaphore.
                self.room = large.acquire_owned().await.ok();
                self.since = Some(Instant::now());
            }
            let read = self.stream.read_chunk(wanted.min(limits::FRAME_READ_BYTES), true);
            let read = match self.since {
                Some(since) => tokio::time::timeout_at(since + self.deadline, read).await,
                None => Ok(read.await),
            };
            match read.map_err(|_| FrameIoError::TimedOut)?? {
                Some(chunk) => {
                    self.since.get_or_insert_with(Instant::now);
                    self.buffer.extend_from_slice(&chunk.bytes);
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(FrameIoError::Closed),
            }
        }
    }

    /// How many bytes of the frame are still to come; 0 when it is complete, and checked.
    fn wanted(&self) -> Result<usize, FrameIoError> {
        let Some((head, payload)) = self.buffer.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(FRAME_HEADER_BYTES - self.buffer.len());
        };
        let header = frame::header(head, self.max_bytes)?;
        error::expect_kind(&header, self.format.kind)?;
        let wanted = header.len - payload.len();
        if wanted == 0 {
            header.check(payload)?;
        }
        Ok(wanted)
    }
}

/// Writes messages `T` to a control stream, ahead of bulk. Not cancel-safe: give it a task of its own.
#[derive(Debug)]
pub struct FrameWriter<T> {
    stream: SendStream,
    format: Format,
    deadline: Duration,
    messages: PhantomData<fn(T)>,
}

impl<T: Layout> FrameWriter<T> {
    /// Messages go out in frames of `format`; each must be taken by the connection within `deadline`.
    #[must_use]
    pub fn new(stream: SendStream, format: impl Into<Format>, deadline: Duration) -> Self {
        // Fails only on a stream that is closed already; the first send will say so.
        let _ = stream.set_priority(CONTROL_PRIORITY);
        Self { stream, format: format.into(), deadline, messages: PhantomData }
    }

    /// Sends one message of at most `CONTROL_MESSAGE_BYTES`.
    ///
    /// # Errors
    /// See [`FrameIoError`]. The stream is of no further use after one.
    pub async fn send(&mut self, message: &T) -> Result<(), FrameIoError> {
        send(&mut self.stream, self.format, message, CONTROL_MESSAGE_BYTES, self.deadline).await
    }

    /// Ends the stream and waits until the other side has everything, or `deadline` has passed.
    pub async fn finish(mut self) {
        if self.stream.finish().is_ok() {
            // Best effort: the connection may be gone, and nothing depends on it any more.
            let _ = tokio::time::timeout(self.deadline, self.stream.stopped()).await;
        }
    }
}
