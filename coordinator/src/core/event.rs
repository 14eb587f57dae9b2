//! What can happen to the coordinator. This enum and [`Command`](super::command::Command) are the transport seam: the
//! driver feeds sockets and disks through it, the simulation a virtual network.

use std::sync::Arc;

use anabranch_common::codec::DecodeError;
use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::{AgentId, BranchId, Digest, ModelVersion, Position};
use anabranch_common::journal::CopyMark;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::UpdateMeta;
use anabranch_common::wire::message::{AgentHello, AgentMessage};
use anabranch_common::wire::operator::RunRequest;

pub use anabranch_common::ids::PeerId;
pub use anabranch_common::now::Now;

use super::content::Content;
use super::publication::ServedModel;
use super::replacement::EarlierVersion;
use super::trial::TrialOrder;

/// One request that waits for an answer (an operator's, an import, a rollback or a join); never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What can happen.
#[derive(Debug)]
pub enum Event {
    /// A member has said hello.
    Connected {
        /// Its connection.
        peer: PeerId,
        /// Who it is, by its certificate.
        agent: AgentId,
        /// What it is called.
        name: String,
        /// What it said.
        hello: AgentHello,
    },
    /// A connection is gone.
    Disconnected {
        /// Which.
        peer: PeerId,
    },
    /// An agent says something.
    Message {
        /// On which connection.
        peer: PeerId,
        /// What.
        message: AgentMessage,
    },
    /// All chunks of an update are here.
    UpdateReceived {
        /// On which connection.
        peer: PeerId,
        /// What was offered.
        meta: UpdateMeta,
        /// Its bytes, whose digest is the offered one; empty where they do not decode.
        payload: Arc<[u8]>,
        /// What they decode to.
        content: Result<Arc<Content>, DecodeError>,
        /// Milliseconds from asking for its chunks to having all of them; none if some of them were here already.
        transfer_ms: Option<u64>,
    },
    /// A chunk of an initial model that was missing is here.
    ModelChunk {
        /// On which connection.
        peer: PeerId,
        /// Its length.
        bytes: u64,
    },
    /// All chunks of an initial model are here, and they are what was offered.
    ModelReceived {
        /// On which connection.
        peer: PeerId,
        /// Its tensors.
        manifest: ModelManifest,
        /// Digest of its content.
        digest: Digest,
        /// Its content, every value of it.
        model: Arc<Content>,
    },
    /// An initial model did not arrive or was not what was offered.
    ModelFailed {
        /// On which connection.
        peer: PeerId,
        /// Why, for people.
        why: String,
    },
    /// The content of a model was sent.
    ModelSent {
        /// On which connection.
        peer: PeerId,
        /// Bytes as sent.
        bytes: u64,
        /// What the agent has asked for it for.
        purpose: FetchPurpose,
    },
    /// Every record up to this position is durable.
    Journalled {
        /// The newest durable position.
        upto: Position,
    },
    /// A version is ready to be fetched.
    Published {
        /// Which.
        version: ModelVersion,
        /// Digest of its content.
        digest: Digest,
        /// What users are given of it.
        served: ServedModel,
    },
    /// The model overflowed at this version.
    NonFinite {
        /// The first version that is not finite.
        version: ModelVersion,
    },
    /// A checkpoint is durable and older ones have been pruned.
    Checkpointed {
        /// Its position.
        position: Position,
        /// Its version.
        version: ModelVersion,
        /// The oldest version from which later ones can still be rebuilt.
        oldest: ModelVersion,
    },
    /// A member was revoked, which is durable.
    AgentRevoked {
        /// Who.
        agent: AgentId,
        /// Who waits for [`Command::Revoked`](super::command::Command::Revoked), if anybody.
        request: Option<RequestId>,
    },
    /// An operator asks for something.
    Operator {
        /// Where the answer goes.
        request: RequestId,
        /// What.
        operation: RunRequest,
    },
    /// A model from outside is to become the next version, or version 0 of a run without one. No agent is connected.
    Import {
        /// Where the answer goes.
        request: RequestId,
        /// Its tensors.
        manifest: ModelManifest,
        /// Digest of its content.
        digest: Digest,
        /// Its content, every value of it.
        model: Arc<Content>,
    },
    /// The run, a trial, is to go on from a copy of another trial's version. No agent is connected. Told as
    /// [`TrialNews::Copied`](super::trial::TrialNews::Copied). A second time changes nothing.
    Copy {
        /// Names the copy.
        mark: CopyMark,
        /// Its tensors.
        manifest: ModelManifest,
        /// Digest of its content.
        digest: Digest,
        /// Its content, every value of it.
        model: Arc<Content>,
    },
    /// The run is to go on from an earlier version. No agent is connected.
    RollBack {
        /// Where the answer goes.
        request: RequestId,
        /// The branch that starts: one that no run has had before.
        branch: BranchId,
        /// From where.
        to: EarlierVersion,
    },
    /// The run's store was measured, which has a quota.
    DiskMeasured {
        /// Bytes on the disk.
        disk_bytes: u64,
        /// The quota in bytes.
        quota_bytes: u64,
    },
    /// A search wants something of this run, its trial.
    Trial(TrialOrder),
    /// Time has passed.
    Tick,
    /// The process was asked to park the run (SIGTERM, SIGINT).
    Park,
}
