//! How much memory the training of a native model takes: by part of a pod, and of one agent that trains the whole.

use super::cut::Load;
use crate::spec::{PodSpec, TrainSpec};

/// Vectors as long as what is trained: base, model, the model as tensors, gradients by tensor, the gradient as one vector,
/// the sum over micro-batches, the delta.
pub const MODEL_VECTORS: u32 = 7;
/// Vectors as long as the whole model that the owner of a pod's round holds beside its parts, at its peak: base, result, delta, what
/// compression left out before and leaves out now, and what encoding and storing the update takes. Measured (docs/adr/0031).
pub const OWNER_VECTORS: u32 = 8;
/// Stacks, packed panels of matrix products, code that is paged in.
pub const OVERHEAD_BYTES: u64 = 8 << 20;
/// Bytes of a value.
const VALUE: u64 = 4;

impl Load {
    /// Returns what a round costs with these settings.
    #[must_use]
    pub fn of(pod: &PodSpec, train: &TrainSpec) -> Self {
        Self {
            schedule: pod.schedule(),
            micro_batches: pod.micro_batches(),
            micro_batch_examples: pod.micro_batch_examples(train.batch_size),
            fixed_bytes: OVERHEAD_BYTES,
            vectors: MODEL_VECTORS + train.optimizer.state_vectors(),
        }
    }
}

/// Returns the bytes that the owner of a round holds of a model of `params` parameters, whichever parts it computes.
#[must_use]
pub fn owner_bytes(params: u64) -> u64 {
    params.saturating_mul(VALUE * u64::from(OWNER_VECTORS))
}
