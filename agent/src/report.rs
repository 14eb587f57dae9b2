//! What `status` prints: the state of one agent, as JSON and for people.

use std::fmt::Write as _;

use anabranch_common::ids::{AgentId, BranchId, Digest, Epoch, LeaseId, ModelVersion, RunId, UpdateSeq};
use anabranch_common::pod::PodRound;
use anabranch_common::update::{UpdateMeta, Verdict};
use anabranch_common::wire::message::RunPhase;
use anabranch_common::wire::runs::RunInfo;
use serde::{Deserialize, Serialize};

use crate::session::{Activity, Link, Session, Training, Waits};

/// The state of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Version of the agent's software.
    pub software: String,
    /// Whether the process runs (false: read from the store).
    pub running: bool,
    /// The run.
    pub run: RunId,
    /// The agent's identity.
    pub agent: AgentId,
    /// Its name.
    pub name: String,
    /// Where its coordinator is: the address that worked last, or is tried first.
    pub address: String,
    /// Every address of its coordinator, in the order in which they are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Updates that wait for a verdict, oldest first.
    pub outbox: Vec<WaitingUpdate>,
    /// The branch that its work belongs to.
    pub branch: Option<BranchId>,
    /// What only a running process knows.
    pub live: Option<LiveReport>,
    /// The other runs that it takes part in, by id. What stands above is of the run that was joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunReport>,
}

/// What an agent does in a run beside the one that it has joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The run.
    pub run: RunId,
    /// Its name, as the coordinator lists it.
    pub name: Option<String>,
    /// Its share of the device beside the other runs.
    pub weight: Option<u32>,
    /// Updates that wait for a verdict, oldest first.
    pub outbox: Vec<WaitingUpdate>,
    /// The branch that its work belongs to.
    pub branch: Option<BranchId>,
    /// What only a running process knows.
    pub live: Option<LiveReport>,
}

/// The state of a run in a process.
pub(crate) struct RunState {
    pub(crate) live: Option<LiveReport>,
    pub(crate) outbox: Vec<WaitingUpdate>,
    pub(crate) branch: Option<BranchId>,
}

/// An update without a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitingUpdate {
    /// Epoch it was counted in.
    pub epoch: Epoch,
    /// Its number in that epoch.
    pub seq: UpdateSeq,
    /// The version it started from.
    pub base_version: ModelVersion,
    /// Length of its payload in bytes.
    pub payload_bytes: u64,
}

impl WaitingUpdate {
    /// What `status` shows of an update.
    #[must_use]
    pub fn of(meta: &UpdateMeta) -> Self {
        let UpdateMeta { key, base_version, payload_bytes, .. } = meta;
        Self { epoch: key.epoch, seq: key.seq, base_version: *base_version, payload_bytes: *payload_bytes }
    }
}

/// What a running agent does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveReport {
    /// Its process.
    pub pid: u32,
    /// `connected`, `greeting`, `connecting` or `down`.
    pub connection: String,
    /// Its epoch.
    pub epoch: Option<Epoch>,
    /// The run's state, as last heard.
    pub phase: RunPhase,
    /// Device it trains on.
    pub device: String,
    /// Examples in the training shard.
    pub train_examples: u64,
    /// Examples in the evaluation shard.
    pub eval_examples: u64,
    /// The model version it holds.
    pub version: Option<ModelVersion>,
    /// Digest of that version.
    pub digest: Option<Digest>,
    /// `idle`, `asking`, `fetching`, `evaluating`, `queued` (a round that waits: the device computes for another run),
    /// `training` or `serving` (computing a part of another agent's round).
    pub work: String,
    /// The pod whose round it computes a part of, if it does.
    #[serde(default)]
    pub pod: Option<PodReport>,
    /// Why it takes on no new work, where the machine's owner needs it: quiet hours, battery, load.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// Milliseconds since the first round in which the device trained, evaluated or helped a pod.
    #[serde(default)]
    pub busy_ms: u64,
    /// Milliseconds since the first round in which the device waited for a verdict, a lease, a model or a connection.
    #[serde(default)]
    pub waiting_ms: u64,
    /// The lease it works under.
    pub lease: Option<LeaseId>,
    /// Steps done under it.
    pub steps: Option<u32>,
    /// Examples a second, lately.
    pub examples_per_s: Option<f32>,
    /// Examples of a step that the latest round computed at once, if the trainer says so.
    #[serde(default)]
    pub micro_batch: Option<u32>,
    /// Examples of a step, as the run says.
    #[serde(default)]
    pub batch_size: Option<u32>,
    /// Updates that were sent as the trainer's own encoder had made them, on a GPU, since the process started.
    #[serde(default)]
    pub encoded_by_trainer: u64,
    /// Payload bytes sent since the process started.
    pub uplink_bytes: u64,
    /// Payload bytes received since the process started.
    pub downlink_bytes: u64,
    /// The latest verdicts, oldest first.
    pub verdicts: Vec<VerdictReport>,
    /// Why the latest evaluation failed, until one succeeds.
    #[serde(default)]
    pub evaluation_problem: Option<String>,
    /// The latest problem that was dealt with.
    pub last_problem: Option<String>,
}

/// The pod that an agent is a member of at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// Whose round it computes.
    pub owner: AgentId,
    /// The owner's lease.
    pub lease: LeaseId,
    /// The attempt at that round, from 1.
    pub attempt: u32,
    /// Its members.
    pub members: usize,
}

impl PodReport {
    fn of(round: &PodRound) -> Self {
        let PodRound { mark, owner, .. } = round;
        Self { owner: *owner, lease: mark.lease, attempt: mark.attempt, members: round.members().len() }
    }
}

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct VerdictReport {
    /// Epoch of the update.
    pub epoch: Epoch,
    /// Its number.
    pub seq: UpdateSeq,
    /// The decision.
    pub verdict: Verdict,
}

/// What the driver knows beside the session.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// Payload bytes sent.
    pub uplink_bytes: u64,
    /// Payload bytes received.
    pub downlink_bytes: u64,
    /// Examples that the latest round computed at once.
    pub micro_batch: Option<u32>,
    /// Updates that were sent as the trainer had encoded them.
    pub encoded_by_trainer: u64,
}

impl LiveReport {
    /// The state of a running session.
    #[must_use]
    pub fn of(session: &Session, traffic: &Traffic) -> Self {
        let held = session.replica().held();
        let pod = match session.activity() {
            Activity::Training(Training { pod, .. }) => pod.as_ref().map(|pod| PodReport::of(&pod.round)),
            Activity::Serving(round) => Some(PodReport::of(round)),
            Activity::Idle | Activity::Asking | Activity::Fetching | Activity::Evaluating => None,
        };
        let (work, lease, steps, examples_per_s) = match session.activity() {
            Activity::Idle => ("idle", None, None, None),
            Activity::Asking => ("asking", None, None, None),
            Activity::Fetching => ("fetching", None, None, None),
            Activity::Evaluating => ("evaluating", None, None, None),
            Activity::Serving(_) => ("serving", None, None, None),
            Activity::Training(Training { lease, .. }) if session.awaits_turn() => {
                ("queued", Some(lease.id), None, None)
            }
            Activity::Training(Training { lease, steps, examples_per_s, .. }) => {
                ("training", Some(lease.id), Some(*steps), Some(*examples_per_s))
            }
        };
        let connection = match session.link() {
            Link::Down => "down",
            Link::Connecting => "connecting",
            Link::Greeting { .. } => "greeting",
            Link::Up => "connected",
        };
        let verdicts = session.verdicts();
        let verdict = |(key, verdict): &(anabranch_common::update::UpdateKey, Verdict)| VerdictReport {
            epoch: key.epoch,
            seq: key.seq,
            verdict: *verdict,
        };
        let (config, waits) = (session.config(), session.waits());
        Self {
            pid: std::process::id(),
            connection: connection.to_owned(),
            epoch: session.epoch(),
            phase: session.phase(),
            device: config.device.clone(),
            train_examples: config.train_examples,
            eval_examples: config.eval_examples,
            version: held.map(|held| held.version),
            digest: held.map(|held| held.digest),
            work: work.to_owned(),
            pod,
            waits_for: session.hold().map(str::to_owned),
            busy_ms: waits.busy_ms,
            waiting_ms: waits.waiting_ms,
            lease,
            steps,
            examples_per_s,
            micro_batch: traffic.micro_batch,
            batch_size: session.batch_size(),
            encoded_by_trainer: traffic.encoded_by_trainer,
            uplink_bytes: traffic.uplink_bytes,
            downlink_bytes: traffic.downlink_bytes,
            verdicts: verdicts.map(verdict).collect(),
            evaluation_problem: session.evaluation_problem().map(str::to_owned),
            last_problem: session.last_problem().map(str::to_owned),
        }
    }
}

impl RunReport {
    /// The state of a run, with what is listed of it.
    pub(crate) fn of(run: RunId, info: Option<&RunInfo>, state: RunState) -> Self {
        let RunState { live, outbox, branch } = state;
        let (name, weight) = (info.map(|info| info.name.clone()), info.map(|info| info.weight));
        Self { run, name, weight, outbox, branch, live }
    }
}

impl AgentReport {
    /// Puts the state of another run in the place of what was known of it.
    pub fn show(&mut self, report: RunReport) {
        match self.runs.binary_search_by_key(&report.run, |known| known.run) {
            Ok(at) => self.runs[at] = report,
            Err(at) => self.runs.insert(at, report),
        }
    }

    /// The report for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key:<12} {value}");
        };
        line("agent", format!("{} ({})", self.name, self.agent.short()));
        line("run", format!("{} at {}", self.run.short(), self.address));
        if self.addresses.len() > 1 {
            line("addresses", self.addresses.join(", "));
        }
        match &self.live {
            None => line("state", "not running; this is what its store holds".to_owned()),
            Some(live) => live.lines(&mut line),
        }
        line("outbox", outbox_text(&self.outbox));
        for other in &self.runs {
            let weight = other.weight.map_or_else(String::new, |weight| format!(", weight {weight}"));
            let name = other.name.as_deref().map_or_else(String::new, |name| format!("{name}, "));
            line("run", format!("{name}{}{weight}", other.run.short()));
            if let Some(live) = &other.live {
                live.lines_of_run(&mut line);
            }
            line("outbox", outbox_text(&other.outbox));
        }
        text
    }
}

fn outbox_text(outbox: &[WaitingUpdate]) -> String {
    let waiting: u64 = outbox.iter().map(|update| update.payload_bytes).sum();
    format!("{} updates without a verdict, {waiting} bytes", outbox.len())
}

impl LiveReport {
    /// How long the device was busy, and waited.
    #[must_use]
    pub fn waits(&self) -> Waits {
        Waits { busy_ms: self.busy_ms, waiting_ms: self.waiting_ms }
    }

    fn lines(&self, line: &mut impl FnMut(&str, String)) {
        let epoch = self.epoch.map_or_else(|| "none yet".to_owned(), |epoch| epoch.to_string());
        line("state", format!("{}, process {}, epoch {epoch}", self.connection, self.pid));
        line("work", self.work_text());
        if let Some(PodReport { owner, lease, attempt, members }) = self.pod {
            let owner = owner.short();
            line("pod", format!("{members} members, attempt {attempt} at lease {lease} of agent {owner}"));
        }
        if let (Some(micro_batch), Some(batch_size)) = (self.micro_batch, self.batch_size) {
            line("micro-batch", format!("{micro_batch} of {batch_size} examples at once"));
        }
        if let Some(reason) = &self.waits_for {
            line("waits", format!("takes on no new work: {reason}"));
        }
        if let Some(share) = self.waits().share() {
            line("device waits", format!("{:.1} % of the time since the first round", 100.0 * share));
        }
        line("model", self.model_text());
        line("shards", format!("{} examples to train on, {} to evaluate on", self.train_examples, self.eval_examples));
        line("device", self.device.clone());
        if self.encoded_by_trainer > 0 {
            line(
                "encoded",
                format!("{} updates by the trainer's own encoder since this start", self.encoded_by_trainer),
            );
        }
        let (up, down) = (self.uplink_bytes, self.downlink_bytes);
        line("traffic", format!("{up} bytes up and {down} bytes down since this start"));
        self.last_lines(line);
    }

    /// The same of a run beside the one that was joined: what the runs share is left out.
    fn lines_of_run(&self, line: &mut impl FnMut(&str, String)) {
        let epoch = self.epoch.map_or_else(|| "none yet".to_owned(), |epoch| epoch.to_string());
        line("state", format!("{}, epoch {epoch}", self.connection));
        line("work", self.work_text());
        line("model", self.model_text());
        self.last_lines(line);
    }

    fn work_text(&self) -> String {
        match (self.lease, self.steps) {
            (Some(lease), Some(steps)) => format!("{} under lease {lease}, {steps} steps", self.work),
            _ => self.work.clone(),
        }
    }

    fn model_text(&self) -> String {
        self.version.map_or_else(|| "none yet".to_owned(), |version| format!("version {version}"))
    }

    fn last_lines(&self, line: &mut impl FnMut(&str, String)) {
        if let Some(latest) = self.verdicts.last() {
            let verdict = match latest.verdict {
                Verdict::Accepted { version, staleness, .. } => {
                    format!("accepted into version {version}, staleness {staleness}")
                }
                Verdict::Refused { reason } => format!("refused: {}", reason.as_str()),
            };
            line("verdict", verdict);
        }
        if let Some(problem) = &self.evaluation_problem {
            line("evaluation", format!("failed: {problem}"));
        }
        if let Some(problem) = &self.last_problem {
            line("problem", problem.clone());
        }
    }
}
