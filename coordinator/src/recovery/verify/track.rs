//! The published track, once more.

use anabranch_common::codec::{self, CodecSpec, Delta};
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::TrackSpec;

/// y, and the version that it has come to.
pub(super) struct TrackedBase {
    codec: CodecSpec,
    version: ModelVersion,
    y: Vec<f32>,
}

impl TrackedBase {
    pub(super) fn new(spec: &TrackSpec, y: Vec<f32>, version: ModelVersion) -> Self {
        Self { codec: spec.codec, version, y }
    }

    /// Begins anew at a model that was not made by merging.
    pub(super) fn begin(&mut self, model: &[f32], version: ModelVersion) {
        self.y = model.to_vec();
        self.version = version;
    }

    pub(super) fn set(&mut self, spec: &TrackSpec) {
        self.codec = spec.codec;
    }

    pub(super) fn version(&self) -> ModelVersion {
        self.version
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of_f32(&self.y)
    }

    /// The model has come to `version`, from which agents train.
    pub(super) fn follow(&mut self, manifest: &ModelManifest, model: &[f32], version: ModelVersion) {
        self.version = version;
        if !self.step(manifest, model) {
            self.y = model.to_vec();
        }
    }

    /// y += decode(encode(x - y)). Returns whether all of it is finite.
    fn step(&mut self, manifest: &ModelManifest, model: &[f32]) -> bool {
        let mut left_out = model.to_vec();
        left_out.iter_mut().zip(&self.y).for_each(|(left, y)| *left -= y);
        let encoder = codec::encoder(self.codec);
        let Ok(payload) = encoder.encode(manifest, &left_out) else { return false };
        let Ok(step) = codec::decode(encoder.id(), manifest, &payload) else { return false };
        match step {
            Delta::Dense(values) => (0..values.len()).for_each(|index| self.y[index] += values[index]),
            Delta::Sparse { indices, values, .. } => {
                for entry in 0..indices.len() {
                    self.y[indices[entry] as usize] += values[entry];
                }
            }
        }
        self.y.iter().all(|value| value.is_finite())
    }
}
