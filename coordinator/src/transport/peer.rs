//! One agent's connection: its control stream both ways, its chunk streams, and the transfers it has been asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anabranch_common::codec::{self, CodecId, DecodeError};
use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::UpdateMeta;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_io::chunks;
use anabranch_io::faults;
use anabranch_io::frames::{FrameReader, FrameWriter};
use anyhow::{Context, bail};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::uploads::Upload;
use super::{HANDSHAKE, Input, Shared, linger};
use crate::core::event::{Event, PeerId};
use crate::publish::Snapshot;

/// How long a message may take to be taken off our hands.
const SEND: Duration = Duration::from_millis(limits::IDLE_TIMEOUT_MS);

/// How long a chunk may take.
const CHUNK: Duration = Duration::from_millis(limits::CHUNK_TIMEOUT_MS);

/// What the loop wants of a connection.
#[derive(Debug)]
pub enum PeerOp {
    /// Send a control message.
    Send(CoordinatorMessage),
    /// Send a model: the message that announces it, then its chunks.
    SendModel {
        /// The model.
        snapshot: Arc<Snapshot>,
        /// Which chunks only.
        missing: Option<Missing>,
    },
    /// Ask for a transfer.
    Receive {
        /// What it is.
        what: Incoming,
        /// Its chunks.
        transfer: TransferManifest,
    },
    /// Close once everything before this was sent.
    Close,
}

/// What a transfer is.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// An update's payload.
    Update {
        /// What was offered.
        meta: Box<UpdateMeta>,
        /// The model's tensors.
        manifest: Arc<ModelManifest>,
    },
    /// The initial model.
    Model {
        /// Its tensors.
        manifest: Arc<ModelManifest>,
        /// Digest of its content.
        digest: Digest,
    },
}

/// Transfers under way on this connection.
type Transfers = Mutex<BTreeMap<Digest, (Incoming, Upload)>>;

struct PeerConnection {
    connection: Connection,
    shared: Arc<Shared>,
    peer: PeerId,
    agent: AgentId,
    transfers: Transfers,
}

pub(super) async fn serve(
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    agent: AgentId,
    shared: Arc<Shared>,
) -> anyhow::Result<()> {
    let mut messages = FrameReader::new(recv, FrameKind::Agent, SEND);
    let first = tokio::time::timeout(HANDSHAKE, messages.next()).await??;
    let Some(AgentMessage::Hello(hello)) = first else { bail!("the first message is not a hello") };
    let writer = FrameWriter::new(send, FrameKind::Coordinator, SEND);
    let peer = shared.next_peer();
    let (ops, inbox) = mpsc::channel(limits::PEER_QUEUE_MESSAGES);
    shared.tell(Input::Connected { peer, agent, hello, ops }).await;
    let this = Arc::new(PeerConnection { connection, shared, peer, agent, transfers: Transfers::default() });
    let ended = tokio::select! {
        ended = this.read_messages(messages) => ended,
        ended = this.read_chunks() => ended,
        ended = Arc::clone(&this).do_ops(writer, inbox) => ended,
    };
    this.connection.close(0u32.into(), b"done");
    for (_, (_, upload)) in std::mem::take(&mut *this.lock()) {
        this.shared.uploads.leave(agent, upload);
    }
    this.shared.tell(Input::Event(Event::Disconnected { peer })).await;
    ended
}

impl PeerConnection {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, (Incoming, Upload)>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A silent agent is one that trains; QUIC's idle timeout and its keep-alive tell whether it is still there.
    async fn read_messages(&self, mut messages: FrameReader<AgentMessage>) -> anyhow::Result<()> {
        while let Some(message) = messages.next().await? {
            self.shared.tell(Input::Event(Event::Message { peer: self.peer, message })).await;
        }
        Ok(())
    }

    async fn do_ops(
        self: Arc<Self>,
        mut writer: FrameWriter<CoordinatorMessage>,
        mut inbox: mpsc::Receiver<PeerOp>,
    ) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        loop {
            let op = tokio::select! {
                Some(done) = tasks.join_next() => match done? {
                    Some(message) => PeerOp::Send(message),
                    None => continue,
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
                PeerOp::SendModel { snapshot, missing } => {
                    let announce = CoordinatorMessage::Model {
                        version: snapshot.version,
                        digest: snapshot.digest,
                        transfer: snapshot.transfer.clone(),
                    };
                    writer.send(&announce).await?;
                    tasks.spawn(Arc::clone(&self).send_model(snapshot, missing));
                }
                PeerOp::Receive { what, transfer } => {
                    tasks.spawn(Arc::clone(&self).open_transfer(what, transfer));
                }
                PeerOp::Close => break,
            }
        }
        writer.finish().await;
        linger(&self.connection).await;
        Ok(())
    }

    async fn send_model(
        self: Arc<Self>,
        snapshot: Arc<Snapshot>,
        missing: Option<Missing>,
    ) -> Option<CoordinatorMessage> {
        let chunks = snapshot.transfer.chunks.len();
        let missing = missing.unwrap_or_else(|| Missing::all(chunks));
        let bytes = missing.indices(chunks).filter_map(|index| snapshot.transfer.range(index)).map(|r| r.len() as u64);
        let bytes = bytes.sum();
        match chunks::send_chunks(&self.connection, &snapshot.transfer, Arc::clone(&snapshot.content), &missing, CHUNK)
            .await
        {
            Ok(_) => self.shared.tell(Input::Event(Event::ModelSent { peer: self.peer, bytes })).await,
            Err(error) => tracing::debug!(agent = %self.agent.short(), %error, "a model was not sent whole"),
        }
        None
    }

    /// Makes room for a transfer, then says which chunks are missing.
    async fn open_transfer(self: Arc<Self>, what: Incoming, transfer: TransferManifest) -> Option<CoordinatorMessage> {
        let id = transfer.id();
        let upload = match self.shared.uploads.open(self.agent, transfer).await {
            Ok(upload) => upload,
            Err(error) => {
                self.failed(&what, error.to_string()).await;
                return None;
            }
        };
        if upload.assembly.missing().is_empty() {
            self.complete(what, upload).await;
            return None;
        }
        let missing = upload.assembly.missing().clone();
        self.lock().insert(id, (what, upload));
        Some(CoordinatorMessage::NeedChunks { transfer: id, missing })
    }

    async fn read_chunks(self: &Arc<Self>) -> anyhow::Result<()> {
        let parallel = Arc::new(Semaphore::new(8));
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
        let (header, chunk) = chunks::recv_chunk(stream, CHUNK).await?;
        faults::point("upload-chunk");
        let finished = {
            let mut transfers = self.lock();
            // A chunk of a transfer that is complete or was given up: sent twice over a bad line, and harmless.
            let Some((_, upload)) = transfers.get_mut(&header.transfer) else { return Ok(()) };
            if upload.assembly.put(header.index, &chunk)? { transfers.remove(&header.transfer) } else { None }
        };
        if let Some((what, upload)) = finished {
            self.complete(what, upload).await;
        }
        Ok(())
    }

    /// Decodes a complete transfer off the runtime's threads and tells the loop.
    async fn complete(&self, what: Incoming, upload: Upload) {
        let Ok(_decoder) = self.shared.decoders.acquire().await else { return };
        let peer = self.peer;
        let failed = what.clone();
        let decoded = tokio::task::spawn_blocking(move || decode(peer, what, upload)).await;
        match decoded {
            Ok(Some(event)) => self.shared.tell(Input::Event(event)).await,
            Ok(None) | Err(_) => self.failed(&failed, "the content could not be decoded".into()).await,
        }
    }

    async fn failed(&self, what: &Incoming, why: String) {
        let event = match what {
            Incoming::Model { .. } => Event::ModelFailed { peer: self.peer, why },
            Incoming::Update { meta, .. } => Event::UpdateReceived {
                peer: self.peer,
                meta: (**meta).clone(),
                payload: Arc::from([]),
                content: Err(DecodeError::Invalid("transfer")),
            },
        };
        self.shared.tell(Input::Event(event)).await;
    }
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

fn decode(peer: PeerId, what: Incoming, upload: Upload) -> Option<Event> {
    let content: Arc<[u8]> = upload.assembly.finish()?.into();
    match what {
        Incoming::Update { meta, manifest } => {
            let decoded = if Digest::of(&content) == meta.payload_digest {
                codec::decode(meta.codec, &manifest, &content).map(Arc::new)
            } else {
                Err(DecodeError::Invalid("payload digest"))
            };
            Some(Event::UpdateReceived { peer, meta: *meta, payload: content, content: decoded })
        }
        Incoming::Model { manifest, digest } => {
            let model = codec::decode(CodecId(0), &manifest, &content).ok()?.into_dense();
            if Digest::of_f32(&model) != digest {
                return Some(Event::ModelFailed { peer, why: "an initial model that is not what was offered".into() });
            }
            Some(Event::ModelReceived { peer, manifest: (*manifest).clone(), digest, model: Arc::new(model) })
        }
    }
}
