//! What can happen to a process.

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::transfer::Received;
use anabranch_common::wire::message::{AgentHello, AgentMessage};
use anabranch_common::wire::operator::OperatorRequest;

use crate::core::event::{Event, PeerId, RequestId};
use crate::node::{Done, DownloadId};
use crate::registry;

/// What can happen to a process.
#[derive(Debug)]
pub enum Input {
    /// An agent has shown its certificate and said hello.
    Hello {
        /// Its connection.
        peer: PeerId,
        /// Who it is, by its certificate.
        agent: AgentId,
        /// What it said.
        hello: AgentHello,
    },
    /// An agent says something.
    Message {
        /// On which connection.
        peer: PeerId,
        /// What.
        message: AgentMessage,
    },
    /// A sending of a model has ended.
    Sent {
        /// To whom.
        peer: PeerId,
        /// Which.
        download: DownloadId,
        /// Its bytes, if all of them were sent.
        bytes: Option<u64>,
    },
    /// A chunk was put into a sink.
    Received {
        /// On which connection.
        peer: PeerId,
        /// Which.
        chunk: Received,
    },
    /// A connection is gone.
    Disconnected {
        /// Which.
        peer: PeerId,
    },
    /// Somebody wants to join.
    Join {
        /// Where the answer goes.
        request: RequestId,
        /// The token's secret.
        secret: [u8; 32],
        /// Who it would be, by the key that has signed its request.
        agent: AgentId,
        /// The request for a certificate, in DER.
        csr_der: Vec<u8>,
    },
    /// An operator asks for something.
    Operator {
        /// Where the answer goes.
        request: RequestId,
        /// What.
        operation: OperatorRequest,
    },
    /// A model shall take the place of a run's newest one: `Import` or `RollBack`, of a stopped coordinator.
    Replace {
        /// Which run.
        run: RunId,
        /// The event of its core.
        event: Event,
    },
    /// Time has passed.
    Tick,
    /// The process was asked to park its runs (SIGTERM, SIGINT).
    Park,
    /// A job of a run has ended.
    Done {
        /// Whose it was.
        run: RunId,
        /// What came of it.
        done: Done,
    },
    /// A job of the registry has ended.
    Registry(registry::Done),
}
