//! What `status --json` prints: one shape for the command line, the live views and the tests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, BranchId, Digest, Epoch, LeaseId, ModelVersion, Position, RunId};
use crate::journal::{Aggregate, Evaluation, FinishReason};
use crate::merge::Served;
use crate::token::PagePermission;
use crate::wire::message::RunPhase;

/// The state of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Version of the coordinator's software.
    pub software: String,
    /// Whether a coordinator is serving (false: read from the store).
    pub serving: bool,
    /// The run.
    pub run: RunId,
    /// Its name.
    pub name: String,
    /// Its branch.
    pub branch: BranchId,
    /// Its state.
    pub state: RunPhase,
    /// Why it ended, if it did.
    pub finished: Option<FinishReason>,
    /// The version that is the result, if it ended.
    pub result_version: Option<ModelVersion>,
    /// Position of the newest record.
    pub position: Position,
    /// Newest model version.
    pub version: ModelVersion,
    /// Which vector of a version exports, evaluations and targets are about.
    #[serde(default)]
    pub served: Served,
    /// Chain value after that record.
    pub chain: Digest,
    /// Newest version with a durable checkpoint.
    pub checkpoint_version: Option<ModelVersion>,
    /// Parameters of the model, once there is one.
    pub params: Option<u64>,
    /// Seconds since record 0.
    pub wall_s: f64,
    /// Leases outstanding.
    pub leases_outstanding: u64,
    /// Updates merged.
    pub updates_accepted: u64,
    /// Updates refused, by reason.
    pub updates_refused: BTreeMap<String, u64>,
    /// Retries answered with the verdict that was given before.
    pub retries_answered: u64,
    /// Payload bytes received (update payloads as uploaded).
    pub uplink_bytes: u64,
    /// Payload bytes sent (models to train from, as sent). What was sent since the latest checkpoint is lost with a process
    /// that is killed.
    pub downlink_bytes: u64,
    /// Payload bytes sent of models to evaluate, likewise.
    #[serde(default)]
    pub evaluation_downlink_bytes: u64,
    /// What the same updates would have been as raw f32.
    pub raw_f32_uplink_bytes: u64,
    /// What the same models would have been as raw f32.
    pub raw_f32_downlink_bytes: u64,
    /// Accepted updates by staleness: bucket i holds staleness i, the last one everything above.
    pub staleness_histogram: Vec<u64>,
    /// Evaluations by single agents, oldest first, each with the seconds since record 0.
    pub evaluations: Vec<TimedEvaluation>,
    /// The same evaluations combined by version, oldest first: the run's curve. Targets are judged by these.
    #[serde(default)]
    pub aggregates: Vec<TimedAggregate>,
    /// Why no target of accuracy or loss can be judged at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_problem: Option<String>,
    /// Why the run gives no leases before `resume`, where that follows from `[quota]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_problem: Option<String>,
    /// What is known of pods while a coordinator serves, where the run has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodsStatus>,
    /// Agents by name, then id.
    pub agents: Vec<AgentStatus>,
    /// What is known of uploads while a coordinator serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploads: Option<UploadStatus>,
    /// What became of connections while a coordinator serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStatus>,
}

/// What a process says of one of its runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Its name.
    pub name: String,
    /// Its id; absent while it is being opened, or when its store cannot be.
    pub run: Option<RunId>,
    /// Whether it shares its directory with the process. Such a run cannot be deleted.
    pub own: bool,
    /// Its share of an agent's device, in proportion to the other runs'.
    pub weight: u32,
    /// What it does.
    pub state: RunStanding,
    /// Newest model version, once it is known.
    pub version: Option<ModelVersion>,
    /// Updates merged.
    pub updates_accepted: u64,
    /// Agents that have taken part.
    pub agents: u64,
    /// Agents that are connected.
    pub connected: u64,
    /// Why it cannot be served, or gives no leases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStanding {
    /// It is being opened.
    Opening,
    /// It is served, and has no model yet.
    Pending,
    /// It is served, and gives leases.
    Running,
    /// It gives no leases.
    Paused,
    /// It has ended.
    Finished,
    /// No process serves it now; the next one does.
    Parked,
    /// It cannot be opened, or has failed.
    Failed,
}

impl RunStanding {
    /// Every one, in this order.
    pub const ALL: [Self; 7] =
        [Self::Opening, Self::Pending, Self::Running, Self::Paused, Self::Finished, Self::Parked, Self::Failed];

    /// Returns the word for it, everywhere the same: in tables, on the page, as a label of figures.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Finished => "finished",
            Self::Parked => "parked",
            Self::Failed => "failed",
        }
    }
}

impl From<RunPhase> for RunStanding {
    /// What a served run in this phase does.
    fn from(phase: RunPhase) -> Self {
        match phase {
            RunPhase::Pending => Self::Pending,
            RunPhase::Running => Self::Running,
            RunPhase::Paused => Self::Paused,
            RunPhase::Finished => Self::Finished,
        }
    }
}

/// The answer to `runs create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCreated {
    /// Name of the run.
    pub name: String,
    /// Its id.
    pub run: RunId,
}

/// Agents that join pods, and what they are at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodsStatus {
    /// Pods that compute a round.
    pub computing: u64,
    /// Members of the smallest and of the largest of them, as far as this process has formed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<[u64; 2]>,
    /// Connected agents that join pods.
    pub members: u64,
    /// Agents that are at work on a round, their own or another agent's.
    pub at_work: u64,
    /// Connected agents that are not.
    pub free: u64,
    /// Owners that wait until a pod can be formed.
    pub waiting: u64,
    /// Why none can be formed for one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The pods whose rounds are not computed yet, those at work first: at most `limits::PODS_LISTED`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodStatus>,
}

/// A pod: the latest attempt at the round of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Whose round it is.
    pub owner: AgentId,
    /// The owner's lease.
    pub lease: LeaseId,
    /// Number of the latest attempt.
    pub attempt: u32,
    /// What it does.
    pub state: PodState,
    /// The parts of the model in the order of its layers; each replica has the whole model. Empty where an earlier process has
    /// formed the pod.
    pub parts: Vec<PodPartStatus>,
    /// Why there is no other attempt yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a pod does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// Its attempt is computed.
    Computing,
    /// Its attempt has failed, and its owner waits for another one.
    Waiting,
}

/// A part of the model, and who computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPartStatus {
    /// The member.
    pub agent: AgentId,
    /// Its first layer, from 0.
    pub first: u32,
    /// The layer before which it ends.
    pub end: u32,
    /// What the member does.
    pub state: PodMemberState,
}

/// What a member of a pod does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodMemberState {
    /// It computes its part.
    Computing,
    /// It is connected, and not at work on this attempt.
    Idle,
    /// It is not connected.
    Away,
}

/// What became of connections, and what went through them, since the coordinator was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Connections that are being greeted now.
    pub handshakes: u64,
    /// Connections that had to show first that their address is their own.
    pub asked_to_retry: u64,
    /// Unfinished handshakes that made way for newer ones.
    pub displaced: u64,
    /// Connections that were refused because there are too many.
    pub refused: u64,
    /// Times that an agent had too many connections, and the oldest was closed.
    pub surplus: u64,
    /// What came from agents.
    #[serde(default)]
    pub received: Traffic,
    /// What was sent to agents.
    #[serde(default)]
    pub sent: Traffic,
}

/// Datagrams of agents' connections in one direction, with all that QUIC adds: handshakes, acknowledgements, retransmissions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// How many.
    pub datagrams: u64,
    /// Bytes in them; the headers of UDP and IP (28 bytes a datagram with IPv4) are not counted.
    pub bytes: u64,
}

impl Traffic {
    /// Bytes of UDP's and IPv4's headers.
    const HEADERS: u64 = 28;

    /// Bytes on the network, with the headers of UDP and IPv4.
    #[must_use]
    pub fn ip_bytes(self) -> u64 {
        self.bytes + Self::HEADERS * self.datagrams
    }
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
    }
}

/// Uploads on their way in, since the coordinator was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadStatus {
    /// Half-received uploads that a restart would take up again.
    pub partial: u64,
    /// Bytes that these will have when they are whole.
    pub partial_bytes: u64,
    /// Chunks received.
    pub chunks_received: u64,
    /// Chunks that were here already when an upload was taken up again, and were not sent again.
    pub chunks_kept: u64,
    /// Uploads given up because they were too slow.
    pub given_up: u64,
    /// Uploads that wait for room.
    #[serde(default)]
    pub waiting: u64,
}

/// An evaluation and when it came.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TimedEvaluation {
    /// Seconds since record 0.
    pub at_s: f64,
    /// The evaluation.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

/// Combined evaluations of a version, and when they were combined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TimedAggregate {
    /// Seconds since record 0.
    pub at_s: f64,
    /// The aggregate.
    #[serde(flatten)]
    pub aggregate: Aggregate,
}

/// An agent's evaluations fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationProblem {
    /// The version of the latest failure.
    pub version: ModelVersion,
    /// Its reason.
    pub reason: String,
    /// Failures in a row.
    pub failures: u32,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its identity.
    pub agent: AgentId,
    /// Its name.
    pub name: String,
    /// Its incarnation.
    pub epoch: Epoch,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether its certificate was revoked.
    pub revoked: bool,
    /// Device it trains on.
    pub device: String,
    /// Milliseconds since it was last heard of; absent when never since the coordinator started.
    pub last_seen_ms: Option<u64>,
    /// Examples a second in its latest local round.
    pub examples_per_s: f64,
    /// Optimizer steps of its newest lease, where leases have sizes of their own (`train.target_round_s`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_steps: Option<u32>,
    /// Staleness of its latest accepted update.
    pub staleness: Option<u64>,
    /// Versions since the base of its outstanding lease, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_versions: Option<u64>,
    /// Level of its updates' compression, where that follows its line (`upload.adaptive`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec_level: Option<u64>,
    /// Latest training loss.
    pub train_loss: Option<f64>,
    /// Examples in its training shard.
    pub train_examples: u64,
    /// Examples in its evaluation shard.
    pub eval_examples: u64,
    /// Updates merged.
    pub updates_accepted: u64,
    /// Updates refused, by reason.
    pub updates_refused: BTreeMap<String, u64>,
    /// Payload bytes received from it.
    pub uplink_bytes: u64,
    /// Payload bytes sent to it, of models to train from.
    pub downlink_bytes: u64,
    /// Payload bytes sent to it, of models to evaluate.
    #[serde(default)]
    pub evaluation_downlink_bytes: u64,
    /// Why its latest evaluation failed, until one succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation_problem: Option<EvaluationProblem>,
    /// Unix time in milliseconds at which the certificate expires with which it connected last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires_at_ms: Option<u64>,
    /// Whether it is to have a new key (`agents rotate`), and has not connected with it yet.
    #[serde(default)]
    pub rotates: bool,
}

/// The CAs of a coordinator, and the members that a rollover waits for (`ca status`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    /// The CA whose certificates the server shows.
    pub current: CaInfo,
    /// During a rollover the CA that takes its place.
    pub next: Option<CaInfo>,
    /// Members that have connected with a certificate of the newest CA.
    pub moved: u64,
    /// During a rollover the members that have not, by name, then id. Revoked members are left out.
    pub waiting: Vec<CaMember>,
}

/// One CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaInfo {
    /// BLAKE3 over its certificate in DER: what a join token pins.
    pub fingerprint: Digest,
    /// Unix time in milliseconds at which it expires.
    pub expires_at_ms: u64,
}

/// A member that has not moved to the next CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaMember {
    /// Its identity.
    pub agent: AgentId,
    /// Its name.
    pub name: String,
    /// Unix time in milliseconds at which the certificate expires with which it connected last; absent when it has not
    /// connected since the coordinator records this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires_at_ms: Option<u64>,
    /// Whether that certificate has expired: it must join again in any case, and `ca finish` does not wait for it.
    pub expired: bool,
}

/// One join token. The secret is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// Short id: the start of the digest of its secret.
    pub id: String,
    /// Name for the agents that join with it.
    pub name: Option<String>,
    /// Unix time in milliseconds at which it expires.
    pub expires_at_ms: u64,
    /// Agents that may still join with it.
    pub uses_left: u32,
    /// Whether it was revoked.
    pub revoked: bool,
    /// The runs that its agents may take part in; all runs when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunId>,
}

/// One page token. The secret is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageTokenStatus {
    /// Short id: the start of the digest of its secret.
    pub id: String,
    /// Name of its owner.
    pub name: Option<String>,
    /// What its owner may do.
    pub permission: PagePermission,
    /// Unix time in milliseconds at which it was made.
    pub created_at_ms: u64,
    /// Unix time in milliseconds at which it expires.
    pub expires_at_ms: u64,
    /// Unix time in milliseconds at which it was used last, to about `limits::PAGE_TOKEN_USE_MS`; none before the first use.
    pub last_used_at_ms: Option<u64>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Position of the last record it contains.
    pub position: Position,
    /// Its model version.
    pub version: ModelVersion,
    /// Digest of the model.
    pub model: Digest,
    /// Chain value after that record.
    pub chain: Digest,
    /// Unix time in milliseconds at which it was taken.
    pub at_ms: u64,
    /// Stored bytes.
    pub bytes: u64,
}

/// Result of `checkpoint verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Whether everything holds.
    pub holds: bool,
    /// First position that was checked.
    pub from: Position,
    /// Last position up to which the chain holds.
    pub to: Position,
    /// Records checked.
    pub records: u64,
    /// Version at the end.
    pub version: ModelVersion,
    /// Digest of the model at the end, recomputed.
    pub model: Digest,
    /// Chain value at the end, recomputed.
    pub chain: Digest,
    /// The first thing that does not hold.
    pub problem: Option<String>,
}
