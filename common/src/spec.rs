//! What a run is: model, local training, upload, merging, evaluation, targets. The coordinator reads it from
//! `run.toml`, journals it as canonical text, and sends agents their part of it ([`AgentSpec`]).

mod adaptive;
mod downlink;
mod gpt;
mod layer;
mod layers;
mod lr_schedule;
mod modules;
mod pod;
mod policy;
mod stage_count;
mod train;

pub use adaptive::AdaptiveSpec;
pub use downlink::{DownlinkSpec, TrackSpec};
pub use gpt::{GPT_TOKENS, Gpt, ModelProblem};
pub use layer::{Layer, LayerCost, LayerInput, LayerKind};
pub use layers::{Layers, ModelError};
pub use lr_schedule::{LrSchedule, ScheduleProblem, ScheduleUnit};
pub use modules::ModuleSpec;
pub use pod::{Activations, Labels, PodSpec, ReplicasSpec, ScheduleKind, StagesSpec};
pub use policy::{PolicyError, TensorCodec, TensorPolicy, UpdateSizes};
pub use stage_count::StageCount;
pub use train::SIZED_STEPS;

use serde::{Deserialize, Serialize};

use crate::codec::CodecSpec;
use crate::merge::MergeSpec;

/// Everything that decides what a run computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// A name for people.
    pub name: String,
    /// Seed of the initial model and of everything drawn in this run.
    pub seed: u64,
    /// The model.
    pub model: ModelSpec,
    /// Local training.
    pub train: TrainSpec,
    /// Compression of updates.
    pub upload: UploadSpec,
    /// How updates are merged.
    pub merge: MergeSpec,
    /// Which updates are admitted.
    pub admit: AdmitSpec,
    /// What agents are sent.
    pub downlink: DownlinkSpec,
    /// How agents compute rounds together, if they do.
    pub pod: Option<PodSpec>,
    /// When agents with an evaluation shard evaluate.
    pub evaluate: EvaluateSpec,
    /// When the run ends.
    pub target: TargetSpec,
}

/// The part of a run's configuration that agents are told. How leases are sized, how the learning
/// rate changes, and what becomes of updates is the coordinator's alone.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentSpec {
    /// A name for people.
    pub name: String,
    /// Seed of the initial model and of everything drawn in this run.
    pub seed: u64,
    /// The model.
    pub model: ModelSpec,
    /// Local training.
    pub train: TrainSpec,
    /// Compression of updates.
    pub upload: UploadSpec,
    /// Whether an agent prepares no round while another one is computed or its update is undecided: behind a barrier a
    /// version gets one update of each agent, and a memory is another one after each accepted update.
    pub in_turn: bool,
    /// How agents compute rounds together, if they do.
    pub pod: Option<PodSpec>,
}

/// The model. Its tensors follow from it ([`ModelSpec::layers`]), whoever trains it, except where `kind` is `custom`: then the
/// manifest of the first agent's trainer binds, and the other keys are for trainers to read or to ignore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Which architecture.
    pub kind: ModelKind,
    /// Shape of one example: `[channels, height, width]`, or `[features]`.
    #[serde(default)]
    pub input: Vec<u64>,
    /// Number of classes.
    #[serde(default)]
    pub classes: u32,
    /// Widths of the hidden layers (`mlp`); of the hidden dense layers (`cnn` with `convs`); or channels of two convolutions
    /// followed by the width of the dense layer (`cnn` without).
    #[serde(default)]
    pub hidden: Vec<u64>,
    /// Channels of the convolutions of a `cnn`, each of which halves the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub convs: Vec<u64>,
    /// Every input value is multiplied by this: 1/255 for bytes.
    #[serde(default = "one")]
    pub input_scale: f32,
    /// Bytes that a `gpt` sees at once. This and the next three are 0 in every other model.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub context: u32,
    /// Transformer blocks of a `gpt`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub layers: u32,
    /// Attention heads in a block of a `gpt`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub heads: u32,
    /// Width of a `gpt`'s residual stream, a multiple of `heads`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub width: u32,
    /// The consecutive modules of a `custom` model that is computed in pods; see [`ModelSpec::modules`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<ModuleSpec>,
}

fn one() -> f32 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(figure: &u32) -> bool {
    *figure == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_off(factor: &f32) -> bool {
    *factor == 0.0
}

impl Default for ModelSpec {
    /// A custom model of which nothing is said.
    fn default() -> Self {
        Self {
            kind: ModelKind::Custom,
            input: Vec::new(),
            classes: 0,
            hidden: Vec::new(),
            convs: Vec::new(),
            input_scale: one(),
            context: 0,
            layers: 0,
            heads: 0,
            width: 0,
            modules: Vec::new(),
        }
    }
}

/// Architecture of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Dense layers with ReLU between them.
    Mlp,
    /// 3x3 convolutions with ReLU and 2x2 max-pooling, then dense layers; two of either where nothing else is said.
    Cnn,
    /// Whatever the agents' own trainers bring; no agent trains it natively.
    Custom,
    /// A decoder-only transformer over bytes: it tells the next byte of a text.
    Gpt,
}

impl ModelKind {
    /// Its name in `run.toml`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mlp => "mlp",
            Self::Cnn => "cnn",
            Self::Custom => "custom",
            Self::Gpt => "gpt",
        }
    }
}

/// Local training under one lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Optimizer steps under one lease.
    pub local_steps: u32,
    /// Examples in a step.
    pub batch_size: u32,
    /// The optimizer.
    pub optimizer: OptimizerSpec,
    /// Keep the optimizer's state from one lease to the next instead of starting afresh.
    #[serde(default)]
    pub keep_optimizer_state: bool,
    /// How long a local round is to take, in seconds: each lease has as many steps as its agent takes in that time.
    /// Without it every lease has `local_steps`. Agents are not told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_round_s: Option<f64>,
    /// Most steps of a lease where `target_round_s` is set, [`SIZED_STEPS`] times `local_steps` where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_local_steps: Option<u32>,
    /// How the learning rate changes during the run; without it, it does not. Agents are not told
    /// of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<LrSchedule>,
    /// What agents are told of `merge.mu`: mu (w - w_base) is added to each gradient at w of a round from w_base. No key
    /// of run.toml.
    #[serde(default, skip_serializing_if = "is_off")]
    pub proximal_mu: f32,
}

/// A local optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerSpec {
    /// Stochastic gradient descent, with heavy-ball momentum when `momentum` is above 0.
    Sgd {
        /// Learning rate.
        lr: f32,
        /// Momentum in [0, 1).
        #[serde(default)]
        momentum: f32,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    AdamW {
        /// Learning rate.
        lr: f32,
        /// Weight decay.
        #[serde(default)]
        weight_decay: f32,
        /// Decay of the first moment.
        #[serde(default = "beta_1")]
        beta_1: f32,
        /// Decay of the second moment.
        #[serde(default = "beta_2")]
        beta_2: f32,
    },
}

fn beta_1() -> f32 {
    0.9
}

fn beta_2() -> f32 {
    0.999
}

/// Compression of updates on their way up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadSpec {
    /// The codec; with `adaptive` that of agents whose lines are wide enough for it.
    pub codec: CodecSpec,
    /// EF14's beta: how much of what compression left out is carried to the next update (0 switches feedback off).
    pub feedback_decay: f32,
    /// Smaller codecs for agents on thin lines. Agents are not told of it: each lease names its codec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveSpec>,
    /// Tensors with codecs of their own, whatever an agent's line.
    #[serde(default, skip_serializing_if = "TensorPolicy::is_empty")]
    pub policy: TensorPolicy,
}

impl UploadSpec {
    /// Returns one codec for every update.
    #[must_use]
    pub fn fixed(codec: CodecSpec, feedback_decay: f32) -> Self {
        Self { codec, feedback_decay, adaptive: None, policy: TensorPolicy::default() }
    }
}

/// Which updates are admitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmitSpec {
    /// Updates whose base is older than this many versions are refused as `stale`.
    pub max_staleness: u64,
    /// At most this many examples are credited to one update.
    pub max_examples: u64,
    /// Updates whose norm is more than this many times the running median are refused as `norm_outlier`; 0 admits any.
    pub max_norm_ratio: f32,
    /// Updates whose norm is more than this many times the running median are scaled down to that; 0 scales none.
    #[serde(default)]
    pub clip_norm_ratio: f32,
    /// Updates of an agent that has sent more than this many times as many as the median agent are scaled down to that; 0
    /// scales none.
    #[serde(default)]
    pub max_influence: f32,
    /// The usual norm of an agent that reports less often than the mean agent counts as up to this many times as much: as
    /// often as the mean agent reports for each of its reports. 0 makes no difference between agents. Only with the recall
    /// rule.
    #[serde(default, skip_serializing_if = "is_off")]
    pub rare_norm_ratio: f32,
}

/// When agents with an evaluation shard evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSpec {
    /// Evaluate again after this many versions ...
    pub every_versions: u64,
    /// ... or after this many seconds, whichever comes first.
    pub every_s: f64,
}

/// The run ends when any of these is reached; with none it runs until `stop`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// An evaluation at least this accurate (0..1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// An evaluation with at most this loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// This model version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<u64>,
    /// This many seconds since the run's first record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_s: Option<f64>,
}
