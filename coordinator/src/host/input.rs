//! What can happen to a process.

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::transfer::Received;
use anabranch_common::wire::message::{AgentHello, AgentMessage};
use anabranch_common::wire::operator::OperatorRequest;
use anabranch_common::wire::runs::RunsWanted;

use super::runs::RunsDone;
use super::searches::SearchesDone;
use crate::core::event::{Event, PeerId, RequestId};
use crate::core::status::Answer;
use crate::node::{Done, DownloadId};
use crate::registry;
use crate::registry::roster::Certificate;

/// What can happen to a process.
#[derive(Debug)]
pub enum Input {
    /// An agent has shown its certificate and said hello.
    Hello {
        /// Its connection.
        peer: PeerId,
        /// The agent, by its certificate.
        agent: AgentId,
        /// Its certificate; none in a simulation, where there are no certificates.
        certificate: Option<Certificate>,
        /// The content of the hello.
        hello: AgentHello,
    },
    /// A member asks which runs there are, and wants to hear of changes.
    Subscribe {
        /// The stream for lists.
        peer: PeerId,
        /// The agent, by its certificate.
        agent: AgentId,
        /// Its certificate; none in a simulation, where there are no certificates.
        certificate: Option<Certificate>,
        /// The runs that it wants.
        wanted: RunsWanted,
    },
    /// An agent asks about a run, without taking part.
    Facts {
        /// The request that is answered.
        request: RequestId,
        /// The agent, by its certificate.
        agent: AgentId,
        /// Its certificate; none in a simulation, where there are no certificates.
        certificate: Option<Certificate>,
        /// The run.
        run: RunId,
    },
    /// An agent says something.
    Message {
        /// The connection that it came on.
        peer: PeerId,
        /// The message.
        message: AgentMessage,
    },
    /// A sending of a model has ended.
    Sent {
        /// The connection that it was sent on.
        peer: PeerId,
        /// The sending.
        download: DownloadId,
        /// Its bytes, if all of them were sent.
        bytes: Option<u64>,
    },
    /// A chunk was put into a sink.
    Received {
        /// The connection that it came on.
        peer: PeerId,
        /// The chunk.
        chunk: Received,
    },
    /// A connection is gone.
    Disconnected {
        /// The connection.
        peer: PeerId,
    },
    /// Somebody wants to join.
    Join {
        /// Where the answer goes.
        request: RequestId,
        /// The token's secret.
        secret: [u8; 32],
        /// The key that has signed the request.
        agent: AgentId,
        /// The request for a certificate, in DER.
        csr_der: Vec<u8>,
    },
    /// A request of the operator's page came with a good token.
    PageTokenUsed {
        /// The token's id.
        id: String,
    },
    /// An operator asks for something.
    Operator {
        /// Where the answer goes.
        request: RequestId,
        /// The request.
        operation: OperatorRequest,
    },
    /// A model shall take the place of a run's newest one: `Import` or `RollBack`, of a stopped coordinator.
    Replace {
        /// The run.
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
        /// The run that the job belongs to.
        run: RunId,
        /// The result of the job.
        done: Done,
    },
    /// A job on the directory of a run has ended.
    Runs(RunsDone),
    /// The store of a run with a quota was measured.
    Measured {
        /// The run.
        run: RunId,
        /// Bytes on the disk; none where they cannot be counted.
        disk_bytes: Option<u64>,
    },
    /// A job for a search has ended.
    Searches(SearchesDone),
    /// The store of a run that has ended was read.
    Looked {
        /// The request that is answered.
        request: RequestId,
        /// The answer, without the members that the run has not seen.
        answer: Answer,
    },
    /// A job of the registry has ended.
    Registry(registry::Done),
}
