//! Control messages between agent and coordinator. Tensor data never travels in one.

use serde::{Deserialize, Serialize};

use crate::downlink::{FetchPurpose, ModelForm};
use crate::ids::{AgentId, BranchId, Digest, Epoch, Incarnation, LeaseId, ModelVersion, RunId};
use crate::journal::{Evaluation, Lease, LeaseEnd};
use crate::manifest::ModelManifest;
use crate::pod::{PodMark, PodOffer, PodProblem, PodRound, PodSections};
use crate::spec::AgentSpec;
use crate::update::{UpdateKey, UpdateMeta, Verdict};
use crate::wire::transfer::{Missing, TransferManifest};

/// Begins the reason of [`AgentMessage::EvaluationFailed`] where accuracy or loss is not finite: a search closes a trial of
/// which every evaluator says so.
pub const NOT_FINITE: &str = "the figures are not finite";

/// The only thing that is read from a peer without a certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// The secret of the join token.
    pub token_secret: [u8; 32],
    /// A certificate signing request, in DER. Only its key counts: the coordinator sets name and role.
    pub csr_der: Vec<u8>,
}

impl std::fmt::Debug for JoinRequest {
    /// Without the secret: what is debugged may be logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("csr_bytes", &self.csr_der.len()).finish_non_exhaustive()
    }
}

/// Answer to a join request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinResponse {
    /// Enrolled (or enrolled before with the same key).
    Enrolled {
        /// The run.
        run: RunId,
        /// Who the agent is from now on.
        agent: AgentId,
        /// What it is called.
        name: String,
        /// Its certificate, in DER.
        certificate_der: Vec<u8>,
        /// The CA's certificate, in DER; its digest is in the token.
        ca_der: Vec<u8>,
        /// During a rollover the certificate of the next CA, in DER.
        next_ca_der: Option<Vec<u8>>,
    },
    /// Not enrolled.
    Refused(JoinRefusal),
}

/// Why an agent was not enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinRefusal {
    /// No such token: mistyped, revoked, or of another coordinator.
    UnknownToken,
    /// Its uses are used up.
    UsedToken,
    /// Its time is over.
    ExpiredToken,
    /// The request for a certificate is not readable or not signed by its own key.
    BadRequest,
    /// This key was revoked.
    Revoked,
    /// No room for another agent.
    Full,
    /// The token is for all runs, and it is not clear which of them is meant.
    SeveralRuns,
}

/// The first message on an agent's control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentHello {
    /// The run it was enrolled in.
    pub run: RunId,
    /// The branch it last trained on.
    pub branch: Option<BranchId>,
    /// Drawn by the process when it started.
    pub incarnation: Incarnation,
    /// Version of the software, for people.
    pub software: String,
    /// Holds a training shard with this many examples (0: none).
    pub train_examples: u64,
    /// Holds an evaluation shard with this many examples (0: none).
    pub eval_examples: u64,
    /// Device it trains on, for people.
    pub device: String,
    /// What it can do in a pod, if it joins pods.
    pub pod: Option<PodOffer>,
}

/// What an agent sends.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentMessage {
    /// First message.
    Hello(AgentHello),
    /// The initial model, made from the run's seed. The manifest travels here, the content as chunks.
    OfferModel {
        /// Its tensors.
        manifest: ModelManifest,
        /// Digest of its content.
        digest: Digest,
        /// Its chunks, in the form of codec 0 (lossless planes).
        transfer: TransferManifest,
    },
    /// Ready to train. A lease that this agent still holds ends as `Superseded`.
    RequestLease,
    /// Please send the content of this version (the base of a lease, or what is to be evaluated).
    FetchModel {
        /// Which version.
        version: ModelVersion,
        /// Digest of the content: what is evaluated of a version may be another vector than the one to train from.
        digest: Digest,
        /// What it is needed for.
        purpose: FetchPurpose,
        /// The version that is held here, and the digest of its content: the answer may rest on it.
        held: Option<(ModelVersion, Digest)>,
        /// Which chunks are missing here, when a transfer is resumed.
        missing: Option<Missing>,
    },
    /// An update is ready; its chunks follow when they are asked for.
    OfferUpdate {
        /// Everything but the payload.
        meta: UpdateMeta,
        /// Its chunks.
        transfer: TransferManifest,
        /// Which of its sections other members of a pod have too, if any.
        sections: Option<Box<PodSections>>,
    },
    /// This lease will not be used.
    ReturnLease {
        /// Which.
        lease: LeaseId,
        /// Why.
        why: LeaseEnd,
    },
    /// Result of an evaluation.
    Evaluated {
        /// The figures.
        evaluation: Evaluation,
        /// How long the agent computed no round because of it, in milliseconds.
        cost_ms: u64,
    },
    /// How training goes, for `status`; at most one a second.
    Progress {
        /// Under which lease.
        lease: LeaseId,
        /// Steps done.
        steps: u32,
        /// Examples a second, lately.
        examples_per_s: f32,
    },
    /// A new certificate, please.
    Renew {
        /// Certificate signing request in DER, with the same key; with another one where the coordinator has asked for that.
        csr_der: Vec<u8>,
    },
    /// Going away on purpose; the reason is for people.
    Goodbye {
        /// Why.
        reason: String,
    },
    /// The version that was to be evaluated cannot be evaluated here.
    EvaluationFailed {
        /// Which version.
        version: ModelVersion,
        /// Why, for people; the coordinator keeps `limits::EVALUATION_REASON_BYTES` of it. It begins with [`NOT_FINITE`] where
        /// that is the reason.
        reason: String,
    },
    /// This agent's part of an attempt at the round of a pod is over.
    PodEnded {
        /// Which attempt.
        mark: PodMark,
        /// Why it came to nothing, if it did. From the owner: another attempt, please.
        problem: Option<PodProblem>,
    },
    /// Answer to [`CoordinatorMessage::NeedPart`]: this agent does not have that content. Its owner sends it.
    PartNotHere {
        /// Of which transfer.
        transfer: Digest,
    },
}

/// What the coordinator sends to an agent.
#[derive(Debug, Clone, PartialEq)]
pub enum CoordinatorMessage {
    /// Answer to `Hello`.
    Welcome(Box<Welcome>),
    /// Answer to `Hello`: no.
    Rejected(Rejection),
    /// Send these chunks of the transfer you offered.
    NeedChunks {
        /// Which transfer (digest of its manifest).
        transfer: Digest,
        /// Which chunks.
        missing: Missing,
    },
    /// The initial model is in place (this agent's, or another's that came first).
    ModelReady {
        /// Its tensors.
        manifest: ModelManifest,
        /// Digest of version 0.
        digest: Digest,
    },
    /// Permission to train.
    Lease {
        /// The lease; its base may have to be fetched.
        lease: Lease,
        /// Evaluate the base before training. Only where users are given what agents train from.
        evaluate: bool,
    },
    /// Nothing to train at present. The coordinator sends a lease, or `StateChanged`, when that changes.
    NoLease {
        /// Why.
        state: RunPhase,
    },
    /// The request for a lease stands: the round that the agent has delivered to is not closed. Sent now and then while the
    /// agent waits; a lease or another answer follows.
    LeaseDeferred,
    /// Please evaluate what users are given of this version.
    Evaluate {
        /// Which version.
        version: ModelVersion,
        /// Digest of its content.
        digest: Digest,
    },
    /// The chunks of a model that was asked for; they follow as streams.
    Model {
        /// Which version.
        version: ModelVersion,
        /// Digest of its content.
        digest: Digest,
        /// The form of what is sent.
        form: ModelForm,
        /// Its chunks.
        transfer: TransferManifest,
    },
    /// The content asked for is no longer here.
    ModelGone {
        /// Which version.
        version: ModelVersion,
        /// Digest of the content.
        digest: Digest,
    },
    /// The decision on an update.
    Verdict {
        /// Which update.
        key: UpdateKey,
        /// The decision.
        verdict: Verdict,
    },
    /// The run is in another state, or has another configuration.
    StateChanged {
        /// The state.
        state: RunPhase,
    },
    /// Answer to `Renew`: the new certificate in DER.
    Renewed {
        /// The certificate.
        certificate_der: Vec<u8>,
        /// The CAs to trust from now on, in DER; none from a coordinator that does not say so.
        ca_ders: Vec<Vec<u8>>,
    },
    /// Compute this round together. To the owner: the pod of its lease, which was granted before; or another attempt.
    Pod(Box<PodRound>),
    /// An attempt is over that this agent was a member of: it is to give up its part, if it is still at work.
    PodOver {
        /// Which.
        mark: PodMark,
    },
    /// Send these chunks of the content that this agent's part came to: a section of the update that its owner has offered.
    NeedPart {
        /// The attempt.
        mark: PodMark,
        /// The part of the model.
        part: u32,
        /// The update's transfer (digest of its manifest).
        transfer: Digest,
        /// Bytes of the section: those of the content.
        bytes: u64,
        /// The chunk of the transfer with which the section begins.
        first: u32,
        /// Which chunks, counted from that one.
        missing: Missing,
    },
    /// The update of this attempt is decided: what this agent's part came to is not needed any more.
    PartDone {
        /// Which.
        mark: PodMark,
    },
    /// Please renew the certificate now, and connect with the new one.
    RenewNow {
        /// For which key.
        key: RenewalKey,
    },
}

/// The key of a certificate that is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenewalKey {
    /// The one that the agent has.
    Same,
    /// A new one. The old one is refused from the first connection with the new one on.
    New,
}

/// Answer to an agent's first message.
#[derive(Debug, Clone, PartialEq)]
pub struct Welcome {
    /// The run.
    pub run: RunId,
    /// The branch that counts.
    pub branch: BranchId,
    /// Who the agent is, by its certificate.
    pub agent: AgentId,
    /// What it is called.
    pub name: String,
    /// The number of this incarnation.
    pub epoch: Epoch,
    /// The configuration.
    pub spec: AgentSpec,
    /// Tensors and digest of version 0, once there is a model. Without: offer one.
    pub model: Option<(ModelManifest, Digest)>,
    /// The run's state.
    pub state: RunPhase,
}

/// Why an agent may not stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// Its certificate was revoked.
    Revoked,
    /// It was enrolled in another run.
    WrongRun {
        /// The run here.
        run: RunId,
    },
    /// It is not in the roster (the coordinator's directory was replaced).
    Unknown,
    /// Another process with the same certificate connected later; two hosts must not share one identity.
    Replaced,
    /// It broke the protocol; the text is for people.
    Protocol(String),
    /// Too many connections at present.
    Busy,
    /// The tensors of the initial model that it offered are not those of the run's `[model]`; the text says which differs.
    OtherModel(String),
    /// Its certificate was replaced: by one for another key, or by one of the next CA.
    OldCertificate,
}

/// State of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// No initial model yet.
    Pending,
    /// Leases are given.
    Running,
    /// No leases until `resume`.
    Paused,
    /// Ended.
    Finished,
}
