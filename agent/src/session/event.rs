//! Everything that can happen to a session, as one closed enum.

use std::sync::Arc;

use anabranch_common::codec::CodecSpec;
use anabranch_common::ids::{BranchId, Digest, Epoch, LeaseId, ModelVersion, UpdateSeq};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::pod::{PodMark, PodProblem, PodSections};
use anabranch_common::update::{UpdateKey, UpdateMeta};
use anabranch_common::wire::message::CoordinatorMessage;
use anabranch_common::wire::transfer::TransferManifest;
use serde::{Deserialize, Serialize};

use super::command::Ending;

/// One thing that happened. The driver makes these; the time at which it did comes beside them.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The process has started. First event, and once only.
    Started,
    /// There is a connection, and both ends agreed on a protocol version.
    Connected,
    /// There is no connection, or none any more.
    Disconnected(Problem),
    /// The coordinator said something.
    Message(CoordinatorMessage),
    /// A chunk of a model arrived.
    Chunk {
        /// The transfer it says it belongs to.
        transfer: Digest,
        /// Which chunk.
        index: u32,
        /// Its content.
        bytes: Vec<u8>,
    },
    /// All chunks that were asked for have been handed to the connection.
    ChunksSent {
        /// The transfer.
        transfer: Digest,
    },
    /// The trainer is built for the run's model.
    Prepared {
        /// The tensors it trains.
        manifest: ModelManifest,
    },
    /// The initial model was made from the run's seed.
    InitialMade(InitialModel),
    /// A downloaded model was decoded, and its digest is the one that was announced.
    Unpacked {
        /// Its version.
        version: ModelVersion,
        /// Digest of its content.
        digest: Digest,
        /// Its content.
        content: Arc<[f32]>,
    },
    /// A downloaded model does not decode or is not what was announced.
    UnpackFailed {
        /// Its version.
        version: ModelVersion,
        /// The digest that was announced.
        digest: Digest,
        /// What is wrong.
        problem: String,
    },
    /// Training goes on.
    Progress {
        /// Under which lease.
        lease: LeaseId,
        /// Steps done.
        steps: u32,
        /// Examples a second, lately.
        examples_per_s: f32,
    },
    /// A local round is complete. Its delta is not durable yet.
    Trained(Box<Outcome>),
    /// A local round was stopped as asked; there is no delta.
    TrainingStopped {
        /// Under which lease it ran.
        lease: LeaseId,
    },
    /// An attempt of a pod at an own round came to nothing. The round is to be computed by another attempt.
    PodFailed {
        /// Which attempt.
        mark: PodMark,
        /// Why.
        problem: PodProblem,
    },
    /// This agent's part of another agent's round is over: computed, stopped as asked, or failed.
    Served {
        /// Which attempt.
        mark: PodMark,
        /// Why it failed, if it did.
        problem: Option<PodProblem>,
        /// What it came to, for its upload.
        parts: Vec<PartContent>,
    },
    /// A model was evaluated.
    Evaluated {
        /// Which version.
        version: ModelVersion,
        /// Share of examples classified correctly, 0..1.
        accuracy: f64,
        /// Mean loss.
        loss: f64,
        /// Examples in the evaluation shard.
        num_examples: u64,
    },
    /// A model could not be evaluated (its loss is not finite).
    EvaluationFailed {
        /// Which version.
        version: ModelVersion,
        /// What is wrong.
        problem: String,
    },
    /// The delta is in the outbox, durably, and so is the residual that goes with it.
    Banked(OutboxEntry),
    /// The round gave nothing that can become an update (it diverged, or its delta is not finite); nothing was stored.
    Discarded {
        /// The lease it was computed under.
        lease: LeaseId,
        /// Why.
        problem: String,
    },
    /// A decided update has left the outbox, durably.
    Settled {
        /// Which.
        key: UpdateKey,
    },
    /// The renewed certificate is in its file.
    CertificateStored {
        /// When to renew it in turn.
        renew_at_ms: u64,
    },
    /// The time that `Session::deadline_ms` asked for has come.
    Tick,
    /// The machine's owner needs it, or does not any more: while there is a reason no work is taken on; what is under way
    /// is finished and sent.
    Hold {
        /// Why, for people.
        reason: Option<String>,
    },
    /// The job that was given last has the device, or was taken back. Only where runs share the device: there each job waits
    /// until this is told.
    TurnCame,
    /// Someone wants this process to stop.
    Shutdown,
    /// Something that cannot be mended here (trainer, storage).
    Failed(Ending),
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Trying again may help.
    Transient(String),
    /// Trying again has no point.
    Final(Ending),
}

/// Version 0, as made here.
#[derive(Debug, Clone, PartialEq)]
pub struct InitialModel {
    /// Its content.
    pub content: Arc<[f32]>,
    /// Digest of the content.
    pub digest: Digest,
    /// The content in the form of codec 0.
    pub encoded: Arc<[u8]>,
    /// The chunks of that.
    pub transfer: TransferManifest,
}

/// What a local round gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Under which lease.
    pub lease: LeaseId,
    /// End minus start; empty where the stages of a pod have computed the round.
    pub delta: Arc<[f32]>,
    /// Examples seen, repetitions counted.
    pub num_examples: u64,
    /// Optimizer steps taken.
    pub local_steps: u32,
    /// Mean training loss over those steps.
    pub train_loss: f32,
    /// Time it took, in milliseconds.
    pub compute_ms: u64,
    /// The update, where the trainer has encoded it.
    pub encoded: Option<Encoded>,
    /// The update, where a pod has computed and encoded it.
    pub pod: Option<PodContent>,
}

/// What the round of a pod comes to: the members have encoded it, each its own layers. It counts only if the ledger's state is still
/// the one that it went on from.
#[derive(Debug, Clone, PartialEq)]
pub struct PodContent {
    /// The state that it went on from.
    pub from: FeedbackState,
    /// The payload, of `codec::segments`.
    pub payload: Vec<u8>,
    /// Where its sections begin, without the first one, and which of them helpers have; none: this agent sends all of it.
    pub sections: Option<(Vec<u64>, PodSections)>,
    /// What it leaves out, one value a parameter; empty where nothing is kept.
    pub left_out: Vec<f32>,
    /// Product of its content with the base, where it was asked for.
    pub base_dot: Option<f64>,
    /// Norm of what is left out over the norm of what training has changed.
    pub residual_ratio: Option<f32>,
}

/// What a part of another agent's round came to: a section of its update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartContent {
    /// The part of the model.
    pub part: u32,
    /// The content.
    pub payload: Arc<[u8]>,
}

/// Number of a state of the error feedback, within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FeedbackState(pub u64);

impl FeedbackState {
    /// Nothing is left out.
    pub const EMPTY: Self = Self(0);
}

/// An update that was encoded where it was trained. It counts only if the ledger's state is still the one it went on from.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// How.
    pub codec: CodecSpec,
    /// EF14's beta.
    pub feedback_decay: f32,
    /// The state that it went on from.
    pub from: FeedbackState,
    /// What the state that it leaves is called.
    pub made: FeedbackState,
    /// The payload.
    pub payload: Vec<u8>,
}

/// A durable update that has no verdict yet.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxEntry {
    /// Everything but the payload, which stays in the store.
    pub meta: UpdateMeta,
    /// The payload's chunks.
    pub transfer: TransferManifest,
    /// Which of its sections helpers of a pod have too, if any. A process that starts again does not know it, and sends all of them.
    pub sections: Option<Box<PodSections>>,
}

/// What the store held when the process started.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Kept {
    /// The branch that replica and residual belong to.
    pub branch: Option<BranchId>,
    /// The epoch of the newest update, and the number that the next one of that epoch has.
    pub counter: Option<(Epoch, UpdateSeq)>,
    /// Updates without a verdict, oldest first.
    pub outbox: Vec<OutboxEntry>,
}
