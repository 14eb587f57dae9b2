//! Codecs: a delta or a model as bytes, and back.
//!
//! | id | codec | lossless | used for |
//! |---|---|---|---|
//! | 0 | [`Planes32`](dense::Planes32): f32, byte-shuffled, zstd | yes | snapshots |
//! | 1 | [`Planes16`](dense::Planes16): bf16, byte-shuffled, zstd | no | dense updates |
//! | 2 | [`TopK`]: Rice-coded gaps, values of 8 bits | no | sparse updates (the default) |
//! | 3 | [`Int8`](blocks::Int8): 8 bits a value, a scale a block | no | dense updates |
//! | 4 | [`Int4`](blocks::Int4): 4 bits a value, a scale a block | no | dense updates |
//! | 5 | [`TopK`] with values of 4 bits | no | sparse updates |
//! | 6 | [`TopK`] with signs and the mean magnitude of a block | no | sparse updates |
//! | 7 | [`Segmented`](segments::Segmented): consecutive tensors in codecs of their own | if each is | updates by tensor |
//!
//! A codec is one file, one [`CodecId`], and one call of the conformance suite (`common/tests/conformance`). Decoding
//! checks every count against the manifest before it allocates.

pub mod blocks;
pub mod dense;
pub mod entropy;
pub mod feedback;
pub mod quantize;
pub mod rice;
pub mod segments;
mod select;
pub mod sparse;
mod spec;
mod vector;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::manifest::ModelManifest;
use feedback::Residual;
use sparse::TopK;
use vector::{INFINITE, largest_key, vectorized};

pub use spec::{CodecSpec, FractionError, encoder};

/// The one byte that names a codec on the wire and in the journal. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CodecId(pub u8);

/// A decoded update.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// Every entry, in manifest order.
    Dense(Vec<f32>),
    /// Some entries; the others are 0.
    Sparse {
        /// Length of the whole vector.
        len: usize,
        /// Strictly increasing positions, all below `len`.
        indices: Vec<u32>,
        /// The values at those positions.
        values: Vec<f32>,
    },
}

/// Why bytes do not decode. Every one of them means a broken or hostile peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The codec's byte is not known here.
    #[error("unknown codec {0}")]
    UnknownCodec(u8),
    /// The bytes end too soon.
    #[error("payload ends in the middle of {0}")]
    Truncated(&'static str),
    /// Bytes are left over.
    #[error("{0} bytes after the end of the payload")]
    Trailing(usize),
    /// A count or an index does not fit the manifest.
    #[error("{what} is {found}, more than {max}")]
    TooLarge {
        /// Which count.
        what: &'static str,
        /// What the payload says.
        found: u64,
        /// What is possible.
        max: u64,
    },
    /// A value that no encoder writes.
    #[error("{0} is not valid")]
    Invalid(&'static str),
}

/// Why a vector cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The vector's length is not the manifest's.
    #[error("vector of {found} values for a manifest of {expected}")]
    WrongLength {
        /// Parameters in the manifest.
        expected: usize,
        /// Length of the vector.
        found: usize,
    },
    /// The vector holds a NaN or an infinity at this position.
    #[error("value at position {0} is not finite")]
    NonFinite(usize),
    /// Segments were planned for a model of so many tensors, and the manifest has others.
    #[error("segments of {planned} tensors for a manifest of {found}")]
    WrongTensors {
        /// Tensors of all segments.
        planned: usize,
        /// Tensors in the manifest.
        found: usize,
    },
}

/// A compressor. The same input gives the same bytes on every machine, except for what zstd does to them.
pub trait Codec: Send + Sync + std::fmt::Debug {
    /// Its byte.
    fn id(&self) -> CodecId;

    /// Whether decoding gives back the same bits.
    fn lossless(&self) -> bool;

    /// Encodes `values` (length: `manifest.params()`).
    ///
    /// # Errors
    /// The length differs from the manifest's, or a value is not finite.
    fn encode(&self, manifest: &ModelManifest, values: &[f32]) -> Result<Vec<u8>, EncodeError>;

    /// Encodes the sum of `residual` and leaves in it what the payload leaves out.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn encode_residual(&self, manifest: &ModelManifest, mut residual: Residual<'_>) -> Result<Vec<u8>, EncodeError> {
        let values = residual.sum(0..manifest.params());
        let payload = self.encode(manifest, values)?;
        let sent = self.decode(manifest, &payload).expect("a codec decodes what it encoded");
        residual.keep(&sent);
        Ok(payload)
    }

    /// Decodes a payload for `manifest`. Allocates at most the decoded vector (12 bytes a parameter) plus a constant,
    /// whatever the bytes say.
    ///
    /// # Errors
    /// The bytes are not exactly one payload of this codec for this manifest.
    fn decode(&self, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError>;
}

/// What an encoder reads: a vector, or the sum of one and of what was left out before.
enum Source<'a> {
    Values(&'a [f32]),
    Residual(Residual<'a>),
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Residual(residual) => residual.len(),
        }
    }

    /// Returns values that were not asked for before.
    fn values(&mut self, range: Range<usize>) -> &[f32] {
        match self {
            Self::Values(values) => &values[range],
            Self::Residual(residual) => residual.sum(range),
        }
    }

    /// Returns values that were asked for before.
    fn seen(&self, range: Range<usize>) -> &[f32] {
        match self {
            Self::Values(values) => &values[range],
            Self::Residual(residual) => residual.seen(range),
        }
    }

    /// Keeps what is left out of the values from `start` on.
    fn sent(&mut self, start: usize, sent: &[f32]) {
        if let Self::Residual(residual) = self {
            residual.sent(start, sent);
        }
    }

    /// Keeps what is left out of some of the values from `start` on.
    fn sent_at(&mut self, start: usize, positions: &[u32], sent: &[f32]) {
        if let Self::Residual(residual) = self {
            residual.sent_at(start, positions, sent);
        }
    }

    /// Appends values that were not asked for before, as bf16.
    fn write_halves(&mut self, range: Range<usize>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = range.start;
        let values = self.values(range);
        check_finite(values, start)?;
        let halves: Vec<u16> = values.iter().map(|value| dense::to_bf16(*value)).collect();
        out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        let back: Vec<f32> = halves.into_iter().map(dense::from_bf16).collect();
        self.sent(start, &back);
        Ok(())
    }
}

/// Cuts a range into pieces of this size; the last one is the rest.
fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..end.min(start + size))
}

fn check_length(manifest: &ModelManifest, found: usize) -> Result<(), EncodeError> {
    let expected = manifest.params();
    if found == expected { Ok(()) } else { Err(EncodeError::WrongLength { expected, found }) }
}

/// Returns whether no value is NaN or infinite.
#[must_use]
pub fn is_finite(values: &[f32]) -> bool {
    // Whole chunks without an early exit, so that the loop vectorises.
    values.chunks(4096).all(|chunk| vectorized!(largest_key(chunk)) < INFINITE)
}

/// Checks values that stand at `start` and after it.
fn check_finite(values: &[f32], start: usize) -> Result<(), EncodeError> {
    if is_finite(values) { Ok(()) } else { Err(non_finite(values, start)) }
}

/// The error for values at `start` and after it, of which one is not finite.
fn non_finite(values: &[f32], start: usize) -> EncodeError {
    EncodeError::NonFinite(start + values.iter().position(|value| !value.is_finite()).unwrap_or(0))
}

/// Checks that a vector can be encoded: it is as long as its manifest says, and finite.
///
/// # Errors
/// It is not.
pub fn check_input(manifest: &ModelManifest, values: &[f32]) -> Result<(), EncodeError> {
    check_length(manifest, values.len())?;
    check_finite(values, 0)
}

/// Bytes of the longest payload that any codec makes for `manifest`: each tensor a segment of codec 0, and zstd's bound on
/// values that do not compress. Nothing longer is an update, whatever its codec.
#[must_use]
pub fn max_payload_bytes(manifest: &ModelManifest) -> u64 {
    // ZSTD_COMPRESSBOUND: one part in 256, and up to 64 bytes more for contents below 128 KiB; 64 more for its head.
    let planes = manifest.params() as u64 * 4;
    let tensors = manifest.tensors().len();
    planes + (planes >> 8) + 128 * tensors as u64 + segments::header_bytes(tensors) as u64
}

/// Returns the Euclidean norm, summed in f64 in index order: the same bits on every machine.
#[must_use]
pub fn euclidean_norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
}

/// Returns the most memory that decoding takes, in bytes: the decoded vector, and beside it what [`decode`] needs until it
/// returns. Never less than the payload, if [`max_payload_bytes`] allows it, but for a constant.
///
/// | codec | decoded | until it returns |
/// |---|---|---|
/// | f32 planes | 4 a parameter | 4 a parameter |
/// | bf16 planes | 4 a parameter | 2 a parameter |
/// | int8, int4 | 4 a parameter, or the payload's length if that is more | - |
/// | top-k | 8 an entry, of which each takes its value's bits and one more of the payload | - |
/// | segments | 4 a parameter, or 8 an entry | 8 a parameter |
#[must_use]
pub fn max_decoded_bytes(id: CodecId, manifest: &ModelManifest, payload_bytes: u64) -> u64 {
    let params = manifest.params() as u64;
    match id {
        dense::Planes32::ID => 8 * params,
        dense::Planes16::ID => 6 * params,
        blocks::Int8::ID | blocks::Int4::ID => (4 * params).max(payload_bytes),
        segments::ID => 12 * params,
        _ => TopK::of(id).map_or(0, |codec| 8 * params.min(codec.most_entries(payload_bytes))),
    }
}

/// Decodes a payload by its codec's byte.
///
/// # Errors
/// The byte is unknown, or see [`Codec::decode`].
pub fn decode(id: CodecId, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
    if id == segments::ID { segments::decode(manifest, bytes) } else { decode_whole(id, manifest, bytes) }
}

/// Decodes a payload of one codec for every tensor.
fn decode_whole(id: CodecId, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
    match id {
        dense::Planes32::ID => dense::Planes32.decode(manifest, bytes),
        dense::Planes16::ID => dense::Planes16.decode(manifest, bytes),
        blocks::Int8::ID => blocks::Int8.decode(manifest, bytes),
        blocks::Int4::ID => blocks::Int4.decode(manifest, bytes),
        _ => TopK::of(id).ok_or(DecodeError::UnknownCodec(id.0))?.decode(manifest, bytes),
    }
}

impl Delta {
    /// Length of the whole vector.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Dense(values) => values.len(),
            Self::Sparse { len, .. } => *len,
        }
    }

    /// Whether the vector has no entries at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries that are sent.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        match self {
            Self::Dense(values) | Self::Sparse { values, .. } => values,
        }
    }

    /// Whether no entry is NaN or infinite. Decoding does not check this for dense forms: the coordinator answers it
    /// with a reason of its own.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        is_finite(self.values())
    }

    /// Euclidean norm, summed in f64 in index order.
    #[must_use]
    pub fn norm(&self) -> f64 {
        euclidean_norm(self.values())
    }

    /// `target += scale * self`, entry by entry in index order: one multiplication and one addition each, never fused.
    ///
    /// # Panics
    /// When `target` has another length: the decoder has checked it against the manifest.
    pub fn add_scaled_to(&self, target: &mut [f32], scale: f32) {
        assert_eq!(target.len(), self.len(), "a decoded delta has the manifest's length");
        match self {
            Self::Dense(values) => {
                for (target, value) in target.iter_mut().zip(values) {
                    *target += scale * value;
                }
            }
            Self::Sparse { indices, values, .. } => {
                for (index, value) in indices.iter().zip(values) {
                    target[*index as usize] += scale * value;
                }
            }
        }
    }

    /// The whole vector.
    #[must_use]
    pub fn into_dense(self) -> Vec<f32> {
        match self {
            Self::Dense(values) => values,
            Self::Sparse { len, indices, values } => {
                let mut dense = vec![0.0; len];
                for (index, value) in indices.iter().zip(values) {
                    dense[*index as usize] = value;
                }
                dense
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_byte_is_refused() {
        let tensor = crate::manifest::TensorSpec { name: "w".into(), shape: vec![1] };
        let manifest = ModelManifest::new(vec![tensor]).expect("valid");
        assert_eq!(decode(CodecId(77), &manifest, &[]), Err(DecodeError::UnknownCodec(77)));
    }

    /// Guards the cap on what an agent may make the coordinator hold: noise does not compress, and fits all the same.
    #[test]
    fn no_payload_is_longer_than_the_longest_and_the_longest_is_not_much_longer_than_the_vector() {
        let mut rng = crate::rng::SplitMix64::new(8);
        for params in [1usize, 7, 1_024, 40_000, 100_000] {
            let tensor = crate::manifest::TensorSpec { name: "w".into(), shape: vec![params as u64] };
            let manifest = ModelManifest::new(vec![tensor]).expect("valid");
            let noise: Vec<f32> =
                (0..params).map(|_| f32::from_bits((rng.next_u64() >> 33) as u32 & 0xFF7F_FFFF)).collect();
            let most = max_payload_bytes(&manifest);
            let dense = [CodecSpec::F32, CodecSpec::Bf16, CodecSpec::Int8, CodecSpec::Int4];
            let sparse = quantize::ValueBits::ALL.map(|bits| CodecSpec::TopK { fraction: 1.0, bits });
            for spec in dense.into_iter().chain(sparse) {
                let bytes = encoder(spec).encode(&manifest, &noise).expect("finite").len() as u64;
                assert!(bytes <= most, "{spec:?}: {bytes} bytes for {params} parameters, more than {most}");
            }
            assert!(most <= params as u64 * 4 * 257 / 256 + 142, "{most} for {params} parameters");
        }
    }

    #[test]
    fn sparse_and_dense_deltas_agree() {
        let sparse = Delta::Sparse { len: 5, indices: vec![1, 4], values: vec![3.0, -4.0] };
        let dense = Delta::Dense(sparse.clone().into_dense());
        assert_eq!(dense.values(), [0.0, 3.0, 0.0, 0.0, -4.0]);
        assert_eq!((sparse.norm(), sparse.len()), (5.0, 5));
        assert_eq!((dense.norm(), dense.len()), (5.0, 5));
        let (mut one, mut other) = ([1.0; 5], [1.0; 5]);
        sparse.add_scaled_to(&mut one, 0.5);
        dense.add_scaled_to(&mut other, 0.5);
        assert_eq!(one, other);
        assert!(sparse.is_finite() && !Delta::Dense(vec![0.0, f32::NAN]).is_finite());
    }
}
