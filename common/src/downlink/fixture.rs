//! What the tests of every form begin with.

use crate::manifest::{ModelManifest, TensorSpec};
use crate::rng::SplitMix64;

pub(super) const PARAMS: usize = 3_000;

pub(super) fn manifest() -> ModelManifest {
    let tensor = |name: &str, len: usize| TensorSpec { name: name.into(), shape: vec![len as u64] };
    ModelManifest::new(vec![tensor("w", PARAMS - 10), tensor("b", 10)]).expect("valid")
}

pub(super) fn noise(rng: &mut SplitMix64, scale: f32) -> Vec<f32> {
    (0..PARAMS).map(|_| scale * rng.next_signed_f32()).collect()
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
