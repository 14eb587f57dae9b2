//! One encoder for both: the GPU's where this process has one, the CPU's otherwise and from the moment the GPU fails.

use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::sparse::TopK;
use anabranch_common::codec::{Codec as _, EncodeError};
use anabranch_common::manifest::ModelManifest;

use super::topk::GpuTopK;
use super::{Engine, GpuError};

/// A top-k encoder with error feedback, on the GPU or the CPU: the bytes and the state are the same.
#[derive(Debug)]
pub struct Encoder<E> {
    manifest: ModelManifest,
    fraction: f32,
    decay: f32,
    gpu: Option<GpuTopK<E>>,
    /// The state that counts: what the GPU's is after every commit.
    left_out: Vec<f32>,
    pending: Option<Vec<f32>>,
}

/// An encoded update.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The payload.
    pub payload: Vec<u8>,
    /// What feedback state it leaves: to be stored before [`Encoder::commit`].
    pub left_out: Vec<f32>,
}

impl<E: Engine> Encoder<E> {
    /// Over `engine`, or without one; says in the log why there is none.
    #[must_use]
    pub fn new(engine: Result<E, GpuError>, manifest: ModelManifest, fraction: f32, decay: f32) -> Self {
        let gpu = engine.and_then(|engine| GpuTopK::new(engine, &manifest, fraction));
        let gpu = gpu.inspect_err(|error| tracing::warn!("{error}; updates are encoded on the CPU")).ok();
        Self { manifest, fraction, decay, gpu, left_out: Vec::new(), pending: None }
    }

    /// Takes over a state that was saved. One that does not fit, or is not finite, is dropped.
    pub fn restore(&mut self, left_out: Vec<f32>) {
        let fits = left_out.len() == self.manifest.params();
        let state = Feedback::restore(1.0, if fits { left_out } else { Vec::new() });
        self.left_out = state.left_out().to_vec();
        self.pending = None;
        let left_out = &self.left_out;
        let result = self.gpu.as_mut().map(|gpu| gpu.restore(left_out));
        self.look_at(result.transpose());
    }

    /// Whether the GPU does it.
    #[must_use]
    pub fn on_gpu(&self) -> bool {
        self.gpu.is_some()
    }

    /// Encodes `end - base` and what was left out before. Until [`commit`](Self::commit) the state is as before.
    ///
    /// # Errors
    /// A length is not the manifest's, or a difference is not finite.
    pub fn encode(&mut self, base: &[f32], end: &[f32]) -> Result<Encoded, EncodeError> {
        let decay = self.decay;
        let result = self.gpu.as_mut().map(|gpu| {
            let payload = gpu.encode(base, end, decay)?;
            Ok(Encoded { payload, left_out: gpu.left_out()? })
        });
        let encoded = match result {
            Some(Err(GpuError::Encode(error))) => return Err(error),
            Some(result) => match self.look_at(result.map(Some)).flatten() {
                Some(encoded) => encoded,
                None => self.encode_here(base, end)?,
            },
            None => self.encode_here(base, end)?,
        };
        self.pending = Some(encoded.left_out.clone());
        Ok(encoded)
    }

    /// The latest update and its state are stored: the next one starts from there.
    pub fn commit(&mut self) {
        if let Some(left_out) = self.pending.take() {
            self.left_out = left_out;
        }
        if let Some(gpu) = &mut self.gpu {
            gpu.commit();
        }
    }

    fn encode_here(&self, base: &[f32], end: &[f32]) -> Result<Encoded, EncodeError> {
        let expected = self.manifest.params();
        if let Some(model) = [base, end].into_iter().find(|model| model.len() != expected) {
            return Err(EncodeError::WrongLength { expected, found: model.len() });
        }
        let delta: Vec<f32> = end.iter().zip(base).map(|(end, base)| end - base).collect();
        let codec = TopK::new(self.fraction);
        if !(self.decay > 0.0 && self.decay <= 1.0) {
            return Ok(Encoded { payload: codec.encode(&self.manifest, &delta)?, left_out: self.left_out.clone() });
        }
        let mut feedback = Feedback::restore(self.decay, self.left_out.clone());
        let payload = feedback.encode(&codec, &self.manifest, &delta)?;
        Ok(Encoded { payload, left_out: feedback.left_out().to_vec() })
    }

    /// A device that failed is not used again: its errors stick.
    fn look_at<T>(&mut self, result: Result<T, GpuError>) -> Option<T> {
        result
            .inspect_err(|error| {
                tracing::warn!("{error}; updates are encoded on the CPU from here on");
                self.gpu = None;
            })
            .ok()
    }
}
