//! An agent's connection: a control stream for each run that it takes part in, one for the list of runs if it asks, and
//! chunk streams, each of which belongs to one of these control streams.
//!
//! ```text
//!  connection ─┬─ Agent stream ─► Session (a peer of one run) ◄─┐
//!              ├─ Agent stream ─► Session (a peer of another) ◄─┤ by the session in its header
//!              ├─ Runs stream ──► lists                         │
//!              └─ chunk streams ────────────────────────────────┘
//! ```
//! What goes wrong on one control stream ends that stream. The connection ends with its last control stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::message::{AgentHello, AgentMessage, CoordinatorMessage};
use anabranch_common::wire::runs::{RunsListed, RunsWanted};
use anabranch_common::wire::transfer::ChunkHeader;
use anabranch_io::chunks::{self, ChunkError, Route};
use anabranch_io::faults;
use anabranch_io::frames::{self, Format, FrameIoError, FrameReader, FrameWriter};
use anabranch_io::tls::Peer;
use anyhow::{Context, bail};
use parking_lot::Mutex;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::handshakes::Place;
use super::pace::Pace;
use super::peer::{self, CHUNK, PeerOp, SEND, Session};
use super::{Control, HANDSHAKE, Input, Shared, Shown};
use crate::clock;
use crate::host;

/// Code with which a control stream is turned away.
const TURNED_AWAY: VarInt = VarInt::from_u32(2);

/// A control stream whose first message is here.
#[expect(clippy::large_enum_variant, reason = "one for each stream, on the stack of its task")]
enum Begun {
    Session {
        hello: AgentHello,
        version: u16,
        writer: FrameWriter<CoordinatorMessage>,
        messages: FrameReader<AgentMessage>,
        id: u64,
    },
    Runs {
        wanted: RunsWanted,
        version: u16,
        writer: FrameWriter<RunsListed>,
        recv: RecvStream,
    },
}

struct AgentConnection {
    connection: Connection,
    peer: Peer,
    shared: Arc<Shared>,
    /// By the QUIC id of the control stream.
    sessions: Mutex<BTreeMap<u64, Arc<Session>>>,
    /// An agent with many streams is read no faster than one with a single stream.
    pace: Mutex<Pace>,
    /// Room for large frames that have begun, whatever the number of streams.
    large: Arc<Semaphore>,
}

/// Serves an agent until its last control stream has ended. The `place` is given back when the first message is here.
pub(super) async fn serve(
    connection: Connection,
    peer: Peer,
    first: Control,
    mut place: Place,
    shared: Arc<Shared>,
) -> anyhow::Result<()> {
    let first = place.hold(async { tokio::time::timeout(HANDSHAKE, begin(first)).await? }).await?;
    drop(place);
    let agent = peer.agent;
    let surplus = shared.connections.opened(agent, &connection);
    if surplus > 0 {
        shared.handshakes.closed_as_surplus();
        tracing::warn!(agent = %agent.short(), "an agent has too many connections; its oldest is closed");
    }
    let (sessions, pace) = (Mutex::default(), Mutex::new(Pace::new(clock::monotonic())));
    let large = Arc::new(Semaphore::new(limits::LARGE_FRAMES));
    let this = Arc::new(AgentConnection { connection, peer, shared, sessions, pace, large });
    let ended = this.serve(first).await;
    this.shared.connections.closed(agent, &this.connection);
    ended
}

/// Reads what comes first on a control stream.
async fn begin(Control { purpose, version, send, mut recv }: Control) -> anyhow::Result<Begun> {
    match purpose {
        Purpose::Agent => {
            let id = u64::from(recv.id());
            let mut messages = peer::messages(recv, version);
            let hello = peer::hello(&mut messages).await?;
            Ok(Begun::Session { hello, version, writer: peer::writer(send, version), messages, id })
        }
        Purpose::Runs => {
            let format = |kind| Format { kind, version };
            let kind = format(FrameKind::RunsWanted);
            let wanted: RunsWanted = frames::recv_one(&mut recv, kind, limits::HELLO_BYTES, HANDSHAKE).await?;
            wanted.validate()?;
            let writer = FrameWriter::new(send, format(FrameKind::RunsListed), SEND);
            Ok(Begun::Runs { wanted, version, writer, recv })
        }
        Purpose::Join | Purpose::Operator | Purpose::Probe | Purpose::Facts => {
            bail!("not a purpose of an agent's connection")
        }
    }
}

impl AgentConnection {
    async fn serve(self: &Arc<Self>, first: Begun) -> anyhow::Result<()> {
        let mut streams = JoinSet::new();
        streams.spawn(Arc::clone(self).carry(first));
        let mut chunks = std::pin::pin!(self.read_chunks());
        let ended = loop {
            tokio::select! {
                accepted = self.connection.accept_bi() => match accepted {
                    Ok((send, recv)) => self.accepted(&mut streams, send, recv),
                    Err(reason) => break Err(reason.into()),
                },
                Some(ended) = streams.join_next() => match ended {
                    Ok(ended) if streams.is_empty() => break ended,
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => self.stream_ended(&error),
                    Err(panic) => break Err(panic.into()),
                },
                ended = &mut chunks => break ended,
            }
        };
        self.connection.close(0u32.into(), b"done");
        // Each notices, and tells the loop in the end.
        while let Some(ended) = streams.join_next().await {
            if let Ok(Err(error)) = ended {
                self.stream_ended(&error);
            }
        }
        ended
    }

    fn stream_ended(&self, error: &anyhow::Error) {
        tracing::debug!(agent = %self.peer.agent.short(), error = format!("{error:#}"), "a control stream ended");
    }

    /// A further stream, unless there are enough. One whose end is still being waited for counts too.
    fn accepted(
        self: &Arc<Self>,
        streams: &mut JoinSet<anyhow::Result<()>>,
        mut send: SendStream,
        mut recv: RecvStream,
    ) {
        if streams.len() >= limits::CONTROL_STREAMS as usize {
            // Both fail only on a stream that has ended.
            let _ = (send.reset(TURNED_AWAY), recv.stop(TURNED_AWAY));
            return;
        }
        let this = Arc::clone(self);
        streams.spawn(async move {
            let is_agents = |purpose| matches!(purpose, Purpose::Agent | Purpose::Runs);
            let (purpose, version) = frames::accept(&mut send, &mut recv, is_agents, HANDSHAKE).await?;
            let control = Control { purpose, version, send, recv };
            let begun = tokio::time::timeout(HANDSHAKE, begin(control)).await??;
            this.carry(begun).await
        });
    }

    /// Serves a control stream until it ends.
    async fn carry(self: Arc<Self>, begun: Begun) -> anyhow::Result<()> {
        match begun {
            Begun::Session { hello, version, writer, mut messages, id } => {
                let room = self.admit(messages.last_bytes()).await?;
                messages.share(Arc::clone(&self.large));
                let route = Route { connection: self.connection.clone(), session: id };
                let (session, breached) =
                    Session::new(route, Arc::clone(&self.shared), Shown::new(&self.peer, version), &hello);
                self.sessions.lock().insert(id, Arc::clone(&session));
                let ended = session.serve((hello, room), (writer, messages), breached, &self.pace).await;
                self.sessions.lock().remove(&id);
                ended
            }
            Begun::Runs { wanted, version, writer, recv } => {
                self.list((wanted, Shown::new(&self.peer, version)), writer, recv).await
            }
        }
    }

    /// Lets what comes first on a stream go to the loop: at the pace of the connection's messages, and with room of so many
    /// bytes among those that wait.
    async fn admit(&self, bytes: usize) -> anyhow::Result<OwnedSemaphorePermit> {
        let wait = self.pace.lock().wait(clock::monotonic());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            reason = self.connection.closed() => return Err(reason.into()),
        }
        Ok(self.shared.room(bytes).await?)
    }

    /// Sends lists of runs until the agent wants no more.
    async fn list(
        &self,
        (wanted, shown): (RunsWanted, Shown),
        mut writer: FrameWriter<RunsListed>,
        mut recv: RecvStream,
    ) -> anyhow::Result<()> {
        let peer = self.shared.next_peer();
        let (ops, mut inbox) = mpsc::channel(limits::PEER_QUEUE_MESSAGES);
        let room = self.admit(limits::HELLO_BYTES).await?;
        self.shared.tell(Input::Subscribed { peer, shown, wanted, ops, room }).await;
        let lists = async {
            while let Some(op) = inbox.recv().await {
                match op {
                    PeerOp::List(list) => writer.send(&list).await?,
                    PeerOp::Close => break,
                    _ => tracing::trace!("a stream for lists of runs carries nothing else"),
                }
            }
            writer.finish().await;
            anyhow::Ok(())
        };
        let ended = tokio::select! {
            ended = lists => ended,
            // The agent has said all that it has to say: whatever comes is the stream's end.
            more = recv.read_chunk(1, true) => match more {
                Ok(None) => Ok(()),
                Ok(Some(_)) => Err(anyhow::anyhow!("an agent says more on the stream for lists of runs")),
                Err(error) => Err(error.into()),
            },
        };
        self.shared.tell(Input::Host(host::Input::Disconnected { peer })).await;
        ended
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
        let session = |header: &ChunkHeader| self.sessions.lock().get(&header.session).cloned();
        // Bytes that nobody asked for are not even taken into memory.
        let mut of = None;
        let wanted = |header: &ChunkHeader| {
            of = session(header);
            of.as_ref().is_some_and(|session| session.awaits(header.transfer))
        };
        let (header, chunk) = match chunks::recv_chunk_if(stream, CHUNK, wanted).await {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(()),
            // Given up by its sender.
            Err(ChunkError::Frame(FrameIoError::Closed)) => return Ok(()),
            // What fails after its header concerns the run that it names; without one, nobody knows which.
            Err(error) => match of {
                Some(session) => {
                    session.breached(error.into());
                    return Ok(());
                }
                None => return Err(error.into()),
            },
        };
        faults::point("upload-chunk");
        // A session that has ended meanwhile wants it no more.
        let Some(session) = session(&header) else { return Ok(()) };
        if let Err(error) = session.take(header, chunk).await {
            session.breached(error);
        }
        Ok(())
    }
}
