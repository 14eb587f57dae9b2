//! The journal: what happened, in order, and the hash chain over it.
//!
//! A stored record is a head (see [`crate::schema`]) and a payload (raw bytes), behind one checked header:
//!
//! ```text
//!  0      4        6          8         12           20        24        28
//!  ┌──────┬────────┬──────────┬──────────┬────────────┬─────────┬─────────┬──────┬─────────┐
//!  │"ANBJ"│schema  │ reserved │ head len │payload len │head crc │payl. crc│ head │ payload │
//!  │ 4    │ u16 le │ u16 = 0  │ u32 le   │ u64 le     │ crc32c  │ crc32c  │      │         │
//!  └──────┴────────┴──────────┴──────────┴────────────┴─────────┴─────────┴──────┴─────────┘
//! ```
//! The head's checksum covers the header's first 20 bytes too. The chain is
//! `h' = BLAKE3(h || record digest || weight || version)`, the record digest `BLAKE3(BLAKE3(head) || BLAKE3(payload))`.

mod versions;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::CodecSpec;
use crate::ids::{AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, Position, RunId};
use crate::limits;
use crate::manifest::ModelManifest;
use crate::schema::{self, SchemaError};
use crate::spec::{RunSpec, TrainSpec};
use crate::update::{MemoryMark, RefusalReason, UpdateKey};

pub use versions::{Close, CloseReason, Contribution, Publication, PublicationForm};

/// Magic bytes of a stored record.
pub const MAGIC: [u8; 4] = *b"ANBJ";
/// Bytes before the head.
pub const HEADER_BYTES: usize = 28;

/// Permission to train from a base version, with what to do there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Who holds it.
    pub agent: AgentId,
    /// In which incarnation it was granted.
    pub epoch: Epoch,
    /// The branch of the base.
    pub branch: BranchId,
    /// The version to start from.
    pub base_version: ModelVersion,
    /// Digest of that version's content.
    pub base_digest: Digest,
    /// Seed of the local round: order of the examples, dropout and the like.
    pub seed: u64,
    /// Unix time in milliseconds after which it no longer counts as outstanding. Work that comes later is still merged
    /// while its base is within `max_staleness`.
    pub expires_at_ms: u64,
    /// What to do under it.
    pub plan: Plan,
}

/// What an agent is to do under one lease. All of it follows from the records before the lease.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Optimizer steps, in place of `train.local_steps`.
    pub local_steps: u32,
    /// What the learning rate of `train.optimizer` is multiplied with, in [0, 1].
    pub lr_factor: f32,
    /// Number of this round among those of its agent, from 0: the leases that the agent was
    /// granted before in this run.
    pub round: u64,
    /// How far the run is: the base version over `target.versions`, in [0, 1]. None without such a
    /// target.
    pub progress: Option<f32>,
    /// Factor that the update is merged with if no version is made in the meantime and its agent
    /// takes part as much as the others.
    pub weight: f32,
    /// Whether the update is to say the product of its content with its base (`UpdateMeta::base_dot`).
    pub base_dot: bool,
    /// How the update is to be encoded, in place of `upload.codec`.
    pub codec: CodecSpec,
    /// Whether the update is to say how much compression has left out by now (`UpdateMeta::residual_ratio`).
    pub residual_ratio: bool,
    /// The memory that the coordinator has of the agent, where updates are differences against one: an agent with another one
    /// forgets it.
    pub memory: Option<MemoryMark>,
}

impl Plan {
    /// Returns `[train]` as it counts for this round: with its steps, and with the learning rate
    /// multiplied.
    #[must_use]
    pub fn of(&self, train: &TrainSpec) -> TrainSpec {
        let optimizer = train.optimizer.with_lr(self.lr_factor * train.optimizer.lr());
        TrainSpec { local_steps: self.local_steps, optimizer, ..train.clone() }
    }
}

/// Why a lease ended without an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseEnd {
    /// Its time ran out.
    Expired,
    /// The agent gave it back.
    Returned,
    /// The agent asked for another one, having lost this one.
    Superseded,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The accuracy target was reached.
    Accuracy {
        /// The accuracy that reached it.
        reached: f64,
    },
    /// The loss target was reached.
    Loss {
        /// The loss that reached it.
        reached: f64,
    },
    /// The version target was reached.
    Versions,
    /// The time target was reached.
    WallTime,
    /// The operator said `stop`.
    Stopped,
    /// The model stopped being finite; the result is the last finite version.
    NonFinite,
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accuracy { reached } => write!(f, "accuracy reached {:.2} %", 100.0 * reached),
            Self::Loss { reached } => write!(f, "loss reached {reached:.4}"),
            Self::Versions => f.write_str("the last version was reached"),
            Self::WallTime => f.write_str("its time is over"),
            Self::Stopped => f.write_str("stopped by the operator"),
            Self::NonFinite => f.write_str("the model stopped being finite"),
        }
    }
}

/// An evaluation by an agent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Who evaluated.
    pub agent: AgentId,
    /// Which version.
    pub version: ModelVersion,
    /// Share of examples classified correctly, 0..1.
    pub accuracy: f64,
    /// Mean loss.
    pub loss: f64,
    /// Examples in the evaluation shard.
    pub num_examples: u64,
}

/// The evaluations of one version by one or more agents, combined: means weighted by examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Aggregate {
    /// Which version.
    pub version: ModelVersion,
    /// Share of examples classified correctly, 0..1: the mean over the evaluators, weighted by `num_examples`.
    pub accuracy: f64,
    /// Mean loss, weighted likewise.
    pub loss: f64,
    /// Evaluators that answered.
    pub evaluators: u32,
    /// Examples that they measured on.
    pub num_examples: u64,
    /// Examples in their evaluation shards.
    pub covered_examples: u64,
    /// Examples in the evaluation shards of all evaluators that counted when this was computed.
    pub known_examples: u64,
}

impl Aggregate {
    /// Whether it covers more than half of the evaluation examples that are known. Only such an aggregate decides on a
    /// target.
    #[must_use]
    pub fn covers_most(&self) -> bool {
        u128::from(self.covered_examples) * 2 > u128::from(self.known_examples)
    }
}

/// Models sent to one agent since the record before that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelsSent {
    /// To whom.
    pub agent: AgentId,
    /// How many models to train from.
    pub models: u64,
    /// Their payload bytes as sent.
    pub bytes: u64,
    /// Payload bytes of models to evaluate, as sent.
    pub evaluation_bytes: u64,
}

/// Where a copied model comes from: a trial of a search goes on from another one (docs/adr/0037-search.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyMark {
    /// The rung at which the search has compared both. It names the copy: a trial gets one at a rung.
    pub rung: u32,
    /// The run that was copied.
    pub from: RunId,
    /// The version of that run.
    pub version: ModelVersion,
}

/// What a record says. Every event that changes what merging does is one of these.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordBody {
    /// Record 0: the run and its initial model, whose content is a blob in the store under its digest.
    Genesis {
        /// The run.
        run: RunId,
        /// Its first branch.
        branch: BranchId,
        /// The configuration.
        spec: Box<RunSpec>,
        /// The model's tensors.
        manifest: ModelManifest,
        /// Digest of version 0.
        model: Digest,
        /// Its Euclidean norm: the measure of updates until enough agents have shown one.
        norm: f64,
    },
    /// The configuration changed between two starts of the coordinator.
    ConfigChanged {
        /// The configuration from here on.
        spec: Box<RunSpec>,
    },
    /// An agent was enrolled.
    AgentJoined {
        /// Its identity.
        agent: AgentId,
        /// Its name, for people.
        name: String,
    },
    /// An agent's certificate was revoked.
    AgentRevoked {
        /// Its identity.
        agent: AgentId,
    },
    /// An agent's process started.
    EpochStarted {
        /// Its identity.
        agent: AgentId,
        /// The number of this incarnation.
        epoch: Epoch,
        /// What the process drew for itself.
        incarnation: Incarnation,
        /// Examples in its training shard as it says, capped by `admit.max_examples`.
        examples_held: u64,
        /// Examples in its evaluation shard as it says, capped by `limits::SHARD_EXAMPLES`.
        eval_examples: u64,
    },
    /// Permission to train.
    LeaseGranted(Lease),
    /// A lease ended without an update.
    LeaseEnded {
        /// Which.
        lease: LeaseId,
        /// Why.
        why: LeaseEnd,
    },
    /// An update was accepted. The record's payload is the update's.
    Contribution(Box<Contribution>),
    /// An update was refused for good.
    Refused {
        /// Its name.
        key: UpdateKey,
        /// Digest of its payload.
        payload_digest: Digest,
        /// The lease it was offered under.
        lease: LeaseId,
        /// Why.
        reason: RefusalReason,
    },
    /// A version was evaluated.
    Evaluated(Evaluation),
    /// The model was replaced by an imported one (a blob in the store under its digest), which is a new version.
    Imported {
        /// Digest of its content.
        model: Digest,
        /// Its version.
        version: ModelVersion,
        /// Its Euclidean norm, the measure from here on.
        norm: f64,
        /// Where it comes from, if a search has copied it from another run.
        copied: Option<CopyMark>,
    },
    /// The history continues from an earlier position on a new branch.
    Branched {
        /// The new branch.
        branch: BranchId,
        /// The last position of the old branch that still counts.
        from: Position,
        /// The version there.
        version: ModelVersion,
        /// Euclidean norm of that version, the measure from here on.
        norm: f64,
        /// Examples credited to the updates that still count.
        examples: u64,
    },
    /// No more leases until resumed.
    Paused,
    /// Leases again.
    Resumed,
    /// The run ended.
    Finished {
        /// Why.
        reason: FinishReason,
        /// The version that is the run's result.
        result: ModelVersion,
    },
    /// An agent was asked to evaluate a version and could not, or gave no answer.
    EvaluationFailed {
        /// The agent.
        agent: AgentId,
        /// Which version.
        version: ModelVersion,
        /// Why, for people; at most `limits::EVALUATION_REASON_BYTES`.
        reason: String,
    },
    /// The evaluations of a version were combined, as computed then. Targets are judged by this record alone.
    Aggregated(Aggregate),
    /// Models were sent: counts since the record before, of at most `limits::MODELS_SENT_ENTRIES` agents.
    ModelsSent(Vec<ModelsSent>),
    /// A run that had ended goes on: its configuration has a target that is not reached.
    Reopened,
    /// A version exists from here on.
    Closed(Close),
    /// A version can be fetched from here on. Leases on it follow.
    Published(Publication),
}

impl RecordBody {
    /// The lease that is granted here.
    #[must_use]
    pub fn granted(&self) -> Option<&Lease> {
        match self {
            Self::LeaseGranted(lease) => Some(lease),
            _ => None,
        }
    }

    /// The kind's name, for `checkpoint verify`, traces and logs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Genesis { .. } => "genesis",
            Self::ConfigChanged { .. } => "config_changed",
            Self::AgentJoined { .. } => "agent_joined",
            Self::AgentRevoked { .. } => "agent_revoked",
            Self::EpochStarted { .. } => "epoch_started",
            Self::LeaseGranted(_) => "lease_granted",
            Self::LeaseEnded { .. } => "lease_ended",
            Self::Contribution(_) => "contribution",
            Self::Refused { .. } => "refused",
            Self::Evaluated(_) => "evaluated",
            Self::Imported { .. } => "imported",
            Self::Branched { .. } => "branched",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Finished { .. } => "finished",
            Self::EvaluationFailed { .. } => "evaluation_failed",
            Self::Aggregated(_) => "aggregated",
            Self::ModelsSent(_) => "models_sent",
            Self::Reopened => "reopened",
            Self::Closed(_) => "closed",
            Self::Published(_) => "published",
        }
    }
}

/// One entry of the journal.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its index.
    pub position: Position,
    /// Unix time in milliseconds at which the coordinator decided it.
    pub at_ms: u64,
    /// What it says.
    pub body: RecordBody,
    /// Raw bytes that belong to it: a contribution's payload, else empty.
    pub payload: Arc<[u8]>,
    /// Digest of the stored head, for a record that was read: an older version of the schema has
    /// other bytes for the same content, and the chain is over the bytes that were written.
    stored_head: Option<Digest>,
}

impl PartialEq for Record {
    /// Compares the content.
    fn eq(&self, other: &Self) -> bool {
        let content = |record: &Self| (record.position, record.at_ms);
        content(self) == content(other) && self.body == other.body && self.payload == other.payload
    }
}

pub(crate) struct Head {
    pub(crate) position: Position,
    pub(crate) at_ms: u64,
    pub(crate) body: RecordBody,
}

/// Why stored bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too few or too many bytes.
    #[error("record of {found} bytes where its header says {expected}")]
    Length {
        /// What the header says (or the header's own length).
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// Not a record at all.
    #[error("record does not start with its magic bytes")]
    Magic,
    /// Written by another version.
    #[error("record of schema version {found}; this program reads {}", schema::readable())]
    Schema {
        /// The version in its header.
        found: u16,
    },
    /// The bytes changed after they were written.
    #[error("record's {0} does not match its checksum")]
    Checksum(&'static str),
    /// The head is not what this version writes.
    #[error("record's head cannot be read: {0}")]
    Head(#[from] SchemaError),
}

impl Record {
    /// Makes the record at `position`.
    #[must_use]
    pub fn new(position: Position, at_ms: u64, body: RecordBody, payload: Arc<[u8]>) -> Self {
        Self { position, at_ms, body, payload, stored_head: None }
    }

    /// Returns the bytes that are stored, in the newest version of the schema.
    ///
    /// # Errors
    /// The head is larger than a control message may be.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SchemaError> {
        let head = self.head_bytes()?;
        let mut out = Vec::with_capacity(HEADER_BYTES + head.len() + self.payload.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&schema::VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&(self.payload.len() as u64).to_le_bytes());
        let head_crc = crc32c::crc32c_append(crc32c::crc32c(&out), &head);
        out.extend_from_slice(&head_crc.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&self.payload).to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(&self.payload);
        Ok(out)
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let found = bytes.len() as u64;
        let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err(RecordError::Length { expected: HEADER_BYTES as u64, found });
        };
        if header[..4] != MAGIC {
            return Err(RecordError::Magic);
        }
        let version = u16::from_le_bytes([header[4], header[5]]);
        if !schema::is_readable(version) {
            return Err(RecordError::Schema { found: version });
        }
        let head_len = u32_at(header, 8) as usize;
        let payload_len = u64::from(u32_at(header, 12)) | (u64::from(u32_at(header, 16)) << 32);
        let expected = (HEADER_BYTES as u64).saturating_add(head_len as u64).saturating_add(payload_len);
        if expected != found {
            return Err(RecordError::Length { expected, found });
        }
        let (head, payload) = rest.split_at(head_len);
        if crc32c::crc32c_append(crc32c::crc32c(&header[..20]), head) != u32_at(header, 20) {
            return Err(RecordError::Checksum("head"));
        }
        if crc32c::crc32c(payload) != u32_at(header, 24) {
            return Err(RecordError::Checksum("payload"));
        }
        let stored_head = Some(Digest::of(head));
        let Head { position, at_ms, body } = schema::decode_as(version, head, limits::CONTROL_MESSAGE_BYTES)?;
        Ok(Self { position, at_ms, body, payload: payload.into(), stored_head })
    }

    /// Digest of head and payload.
    ///
    /// # Errors
    /// The head is larger than a control message may be.
    pub fn digest(&self) -> Result<Digest, SchemaError> {
        self.digest_with(Digest::of(&self.payload))
    }

    /// The same when the payload's digest is known already.
    ///
    /// # Errors
    /// The head is larger than a control message may be.
    pub fn digest_with(&self, payload: Digest) -> Result<Digest, SchemaError> {
        let head = self.stored_head.map_or_else(|| Ok(Digest::of(&self.head_bytes()?)), Ok)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head.0);
        hasher.update(&payload.0);
        Ok(Digest(*hasher.finalize().as_bytes()))
    }

    /// The factor and the version that enter the chain with this record, where `before` is the version before it.
    #[must_use]
    pub fn chain_inputs(&self, before: ModelVersion) -> (f32, ModelVersion) {
        match &self.body {
            RecordBody::Contribution(contribution) => (contribution.weight, before),
            RecordBody::Closed(close) => (0.0, close.version),
            RecordBody::Imported { version, .. } | RecordBody::Branched { version, .. } => (0.0, *version),
            _ => (0.0, before),
        }
    }

    fn head_bytes(&self) -> Result<Vec<u8>, SchemaError> {
        let head = Head { position: self.position, at_ms: self.at_ms, body: self.body.clone() };
        schema::encode(&head, limits::CONTROL_MESSAGE_BYTES)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The chain over the journal: equal chains mean equal histories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Chain(pub Digest);

impl Chain {
    /// The chain after `record`, which was merged with `weight` (0 when it is no contribution) and left `version`.
    #[must_use]
    pub fn extend(self, record: Digest, weight: f32, version: ModelVersion) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0.0);
        hasher.update(&record.0);
        hasher.update(&weight.to_le_bytes());
        hasher.update(&version.0.to_le_bytes());
        Self(Digest(*hasher.finalize().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let body = RecordBody::AgentJoined { agent: AgentId([7; 16]), name: "clinic".into() };
        Record::new(Position(3), 1_700_000_000_000, body, (*b"payload").into())
    }

    #[test]
    fn a_record_round_trips() {
        let bytes = record().to_bytes().expect("small");
        assert_eq!(Record::from_bytes(&bytes), Ok(record()));
    }

    #[test]
    fn every_flipped_bit_and_every_prefix_is_noticed() {
        let bytes = record().to_bytes().expect("small");
        for len in 0..bytes.len() {
            assert!(Record::from_bytes(&bytes[..len]).is_err(), "a prefix of {len} bytes was accepted");
        }
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::from_bytes(&broken).is_err(), "flipping bit {bit} went unnoticed");
        }
    }

    #[test]
    fn the_chain_depends_on_every_input() {
        let chain = Chain::default();
        let digest = record().digest().expect("small");
        let extended = chain.extend(digest, 0.5, ModelVersion(1));
        assert_ne!(extended, chain.extend(digest, 0.25, ModelVersion(1)));
        assert_ne!(extended, chain.extend(digest, 0.5, ModelVersion(2)));
        assert_ne!(extended, chain.extend(Digest::default(), 0.5, ModelVersion(1)));
        assert_ne!(extended, extended.extend(digest, 0.5, ModelVersion(1)));
    }
}
