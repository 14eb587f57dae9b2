//! Why a model cannot be built, trained or evaluated.

use anabranch_common::manifest::ManifestError;
use anabranch_common::spec::{ModelError, ModelProblem};

use crate::size;

/// Why a model cannot be built, trained or evaluated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrainError {
    /// A key of `run.toml` has a value that no model or training can be made of.
    #[error("`{key}` is {found}, {expected}")]
    Spec {
        /// The key, as in `run.toml`.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it has to be.
        expected: String,
    },
    /// The same, of a model's own keys.
    #[error(transparent)]
    Model(#[from] ModelProblem),
    /// The model is beyond a bound of a run: too many tensors or parameters, too long a name, too many dimensions.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A flat vector has another length than the model.
    #[error("a vector of {found} values was given to a model of {expected} parameters")]
    Length {
        /// Parameters of the model.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// Examples have another shape than the model takes.
    #[error("the shard holds examples of shape {found:?}, the model takes {expected:?}")]
    Shape {
        /// Shape that the model takes.
        expected: Vec<u64>,
        /// Shape of the shard's examples.
        found: Vec<u64>,
    },
    /// The shard has labels that are not classes of the model.
    #[error("the shard has labels up to {largest}, the model has {classes} classes")]
    Classes {
        /// Classes of the model.
        classes: u32,
        /// Largest label in the shard.
        largest: u32,
    },
    /// A model of text was given labelled examples.
    #[error("the shard holds labelled examples, a gpt takes text")]
    NotText,
    /// Text was given to a model of labelled examples.
    #[error("the shard holds text, which only a gpt takes")]
    Text,
    /// Text that does not fill one window.
    #[error("the shard holds {found} bytes of text, too few for a window of {context} and the byte after it")]
    TooShort {
        /// Bytes of a window.
        context: u32,
        /// Bytes of the text.
        found: usize,
    },
    /// There is nothing to train or evaluate on.
    #[error("the shard holds no examples")]
    EmptyShard,
    /// The loss or the model is no longer finite: the learning rate is too high, or the data hold extreme values.
    #[error("the loss is not finite at step {step}: training diverged")]
    Diverged {
        /// The step, counted from 1; 0 in an evaluation.
        step: u32,
    },
    /// The same, as a trainer in another process tells it.
    #[error("training diverged: {0}")]
    DivergedThere(String),
    /// A trainer in another process cannot do this.
    #[error("the trainer failed: {0}")]
    Failed(String),
    /// Not even a micro-batch of one example fits into the memory that may be used.
    #[error(
        "training takes about {} of memory with one example at a time, and {} may be used",
        size::text(*needed_bytes), size::text(*budget_bytes)
    )]
    Memory {
        /// Bytes that the process would have in memory.
        needed_bytes: u64,
        /// Bytes that it may have.
        budget_bytes: u64,
    },
    /// A trainer in another process ran out of memory; the next round takes smaller micro-batches.
    #[error("the trainer ran out of memory: {0}")]
    OutOfMemory(String),
    /// A trainer in another process is gone; the next request starts a fresh one.
    #[error("the trainer's process was lost: {0}")]
    Lost(String),
    /// The backend failed.
    #[error("the training backend failed: {0}")]
    Backend(String),
}

impl TrainError {
    /// Whether it costs the request that it ended, and nothing else: another one may well succeed.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Diverged { .. }
                | Self::DivergedThere(_)
                | Self::Failed(_)
                | Self::Memory { .. }
                | Self::OutOfMemory(_)
                | Self::Lost(_)
        )
    }

    /// Whether training came to values that are not finite: the same round would again, whoever computes it.
    #[must_use]
    pub fn is_divergence(&self) -> bool {
        matches!(self, Self::Diverged { .. } | Self::DivergedThere(_))
    }
}

impl From<ModelError> for TrainError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Problem(problem) => Self::Model(problem),
            ModelError::Manifest(error) => Self::Manifest(error),
        }
    }
}
