//! The connection that the runs of a process share: dialled once at a time, kept while a control stream needs it.
//!
//! ```text
//!  Uplink ── attempt ──► Open: QUIC connection ─┬─ control stream of a run ◄─► Link
//!              (one at a time; who comes         ├─ control stream of another run ◄─► Link
//!               meanwhile waits for it)          └─ chunk streams ──► by their session ──► the link of that stream
//! ```
//! When the connection ends, each of its streams hears of the same problem. The last stream that ends closes it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::wire::handshake::Purpose;
use anabranch_io::chunks::{self, ChunkError, Route};
use anabranch_io::frames::FrameIoError;
use anabranch_io::tls;
use parking_lot::Mutex;
use quinn::{Connection, Endpoint, RecvStream};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinSet;

use super::coordinator::Outage;
use super::dial::{self, Control};
use super::queue::Tell;
use super::{Credentials, Dialer, NetEvent};
use crate::session::event::Problem;

/// How long a chunk may take.
pub(super) const CHUNK: Duration = Duration::from_millis(limits::CHUNK_TIMEOUT_MS);
/// How often the connection is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// A connection on which something was sent and nothing came back for this long is given up, ...
const SILENCE: Duration = Duration::from_millis(limits::SILENCE_MS);
/// ... or for this many round trips, where they take longer.
const SILENCE_ROUND_TRIPS: u32 = 8;

/// Opens control streams on one connection to one coordinator, which it dials when there is none.
#[derive(Debug)]
pub struct Uplink {
    dialer: Mutex<Arc<Dialer>>,
    /// The latest attempt to connect.
    attempt: Mutex<Arc<Attempt>>,
    outage: Mutex<Outage>,
}

/// An attempt to connect, and what it came to. Whoever needs the connection meanwhile waits for the same attempt.
#[derive(Debug, Default)]
struct Attempt(OnceCell<Result<Weak<Open>, Problem>>);

/// An open connection.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) connection: Connection,
    /// Its socket, where it has one of its own.
    own: Option<Endpoint>,
    sessions: Sessions,
    /// Why it was given up here.
    given_up: Arc<OnceLock<Problem>>,
}

/// Where chunks go, by the QUIC id of the control stream that they belong to.
type Sessions = Arc<Mutex<BTreeMap<u64, Receiver>>>;

/// Where the chunks of one control stream go.
#[derive(Debug, Clone)]
struct Receiver {
    tell: Tell,
    /// Why the stream is to end: one of its chunks cannot be received.
    breach: Arc<watch::Sender<Option<Problem>>>,
}

/// A control stream, and the connection that it keeps open.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) control: Control,
    pub(super) held: Held,
}

/// A control stream's part in a connection: the connection is closed when the last one is given back.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) open: Arc<Open>,
    pub(super) route: Route,
    breached: watch::Receiver<Option<Problem>>,
    _entry: Entry,
}

/// Chunks of a control stream are taken while this lives.
#[derive(Debug)]
struct Entry {
    sessions: Sessions,
    session: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.session);
    }
}

impl Uplink {
    /// Connects with `dialer` when a stream is wanted.
    #[must_use]
    pub fn new(dialer: Dialer) -> Arc<Self> {
        Arc::new(Self { dialer: Mutex::new(Arc::new(dialer)), attempt: Mutex::default(), outage: Mutex::default() })
    }

    /// Connects with these credentials from the next connection on.
    ///
    /// # Errors
    /// Certificate or key cannot be used.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), dial::DialError> {
        let mut dialer = self.dialer.lock();
        *dialer = Arc::new(dialer.with_credentials(credentials)?);
        Ok(())
    }

    /// Closes the connection that is open, if one is. Each of its streams hears that it may be opened anew.
    pub fn reconnect(&self, why: &str) {
        let attempt = Arc::clone(&self.attempt.lock());
        let open = attempt.0.get().and_then(|made| made.as_ref().ok()).and_then(Weak::upgrade);
        if let Some(open) = open {
            // One that was given up before ends for that reason.
            let _ = open.given_up.set(Problem::Transient(why.to_owned()));
            open.connection.close(0u32.into(), b"done");
        }
    }

    /// The address of the coordinator that worked last, or is tried first.
    #[must_use]
    pub fn address(&self) -> String {
        self.dialer.lock().address().to_owned()
    }

    /// The certificates that the coordinator has shown on the connection that is open, in DER, its own first.
    #[must_use]
    pub fn shown(&self) -> Vec<Vec<u8>> {
        let attempt = Arc::clone(&self.attempt.lock());
        let open = attempt.0.get().and_then(|made| made.as_ref().ok()).and_then(Weak::upgrade);
        open.map_or_else(Vec::new, |open| tls::peer_certificates(&open.connection))
    }

    /// Opens a stream for `purpose`. Chunks that belong to it go to `tell`.
    pub(super) async fn open(&self, purpose: Purpose, tell: Option<&Tell>) -> Result<Session, Problem> {
        let open = self.connection().await?;
        let opened = tokio::time::timeout(dial::HANDSHAKE, open.connection.open_bi()).await;
        let (send, recv) = match opened {
            Ok(Ok(streams)) => streams,
            Ok(Err(error)) => return Err(open.ended(dial::of_connect(&tls::explain(&error)))),
            Err(_) => {
                let problem = "the coordinator gives this agent no further stream";
                return Err(Problem::Transient(problem.to_owned()));
            }
        };
        let held = Held::new(open, u64::from(send.id()), tell);
        match dial::greet(send, recv, purpose).await {
            Ok(control) => Ok(Session { control, held }),
            Err(error) => {
                let problem = held.open.ended(error.to_problem());
                held.give_back().await;
                Err(problem)
            }
        }
    }

    /// The connection that is open, or a new one.
    async fn connection(&self) -> Result<Arc<Open>, Problem> {
        loop {
            let attempt = Arc::clone(&self.attempt.lock());
            let mut made = None;
            let slot = &mut made;
            let known = attempt.0.get_or_init(|| async move {
                let dialer = Arc::clone(&self.dialer.lock());
                let outage = self.outage.lock().lasts();
                let (connection, own) = dialer.dial(outage).await.map_err(|error| error.to_problem())?;
                self.outage.lock().over();
                let open = Open::new(connection, own);
                Ok(Arc::downgrade(slot.insert(open)))
            });
            let found = match known.await {
                Ok(open) => open.upgrade().filter(|open| open.connection.close_reason().is_none()).ok_or(None),
                Err(problem) => Err(Some(problem.clone())),
            };
            match found {
                Ok(open) => return Ok(open),
                Err(problem) => {
                    let mut current = self.attempt.lock();
                    // Another one may have begun a new attempt already.
                    if Arc::ptr_eq(&current, &attempt) {
                        *current = Arc::default();
                    }
                    if let Some(problem) = problem {
                        return Err(problem);
                    }
                }
            }
        }
    }
}

impl Open {
    fn new(connection: Connection, own: Option<Endpoint>) -> Arc<Self> {
        let (sessions, given_up) = (Arc::default(), Arc::new(OnceLock::new()));
        let open = Self { connection, own, sessions, given_up };
        let keeper = Keeper {
            connection: open.connection.clone(),
            sessions: Arc::clone(&open.sessions),
            given_up: Arc::clone(&open.given_up),
        };
        tokio::spawn(keeper.keep());
        Arc::new(open)
    }

    /// Why a stream has ended: over the connection's end, or, while that lives, for a reason of its own.
    pub(super) fn ended(&self, own: Problem) -> Problem {
        if let Some(problem) = self.given_up.get() {
            return problem.clone();
        }
        match self.connection.close_reason() {
            Some(reason) => dial::of_connect(&tls::explain(&reason)),
            None => own,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connection.close(0u32.into(), b"done");
    }
}

impl Held {
    fn new(open: Arc<Open>, session: u64, tell: Option<&Tell>) -> Self {
        let sessions = Arc::clone(&open.sessions);
        let (breach, breached) = watch::channel(None);
        if let Some(tell) = tell {
            sessions.lock().insert(session, Receiver { tell: tell.clone(), breach: Arc::new(breach) });
        }
        let route = Route { connection: open.connection.clone(), session };
        Self { open, route, breached, _entry: Entry { sessions, session } }
    }

    /// Ends when a chunk of the stream cannot be received, with the reason. A stream without chunks waits for ever.
    pub(super) async fn breached(&self) -> Problem {
        let mut breached = self.breached.clone();
        let problem = breached.wait_for(Option::is_some).await.ok().and_then(|problem| problem.clone());
        match problem {
            Some(problem) => problem,
            None => std::future::pending().await,
        }
    }

    /// Gives the stream back. The last one waits until the other side knows of the connection's end.
    pub(super) async fn give_back(self) {
        let Self { open, .. } = self;
        let Some(last) = Arc::into_inner(open) else { return };
        let own = last.own.clone();
        drop(last);
        if let Some(own) = own {
            own.wait_idle().await;
        }
    }
}

/// What is done once for a connection, whatever the number of its streams.
struct Keeper {
    connection: Connection,
    sessions: Sessions,
    given_up: Arc<OnceLock<Problem>>,
}

impl Keeper {
    /// Carries chunks until the connection ends, or is to be given up.
    async fn keep(self) {
        let problem = tokio::select! {
            problem = self.read_chunks() => problem,
            problem = watch_silence(&self.connection) => problem,
        };
        if self.connection.close_reason().is_none() {
            // Nothing else sets it.
            let _ = self.given_up.set(problem);
            self.connection.close(0u32.into(), b"done");
        }
    }

    async fn read_chunks(&self) -> Problem {
        let mut tasks: JoinSet<Result<(), String>> = JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = self.connection.accept_uni(), if tasks.len() < limits::CHUNK_STREAMS as usize => match stream {
                    Ok(stream) => stream,
                    Err(error) => return dial::of_connect(&tls::explain(&error)),
                },
                Some(done) = tasks.join_next() => match done {
                    Ok(Ok(())) => continue,
                    Ok(Err(problem)) => return Problem::Transient(problem),
                    Err(panic) => return Problem::Transient(panic.to_string()),
                },
            };
            tasks.spawn(read_chunk(stream, Arc::clone(&self.sessions)));
        }
    }
}

/// Receives one chunk. One that fails after its header ends the control stream that it names, and no other.
///
/// # Errors
/// There is no sound header, so that nobody knows which control stream it concerns.
async fn read_chunk(stream: RecvStream, sessions: Sessions) -> Result<(), String> {
    let mut of: Option<Receiver> = None;
    let received = chunks::recv_chunk_if(stream, CHUNK, |header| {
        of = sessions.lock().get(&header.session).cloned();
        of.is_some()
    });
    let received = received.await;
    let (header, bytes) = match received {
        Ok(Some(received)) => received,
        // Given up by its sender (another model was asked for), or of a stream that has ended.
        Ok(None) | Err(ChunkError::Frame(FrameIoError::Closed)) => return Ok(()),
        Err(error) => match of {
            Some(Receiver { breach, .. }) => {
                breach.send_replace(Some(Problem::Transient(format!("a chunk cannot be received: {error}"))));
                return Ok(());
            }
            None => return Err(error.to_string()),
        },
    };
    if let Some(Receiver { tell, .. }) = of {
        let length = bytes.len();
        tell.content(NetEvent::Chunk { transfer: header.transfer, index: header.index, bytes }, length).await;
    }
    Ok(())
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
