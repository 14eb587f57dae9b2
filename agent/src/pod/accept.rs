//! Connections of members that dial this one, and who of them is let in.
//!
//! ```text
//!  TLS: an agent of the run ─► named by a round that waits for it here ─► greeting ─► answer ─► desk
//!                              └ nothing of it is read before that
//! ```
//! A member may hear of its round before this one does. So a connection waits for `limits::POD_WAIT_MS` until a round names its
//! agent, one connection an agent, and is then sent away to try again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::{AgentId, LeaseId, RunId};
use anabranch_common::limits;
use anabranch_common::pod::PodMark;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::pod::{PodAnswer, PodGreeting};
use anabranch_io::frames::{self, FrameIoError};
use anabranch_io::tls::{self, Peer, Role};
use parking_lot::Mutex;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use tokio::sync::watch;

use super::WireError;
use super::desk::Desk;
use super::handshakes::Handshakes;
use super::link::{self, Greeted, code};

const HANDSHAKE: Duration = Duration::from_millis(limits::POD_DIAL_MS);
const WAIT: Duration = Duration::from_millis(limits::POD_WAIT_MS);
const GOODBYE: Duration = Duration::from_millis(limits::GOODBYE_MS);

/// The attempts that are open here, and the connections that wait for one.
#[derive(Debug)]
pub(super) struct Room {
    run: RunId,
    handshakes: Handshakes,
    attempts: watch::Sender<Attempts>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Attempts {
    open: BTreeMap<PodMark, Arc<Desk>>,
    /// The latest attempt of each lease that was opened here, with the number of that opening.
    latest: BTreeMap<LeaseId, (u32, u64)>,
    openings: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<AgentId, (u64, Connection)>,
}

/// What becomes of a connection.
#[derive(Debug)]
enum Verdict {
    /// Its greeting may be read.
    Named,
    /// It belongs to this attempt.
    Linked(Arc<Desk>),
    /// It may be for an attempt that is not known here yet.
    Unknown,
    /// Its attempt is over here, or has such a connection.
    Late,
}

impl Attempts {
    /// What becomes of a connection of `agent`, whose greeting, if it was read, is for `mark`.
    fn verdict(&self, agent: AgentId, mark: Option<PodMark>) -> Verdict {
        match mark {
            None if self.open.values().any(|desk| desk.awaits(agent)) => Verdict::Named,
            None => Verdict::Unknown,
            Some(mark) => match self.open.get(&mark) {
                Some(desk) if desk.awaits(agent) => Verdict::Linked(Arc::clone(desk)),
                Some(_) => Verdict::Late,
                None if self.is_over(mark) => Verdict::Late,
                None => Verdict::Unknown,
            },
        }
    }

    /// Whether an attempt has been opened here, or a later one at the same lease.
    fn is_over(&self, mark: PodMark) -> bool {
        self.newest(mark.lease).is_some_and(|newest| newest >= mark.attempt)
    }

    fn newest(&self, lease: LeaseId) -> Option<u32> {
        self.latest.get(&lease).map(|(attempt, _)| *attempt)
    }

    /// Remembers an attempt that is opened. The lease that was opened longest ago is forgotten if there are too many.
    fn remember(&mut self, mark: PodMark) {
        self.openings += 1;
        self.latest.insert(mark.lease, (mark.attempt, self.openings));
        while self.latest.len() > limits::POD_LEASES_REMEMBERED
            && let Some(oldest) = self.latest.iter().min_by_key(|(_, (_, opening))| *opening).map(|(lease, _)| *lease)
        {
            self.latest.remove(&oldest);
        }
    }
}

/// A connection that waits; its place is free again when this is dropped.
struct Place<'a> {
    room: &'a Room,
    agent: AgentId,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let connections = &mut self.room.waiting.lock().connections;
        if connections.get(&self.agent).is_some_and(|(number, _)| *number == self.number) {
            connections.remove(&self.agent);
        }
    }
}

impl Room {
    pub(super) fn new(run: RunId) -> Self {
        Self { run, handshakes: Handshakes::default(), attempts: watch::Sender::default(), waiting: Mutex::default() }
    }

    /// Opens an attempt: connections for it are taken.
    ///
    /// # Errors
    /// [`WireError::Repeated`] if it was opened before, or a later one at the same lease.
    pub(super) fn open(&self, desk: &Arc<Desk>) -> Result<(), WireError> {
        let mark = desk.terms.mark;
        let mut opened = Ok(());
        self.attempts.send_if_modified(|attempts| {
            if let Some(newest) = attempts.newest(mark.lease).filter(|newest| *newest >= mark.attempt) {
                opened = Err(WireError::Repeated { attempt: mark.attempt, newest });
                return false;
            }
            attempts.remember(mark);
            attempts.open.insert(mark, Arc::clone(desk));
            true
        });
        opened
    }

    /// Closes an attempt.
    pub(super) fn close(&self, mark: PodMark) {
        self.attempts.send_modify(|attempts| _ = attempts.open.remove(&mark));
    }

    /// Takes a place for a connection; an older one of the same agent loses its own. None: there is no room, and no round here
    /// names the agent.
    fn enter(&self, agent: AgentId, connection: &Connection) -> Option<Place<'_>> {
        let is_named = !matches!(self.attempts.borrow().verdict(agent, None), Verdict::Unknown);
        let mut waiting = self.waiting.lock();
        let is_full = waiting.connections.len() >= limits::POD_WAITING && !waiting.connections.contains_key(&agent);
        if is_full && !is_named {
            return None;
        }
        let number = waiting.next;
        waiting.next += 1;
        if let Some((_, older)) = waiting.connections.insert(agent, (number, connection.clone())) {
            older.close(code::NOT_YET.into(), b"a newer connection of this agent waits");
        }
        Some(Place { room: self, agent, number })
    }

    /// Waits for a verdict that a round here decides.
    async fn decide(&self, agent: AgentId, mark: Option<PodMark>) -> Verdict {
        let mut attempts = self.attempts.subscribe();
        let known = attempts.wait_for(|attempts| !matches!(attempts.verdict(agent, mark), Verdict::Unknown));
        match tokio::time::timeout(WAIT, known).await {
            Ok(Ok(attempts)) => attempts.verdict(agent, mark),
            // The process ends, or no round came.
            Ok(Err(_)) | Err(_) => Verdict::Unknown,
        }
    }
}

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept(endpoint: Endpoint, room: Arc<Room>) {
    while let Some(incoming) = endpoint.accept().await {
        // Under load an address must show that it is its own before anything is spent on it.
        if room.handshakes.is_busy() && incoming.may_retry() {
            if let Err(error) = incoming.retry() {
                tracing::debug!(%error, "a connection could not be asked to retry");
            }
            continue;
        }
        let room = Arc::clone(&room);
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            if let Err(error) = serve(incoming, &room).await {
                tracing::debug!(%remote, %error, "a connection of a member came to nothing");
            }
        });
    }
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    #[error("its certificate is not an agent's")]
    NoAgent,
    #[error("it made way for newer connections")]
    Displaced,
    #[error("there is no room for another connection that waits")]
    NoRoom,
}

impl From<quinn::ConnectionError> for AcceptError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Frame(error.into())
    }
}

async fn serve(incoming: Incoming, room: &Room) -> Result<(), AcceptError> {
    let shaking = async { incoming.accept()?.await };
    let shaken = room.handshakes.enter().hold(tokio::time::timeout(HANDSHAKE, shaking)).await;
    let connection = shaken.ok_or(AcceptError::Displaced)?.map_err(|_| FrameIoError::TimedOut)??;
    let Some(Peer { role: Role::Agent, agent, .. }) = tls::peer(&connection) else { return Err(AcceptError::NoAgent) };
    let send_away = || connection.close(code::NOT_YET.into(), b"no round that is known here names this agent");
    let Some(_place) = room.enter(agent, &connection) else {
        send_away();
        return Err(AcceptError::NoRoom);
    };
    let named = tokio::select! {
        verdict = room.decide(agent, None) => verdict,
        ended = connection.closed() => return Err(ended.into()),
    };
    if let Verdict::Unknown = named {
        send_away();
        return Ok(());
    }
    let (send, mut recv) =
        tokio::time::timeout(HANDSHAKE, connection.accept_bi()).await.map_err(|_| FrameIoError::TimedOut)??;
    let greeting: PodGreeting =
        frames::recv_one(&mut recv, FrameKind::PodGreeting, limits::POD_GREETING_BYTES, HANDSHAKE).await?;
    answer(connection, (send, recv), agent, greeting, room).await
}

async fn answer(
    connection: Connection,
    (mut send, recv): (SendStream, RecvStream),
    agent: AgentId,
    greeting: PodGreeting,
    room: &Room,
) -> Result<(), AcceptError> {
    let refused = |why: &str| (PodAnswer::Refused(why.to_owned()), None);
    let (answer, desk) = match greeting.common_version() {
        _ if greeting.run != room.run => refused("this agent is in another run"),
        None => refused("this agent speaks other versions of the protocol"),
        Some(version) => match room.decide(agent, Some(greeting.mark)).await {
            Verdict::Linked(desk) => (PodAnswer::Ready { version }, Some((version, desk))),
            Verdict::Late => refused("that attempt is over here, or has a link with this agent"),
            Verdict::Unknown | Verdict::Named => (PodAnswer::NotYet, None),
        },
    };
    frames::send(&mut send, FrameKind::PodAnswer, &answer, limits::POD_GREETING_BYTES, HANDSHAKE).await?;
    if let Some((version, desk)) = desk {
        tls::trust_member(&connection);
        link::start(&desk, agent, Greeted { connection, send, recv, version });
        return Ok(());
    }
    // It closes when it has read the answer.
    tokio::time::timeout(GOODBYE, connection.closed()).await.ok();
    connection.close(code::ANSWERED.into(), b"");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leases of an owner that comes late have smaller numbers.
    #[test]
    fn the_lease_that_was_opened_longest_ago_is_forgotten() {
        let mark = |lease| PodMark { lease: LeaseId(lease), attempt: 1 };
        let mut attempts = Attempts::default();
        let most = limits::POD_LEASES_REMEMBERED as u64;
        (0..most).for_each(|number| attempts.remember(mark(1_000 - number)));
        attempts.remember(mark(1));
        assert!(attempts.is_over(mark(1)) && !attempts.is_over(mark(1_000)));
        assert!((1..most).all(|number| attempts.is_over(mark(1_000 - number))));
    }
}
