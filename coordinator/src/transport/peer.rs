//! One agent's connection: its control stream both ways, its chunk streams, and the transfers it has been asked for.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::codec::DecodeError;
use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_io::chunks::{self, ChunkError};
use anabranch_io::faults;
use anabranch_io::frames::{Format, FrameIoError, FrameReader, FrameWriter};
use anyhow::{Context, bail};
use parking_lot::Mutex;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::pace::Pace;
use super::partials::PartialName;
use super::transfers::{Opened, Overdue, Transfers, Whole};
use super::uploads::OpenError;
use super::{Input, Shared, linger};
use crate::clock;
use crate::core::event::{Event, PeerId};
use crate::node::{self, DownloadId, Expected, Snapshot, UNDECODABLE, decode};

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
        snapshot: Arc<Snapshot>,
        /// Which chunks.
        missing: Missing,
    },
    /// Ask for a transfer.
    Receive {
        /// What it is.
        what: Expected,
        /// Its chunks.
        transfer: TransferManifest,
    },
    /// Close once everything before this was sent.
    Close,
}

struct PeerConnection {
    connection: Connection,
    shared: Arc<Shared>,
    peer: PeerId,
    agent: AgentId,
    transfers: Mutex<Transfers>,
    /// Large uploads of a connection come one after another: each with the whole link to itself, and one at a time in
    /// the budget.
    turn: Arc<Semaphore>,
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
    shared.tell(Input::Connected { peer, agent, hello, ops }).await;
    let turn = Arc::new(Semaphore::new(1));
    let this = Arc::new(PeerConnection { connection, shared, peer, agent, transfers: Mutex::default(), turn });
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
    this.give_up_transfers();
    this.shared.tell(Input::event(Event::Disconnected { peer })).await;
    ended
}

impl PeerConnection {
    fn give_up_transfers(&self) {
        let given_up = self.transfers.lock().give_up();
        given_up.into_iter().for_each(|upload| self.shared.uploads.leave(self.agent, upload));
    }

    /// Gives up what is too slow. The initial model of a run is waited for by everyone: with it goes the connection, so
    /// that the next agent is asked for its own.
    fn drop_overdue(&self) -> anyhow::Result<()> {
        let overdue = self.transfers.lock().look(self.shared.uploads.is_short());
        for Overdue { id, is_model } in overdue {
            self.shared.uploads.gave_up();
            tracing::warn!(agent = %self.agent.short(), transfer = %id.short(), "an upload is too slow and is given up");
            if is_model {
                bail!("the initial model that was offered did not come");
            }
        }
        Ok(())
    }

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
        let mut look = tokio::time::interval(Duration::from_millis(limits::TRANSFER_LOOK_MS));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        loop {
            let op = tokio::select! {
                Some(done) = tasks.join_next() => match done {
                    Ok(Some(message)) => PeerOp::Send(Box::new(message)),
                    Ok(None) => continue,
                    Err(stopped) if stopped.is_cancelled() => continue,
                    Err(panic) => return Err(panic.into()),
                },
                _ = look.tick() => {
                    self.drop_overdue()?;
                    continue;
                }
                op = inbox.recv() => match op {
                    Some(op) => op,
                    None => break,
                },
            };
            match op {
                PeerOp::Send(message) => {
                    writer.send(&message).await?;
                    faults::point(sent(&message));
                    self.forget_partial(&message);
                }
                PeerOp::SendChunks { download, snapshot, missing } => {
                    let task = tasks.spawn(Arc::clone(&self).send_chunks(download, snapshot, missing));
                    if let Some(before) = sending.replace(task) {
                        before.abort();
                    }
                }
                PeerOp::Receive { what, transfer } => {
                    let name = partial_name(&what, self.agent);
                    if self.transfers.lock().announce(transfer.id(), what)? {
                        tasks.spawn(Arc::clone(&self).open_transfer(name, transfer));
                    }
                }
                PeerOp::Close => {
                    // Whoever takes this one's place goes on with its uploads at once.
                    self.give_up_transfers();
                    tasks.abort_all();
                    break;
                }
            }
        }
        writer.finish().await;
        linger(&self.connection).await;
        Ok(())
    }

    /// What is half here of a decided update, or of the model that became version 0, is not needed any more.
    fn forget_partial(&self, message: &CoordinatorMessage) {
        match message {
            CoordinatorMessage::Verdict { key, .. } => self.shared.uploads.decided(PartialName::of_update(key)),
            CoordinatorMessage::ModelReady { .. } => self.shared.uploads.decided(PartialName::of_model(self.agent)),
            _ => {}
        }
    }

    async fn send_chunks(
        self: Arc<Self>,
        download: DownloadId,
        snapshot: Arc<Snapshot>,
        missing: Missing,
    ) -> Option<CoordinatorMessage> {
        let Snapshot { transfer, content, .. } = &*snapshot;
        let ranges = missing.indices(transfer.chunks.len()).filter_map(|index| transfer.range(index));
        let bytes = ranges.map(|range| range.len() as u64).sum();
        let sent = chunks::send_chunks(&self.connection, transfer, Arc::clone(content), &missing, CHUNK).await;
        if let Err(error) = &sent {
            tracing::debug!(agent = %self.agent.short(), %error, "a model was not sent whole");
        }
        let bytes = sent.is_ok().then_some(bytes);
        self.shared.tell(Input::Node(node::Input::Sent { peer: self.peer, download, bytes })).await;
        None
    }

    /// Makes room for a transfer, then says which chunks are missing.
    async fn open_transfer(
        self: Arc<Self>,
        name: PartialName,
        transfer: TransferManifest,
    ) -> Option<CoordinatorMessage> {
        let id = transfer.id();
        let large = transfer.chunks.len() > 1;
        let turn = if large { Arc::clone(&self.turn).acquire_owned().await.ok() } else { None };
        let upload = match self.shared.uploads.open(self.agent, name, transfer).await {
            Ok(upload) => upload,
            Err(error @ OpenError::NoRoom) => {
                // Undecided: its agent offers it again when it has waited long enough.
                tracing::warn!(agent = %self.agent.short(), %error, "an upload does not begin");
                self.transfers.lock().not_opened(id);
                return None;
            }
            Err(OpenError::Transfer(error)) => {
                let waiting = self.transfers.lock().not_opened(id);
                for what in &waiting {
                    self.failed(what, error.to_string()).await;
                }
                return None;
            }
        };
        let opened = self.transfers.lock().opened(id, upload, turn);
        match opened {
            Opened::Missing(missing) => return Some(CoordinatorMessage::NeedChunks { transfer: id, missing }),
            Opened::Whole(whole) => self.complete(whole).await,
            Opened::Gone(upload) => self.shared.uploads.leave(self.agent, upload),
        }
        None
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
        let wanted = |transfer| self.transfers.lock().expects(transfer);
        let (header, chunk) = match chunks::recv_chunk_if(stream, CHUNK, wanted).await {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(()),
            // Given up by its sender.
            Err(ChunkError::Frame(FrameIoError::Closed)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        faults::point("upload-chunk");
        let put = self.transfers.lock().put(header.transfer, header.index, &chunk)?;
        if put.counts.is_some() && put.of_model {
            let bytes = chunk.len() as u64;
            self.shared.tell(Input::event(Event::ModelChunk { peer: self.peer, bytes })).await;
        }
        if let Some(name) = put.counts {
            self.shared.uploads.received(name, put.offset, chunk).await;
        }
        if let Some(whole) = put.whole {
            self.complete(whole).await;
        }
        Ok(())
    }

    /// Decodes a complete transfer and tells the loop, once for each that has this content; off the runtime's threads,
    /// unless that would take longer than the work itself. What the loop is told holds its part of the budgets.
    async fn complete(&self, Whole { waiting, upload }: Whole) {
        let bytes = upload.assembly.manifest().bytes;
        let (mut upload, mut received) = (Some(upload), None);
        for what in waiting {
            let Some(room) = self.shared.uploads.room_to_decode(what.decoded_bytes(bytes)).await else {
                // Undecided: its agent offers it again when it has waited long enough.
                return tracing::warn!(agent = %self.agent.short(), "no room to decode an upload: updates wait for the disk");
            };
            let Ok(_decoder) = self.shared.decoders.acquire().await else { return };
            if let Some(upload) = upload.take() {
                received = upload.finish();
            }
            let Some(received) = &received else { return };
            let (payload, reservation) = (Arc::clone(&received.payload), received.reservation(room));
            let (peer, failed) = (self.peer, what.clone());
            if is_soon_decoded(&what, &payload) {
                self.shared.tell(Input::event(decode(peer, what, payload, reservation))).await;
                continue;
            }
            let decoded = tokio::task::spawn_blocking(move || decode(peer, what, payload, reservation)).await;
            match decoded {
                Ok(event) => self.shared.tell(Input::event(event)).await,
                Err(_) => self.failed(&failed, UNDECODABLE.into()).await,
            }
        }
    }

    async fn failed(&self, what: &Expected, why: String) {
        let event = match what {
            Expected::Model { .. } => Event::ModelFailed { peer: self.peer, why },
            Expected::Update { meta, .. } => Event::UpdateReceived {
                peer: self.peer,
                meta: (**meta).clone(),
                payload: Arc::from([]),
                content: Err(DecodeError::Invalid("transfer")),
            },
        };
        self.shared.tell(Input::event(event)).await;
    }
}

/// Under which name the half of an upload is kept.
fn partial_name(what: &Expected, agent: AgentId) -> PartialName {
    match what {
        Expected::Update { meta, .. } => PartialName::of_update(&meta.key),
        Expected::Model { .. } => PartialName::of_model(agent),
    }
}

/// Whether decoding takes no longer than to hand it to another thread and back: little comes in, and little can come out.
fn is_soon_decoded(what: &Expected, content: &[u8]) -> bool {
    let (Expected::Update { manifest, .. } | Expected::Model { manifest, .. }) = what;
    content.len() <= limits::INLINE_DECODE_BYTES && manifest.params() <= limits::INLINE_DECODE_PARAMS
}

/// The kill point after a message.
fn sent(message: &CoordinatorMessage) -> &'static str {
    match message {
        CoordinatorMessage::Verdict { .. } => "verdict-sent",
        CoordinatorMessage::NeedChunks { .. } => "upload-asked-for",
        CoordinatorMessage::Lease { .. } => "lease-sent",
        _ => "message-sent",
    }
}
