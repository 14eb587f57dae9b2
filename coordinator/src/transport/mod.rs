//! The coordinator's side of QUIC: one endpoint, one task a connection. Decides nothing: it checks who speaks, carries
//! messages to the loop, and puts chunks where the node wants them.
//!
//! ```text
//!  Incoming ─► handshake ─► Propose ─┬─► Join: one request, one answer                         (no certificate)
//!                                    ├─► Probe: the time, and what is sent is sent back        (no certificate)
//!                                    ├─► Agent: a control stream for each run, chunk streams   (agent certificate)
//!                                    ├─► Runs: the list of runs, beside these control streams  (agent certificate)
//!                                    ├─► Facts: one question about a run                       (agent certificate)
//!                                    └─► Operator: one request a stream                        (operator certificate)
//! ```

mod agent;
mod handshakes;
mod join;
mod operator;
mod pace;
mod peer;
mod probe;
mod spool;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::limits;
use anabranch_common::status::NetworkStatus;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::message::{AgentHello, AgentMessage, JoinResponse};
use anabranch_common::wire::operator::OperatorRequest;
use anabranch_common::wire::probe::Facts;
use anabranch_common::wire::runs::RunsWanted;
use anabranch_io::frames::{self, HandshakeError};
use anabranch_io::tls::{self, Peer, Role};
use parking_lot::RwLock;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use handshakes::{Connections, Handshakes, Place};
pub(crate) use operator::{operate, read_store};
pub use peer::PeerOp;
pub use spool::Spool;

use crate::core::event::PeerId;
use crate::core::status::Answer;
use crate::host;
use crate::registry::roster::Certificate;
use crate::store::Store;
use crate::web::RunEvents;

/// What the network tells the loop.
#[derive(Debug)]
pub enum Input {
    /// An agent has opened the control stream of a run; `ops` is how it is spoken to there.
    Connected {
        /// The control stream.
        peer: PeerId,
        /// Who it is, by its certificate.
        shown: Shown,
        /// What it said.
        hello: AgentHello,
        /// Where messages to it go.
        ops: mpsc::Sender<PeerOp>,
        /// The hello's part of the budget of messages that wait.
        room: OwnedSemaphorePermit,
    },
    /// An agent asks which runs there are.
    Subscribed {
        /// The stream.
        peer: PeerId,
        /// Who it is, by its certificate.
        shown: Shown,
        /// Which runs it wants.
        wanted: RunsWanted,
        /// Where lists go.
        ops: mpsc::Sender<PeerOp>,
        /// Its part of the budget of messages that wait.
        room: OwnedSemaphorePermit,
    },
    /// An agent says something.
    Message {
        /// On which control stream.
        peer: PeerId,
        /// What.
        message: AgentMessage,
        /// Its part of the budget of messages that wait.
        room: OwnedSemaphorePermit,
    },
    /// Something else for the host.
    Host(host::Input),
    /// An agent asks about a run, without taking part.
    Facts {
        /// Who it is, by its certificate.
        shown: Shown,
        /// The run.
        run: RunId,
        /// Where the answer goes.
        reply: oneshot::Sender<Facts>,
    },
    /// Somebody wants to join.
    Join {
        /// The token's secret.
        secret: [u8; 32],
        /// Who it would be, by the key that has signed its request.
        agent: AgentId,
        /// The request for a certificate, in DER.
        csr_der: Vec<u8>,
        /// Where the answer goes.
        reply: oneshot::Sender<JoinResponse>,
    },
    /// An operator asks for something that the host answers.
    Operator {
        /// What.
        operation: OperatorRequest,
        /// Where the answer goes.
        reply: oneshot::Sender<Answer>,
    },
}

/// Who is at the other end of a control stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Who it is.
    pub agent: AgentId,
    /// The certificate that says so.
    pub certificate: Certificate,
}

impl Shown {
    fn new(Peer { agent, key, authority, expires_at_s, .. }: &Peer, version: u16) -> Self {
        let expires_at_ms = u64::try_from(*expires_at_s).unwrap_or(0).saturating_mul(1_000);
        let certificate = Certificate { key: *key, authority: *authority, expires_at_ms, version };
        Self { agent: *agent, certificate }
    }
}

/// What connections need of a run.
#[derive(Debug, Clone)]
pub struct RunFiles {
    /// Operators may name it so.
    pub name: String,
    /// Whether it is served. Operators read the store of one that has ended, too.
    pub is_served: bool,
    /// Operators read checkpoints from it.
    pub store: Arc<dyn Store>,
    /// Halves of uploads go there.
    pub spool: Arc<Spool>,
    /// Where bytes sent are counted by form, if anywhere.
    pub(crate) events: Option<RunEvents>,
}

/// What waits for the loop, and open connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Events: at most `limits::COORDINATOR_QUEUE_EVENTS`.
    pub events: usize,
    /// Bytes of agents' messages: at most `limits::AGENT_MESSAGES_BYTES`.
    pub message_bytes: usize,
    /// Connections that are open: at most `limits::CONNECTIONS`.
    pub connections: usize,
}

/// What every connection shares.
#[derive(Debug)]
pub struct Shared {
    inputs: mpsc::Sender<Input>,
    runs: RwLock<BTreeMap<RunId, RunFiles>>,
    /// Names of runs that are listed and not open.
    unopened: RwLock<BTreeSet<String>>,
    /// Read by whoever answers an operator from the loop, until the answer is delivered.
    answering: Arc<tokio::sync::RwLock<()>>,
    handshakes: Arc<Handshakes>,
    connections: Connections,
    /// Room for connections.
    room: Arc<Semaphore>,
    /// Bytes of messages that may wait for the loop.
    messages: Arc<Semaphore>,
    next_peer: AtomicU64,
}

impl Shared {
    /// Connections answer on `inputs`, and use the files of the run that they are about.
    #[must_use]
    pub fn new(inputs: mpsc::Sender<Input>, runs: BTreeMap<RunId, RunFiles>) -> Arc<Self> {
        Arc::new(Self {
            inputs,
            runs: RwLock::new(runs),
            unopened: RwLock::default(),
            answering: Arc::default(),
            handshakes: Arc::default(),
            connections: Connections::default(),
            room: Arc::new(Semaphore::new(limits::CONNECTIONS)),
            messages: Arc::new(Semaphore::new(limits::AGENT_MESSAGES_BYTES)),
            next_peer: AtomicU64::new(1),
        })
    }

    /// Adds a run, or changes what connections need of it.
    pub fn add_run(&self, run: RunId, files: RunFiles) {
        self.runs.write().insert(run, files);
    }

    /// Notes that a run is not served any more. Its store can still be read.
    pub fn run_ended(&self, run: RunId) {
        if let Some(files) = self.runs.write().get_mut(&run) {
            files.is_served = false;
        }
    }

    /// Notes a run that is not open: it is being opened, or cannot be.
    pub fn add_unopened(&self, name: &str) {
        self.unopened.write().insert(name.to_owned());
    }

    /// Forgets that a run is not open.
    pub fn remove_unopened(&self, name: &str) {
        self.unopened.write().remove(name);
    }

    /// Whether any run is not open.
    #[must_use]
    pub fn has_unopened(&self) -> bool {
        !self.unopened.read().is_empty()
    }

    /// What became of connections, and what went through them.
    #[must_use]
    pub fn network(&self) -> NetworkStatus {
        let (received, sent) = self.connections.traffic();
        NetworkStatus { received, sent, ..self.handshakes.status() }
    }

    /// What waits for the loop.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting {
            events: self.inputs.max_capacity() - self.inputs.capacity(),
            message_bytes: limits::AGENT_MESSAGES_BYTES - self.messages.available_permits(),
            connections: limits::CONNECTIONS - self.room.available_permits(),
        }
    }

    /// Waits until operators have their answers, when the loop gives no more of them.
    pub async fn answered(&self) {
        let _none_is_left = self.answering.write().await;
    }

    /// Forgets a run.
    pub fn remove_run(&self, run: RunId) {
        self.runs.write().remove(&run);
    }

    /// Where halves of uploads to a run go.
    fn spool(&self, run: RunId) -> Option<Arc<Spool>> {
        self.runs.read().get(&run).map(|files| Arc::clone(&files.spool))
    }

    /// Where bytes sent to agents of a run are counted.
    fn events(&self, run: RunId) -> Option<RunEvents> {
        self.runs.read().get(&run)?.events.clone()
    }

    /// Tells the loop. When the loop has ended there is nobody to tell, and the connection is about to be closed.
    async fn tell(&self, input: Input) {
        if self.inputs.send(input).await.is_err() {
            tracing::trace!("the loop has ended");
        }
    }

    /// Tells the loop what can also be said later. Returns whether it had room.
    pub(crate) fn try_tell(&self, input: Input) -> bool {
        self.inputs.try_send(input).is_ok()
    }

    /// Tells the loop what an agent says, in a frame of so many bytes. Waits while too many bytes
    /// of messages do.
    async fn tell_message(&self, peer: PeerId, message: AgentMessage, bytes: usize) {
        // Nothing closes the semaphore.
        if let Ok(room) = self.room(bytes).await {
            self.tell(Input::Message { peer, message, room }).await;
        }
    }

    /// Room for a message of so many bytes that is to wait for the loop.
    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, AcquireError> {
        let permits = u32::try_from(bytes.min(limits::AGENT_MESSAGES_BYTES)).unwrap_or(u32::MAX);
        Arc::clone(&self.messages).acquire_many_owned(permits).await
    }

    fn next_peer(&self) -> PeerId {
        PeerId(self.next_peer.fetch_add(1, Ordering::Relaxed))
    }
}

const HANDSHAKE: Duration = Duration::from_millis(limits::HANDSHAKE_TIMEOUT_MS);

/// Accepts connections until the endpoint is closed.
pub async fn accept(endpoint: Endpoint, shared: Arc<Shared>) {
    while let Some(incoming) = endpoint.accept().await {
        // Under load an address must show that it is its own before anything is spent on it.
        if shared.handshakes.is_busy() && incoming.may_retry() {
            shared.handshakes.asked_to_retry();
            if let Err(error) = incoming.retry() {
                tracing::debug!(%error, "a connection could not be asked to retry");
            }
            continue;
        }
        let Ok(room) = Arc::clone(&shared.room).try_acquire_owned() else {
            tracing::debug!(remote = %incoming.remote_address(), "no room for another connection");
            shared.handshakes.refused();
            incoming.refuse();
            continue;
        };
        let place = shared.handshakes.enter(incoming.remote_address().ip());
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            if let Err(error) = serve(incoming, place, shared).await {
                tracing::debug!(%remote, error = format!("{error:#}"), "connection ended");
            }
            drop(room);
        });
    }
}

/// A connection whose other end has said what it wants.
struct Greeted {
    connection: Connection,
    peer: Option<Peer>,
    control: Control,
}

/// A bidirectional stream whose opener has said what it is for.
struct Control {
    purpose: Purpose,
    /// The version of the schema that both ends agreed on.
    version: u16,
    send: SendStream,
    recv: RecvStream,
}

async fn serve(incoming: Incoming, mut place: Place, shared: Arc<Shared>) -> anyhow::Result<()> {
    let greeted = place.hold(async { tokio::time::timeout(HANDSHAKE, greet(incoming)).await? }).await?;
    let Greeted { connection, peer, control } = match greeted {
        Ok(greeted) => greeted,
        Err(Turned { connection, error }) => {
            // The peer closes when it has read the answer; a peer that does not is cut off.
            let told = async {
                linger(&connection).await;
                Err(error.into())
            };
            return place.hold(told).await;
        }
    };
    match (control.purpose, peer) {
        // Without a certificate there is no place but these two.
        (Purpose::Join, _) => place.hold(join::serve(&connection, control, &shared)).await,
        (Purpose::Probe, _) => place.hold(probe::serve(&connection, control)).await,
        (Purpose::Facts, Some(peer)) => {
            let shown = Shown::new(&peer, control.version);
            place.hold(probe::facts(&connection, shown, control, &shared)).await
        }
        (Purpose::Agent | Purpose::Runs, Some(peer)) => agent::serve(connection, peer, control, place, shared).await,
        (Purpose::Operator, _) => {
            drop(place);
            operator::serve(connection, control, shared).await
        }
        (Purpose::Agent | Purpose::Runs | Purpose::Facts, None) => Ok(()),
    }
}

/// A connection whose proposal was answered with a no.
struct Turned {
    connection: Connection,
    error: HandshakeError,
}

async fn greet(incoming: Incoming) -> anyhow::Result<Result<Greeted, Turned>> {
    let connection = incoming.accept()?.await?;
    let peer = tls::peer(&connection);
    let (mut send, mut recv) = connection.accept_bi().await?;
    let agreed = frames::accept(&mut send, &mut recv, |purpose| allowed(purpose, peer.as_ref()), HANDSHAKE).await;
    Ok(match agreed {
        Ok((purpose, version)) => {
            match purpose {
                Purpose::Join | Purpose::Probe | Purpose::Facts => {}
                // QUIC tells of room for further streams when many have ended: beyond its limit there is one in `agent`.
                Purpose::Agent | Purpose::Runs => tls::trust(&connection, 2 * limits::CONTROL_STREAMS),
                Purpose::Operator => tls::trust(&connection, limits::REQUEST_STREAMS),
            }
            Ok(Greeted { connection, peer, control: Control { purpose, version, send, recv } })
        }
        Err(error) => {
            send.finish().ok();
            Err(Turned { connection, error })
        }
    })
}

fn allowed(purpose: Purpose, peer: Option<&Peer>) -> bool {
    match purpose {
        Purpose::Join | Purpose::Probe => true,
        Purpose::Agent | Purpose::Runs | Purpose::Facts => peer.is_some_and(|peer| peer.role == Role::Agent),
        Purpose::Operator => peer.is_some_and(|peer| peer.role == Role::Operator),
    }
}

/// Waits until the other side has closed, at most as long as a handshake may take.
async fn linger(connection: &Connection) {
    tokio::time::timeout(HANDSHAKE, connection.closed()).await.ok();
}
