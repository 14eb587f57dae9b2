//! What happens to a world, drawn from its seed or written down: a plain value that can be printed, kept and reduced.

use anabranch_common::spec::{Labels, ScheduleKind};
use serde::{Deserialize, Serialize};

use super::disk::Failure;

/// A world and everything that will happen to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// What is trained.
    pub task: Task,
    /// Length of the flat model.
    pub params: u32,
    /// Updates that make a version; without a `rule`, 1 is `FedAsync`, more is `FedBuff`.
    pub buffer: u32,
    /// Another merge rule, to which `buffer` is a size at most: not for the ledger, and not with attackers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// The published track that agents train from, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track: Option<TrackPlan>,
    /// Whether agents may be sent the updates of others.
    #[serde(default, skip_serializing_if = "is_false")]
    pub share_updates: bool,
    /// Staleness decay, participation weights, top-k with error feedback: not for the ledger, whose updates must be
    /// merged as they are.
    pub lossy: bool,
    /// Whether codecs follow the agents' lines: only where updates are lossy.
    #[serde(default, skip_serializing_if = "is_false")]
    pub adaptive: bool,
    /// Versions an update's base may be behind.
    pub max_staleness: u64,
    /// How long a lease counts.
    pub lease_ttl_ms: u64,
    /// A checkpoint after this many versions.
    pub checkpoint_every: u64,
    /// Keep the whole journal.
    pub keep_journal: bool,
    /// What each round is to take, so that leases have sizes of their own (0: every lease has the same).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub target_round_ms: u64,
    /// The deadline of a round behind a barrier, with a quorum of a half (0: none).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub round_deadline_ms: u64,
    /// How pods compute, if agents compute in pods: only the native task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodPlan>,
    /// The agents.
    pub agents: Vec<AgentPlan>,
    /// How long faults go on, in milliseconds.
    pub length_ms: u64,
    /// Faults, in any order.
    pub faults: Vec<Planned>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Each update adds 1 to a coordinate of its own: what was merged, and how often, can be read off the model.
    Ledger,
    /// Each update goes part of the way to a point that the agent knows; the best model is the mean of the points.
    Quadratic,
    /// The native trainer on points in three classes; most of an agent's are of one. Slower by far than the others: in
    /// scenarios, not drawn.
    Native,
}

/// A merge rule beside `FedAsync` and `FedBuff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Recall: the last updates of agents that lack participation count as well.
    Recall,
    /// Delayed Nesterov: a step along the momentum once in `buffer` updates.
    DelayedNesterov,
    /// FADAS: an adaptive step of `buffer` updates.
    Fadas,
    /// The rescaled rule: an update counts by the interval of its agent.
    Rescaled,
    /// EF21: agents and coordinator hold a memory of each agent's updates.
    Ef21,
    /// Federated averaging behind a barrier.
    FedAvg,
    /// The same with a momentum.
    FedAvgM,
    /// The same with an adaptive step.
    FedAdam,
}

/// A published track.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackPlan {
    /// Versions between two of its records. When absent, they follow the number of agents at work.
    #[serde(default)]
    pub every: Option<u64>,
    /// Whether a record leaves half of the entries out.
    pub sparse: bool,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentPlan {
    /// When it first starts.
    pub start_ms: u64,
    /// How long its local round takes.
    pub round_ms: u64,
    /// One round in so many fails (0: none).
    pub round_fails_every: u64,
    /// Examples that it holds to evaluate on.
    pub eval_examples: u64,
    /// One evaluation in so many fails, until the faults are over (0: none).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub evaluation_fails_every: u64,
    /// Whether it joins pods.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pod: bool,
    /// Whether it holds no examples, and helps others only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub helper: bool,
    /// How it lies to its pods, if it does, until the faults are over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lie: Option<Lie>,
    /// What it sends instead of what it computed, if it is an attacker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostile: Option<Hostile>,
    /// Its line.
    pub link: LinkPlan,
    /// Its line to the agent, where that differs from the one to the coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_down: Option<LinkPlan>,
}

impl AgentPlan {
    /// Returns an agent that starts at once and does nothing but compute rounds, each so long, behind this line.
    #[must_use]
    pub fn plain(round_ms: u64, link: LinkPlan) -> Self {
        Self {
            start_ms: 0,
            round_ms,
            round_fails_every: 0,
            eval_examples: 0,
            evaluation_fails_every: 0,
            pod: false,
            helper: false,
            lie: None,
            hostile: None,
            link,
            link_down: None,
        }
    }
}

/// How pods compute: the keys tell of which kind they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PodPlan {
    /// In stages.
    Stages(StagesPlan),
    /// As replicas.
    Replicas(ReplicasPlan),
}

/// Pods of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicasPlan {
    /// Most members of a pod.
    pub members: u32,
    /// Sites; machines are of one after the other.
    pub sites: usize,
    /// How long a member may be silent.
    pub deadline_ms: u64,
}

impl PodPlan {
    /// Returns how long a member may be silent.
    #[must_use]
    pub fn deadline_ms(&self) -> u64 {
        match self {
            Self::Stages(StagesPlan { deadline_ms, .. }) | Self::Replicas(ReplicasPlan { deadline_ms, .. }) => {
                *deadline_ms
            }
        }
    }

    /// Returns the site that a machine is of.
    #[must_use]
    pub fn site(&self, machine: Machine) -> String {
        match self {
            Self::Stages(_) => String::new(),
            Self::Replicas(plan) => format!("site-{}", machine % plan.sites.max(1)),
        }
    }
}

/// Pods of stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagesPlan {
    /// Members of a pod.
    pub stages: u32,
    /// When members compute.
    pub schedule: ScheduleKind,
    /// Where labels are.
    pub labels: Labels,
    /// How long a member may be silent.
    pub deadline_ms: u64,
}

/// How a member of pods lies. What it computed is never another finite value: nobody could see that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lie {
    /// Activations and gradients of another shape; of replicas another digest of the model at the end, too.
    Shape,
    /// Parcels of parts that are not its own.
    Route,
    /// Values that are no numbers.
    NotANumber,
    /// The weights of another range; of replicas chunks that are not the next ones.
    Range,
    /// Parcels twice.
    Twice,
    /// Words to the coordinator: what it is at work on, that attempts of others are over, and who has spoilt them.
    Words,
}

/// What an attacker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hostile {
    /// A payload with a value that is not a number.
    NotANumber,
    /// A million times its delta.
    Huge,
    /// Its delta with the other sign.
    SignFlip,
    /// Five times its delta, with the other sign.
    Reversed,
}

/// A line between an agent and the coordinator, the same both ways unless the agent has another one down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkPlan {
    /// One way, in milliseconds.
    pub delay_ms: u64,
    /// Up to so much more.
    pub jitter_ms: u64,
    /// Share of packets that are lost, 0..1: each costs a retransmission.
    pub loss: f64,
    /// Bytes a millisecond.
    pub bandwidth: f64,
}

/// A fault and its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// When.
    pub at_ms: u64,
    /// What.
    pub fault: Fault,
}

/// A machine: the coordinator's is 0, the agents' follow.
pub type Machine = usize;

/// What can be done to a world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// kill -9; the process starts again after a while.
    Kill {
        /// Whose process.
        machine: Machine,
        /// Whether the machine loses its power with it, and so what was not synced.
        power: bool,
        /// Until it starts again.
        down_ms: u64,
    },
    /// The storage fails in an operation to come.
    Disk {
        /// Whose.
        machine: Machine,
        /// After this many operations more.
        operations: u64,
        /// How.
        failure: Failure,
        /// Until the cause is gone and the process starts again.
        down_ms: u64,
    },
    /// A bit of what is durable on a disk changes by itself. When the process refuses to go on with it, its owner puts the
    /// bit back from a copy and starts it again.
    Flip {
        /// Whose disk.
        machine: Machine,
        /// Which bit.
        seed: u64,
    },
    /// Every operation that ends in a sync takes longer.
    SlowDisk {
        /// Whose.
        machine: Machine,
        /// By so much.
        extra_ms: u64,
        /// For how long.
        for_ms: u64,
    },
    /// SIGSTOP and SIGCONT: the process does nothing for a while, and notices nothing of it.
    Stop {
        /// Whose process.
        machine: Machine,
        /// For how long, not beyond the end of the faults.
        for_ms: u64,
    },
    /// A device hangs: the local round goes on only after a while; the rest of the agent does not stop.
    Hang {
        /// Whose device.
        machine: Machine,
        /// For how long.
        for_ms: u64,
    },
    /// SIGTERM; the process starts again after a while.
    Terminate {
        /// Whose process.
        machine: Machine,
        /// Until it starts again.
        down_ms: u64,
    },
    /// An agent's disk is empty from now on; its key is kept elsewhere.
    Wipe {
        /// Whose.
        machine: Machine,
    },
    /// An agent is killed and never comes back.
    Leave {
        /// Which.
        machine: Machine,
    },
    /// Nothing passes, one way or both.
    Cut {
        /// Whose line.
        machine: Machine,
        /// From the agent.
        up: bool,
        /// To the agent.
        down: bool,
        /// For how long.
        for_ms: u64,
    },
    /// Nothing passes between two machines, both of which reach the coordinator.
    Sever {
        /// One of them.
        machine: Machine,
        /// The other one.
        other: Machine,
        /// For how long.
        for_ms: u64,
    },
    /// The line's address changes: what is under way arrives late.
    Rebind {
        /// Whose.
        machine: Machine,
    },
    /// A machine's wall clock jumps.
    Clock {
        /// By so much, in milliseconds.
        by_ms: i64,
    },
    /// The operator pauses the run, and resumes it later.
    Pause {
        /// For how long.
        for_ms: u64,
    },
    /// The coordinator is parked, rolled back by so many versions and started again.
    Rollback {
        /// By so many.
        versions: u64,
    },
    /// An agent's certificate is revoked.
    Revoke {
        /// Whose.
        machine: Machine,
    },
}

impl Fault {
    /// Whose it is.
    #[must_use]
    pub fn machine(&self) -> Machine {
        match self {
            Self::Kill { machine, .. }
            | Self::Disk { machine, .. }
            | Self::Flip { machine, .. }
            | Self::SlowDisk { machine, .. }
            | Self::Stop { machine, .. }
            | Self::Hang { machine, .. }
            | Self::Terminate { machine, .. }
            | Self::Wipe { machine }
            | Self::Leave { machine }
            | Self::Cut { machine, .. }
            | Self::Sever { machine, .. }
            | Self::Rebind { machine }
            | Self::Revoke { machine } => *machine,
            Self::Clock { .. } | Self::Pause { .. } | Self::Rollback { .. } => 0,
        }
    }

    /// Its name, as in a scenario.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill { power: false, .. } => "kill",
            Self::Kill { power: true, .. } => "power",
            Self::Disk { .. } => "disk",
            Self::Flip { .. } => "flip",
            Self::SlowDisk { .. } => "slow_disk",
            Self::Stop { .. } => "stop",
            Self::Hang { .. } => "hang",
            Self::Terminate { .. } => "terminate",
            Self::Wipe { .. } => "wipe",
            Self::Leave { .. } => "leave",
            Self::Cut { .. } => "cut",
            Self::Sever { .. } => "sever",
            Self::Rebind { .. } => "rebind",
            Self::Clock { .. } => "clock",
            Self::Pause { .. } => "pause",
            Self::Rollback { .. } => "rollback",
            Self::Revoke { .. } => "revoke",
        }
    }
}
