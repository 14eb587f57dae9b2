//! One agent's connection: its control stream both ways, and its chunk streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;
use anabranch_common::transfer::{Received, Sink, UploadName};
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::Missing;
use anabranch_io::chunks::{self, ChunkError};
use anabranch_io::faults;
use anabranch_io::frames::{Format, FrameIoError, FrameReader, FrameWriter};
use anyhow::{Context, bail};
use parking_lot::Mutex;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::pace::Pace;
use super::{Input, Shared, Spool, linger};
use crate::clock;
use crate::core::event::PeerId;
use crate::host;
use crate::node::{DownloadId, PackedModel};

/// How long a message may take to be taken off our hands.
const SEND: Duration = Duration::from_millis(limits::IDLE_TIMEOUT_MS);

/// How long a chunk may take.
const CHUNK: Duration = Duration::from_millis(limits::CHUNK_TIMEOUT_MS);
/// Messages that came before a connection ended are taken in for this long.
const LAST_WORDS: Duration = Duration::from_millis(limits::LAST_WORDS_MS);

/// What the loop wants of a connection.
#[derive(Debug)]
pub enum PeerOp {
    /// Send a control message.
    Send(Box<CoordinatorMessage>),
    /// Send chunks of a model in place of those that are on their way.
    SendChunks {
        /// Comes back when it has ended.
        download: DownloadId,
        /// The model.
        model: Arc<PackedModel>,
        /// Which chunks.
        missing: Missing,
    },
    /// Put the chunks of an upload into a sink.
    Receive {
        /// The sink.
        sink: Arc<Sink>,
        /// Whether they are written to disk too.
        on_disk: bool,
    },
    /// Take no more chunks of an upload.
    Forget {
        /// Its transfer.
        transfer: Digest,
    },
    /// Close once everything before this was sent.
    Close,
}

struct PeerConnection {
    connection: Connection,
    shared: Arc<Shared>,
    peer: PeerId,
    agent: AgentId,
    /// Where halves of uploads to its run go.
    spool: Option<Arc<Spool>>,
    /// Where the chunks go that are awaited, by transfer, and whether they are written to disk too.
    sinks: Mutex<BTreeMap<Digest, (Arc<Sink>, bool)>>,
}

/// The agent's control stream.
pub(super) fn messages(recv: RecvStream, version: u16) -> FrameReader<AgentMessage> {
    FrameReader::new(recv, Format { kind: FrameKind::Agent, version }, SEND)
}

/// The coordinator's half of it.
pub(super) fn writer(send: SendStream, version: u16) -> FrameWriter<CoordinatorMessage> {
    FrameWriter::new(send, Format { kind: FrameKind::Coordinator, version }, SEND)
}

/// What comes first on it.
pub(super) async fn hello(messages: &mut FrameReader<AgentMessage>) -> anyhow::Result<AgentHello> {
    match messages.next().await? {
        Some(AgentMessage::Hello(hello)) => Ok(hello),
        _ => bail!("the first message is not a hello"),
    }
}

pub(super) async fn serve(
    connection: Connection,
    (writer, messages): (FrameWriter<CoordinatorMessage>, FrameReader<AgentMessage>),
    (agent, hello): (AgentId, AgentHello),
    shared: Arc<Shared>,
) -> anyhow::Result<()> {
    let peer = shared.next_peer();
    let (ops, inbox) = mpsc::channel(limits::PEER_QUEUE_MESSAGES);
    let spool = shared.spool(hello.run);
    shared.tell(Input::Connected { peer, agent, hello, ops }).await;
    let this = Arc::new(PeerConnection { connection, shared, peer, agent, spool, sinks: Mutex::default() });
    let mut reading = std::pin::pin!(this.read_messages(messages));
    let (ended, read) = tokio::select! {
        ended = &mut reading => (ended, true),
        ended = this.read_chunks() => (ended, false),
        ended = Arc::clone(&this).do_ops(writer, inbox) => (ended, false),
    };
    // Whoever notices first that the agent has gone, what it said before that counts: a goodbye that is lost keeps a
    // finished run waiting.
    if !read && this.connection.close_reason().is_some() {
        // How it ends is known already.
        let _ = tokio::time::timeout(LAST_WORDS, reading).await;
    }
    this.connection.close(0u32.into(), b"done");
    this.shared.tell(Input::Host(host::Input::Disconnected { peer })).await;
    ended
}

impl PeerConnection {
    /// A silent agent is one that trains; QUIC's idle timeout and its keep-alive tell whether it is still there.
    async fn read_messages(&self, mut messages: FrameReader<AgentMessage>) -> anyhow::Result<()> {
        let mut pace = Pace::new(clock::monotonic());
        while let Some(message) = messages.next().await? {
            // Whoever says more than the loop should hear is read more slowly, and its window fills up.
            tokio::time::sleep(pace.wait(clock::monotonic())).await;
            self.shared.tell_message(self.peer, message, messages.last_bytes()).await;
        }
        Ok(())
    }

    async fn do_ops(
        self: Arc<Self>,
        mut writer: FrameWriter<CoordinatorMessage>,
        mut inbox: mpsc::Receiver<PeerOp>,
    ) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        let mut sending: Option<AbortHandle> = None;
        loop {
            let op = tokio::select! {
                Some(done) = tasks.join_next() => match done {
                    Ok(()) => continue,
                    Err(stopped) if stopped.is_cancelled() => continue,
                    Err(panic) => return Err(panic.into()),
                },
                op = inbox.recv() => match op {
                    Some(op) => op,
                    None => break,
                },
            };
            match op {
                PeerOp::Send(message) => {
                    writer.send(&message).await?;
                    faults::point(sent(&message));
                }
                PeerOp::SendChunks { download, model, missing } => {
                    let task = tasks.spawn(Arc::clone(&self).send_chunks(download, model, missing));
                    if let Some(before) = sending.replace(task) {
                        before.abort();
                    }
                }
                PeerOp::Receive { sink, on_disk } => {
                    self.sinks.lock().insert(sink.transfer(), (sink, on_disk));
                }
                PeerOp::Forget { transfer } => _ = self.sinks.lock().remove(&transfer),
                PeerOp::Close => {
                    self.sinks.lock().clear();
                    tasks.abort_all();
                    break;
                }
            }
        }
        writer.finish().await;
        linger(&self.connection).await;
        Ok(())
    }

    async fn send_chunks(self: Arc<Self>, download: DownloadId, model: Arc<PackedModel>, missing: Missing) {
        let PackedModel { transfer, content, .. } = &*model;
        let ranges = missing.indices(transfer.chunks.len()).filter_map(|index| transfer.range(index));
        let bytes = ranges.map(|range| range.len() as u64).sum();
        let sent = chunks::send_chunks(&self.connection, transfer, Arc::clone(content), &missing, CHUNK).await;
        if let Err(error) = &sent {
            tracing::debug!(agent = %self.agent.short(), %error, "a model was not sent whole");
        }
        let bytes = sent.is_ok().then_some(bytes);
        self.shared.tell(Input::Host(host::Input::Sent { peer: self.peer, download, bytes })).await;
    }

    async fn read_chunks(self: &Arc<Self>) -> anyhow::Result<()> {
        let parallel = Arc::new(Semaphore::new(limits::CHUNK_STREAMS as usize));
        let mut tasks = JoinSet::new();
        loop {
            let room = Arc::clone(&parallel).acquire_owned().await?;
            let stream = tokio::select! {
                stream = self.connection.accept_uni() => stream?,
                Some(done) = tasks.join_next() => {
                    done.context("a chunk's task ended")??;
                    continue;
                }
            };
            let this = Arc::clone(self);
            tasks.spawn(async move {
                let _room = room;
                this.read_chunk(stream).await
            });
        }
    }

    async fn read_chunk(&self, stream: RecvStream) -> anyhow::Result<()> {
        // Bytes that nobody asked for are not even taken into memory.
        let wanted = |transfer| self.sinks.lock().contains_key(&transfer);
        let (header, chunk) = match chunks::recv_chunk_if(stream, CHUNK, wanted).await {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(()),
            // Given up by its sender.
            Err(ChunkError::Frame(FrameIoError::Closed)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        faults::point("upload-chunk");
        // A transfer that is not under way (complete, or given up: sent twice over a bad line) is harmless.
        let Some((sink, on_disk)) = self.sinks.lock().get(&header.transfer).cloned() else { return Ok(()) };
        let put = match sink.put(header.index, &chunk) {
            Ok(put) => put,
            // A helper of a pod does not have what the owner has offered, whoever of the two is wrong.
            Err(error) if sink.name().agent() != self.agent => {
                tracing::warn!(agent = %self.agent.short(), %error, "a helper sends another update than its owner offers");
                self.sinks.lock().remove(&header.transfer);
                let message = AgentMessage::PartNotHere { transfer: header.transfer };
                self.shared.tell_message(self.peer, message, 0).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if put.is_whole {
            self.sinks.lock().remove(&header.transfer);
        }
        if !put.is_news && !put.is_whole {
            return Ok(());
        }
        let bytes = if put.is_news { chunk.len() as u64 } else { 0 };
        let is_kept = !(on_disk && put.is_news) || self.spool(sink.name(), put.offset, chunk).await;
        let chunk = Received { upload: sink.upload(), bytes, is_whole: put.is_whole, is_kept };
        self.shared.tell(Input::Host(host::Input::Received { peer: self.peer, chunk })).await;
        Ok(())
    }

    /// Writes a chunk to disk. Returns false if it cannot be kept there.
    async fn spool(&self, name: UploadName, offset: u64, chunk: Vec<u8>) -> bool {
        let Some(spool) = self.spool.clone() else { return false };
        tokio::task::spawn_blocking(move || spool.write(name, offset, &chunk)).await.unwrap_or(false)
    }
}

/// The kill point after a message.
fn sent(message: &CoordinatorMessage) -> &'static str {
    match message {
        CoordinatorMessage::Verdict { .. } => "verdict-sent",
        CoordinatorMessage::NeedChunks { .. } | CoordinatorMessage::NeedPart { .. } => "upload-asked-for",
        CoordinatorMessage::Lease { .. } => "lease-sent",
        _ => "message-sent",
    }
}
