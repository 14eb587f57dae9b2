//! The agent's side of QUIC: one task a connection. Decides nothing: it opens, greets, and carries messages and chunks.
//!
//! ```text
//!  driver ──Op──► write control messages ──► control stream
//!                 └─ SendChunks ──► one stream a chunk (a task of its own: bulk never holds messages up)
//!  driver ◄─NetEvent── control stream, chunk streams, the end of the connection and why
//! ```

mod dial;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage};
use anabranch_common::wire::transfer::{Missing, TransferManifest};
use anabranch_io::chunks::{self, ChunkError, Piece};
use anabranch_io::frames::{Format, FrameIoError, FrameReader, FrameWriter};
use anabranch_io::tls;
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use dial::{DialError, Dialer, join};
pub use queue::{NetReceiver, NetSender, queue};

use crate::session::event::{Event, Problem};

/// What the driver wants of a connection.
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

/// What a connection tells the driver.
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

/// The driver's end of a connection. Dropping it ends the connection.
#[derive(Debug)]
pub struct Link {
    /// Which of this process's connections it is.
    pub number: u64,
    /// What to do.
    pub ops: mpsc::Sender<Op>,
}

/// How long a control message may take to be taken off our hands.
const SEND: Duration = Duration::from_millis(limits::IDLE_TIMEOUT_MS);
/// How long a chunk may take.
const CHUNK: Duration = Duration::from_millis(limits::CHUNK_TIMEOUT_MS);
/// How often the connection is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// A connection on which something was sent and nothing came back for this long is given up, ...
const SILENCE: Duration = Duration::from_millis(limits::SILENCE_MS);
/// ... or for this many round trips, where they take longer.
const SILENCE_ROUND_TRIPS: u32 = 8;
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_millis(limits::FAREWELL_MS);

/// Opens a connection after `after`, and carries what comes and goes until it ends.
pub fn open(dialer: Arc<Dialer>, number: u64, after: Duration, events: NetSender) -> Link {
    let (ops, inbox) = mpsc::channel(limits::PEER_QUEUE_MESSAGES);
    let tell = Tell { number, events };
    tokio::spawn(async move {
        let problem = run(&dialer, after, inbox, tell.clone()).await;
        tell.event(NetEvent::Disconnected(problem)).await;
    });
    Link { number, ops }
}

#[derive(Clone)]
struct Tell {
    number: u64,
    events: NetSender,
}

impl Tell {
    async fn event(&self, event: NetEvent) {
        self.content(event, 0).await;
    }

    /// Tells of something with so many bytes of content.
    async fn content(&self, event: NetEvent, bytes: usize) {
        self.events.send(self.number, event, bytes).await;
    }
}

async fn run(dialer: &Dialer, after: Duration, mut inbox: mpsc::Receiver<Op>, tell: Tell) -> Problem {
    let dialled = tokio::select! {
        dialled = async {
            tokio::time::sleep(after).await;
            dialer.dial().await
        } => dialled,
        () = closed(&mut inbox) => return Problem::Transient("closed while connecting".to_owned()),
    };
    let dialled = match dialled {
        Ok(dialled) => dialled,
        Err(error) => return error.to_problem(),
    };
    tell.event(NetEvent::Connected).await;
    let connection = dialled.connection.clone();
    let format = |kind| Format { kind, version: dialled.version };
    let problem = tokio::select! {
        problem = read_messages(FrameReader::new(dialled.recv, format(FrameKind::Coordinator), SEND), &tell) => problem,
        problem = read_chunks(&connection, &tell) => problem,
        problem = watch_silence(&connection) => problem,
        problem = do_ops(&connection, FrameWriter::new(dialled.send, format(FrameKind::Agent), SEND), &mut inbox, &tell) => problem,
    };
    let problem = match connection.close_reason() {
        Some(reason) => dial::of_connect(&tls::explain(&reason)),
        None => problem,
    };
    connection.close(0u32.into(), b"done");
    if let Some(own) = dialled.own {
        own.wait_idle().await;
    }
    problem
}

/// Ends when the other side has answered nothing for too long, although there was something to acknowledge.
///
/// A coordinator that was killed and started again does not know this connection and stays silent; QUIC itself would
/// notice after `IDLE_TIMEOUT_MS`. A living one acknowledges what it gets within a round trip.
async fn watch_silence(connection: &Connection) -> Problem {
    let mut heard = connection.stats().udp_rx.datagrams;
    let mut sent = connection.stats().udp_tx.datagrams;
    let mut silent = Duration::ZERO;
    loop {
        tokio::time::sleep(LOOK).await;
        let stats = connection.stats();
        if stats.udp_rx.datagrams != heard {
            (heard, sent, silent) = (stats.udp_rx.datagrams, stats.udp_tx.datagrams, Duration::ZERO);
        } else if stats.udp_tx.datagrams != sent {
            silent += LOOK;
        }
        if silent >= SILENCE.max(connection.rtt() * SILENCE_ROUND_TRIPS) {
            return Problem::Transient("the coordinator no longer acknowledges what it is sent".to_owned());
        }
    }
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

async fn read_chunks(connection: &Connection, tell: &Tell) -> Problem {
    let mut tasks: JoinSet<Result<(), String>> = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = connection.accept_uni(), if tasks.len() < limits::CHUNK_STREAMS as usize => match stream {
                Ok(stream) => stream,
                Err(error) => return dial::of_connect(&tls::explain(&error)),
            },
            Some(done) = tasks.join_next() => match done {
                Ok(Ok(())) => continue,
                Ok(Err(problem)) => return Problem::Transient(problem),
                Err(panic) => return Problem::Transient(panic.to_string()),
            },
        };
        let tell = tell.clone();
        tasks.spawn(async move {
            let (header, bytes) = match chunks::recv_chunk(stream, CHUNK).await {
                Ok(received) => received,
                // Given up by its sender: another model was asked for.
                Err(ChunkError::Frame(FrameIoError::Closed)) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            };
            let length = bytes.len();
            tell.content(NetEvent::Chunk { transfer: header.transfer, index: header.index, bytes }, length).await;
            Ok(())
        });
    }
}

async fn do_ops(
    connection: &Connection,
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
                let (connection, tell) = (connection.clone(), tell.clone());
                tasks.spawn(async move { send_chunks(&connection, content, &transfer, &missing, &tell).await });
            }
            Some(Op::SendPart { piece, missing }) => {
                let (connection, tell) = (connection.clone(), tell.clone());
                tasks.spawn(async move { send_piece(&connection, &piece, &missing, &tell).await });
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
    connection: &Connection,
    content: Arc<[u8]>,
    transfer: &TransferManifest,
    missing: &Missing,
    tell: &Tell,
) -> Result<(), String> {
    let ranges = missing.indices(transfer.chunks.len()).filter_map(|index| transfer.range(index));
    let bytes = ranges.map(|range| range.len() as u64).sum();
    let sent = chunks::send_chunks(connection, transfer, content, missing, CHUNK).await;
    sent.map_err(|error| error.to_string())?;
    tell.event(NetEvent::ChunksSent { transfer: transfer.id(), bytes }).await;
    Ok(())
}

async fn send_piece(connection: &Connection, piece: &Piece, missing: &Missing, tell: &Tell) -> Result<(), String> {
    let bytes = piece.chunks(missing).into_iter().map(|(_, range)| range.len() as u64).sum();
    chunks::send_piece(connection, piece, missing, CHUNK).await.map_err(|error| error.to_string())?;
    tell.event(NetEvent::ChunksSent { transfer: piece.transfer, bytes }).await;
    Ok(())
}
