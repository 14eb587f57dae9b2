//! How much memory the training of a native model takes: by part of a pod, and of one agent that trains the whole.

use super::cut::Load;
use crate::codec::CodecSpec;
use crate::limits;
use crate::spec::{Layers, StagesSpec, TrainSpec, UploadSpec};

/// Vectors as long as what is trained: base, model, the model as tensors, gradients by tensor, the gradient as one vector,
/// the sum over micro-batches, the delta.
pub const MODEL_VECTORS: u32 = 7;
/// The same of a part of a pod: what it starts from, its weights before and after an update, the weights as tensors, gradients by tensor,
/// the gradient as one vector, the sum over micro-batches, what compression left out before.
pub const PART_VECTORS: u32 = 8;
/// Vectors as long as the whole model that the owner of a round in stages holds beside its parts, at its peak: the base, and what
/// compression left out before and leaves out now (docs/adr/0031).
pub const OWNER_VECTORS: u32 = 3;
/// Vectors as long as the model that a replica holds beside what training holds: sums of gradients, and chunks of them that wait.
pub const REPLICA_VECTORS: u32 = 2;
/// Vectors as long as the model that the owner of a round of replicas holds beside its replica, at its peak: base, result, delta, what
/// compression left out before and leaves out now, and what encoding and storing the update takes (docs/adr/0035).
pub const REPLICA_OWNER_VECTORS: u32 = 8;
/// Stacks, packed panels of matrix products, code that is paged in.
pub const OVERHEAD_BYTES: u64 = 8 << 20;
/// Bytes of a value.
const VALUE: u64 = 4;

/// What is on its way over the links of a member, which has two neighbours.
fn links_bytes() -> u64 {
    2 * u64::from(limits::POD_WINDOW_BYTES)
}

impl Load {
    /// Returns what a round costs with these settings.
    #[must_use]
    pub fn of(pod: &StagesSpec, train: &TrainSpec, upload: &UploadSpec) -> Self {
        Self {
            schedule: pod.schedule(),
            micro_batches: pod.micro_batches(),
            micro_batch_examples: pod.micro_batch_examples(train.batch_size),
            fixed_bytes: OVERHEAD_BYTES + links_bytes(),
            vectors: PART_VECTORS + train.optimizer.state_vectors(),
            payload_bits: payload_bits(upload),
        }
    }
}

/// Returns the bits of an encoded parameter, at most: adaptive uploads only ever take fewer, some tensors may have codecs with more.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most a few dozen")]
fn payload_bits(upload: &UploadSpec) -> u32 {
    let of_policy = upload.policy.codecs().map(CodecSpec::bits_per_value);
    of_policy.fold(upload.codec.bits_per_value(), f64::max).ceil() as u32
}

/// Returns the bytes that the owner of a round in stages holds of a model of `params` parameters, whichever parts it computes.
#[must_use]
pub fn owner_bytes(params: u64) -> u64 {
    params.saturating_mul(VALUE * u64::from(OWNER_VECTORS))
}

/// Returns the bytes that a replica of a model holds at least: the whole model with its training state, and one example at a time.
/// A batch that does not fit is computed in micro-batches.
#[must_use]
pub fn replica_bytes(model: &Layers, train: &TrainSpec) -> u64 {
    one_example_bytes(model, train).saturating_add(replica_links_bytes(model.manifest.params() as u64))
}

/// Returns the bytes that training a model takes at least: its vectors, and one example at a time.
#[must_use]
pub fn one_example_bytes(model: &Layers, train: &TrainSpec) -> u64 {
    let vectors = u64::from(MODEL_VECTORS + train.optimizer.state_vectors());
    let params = model.manifest.params() as u64;
    let training = params.saturating_mul(VALUE * vectors).saturating_add(example_bytes(model));
    training.saturating_add(OVERHEAD_BYTES)
}

/// Returns the bytes that an example takes until its backward pass.
#[must_use]
pub fn example_bytes(model: &Layers) -> u64 {
    model.layers.iter().map(|layer| layer.cost().activation_bytes).fold(0, u64::saturating_add)
}

/// Returns the bytes that a replica of a model of `params` parameters holds beside what training holds.
#[must_use]
pub fn replica_links_bytes(params: u64) -> u64 {
    params.saturating_mul(VALUE * u64::from(REPLICA_VECTORS)).saturating_add(links_bytes())
}

/// Returns the bytes that the owner of a round of replicas holds of a model of `params` parameters beside its replica: it encodes and
/// stores the whole update, as an agent alone does.
#[must_use]
pub fn replica_owner_bytes(params: u64) -> u64 {
    params.saturating_mul(VALUE * u64::from(REPLICA_OWNER_VECTORS))
}
