//! The agent's side of QUIC: one connection, and on it a link for each run, each with a task. Decides nothing: it opens,
//! greets, and carries messages and chunks.
//!
//! ```text
//!  driver ──Op──► write control messages ──► control stream
//!                 └─ SendChunks ──► one stream a chunk (a task of its own: bulk never holds messages up)
//!  driver ◄─NetEvent── control stream, chunk streams, the end of the link and why
//! ```

mod coordinator;
mod dial;
mod queue;
mod runs;
#[cfg(test)]
mod tests;
mod uplink;

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::{Digest, RunId};
use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_io::chunks::{self, Piece, Route};
use anabranch_io::frames::{Format, FrameReader, FrameWriter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use coordinator::{Credentials, Dialer};
pub use dial::{DialError, join};
pub use queue::{NetReceiver, NetSender, queue};
pub use runs::{RunsEvent, RunsLink, subscribe};
pub use uplink::Uplink;

use dial::Control;
use queue::Tell;
use uplink::{CHUNK, Session};

use crate::session::event::{Event, Problem};

/// Which link of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkName {
    /// The run that it is for.
    pub run: RunId,
    /// Which of that run's links it is, counted from 1.
    pub number: u64,
}

/// What the driver wants of a link.
#[derive(Debug)]
pub enum Op {
    /// Send a control message.
    Send(Box<AgentMessage>),
    /// Send chunks.
    SendChunks {
        /// The content they are cut from.
        content: Arc<[u8]>,
        /// Its chunks.
        transfer: TransferManifest,
        /// Which of them.
        missing: Missing,
    },
    /// Send chunks of a piece of a transfer.
    SendPart {
        /// The piece.
        piece: Piece,
        /// Which of them, counted from its first one.
        missing: Missing,
    },
    /// Close once everything before this was handed over.
    Close,
}

/// What a link tells the driver.
#[derive(Debug)]
pub enum NetEvent {
    /// It is open.
    Connected,
    /// A control message came.
    Message(CoordinatorMessage),
    /// A chunk came.
    Chunk {
        /// The transfer it says it belongs to.
        transfer: Digest,
        /// Which.
        index: u32,
        /// Its content.
        bytes: Vec<u8>,
    },
    /// All chunks of an `Op::SendChunks` were handed over.
    ChunksSent {
        /// The transfer.
        transfer: Digest,
        /// Their bytes.
        bytes: u64,
    },
    /// It is over, or never came to be. The last thing that is told.
    Disconnected(Problem),
}

impl From<NetEvent> for Event {
    fn from(event: NetEvent) -> Self {
        match event {
            NetEvent::Connected => Self::Connected,
            NetEvent::Message(message) => Self::Message(message),
            NetEvent::Chunk { transfer, index, bytes } => Self::Chunk { transfer, index, bytes },
            NetEvent::ChunksSent { transfer, .. } => Self::ChunksSent { transfer },
            NetEvent::Disconnected(problem) => Self::Disconnected(problem),
        }
    }
}

/// The driver's end of a link. Dropping it ends the link.
#[derive(Debug)]
pub struct Link {
    /// Which it is.
    pub name: LinkName,
    /// What to do.
    pub ops: mpsc::Sender<Op>,
}

/// How long a control message may take to be taken off our hands.
const SEND: Duration = Duration::from_millis(limits::IDLE_TIMEOUT_MS);
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_millis(limits::FAREWELL_MS);

/// Opens a link after `after`, and carries what comes and goes until it ends.
pub fn open(uplink: Arc<Uplink>, name: LinkName, after: Duration, events: NetSender) -> Link {
    let (ops, inbox) = mpsc::channel(limits::PEER_QUEUE_MESSAGES);
    let tell = Tell { link: name, events };
    tokio::spawn(async move {
        let problem = run(&uplink, after, inbox, tell.clone()).await;
        tell.event(NetEvent::Disconnected(problem)).await;
    });
    Link { name, ops }
}

async fn run(uplink: &Uplink, after: Duration, mut inbox: mpsc::Receiver<Op>, tell: Tell) -> Problem {
    let opened = tokio::select! {
        opened = async {
            tokio::time::sleep(after).await;
            uplink.open(Purpose::Agent, Some(&tell)).await
        } => opened,
        () = closed(&mut inbox) => return Problem::Transient("closed while connecting".to_owned()),
    };
    let Session { control: Control { send, recv, version }, held } = match opened {
        Ok(session) => session,
        Err(problem) => return problem,
    };
    tell.event(NetEvent::Connected).await;
    let format = |kind| Format { kind, version };
    let (reader, writer) = (
        FrameReader::new(recv, format(FrameKind::Coordinator), SEND),
        FrameWriter::new(send, format(FrameKind::Agent), SEND),
    );
    let problem = tokio::select! {
        problem = read_messages(reader, &tell) => problem,
        problem = do_ops(&held.route, writer, &mut inbox, &tell) => problem,
        problem = held.breached() => problem,
    };
    let problem = held.open.ended(problem);
    held.give_back().await;
    problem
}

/// Ends when the driver has dropped its end, and not before.
async fn closed(inbox: &mut mpsc::Receiver<Op>) {
    while let Some(op) = inbox.recv().await {
        if matches!(op, Op::Close) {
            return;
        }
    }
}

async fn read_messages(mut reader: FrameReader<CoordinatorMessage>, tell: &Tell) -> Problem {
    // A silent coordinator has nothing to say; QUIC's idle timeout and keep-alive tell whether it is still there.
    loop {
        match reader.next().await {
            Ok(Some(message)) => tell.content(NetEvent::Message(message), reader.last_bytes()).await,
            Ok(None) => return Problem::Transient("the coordinator closed the session".to_owned()),
            Err(error) => return dial::of_frame(&error),
        }
    }
}

async fn do_ops(
    route: &Route,
    mut writer: FrameWriter<AgentMessage>,
    inbox: &mut mpsc::Receiver<Op>,
    tell: &Tell,
) -> Problem {
    let mut tasks: JoinSet<Result<(), String>> = JoinSet::new();
    loop {
        let op = tokio::select! {
            Some(done) = tasks.join_next() => match done {
                Ok(Ok(())) => continue,
                Ok(Err(problem)) => return Problem::Transient(problem),
                Err(panic) => return Problem::Transient(panic.to_string()),
            },
            op = inbox.recv() => op,
        };
        match op {
            Some(Op::Send(message)) => {
                if let Err(error) = writer.send(&message).await {
                    return dial::of_frame(&error);
                }
            }
            Some(Op::SendChunks { content, transfer, missing }) => {
                let (route, tell) = (route.clone(), tell.clone());
                tasks.spawn(async move { send_chunks(&route, content, &transfer, &missing, &tell).await });
            }
            Some(Op::SendPart { piece, missing }) => {
                let (route, tell) = (route.clone(), tell.clone());
                tasks.spawn(async move { send_piece(&route, &piece, &missing, &tell).await });
            }
            Some(Op::Close) | None => {
                // What was said last must arrive before the connection goes.
                // (A peer that does not confirm it is not waited for.)
                let _ = tokio::time::timeout(FAREWELL, writer.finish()).await;
                return Problem::Transient("closed by this agent".to_owned());
            }
        }
    }
}

async fn send_chunks(
    route: &Route,
    content: Arc<[u8]>,
    transfer: &TransferManifest,
    missing: &Missing,
    tell: &Tell,
) -> Result<(), String> {
    let ranges = missing.indices(transfer.chunks.len()).filter_map(|index| transfer.range(index));
    let bytes = ranges.map(|range| range.len() as u64).sum();
    let sent = chunks::send_chunks(route, transfer, content, missing, CHUNK).await;
    sent.map_err(|error| error.to_string())?;
    tell.event(NetEvent::ChunksSent { transfer: transfer.id(), bytes }).await;
    Ok(())
}

async fn send_piece(route: &Route, piece: &Piece, missing: &Missing, tell: &Tell) -> Result<(), String> {
    let bytes = piece.chunks(missing).into_iter().map(|(_, range)| range.len() as u64).sum();
    chunks::send_piece(route, piece, missing, CHUNK).await.map_err(|error| error.to_string())?;
    tell.event(NetEvent::ChunksSent { transfer: piece.transfer, bytes }).await;
    Ok(())
}
