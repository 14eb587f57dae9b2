//! One connection of an attempt: a task that reads, one that writes.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::pod::ParcelHead;
use anabranch_io::frames::{Format, FrameIoError, FrameReader};
use anabranch_io::tls::ConnectProblem;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::desk::Desk;
use super::frame::{self, ParcelError};
use super::{Address, Parcel};

/// Codes with which connections between members are closed. 0 is what a connection closes with that was merely dropped.
pub(super) mod code {
    /// Everything was sent and has arrived.
    pub(in crate::pod) const DONE: u32 = 1;
    /// The attempt was given up, for the reason that is told.
    pub(in crate::pod) const GAVE_UP: u32 = 2;
    /// No round that is known here names the other side: it may try again.
    pub(in crate::pod) const NOT_YET: u32 = 3;
    /// An answer to a greeting was sent; it says the rest.
    pub(in crate::pod) const ANSWERED: u32 = 4;
}

/// How often a connection is looked at.
const LOOK: Duration = Duration::from_millis(limits::POD_LOOK_MS);
/// How long a member may leave packets unacknowledged.
const SILENCE: Duration = Duration::from_millis(limits::SILENCE_MS);
/// How long a member may send nothing at all, however short `pod.deadline_s` is: two keep-alives.
const SIGN_OF_LIFE: Duration = Duration::from_millis(limits::POD_SILENCE_MS);
/// The same, both, in round trips where they take longer.
const SILENCE_ROUND_TRIPS: u32 = 8;

/// A connection whose greeting was answered with a yes.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) connection: Connection,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    /// The version of the schema to speak.
    pub(super) version: u16,
}

#[derive(Debug)]
struct Outgoing {
    address: Address,
    parcel: Parcel,
    values: usize,
}

/// A link, as the desk holds it.
#[derive(Debug)]
pub(super) struct Link {
    connection: Connection,
    /// None: nothing more is to be sent.
    outbox: Option<mpsc::Sender<Outgoing>>,
    tasks: [AbortHandle; 2],
}

/// Gives the link of a greeted connection to the desk, and carries parcels from then on. Call inside a tokio runtime.
pub(super) fn start(desk: &Arc<Desk>, agent: AgentId, greeted: Greeted) {
    let Greeted { connection, send, recv, version } = greeted;
    let (outbox, parcels) = mpsc::channel(limits::POD_PARCELS_QUEUED);
    let format = Format { kind: FrameKind::Parcel, version };
    let reader = FrameReader::new(recv, format, desk.terms.patience);
    // The tasks begin when the desk has the link: what they bring is counted there.
    let (begin, begun) = tokio::sync::watch::channel(false);
    let reading = {
        let (desk, connection, mut begun) = (Arc::clone(desk), connection.clone(), begun.clone());
        tokio::spawn(async move {
            if begun.wait_for(|begun| *begun).await.is_ok() {
                read(&desk, agent, &connection, reader).await;
            }
        })
    };
    let writing = {
        let (desk, mut begun) = (Arc::clone(desk), begun);
        tokio::spawn(async move {
            if begun.wait_for(|begun| *begun).await.is_ok() {
                write(&desk, agent, send, version, parcels).await;
            }
        })
    };
    let tasks = [reading.abort_handle(), writing.abort_handle()];
    match desk.take_link(agent, Link { connection, outbox: Some(outbox), tasks }) {
        Ok(()) => _ = begin.send(true),
        Err(link) => link.close(code::GAVE_UP, "the attempt is over, or has a link with this member"),
    }
}

impl Link {
    /// Hands over a parcel; the desk counts them.
    pub(super) fn send(&self, address: Address, parcel: Parcel, values: usize) {
        let Some(outbox) = &self.outbox else { return };
        // A task that has ended has told the desk why; the queue is as long as the desk's count.
        let _ = outbox.try_send(Outgoing { address, parcel, values });
    }

    /// Nothing more will be sent.
    pub(super) fn end(&mut self) {
        self.outbox = None;
    }

    /// Tells the other side at once. Nothing that is on its way arrives.
    pub(super) fn close(self, code: u32, reason: &str) {
        let end = reason.floor_char_boundary(limits::POD_REASON_BYTES);
        self.connection.close(code.into(), &reason.as_bytes()[..end]);
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn read(desk: &Desk, agent: AgentId, connection: &Connection, reader: FrameReader<ParcelHead>) {
    let ended = tokio::select! {
        ended = read_parcels(desk, agent, reader) => match ended {
            // It has everything that it needs, and has sent everything.
            Err(error) if is_done(&error) => Ok(()),
            ended => ended.map_err(|error| explain(&error)),
        },
        problem = watch_silence(connection, desk.terms.patience) => Err(problem),
    };
    match ended {
        Ok(()) => desk.left(agent),
        Err(problem) => desk.fail(agent, &problem),
    }
}

async fn read_parcels(desk: &Desk, agent: AgentId, mut reader: FrameReader<ParcelHead>) -> Result<(), ParcelError> {
    while let Some(head) = reader.next().await? {
        let (address, values) = desk.terms.check(agent, &head)?;
        desk.make_room(agent, values)?;
        let parcel = frame::receive(reader.stream(), &head, desk.terms.patience).await?;
        desk.deliver(agent, address, parcel);
    }
    Ok(())
}

/// Ends when the other side has acknowledged nothing for too long, although there was something to acknowledge, or when nothing at
/// all has come from it for `patience`.
///
/// Keep-alives and acknowledgements are its signs of life: the runtime of its process sends them every `limits::POD_KEEP_ALIVE_MS`
/// while its attempt is open, however long its thread computes or waits. A process that is stopped or starved sends none. What
/// they do not prove is that its maths go on.
async fn watch_silence(connection: &Connection, patience: Duration) -> String {
    let mut heard = connection.stats().udp_rx.datagrams;
    let mut sent = connection.stats().udp_tx.datagrams;
    // Counted in looks: while this process is stopped itself, nobody is silent.
    let (mut silent, mut unacknowledged) = (Duration::ZERO, Duration::ZERO);
    loop {
        tokio::time::sleep(LOOK).await;
        let stats = connection.stats();
        if stats.udp_rx.datagrams != heard {
            (heard, sent) = (stats.udp_rx.datagrams, stats.udp_tx.datagrams);
            (silent, unacknowledged) = (Duration::ZERO, Duration::ZERO);
        } else {
            silent += LOOK;
            if stats.udp_tx.datagrams != sent {
                unacknowledged += LOOK;
            }
        }
        let round_trips = connection.rtt() * SILENCE_ROUND_TRIPS;
        if unacknowledged >= SILENCE.max(round_trips) {
            return "does not acknowledge what it is sent".to_owned();
        }
        if silent >= patience.max(SIGN_OF_LIFE).max(round_trips) {
            return format!("has given no sign of life for {} s", silent.as_secs_f64());
        }
    }
}

async fn write(
    desk: &Desk,
    agent: AgentId,
    mut stream: SendStream,
    version: u16,
    mut parcels: mpsc::Receiver<Outgoing>,
) {
    match write_parcels(desk, agent, &mut stream, version, &mut parcels).await {
        Ok(()) => desk.served(agent),
        // It needs no more of this member.
        Err(error) if is_done(&error) || desk.has_left(agent) => desk.served(agent),
        Err(ParcelError::Frame(FrameIoError::TimedOut)) => desk.fail(agent, "takes nothing that it is sent"),
        Err(error) => desk.fail(agent, &explain(&error)),
    }
}

async fn write_parcels(
    desk: &Desk,
    agent: AgentId,
    stream: &mut SendStream,
    version: u16,
    parcels: &mut mpsc::Receiver<Outgoing>,
) -> Result<(), ParcelError> {
    let (form, patience) = (desk.terms.form, desk.terms.patience);
    while let Some(Outgoing { address, parcel, values }) = parcels.recv().await {
        frame::send(stream, version, (address, &parcel), form, patience, || desk.moved(agent)).await?;
        drop(parcel);
        desk.sent(agent, values);
    }
    // Nothing else ends a stream, so that it is open.
    let _ = stream.finish();
    let last = Duration::from_secs(u64::from(limits::POD_WINDOW_BYTES) / limits::UPLOAD_MIN_BYTES_PER_S);
    match tokio::time::timeout(patience.saturating_add(last), stream.stopped()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(quinn::StoppedError::ConnectionLost(error))) => Err(FrameIoError::from(error).into()),
        Ok(Err(quinn::StoppedError::ZeroRttRejected)) => Err(FrameIoError::Closed.into()),
        Err(_) => Err(FrameIoError::TimedOut.into()),
    }
}

fn is_done(error: &ParcelError) -> bool {
    let done = u64::from(code::DONE);
    matches!(error, ParcelError::Frame(FrameIoError::Connection(ConnectProblem::Closed { code, .. })) if *code == done)
}

/// What an error says of the member at the other end.
fn explain(error: &ParcelError) -> String {
    match error {
        ParcelError::Frame(FrameIoError::Connection(ConnectProblem::Closed { code, reason }))
            if *code == u64::from(code::GAVE_UP) =>
        {
            let because = if reason.is_empty() { String::new() } else { format!(" over {reason}") };
            format!("gave the attempt up{because}")
        }
        ParcelError::Frame(FrameIoError::Connection(problem)) => format!("is lost: {problem}"),
        ParcelError::Frame(FrameIoError::TimedOut) => "stopped in the middle of a parcel".to_owned(),
        ParcelError::Frame(FrameIoError::Closed) => "ended its stream in the middle of a parcel".to_owned(),
        error => format!("does not keep to the protocol: {error}"),
    }
}
