//! What an agent says about an update, and what the coordinator says of it.

use serde::{Deserialize, Serialize};

use crate::codec::CodecId;
use crate::ids::{AgentId, BranchId, Digest, Epoch, LeaseId, ModelVersion, Position, RunId, UpdateSeq};

/// The name of an update: two updates with the same key are the same update, or one of them is a lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UpdateKey {
    /// The run it belongs to.
    pub run: RunId,
    /// Who computed it.
    pub agent: AgentId,
    /// In which incarnation.
    pub epoch: Epoch,
    /// The how-manieth of that incarnation.
    pub seq: UpdateSeq,
}

/// The name of a memory that an agent and the coordinator hold ([`ef21`](crate::merge::ef21)): it follows from the contents that
/// were added to it and from their weights. Equal marks name memories of equal bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryMark(pub Digest);

impl MemoryMark {
    /// A memory of 0.
    pub const EMPTY: Self = Self(Digest([0; 32]));

    /// Returns the name of the memory after the content of a payload was added with this weight.
    #[must_use]
    pub fn with(self, payload: Digest, weight: f32) -> Self {
        Self(Digest::of(&[&self.0.0[..], &payload.0, &weight.to_le_bytes()].concat()))
    }
}

/// Everything about an update but its payload.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateMeta {
    /// Its name.
    pub key: UpdateKey,
    /// The branch whose model it started from.
    pub branch: BranchId,
    /// The lease it was computed under.
    pub lease: LeaseId,
    /// The version it started from; staleness is counted from here.
    pub base_version: ModelVersion,
    /// Digest of that version's content.
    pub base_digest: Digest,
    /// How the payload is encoded.
    pub codec: CodecId,
    /// Length of the payload in bytes.
    pub payload_bytes: u64,
    /// BLAKE3 over the payload as uploaded.
    pub payload_digest: Digest,
    /// Examples seen in training, repetitions counted.
    pub num_examples: u64,
    /// Optimizer steps taken.
    pub local_steps: u32,
    /// Mean training loss over those steps.
    pub train_loss: f32,
    /// Time the training took, in milliseconds.
    pub compute_ms: u64,
    /// The product of the decoded content with the model that the training started from, summed in f64 in index order.
    /// Only where the lease's plan asks for it.
    pub base_dot: Option<f64>,
    /// Norm of what compression has left out, with this update, over the norm of the delta. Only where the lease's plan
    /// asks for it, and there is a delta.
    pub residual_ratio: Option<f32>,
    /// The memory that the content is a difference against. Only where the lease's plan asks for one.
    pub memory: Option<MemoryMark>,
}

/// Why an update was refused. Each reason says whether its content goes back into the agent's feedback state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// This key was decided before under the same digest, and its verdict is no longer remembered in detail.
    Duplicate,
    /// Its base is more than `max_staleness` versions old, or its lease is no longer known: another update was decided under it.
    Stale,
    /// The payload does not decode, or does not fit the manifest, or a figure that comes with it makes no sense.
    Malformed,
    /// It holds a NaN or an infinity.
    NonFinite,
    /// It exceeds a limit of the coordinator's (bytes, examples).
    OverLimit,
    /// No lease with this base version and digest was given to this agent.
    UnknownBase,
    /// The agent's certificate has been revoked.
    Revoked,
    /// Its norm is far outside of what other updates have.
    NormOutlier,
    /// This key was used before with another digest.
    KeyConflict,
    /// It started from another branch of the model's history.
    WrongBranch,
    /// The run has ended.
    Finished,
    /// Its content is a difference against a memory that the coordinator does not hold.
    UnknownMemory,
}

impl RefusalReason {
    /// Every reason, in the order of their names on the wire.
    pub const ALL: [Self; 12] = [
        Self::Duplicate,
        Self::Stale,
        Self::Malformed,
        Self::NonFinite,
        Self::OverLimit,
        Self::UnknownBase,
        Self::Revoked,
        Self::NormOutlier,
        Self::KeyConflict,
        Self::WrongBranch,
        Self::Finished,
        Self::UnknownMemory,
    ];

    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Stale => "stale",
            Self::Malformed => "malformed",
            Self::NonFinite => "non_finite",
            Self::OverLimit => "over_limit",
            Self::UnknownBase => "unknown_base",
            Self::Revoked => "revoked",
            Self::NormOutlier => "norm_outlier",
            Self::KeyConflict => "key_conflict",
            Self::WrongBranch => "wrong_branch",
            Self::Finished => "finished",
            Self::UnknownMemory => "unknown_memory",
        }
    }

    /// Whether the agent adds the refused content back to its error-feedback state: it does where the content was
    /// sound and merely came at the wrong time, and does not where it was merged already or must never be. A difference
    /// against a [memory](MemoryMark) never returns: the memory is as it was.
    #[must_use]
    pub fn content_returns(self) -> bool {
        matches!(self, Self::Stale | Self::OverLimit | Self::UnknownBase)
    }
}

/// The coordinator's decision on an update. Once sent, it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Journalled, and merged in journal order.
    Accepted {
        /// Where in the journal.
        position: Position,
        /// The model version after it.
        version: ModelVersion,
        /// The factor it is merged with.
        weight: f32,
        /// Versions between its base and its merge.
        staleness: u64,
    },
    /// Not merged, now or later.
    Refused {
        /// Why.
        reason: RefusalReason,
    },
}
