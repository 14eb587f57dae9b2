//! Codecs: a delta or a model as bytes, and back.
//!
//! | id | codec | lossless | used for |
//! |---|---|---|---|
//! | 0 | [`Planes32`](dense::Planes32): f32, byte-shuffled, zstd | yes | snapshots |
//! | 1 | [`Planes16`](dense::Planes16): bf16, byte-shuffled, zstd | no | dense updates |
//! | 2 | [`TopK`](sparse::TopK): Rice-coded gaps, int8 values | no | sparse updates (the default) |
//!
//! A codec is one file, one [`CodecId`], and one call of the conformance suite (`common/tests/conformance`). Decoding
//! checks every count against the manifest before it allocates.

pub mod dense;
pub mod entropy;
pub mod feedback;
pub mod quantize;
pub mod rice;
pub mod sparse;

use serde::{Deserialize, Serialize};

use crate::manifest::ModelManifest;

/// The one byte that names a codec on the wire and in the journal. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CodecId(pub u8);

/// A codec as configured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CodecSpec {
    /// Lossless f32 planes.
    F32,
    /// bf16 planes.
    Bf16,
    /// The largest entries only.
    TopK {
        /// Share of each tensor that is sent, in (0, 1].
        fraction: f32,
    },
}

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

    /// Decodes a payload for `manifest`. Allocates at most the decoded vector (12 bytes a parameter) plus a constant,
    /// whatever the bytes say.
    ///
    /// # Errors
    /// The bytes are not exactly one payload of this codec for this manifest.
    fn decode(&self, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError>;
}

/// Checks what every encoder is given.
fn check_input(manifest: &ModelManifest, values: &[f32]) -> Result<(), EncodeError> {
    if values.len() != manifest.params() {
        return Err(EncodeError::WrongLength { expected: manifest.params(), found: values.len() });
    }
    // Whole blocks without an early exit, so that the comparison vectorises.
    let finite = |block: &[f32]| block.iter().fold(true, |finite, value| finite & value.is_finite());
    match values.chunks(4096).all(finite) {
        true => Ok(()),
        false => Err(EncodeError::NonFinite(values.iter().position(|value| !value.is_finite()).unwrap_or(0))),
    }
}

/// Why a codec's configuration is refused.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("upload.codec.fraction is {0}, expected a number above 0 and at most 1")]
pub struct FractionError(pub f32);

impl CodecSpec {
    /// Checks the parameters.
    ///
    /// # Errors
    /// The fraction is not in (0, 1].
    pub fn validate(&self) -> Result<(), FractionError> {
        match self {
            Self::TopK { fraction } if !(*fraction > 0.0 && *fraction <= 1.0) => Err(FractionError(*fraction)),
            _ => Ok(()),
        }
    }
}

/// The encoder that a configuration asks for.
#[must_use]
pub fn encoder(spec: CodecSpec) -> Box<dyn Codec> {
    match spec {
        CodecSpec::F32 => Box::new(dense::Planes32),
        CodecSpec::Bf16 => Box::new(dense::Planes16),
        CodecSpec::TopK { fraction } => Box::new(sparse::TopK::new(fraction)),
    }
}

/// Bytes of the longest payload that any codec makes for `manifest`: zstd's bound for codec 0 on values that do not
/// compress. Nothing longer is an update, whatever its codec.
#[must_use]
pub fn max_payload_bytes(manifest: &ModelManifest) -> u64 {
    // ZSTD_COMPRESSBOUND: one part in 256, and up to 64 bytes more for contents below 128 KiB.
    let planes = manifest.params() as u64 * 4;
    let small = (128u64 << 10).saturating_sub(planes) >> 11;
    planes + (planes >> 8) + small + 64
}

/// Returns the Euclidean norm, summed in f64 in index order: the same bits on every machine.
#[must_use]
pub fn euclidean_norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
}

/// Returns the most memory that decoding takes, in bytes: the decoded vector, and beside it what [`decode`] needs until it
/// returns. Never less than a payload that [`max_payload_bytes`] allows, but for a constant.
///
/// | codec | decoded | until it returns |
/// |---|---|---|
/// | f32 planes | 4 a parameter | 4 a parameter |
/// | bf16 planes | 4 a parameter | 2 a parameter |
/// | top-k | 8 an entry, of which each takes at least a byte of the payload | - |
#[must_use]
pub fn max_decoded_bytes(id: CodecId, manifest: &ModelManifest, payload_bytes: u64) -> u64 {
    let params = manifest.params() as u64;
    match id {
        dense::Planes32::ID => 8 * params,
        dense::Planes16::ID => 6 * params,
        sparse::TopK::ID => 8 * params.min(payload_bytes),
        CodecId(_) => 0,
    }
}

/// Decodes a payload by its codec's byte.
///
/// # Errors
/// The byte is unknown, or see [`Codec::decode`].
pub fn decode(id: CodecId, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
    match id {
        dense::Planes32::ID => dense::Planes32.decode(manifest, bytes),
        dense::Planes16::ID => dense::Planes16.decode(manifest, bytes),
        sparse::TopK::ID => sparse::TopK::ANY.decode(manifest, bytes),
        CodecId(other) => Err(DecodeError::UnknownCodec(other)),
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
        self.values().chunks(4096).all(|block| block.iter().fold(true, |finite, value| finite & value.is_finite()))
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
            for spec in [CodecSpec::F32, CodecSpec::Bf16, CodecSpec::TopK { fraction: 1.0 }] {
                let bytes = encoder(spec).encode(&manifest, &noise).expect("finite").len() as u64;
                assert!(bytes <= most, "{spec:?}: {bytes} bytes for {params} parameters, more than {most}");
            }
            assert!(most <= params as u64 * 4 * 257 / 256 + 129, "{most} for {params} parameters");
        }
    }

    #[test]
    fn specs_read_well_in_toml_and_bad_fractions_are_refused() {
        let spec: CodecSpec = toml::from_str("kind = \"top-k\"\nfraction = 0.05\n").expect("valid");
        assert_eq!((spec, spec.validate()), (CodecSpec::TopK { fraction: 0.05 }, Ok(())));
        assert_eq!(toml::from_str("kind = \"bf16\""), Ok(CodecSpec::Bf16));
        for fraction in [0.0, -0.1, 1.5, f32::NAN, f32::INFINITY] {
            assert!(CodecSpec::TopK { fraction }.validate().is_err(), "fraction {fraction} was accepted");
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
