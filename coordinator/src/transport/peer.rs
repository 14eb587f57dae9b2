//! An agent's part in one run, over one connection: its control stream both ways, and what becomes of its chunks.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;
use anabranch_common::transfer::{Received, Sink, UploadName};
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage};
use anabranch_common::wire::runs::RunsListed;
use anabranch_common::wire::transfer::{ChunkHeader, Missing};
use anabranch_io::chunks::{self, Route};
use anabranch_io::faults;
use anabranch_io::frames::{Format, FrameReader, FrameWriter};
use anyhow::bail;
use parking_lot::Mutex;
use quinn::{RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::pace::Pace;
use super::{Input, Shared, Shown, Spool, linger};
use crate::clock;
use crate::core::event::PeerId;
use crate::host;
use crate::node::{DownloadId, PackedModel};
use crate::web::RunEvents;

/// How long a message may take to be taken off our hands.
pub(super) const SEND: Duration = Duration::from_millis(limits::IDLE_TIMEOUT_MS);
/// How long a chunk may take.
pub(super) const CHUNK: Duration = Duration::from_millis(limits::CHUNK_TIMEOUT_MS);
/// Messages that came before a connection ended are taken in for this long.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(limits::LAST_WORDS_MS);

/// What the loop wants of a control stream, or of a stream with the list of runs.
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
    /// Send a list of runs: the only thing, beside `Close`, that a stream with such lists is for.
    List(RunsListed),
    /// Close the stream once everything before this was sent.
    Close,
}

/// An agent's part in one run.
pub(super) struct Session {
    route: Route,
    shared: Arc<Shared>,
    peer: PeerId,
    agent: AgentId,
    shown: Shown,
    /// Where halves of uploads to its run go, as long as the run is open.
    spool: Weak<Spool>,
    /// Where bytes sent are counted, if anywhere.
    events: Option<RunEvents>,
    /// Where the chunks go that are awaited, by transfer, and whether they are written to disk too.
    sinks: Mutex<BTreeMap<Digest, (Arc<Sink>, bool)>>,
    /// Ends the session over a chunk that is not what was offered.
    breach: Mutex<Option<oneshot::Sender<anyhow::Error>>>,
}

/// The agent's control stream, until its hello is read.
pub(super) fn messages(recv: RecvStream, version: u16) -> FrameReader<AgentMessage> {
    FrameReader::new(recv, Format { kind: FrameKind::Agent, version }, SEND).at_most(limits::HELLO_BYTES)
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

impl Session {
    /// A session of which the loop has not heard, and what ends it over a chunk.
    pub(super) fn new(
        route: Route,
        shared: Arc<Shared>,
        shown: Shown,
        hello: &AgentHello,
    ) -> (Arc<Self>, oneshot::Receiver<anyhow::Error>) {
        let (breach, breached) = oneshot::channel();
        let spool = shared.spool(hello.run).map(|spool| Arc::downgrade(&spool)).unwrap_or_default();
        let (peer, breach) = (shared.next_peer(), Mutex::new(Some(breach)));
        let events = shared.events(hello.run);
        let agent = shown.agent;
        (Arc::new(Self { route, shared, peer, agent, shown, spool, events, sinks: Mutex::default(), breach }), breached)
    }

    /// Carries what is said until the stream or the connection ends. `room` is of the hello, until the loop has heard of
    /// it; `pace` is of the connection.
    pub(super) async fn serve(
        self: Arc<Self>,
        (hello, room): (AgentHello, OwnedSemaphorePermit),
        (writer, messages): (FrameWriter<CoordinatorMessage>, FrameReader<AgentMessage>),
        breached: oneshot::Receiver<anyhow::Error>,
        pace: &Mutex<Pace>,
    ) -> anyhow::Result<()> {
        let (ops, inbox) = mpsc::channel(limits::PEER_QUEUE_MESSAGES);
        let (peer, shown) = (self.peer, self.shown);
        self.shared.tell(Input::Connected { peer, shown, hello, ops, room }).await;
        let mut reading = std::pin::pin!(self.read_messages(messages, pace));
        let (ended, read) = tokio::select! {
            ended = &mut reading => (ended, true),
            ended = Arc::clone(&self).do_ops(writer, inbox) => (ended, false),
            Ok(error) = breached => (Err(error), false),
            reason = self.route.connection.closed() => (Err(reason.into()), false),
        };
        // Whoever notices first that the agent has gone, what it said before that counts: a goodbye that is lost keeps a
        // finished run waiting.
        if !read && self.route.connection.close_reason().is_some() {
            // How it ends is known already.
            let _ = tokio::time::timeout(LAST_WORDS, reading).await;
        }
        self.shared.tell(Input::Host(host::Input::Disconnected { peer })).await;
        ended
    }

    /// A silent agent is one that trains; QUIC's idle timeout and its keep-alive tell whether it is still there.
    async fn read_messages(&self, mut messages: FrameReader<AgentMessage>, pace: &Mutex<Pace>) -> anyhow::Result<()> {
        while let Some(message) = messages.next().await? {
            // Whoever says more than the loop should hear is read more slowly, and its window fills up.
            let wait = pace.lock().wait(clock::monotonic());
            tokio::time::sleep(wait).await;
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
                PeerOp::List(_) => tracing::trace!("a list of runs has a stream of its own"),
                PeerOp::Close => {
                    self.sinks.lock().clear();
                    tasks.abort_all();
                    break;
                }
            }
        }
        writer.finish().await;
        linger(&self.route.connection).await;
        Ok(())
    }

    async fn send_chunks(self: Arc<Self>, download: DownloadId, model: Arc<PackedModel>, missing: Missing) {
        let PackedModel { transfer, content, form, .. } = &*model;
        let ranges = missing.indices(transfer.chunks.len()).filter_map(|index| transfer.range(index));
        let bytes = ranges.map(|range| range.len() as u64).sum();
        let sent = chunks::send_chunks(&self.route, transfer, Arc::clone(content), &missing, CHUNK).await;
        if let Err(error) = &sent {
            tracing::debug!(agent = %self.agent.short(), %error, "a model was not sent whole");
        }
        let bytes = sent.is_ok().then_some(bytes);
        if let Some((events, bytes)) = self.events.as_ref().zip(bytes) {
            events.sent(*form, bytes);
        }
        self.shared.tell(Input::Host(host::Input::Sent { peer: self.peer, download, bytes })).await;
    }

    /// Whether chunks of a transfer are awaited.
    pub(super) fn awaits(&self, transfer: Digest) -> bool {
        self.sinks.lock().contains_key(&transfer)
    }

    /// Ends this session; the agent's other ones go on.
    pub(super) fn breached(&self, error: anyhow::Error) {
        if let Some(breach) = self.breach.lock().take() {
            // It has ended by itself.
            let _ = breach.send(error);
        }
    }

    /// Puts a chunk where it is awaited.
    ///
    /// # Errors
    /// It is not what this agent has offered.
    pub(super) async fn take(&self, header: ChunkHeader, chunk: Vec<u8>) -> anyhow::Result<()> {
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
        let Some(spool) = self.spool.upgrade() else { return false };
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
