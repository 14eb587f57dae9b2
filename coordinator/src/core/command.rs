//! What the core wants done. Durability is a command like any other: only the event that answers it lets anyone know.

use std::sync::Arc;

use anabranch_common::downlink::FetchPurpose;
use anabranch_common::ids::{AgentId, BranchId, Digest, ModelVersion, Position};
use anabranch_common::journal::{Chain, FinishReason, Record};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::transfer::Helper;
use anabranch_common::update::UpdateMeta;
use anabranch_common::wire::message::CoordinatorMessage;
use anabranch_common::wire::transfer::{Missing, TransferManifest};

use super::content::Content;
use super::event::{PeerId, RequestId};
use super::replacement::{ReplaceError, Replaced};
use super::state::RunState;
use super::status::Answer;
use super::trial::TrialNews;

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Store a model, then append the record that names it; answered by `Journalled`.
    AppendModel {
        /// The record: `Genesis`, `Imported` or `Branched`.
        record: Arc<Record>,
        /// Every value of the model.
        model: Arc<Content>,
        /// The branch that the new one leaves, for `Branched`.
        parent: Option<BranchId>,
    },
    /// Append a record; answered by `Journalled`.
    Append {
        /// The record.
        record: Arc<Record>,
    },
    /// Send a control message.
    Send {
        /// On which connection.
        peer: PeerId,
        /// What.
        message: CoordinatorMessage,
    },
    /// Close a connection once what was sent before has left.
    Close {
        /// Which.
        peer: PeerId,
    },
    /// Ask for the chunks of an offered initial model; answered by `ModelReceived` or `ModelFailed`.
    ReceiveModel {
        /// From which connection.
        peer: PeerId,
        /// Its tensors.
        manifest: ModelManifest,
        /// Digest of its content.
        digest: Digest,
        /// Its chunks.
        transfer: TransferManifest,
    },
    /// Ask for the chunks of an offered update; answered by `UpdateReceived`.
    ReceiveUpdate {
        /// From which connection.
        peer: PeerId,
        /// What was offered.
        meta: UpdateMeta,
        /// Its chunks.
        transfer: TransferManifest,
        /// Connections that have sections of it: members of the pod that has computed it.
        helpers: Vec<Helper>,
    },
    /// A connection does not have what it was asked for of another agent's update.
    PartNotThere {
        /// Which connection.
        peer: PeerId,
        /// Of which transfer.
        transfer: Digest,
    },
    /// Send the content of a published version; answered by `ModelSent`.
    SendModel {
        /// On which connection.
        peer: PeerId,
        /// What is asked for.
        request: ModelRequest,
    },
    /// Merge a durable record.
    Merge {
        /// The record.
        record: Arc<Record>,
        /// Its decoded payload, or the model that it brings.
        content: Option<Arc<Content>>,
    },
    /// Make the newest merged version ready to be fetched; answered by `Published`.
    Publish {
        /// Also what users are given of it, where that is another vector than the model that agents train from.
        served: bool,
    },
    /// Write a checkpoint of exactly what was merged so far; answered by `Checkpointed`.
    Checkpoint(Box<CheckpointOrder>),
    /// Have a new certificate issued for an agent, to be sent as `Renewed`.
    Renew {
        /// On which connection.
        peer: PeerId,
        /// For whom.
        agent: AgentId,
        /// Its request, in DER.
        csr_der: Vec<u8>,
    },
    /// Answer an operator.
    Reply {
        /// To whom.
        request: RequestId,
        /// The answer.
        answer: Answer,
    },
    /// This run has heard that an agent was revoked, and its record is durable.
    Revoked {
        /// Who waits for it.
        request: RequestId,
    },
    /// Answer an import or a rollback.
    Replaced {
        /// To whom.
        request: RequestId,
        /// What has taken the newest model's place, or why nothing has.
        outcome: Result<Replaced, ReplaceError>,
    },
    /// Tell the search that this run is a trial of.
    Trial(TrialNews),
    /// Let the process end.
    Exit(ExitReason),
}

/// An agent's request for the content of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRequest {
    /// Which version.
    pub version: ModelVersion,
    /// Digest of the content.
    pub digest: Digest,
    /// What it is needed for.
    pub purpose: FetchPurpose,
    /// Version and digest of what the agent holds.
    pub held: Option<(ModelVersion, Digest)>,
    /// Which chunks only.
    pub missing: Option<Missing>,
}

impl Command {
    /// The connection that it is for, if it is for one.
    #[must_use]
    pub fn peer(&self) -> Option<PeerId> {
        match self {
            Self::Send { peer, .. }
            | Self::Close { peer }
            | Self::ReceiveModel { peer, .. }
            | Self::ReceiveUpdate { peer, .. }
            | Self::PartNotThere { peer, .. }
            | Self::SendModel { peer, .. }
            | Self::Renew { peer, .. } => Some(*peer),
            Self::AppendModel { .. }
            | Self::Append { .. }
            | Self::Merge { .. }
            | Self::Publish { .. }
            | Self::Checkpoint(_)
            | Self::Revoked { .. }
            | Self::Reply { .. }
            | Self::Replaced { .. }
            | Self::Trial(_)
            | Self::Exit(_) => None,
        }
    }

    /// Whether it tells an agent what has become of an update or an initial model.
    #[must_use]
    pub fn ends_upload(&self) -> bool {
        let Self::Send { message, .. } = self else { return false };
        matches!(message, CoordinatorMessage::Verdict { .. } | CoordinatorMessage::ModelReady { .. })
    }
}

/// What a checkpoint is made of, beside the model that the merger holds at that moment.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointOrder {
    /// Position of the last record in it.
    pub position: Position,
    /// Chain value after that record.
    pub chain: Chain,
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// The oldest version that can be rebuilt while nothing is pruned.
    pub oldest: ModelVersion,
    /// The fold up to that record.
    pub state: RunState,
}

/// Why the process may end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExitReason {
    /// The run ended; this version is its result.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Its result.
        result: ModelVersion,
    },
    /// The run was parked and goes on at the next start.
    Parked,
}
