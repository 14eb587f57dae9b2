//! Everything a session may ask of the world, as one closed enum.

use std::sync::Arc;

use anabranch_common::codec::{CodecSpec, Delta};
use anabranch_common::ids::{BranchId, Digest, Epoch, ModelVersion, RunId, UpdateSeq};
use anabranch_common::journal::Lease;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::pod::PodRound;
use anabranch_common::spec::{AgentSpec, TensorPolicy};
use anabranch_common::update::UpdateKey;
use anabranch_common::wire::message::{AgentMessage, RenewalKey};
use anabranch_common::wire::transfer::{Missing, TransferManifest};

use super::event::Outcome;
use super::replica::Onto;

/// One thing to do. The driver carries commands out in the order in which they were given.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Open a connection after waiting this long; answered by `Connected` or `Disconnected`.
    Connect {
        /// The wait, in milliseconds.
        after_ms: u64,
    },
    /// Close the connection. The session already counts itself as disconnected.
    Disconnect {
        /// Why, for people.
        why: String,
    },
    /// Say this to the coordinator.
    Send(AgentMessage),
    /// Send these chunks; answered by `ChunksSent`.
    SendChunks {
        /// Where the content is.
        source: ChunkSource,
        /// Its chunks.
        transfer: TransferManifest,
        /// Which of them.
        missing: Missing,
    },
    /// Send these chunks of another agent's update.
    SendPart {
        /// The section that they are cut from.
        content: Arc<[u8]>,
        /// The update's transfer.
        transfer: Digest,
        /// The section's first chunk.
        first: u32,
        /// Which of them, counted from that one.
        missing: Missing,
    },
    /// Build the trainer; answered by `Prepared`.
    Prepare(Box<AgentSpec>),
    /// Have the trainer's tensors lie in this order, the run's; answered by `Prepared`.
    Reorder(Box<ModelManifest>),
    /// Make version 0; answered by `InitialMade`.
    MakeInitial {
        /// The run's seed.
        seed: u64,
    },
    /// Decode a downloaded model and check its digest; answered by `Unpacked` or `UnpackFailed`.
    Unpack {
        /// Its version.
        version: ModelVersion,
        /// The digest that its content must have.
        digest: Digest,
        /// What it rests on; nothing where it is a whole model in the form of codec 0.
        onto: Onto,
        /// What came.
        encoded: Vec<u8>,
    },
    /// Run a local round; answered by `Progress`, then `Trained` or `TrainingStopped`.
    Train {
        /// The lease; it holds the round's seed.
        lease: Box<Lease>,
        /// The configuration that counts for this round: `train` is what the lease's plan makes of
        /// it, and `upload.codec` the plan's.
        spec: Box<AgentSpec>,
        /// The base's content.
        base: Arc<[f32]>,
        /// What to start ahead of it by, if anything.
        lead: Option<Lead>,
        /// The pod that computes it. Then it is answered by `PodFailed` too.
        pod: Option<Box<PodRound>>,
    },
    /// Compute a part of another agent's round; answered by `Served`.
    Serve {
        /// Who computes what.
        round: Box<PodRound>,
        /// The configuration that counts for this round: `train` is what the round's plan makes of it.
        spec: Box<AgentSpec>,
    },
    /// Stop the local round at its next step; answered by `TrainingStopped` (or by `Trained` or `PodFailed`, when it was
    /// faster). Or stop what is computed for another agent; answered by `Served`.
    StopTraining,
    /// Evaluate a model; answered by `Evaluated`.
    Evaluate {
        /// Its version.
        version: ModelVersion,
        /// Its content.
        content: Arc<[f32]>,
    },
    /// Encode the delta with the residual added, and store payload and new residual in one step; answered by `Banked`
    /// or `Discarded`.
    Bank(Box<Bank>),
    /// Take a decided update out of the outbox; answered by `Settled`.
    Settle {
        /// Which.
        key: UpdateKey,
        /// What becomes of its content.
        content: Settlement,
    },
    /// From now on work belongs to this branch; a residual or a memory of another one is dropped.
    AdoptBranch {
        /// The branch.
        branch: BranchId,
    },
    /// Make a signing request and send it.
    Renew(Renewal),
    /// Put the renewed certificate in its file; answered by `CertificateStored`.
    StoreCertificate(RenewedCertificate),
    /// Close the connection in good order and leave.
    Exit(Ending),
}

/// Why the certificate is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Two thirds of its life are over. The new one is for the same key, and is shown from the next connection on.
    Due,
    /// The coordinator asks for it, for this key. The new one is shown at once, on a new connection.
    Asked(RenewalKey),
}

/// What the coordinator has issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewedCertificate {
    /// The certificate, in DER.
    pub certificate_der: Vec<u8>,
    /// The CAs to trust from now on, in DER; the present ones where there is none.
    pub ca_ders: Vec<Vec<u8>>,
}

/// Where the content of an upload is.
#[derive(Debug, Clone, PartialEq)]
pub enum ChunkSource {
    /// The payload of an outbox entry, in the store.
    Update(UpdateKey),
    /// Here.
    Initial(Arc<[u8]>),
}

/// What a base lacks that was obtained while a round ran: that round's delta, which is on its way. A round that starts without
/// it would do the same work again, from the same place.
#[derive(Debug, Clone, PartialEq)]
pub struct Lead {
    /// The delta.
    pub delta: Arc<[f32]>,
    /// What it will be merged with, as far as can be told.
    pub weight: f32,
}

impl Lead {
    /// Where to start.
    #[must_use]
    pub fn from(&self, base: &[f32]) -> Vec<f32> {
        base.iter().zip(self.delta.iter()).map(|(base, delta)| base + self.weight * delta).collect()
    }
}

/// A delta that is to become an update.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    /// The lease it was computed under.
    pub lease: Lease,
    /// The epoch it is counted in.
    pub epoch: Epoch,
    /// Its number in that epoch.
    pub seq: UpdateSeq,
    /// How to encode it.
    pub codec: CodecSpec,
    /// Tensors with other codecs.
    pub policy: TensorPolicy,
    /// EF14's beta.
    pub feedback_decay: f32,
    /// The round's result.
    pub outcome: Outcome,
    /// What the round started from, where the lease's plan asks for the update's product with it.
    pub started_from: Option<StartedFrom>,
}

/// The model that a round started from.
#[derive(Debug, Clone, PartialEq)]
pub struct StartedFrom {
    /// The base's content.
    pub base: Arc<[f32]>,
    /// What it was ahead of the base by.
    pub lead: Option<Lead>,
}

impl StartedFrom {
    /// Returns the product of this model with an update's decoded content, summed in f64 in index order.
    #[must_use]
    pub fn product(&self, content: &Delta) -> f64 {
        let at = |index: usize| {
            let base = self.base.get(index).copied().unwrap_or_default();
            let ahead = self.lead.as_ref().and_then(|lead| Some(lead.weight * lead.delta.get(index)?));
            base + ahead.unwrap_or_default()
        };
        let product = |sum: f64, (index, value): (usize, &f32)| sum + f64::from(at(index)) * f64::from(*value);
        match content {
            Delta::Dense(values) => values.iter().enumerate().fold(0.0, product),
            Delta::Sparse { indices, values, .. } => {
                indices.iter().map(|index| *index as usize).zip(values).fold(0.0, product)
            }
        }
    }
}

/// What becomes of the content of a decided update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Settlement {
    /// It was merged, or must never be: it goes.
    Drop,
    /// It was sound and came at the wrong time: it is added back to the residual, in the same step that deletes it.
    Return,
    /// It was a difference against the memory, and was added to it with this weight: it is added here too, in the same step
    /// that deletes it.
    Remember(f32),
}

/// Why the process ends. Each has one exit code (see `commands::run`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// The run has ended.
    #[error("the run has ended")]
    Finished,
    /// Someone asked for it; what was computed is kept.
    #[error("stopped as asked; finished work is kept")]
    Parked,
    /// The certificate was revoked.
    #[error("this agent's certificate was revoked")]
    Revoked,
    /// Enrolled in another run.
    #[error("this directory was enrolled in run {enrolled}, and the coordinator serves run {serving}")]
    WrongRun {
        /// The run in agent.toml.
        enrolled: RunId,
        /// The run that the coordinator serves.
        serving: RunId,
    },
    /// Not in the roster.
    #[error("the coordinator does not know this agent; its directory was replaced, or this one belongs elsewhere")]
    Unknown,
    /// Another process uses the same certificate.
    #[error("another process connected with this agent's certificate")]
    Replaced,
    /// The certificate here was replaced by another one.
    #[error("the certificate in this directory was replaced by a newer one: of another key, or of the next CA")]
    OldCertificate,
    /// The coordinator says that this agent broke the protocol.
    #[error("the coordinator closed the session: {0}")]
    Protocol(String),
    /// No common protocol version.
    #[error("no common protocol version: {0}")]
    Version(String),
    /// The other end is not the coordinator this agent was enrolled with, or does not accept this certificate.
    #[error("{0}")]
    Identity(String),
    /// A certificate is not valid at this machine's clock.
    #[error("{0}")]
    Clock(String),
    /// The trainer's tensors are not the run's.
    #[error("the trainer does not fit the run's model: {0}")]
    Manifest(String),
    /// No run takes a model like the trainer's.
    #[error("a run cannot take the trainer's model: {0}")]
    ModelBounds(String),
    /// The shard does not fit the model.
    #[error("{0}")]
    Shard(String),
    /// The store cannot be trusted any more.
    #[error("{0}")]
    Storage(String),
    /// The trainer failed.
    #[error("training failed: {0}")]
    Trainer(String),
}
