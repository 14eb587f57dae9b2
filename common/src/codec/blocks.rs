//! Every value as a small integer under the scale of its block.
//!
//! For each tensor, in manifest order:
//!
//! ```text
//!  fewer than 1,024 elements (biases, norms)        otherwise
//!  ┌───────────────────────┐                        ┌─────────┬─────────┬─
//!  │ bf16 le, each element │                        │ block 0 │ block 1 │ ...
//!  └───────────────────────┘                        └─────────┴─────────┴─
//!  block of m = min(256 or 128, elements left)
//!  ┌────────┬─────────────────────────────┐
//!  │ scale  │ values                      │   8 bits: 256 elements a block, i8 each
//!  │ f32 le │ m times 8 or 4 bits         │   4 bits: 128 elements a block, two to a byte, the first in the low half
//!  └────────┴─────────────────────────────┘
//! ```
//! The scale of a block whose magnitudes are all below [`SMALLEST`] is 0, and so are its values. The manifest alone says how
//! long a payload is. The same input gives the same bytes on every machine.

use super::feedback::Residual;
use super::quantize::{Quantized, SMALLEST, ValueBits, dequantize};
use super::vector::{INFINITE, largest_key, vectorized};
use super::{Codec, CodecId, DecodeError, Delta, EncodeError, Source, check_length, dense, non_finite, pieces};
use crate::manifest::ModelManifest;

/// 8 bits a value.
#[derive(Debug, Clone, Copy, Default)]
pub struct Int8;

/// 4 bits a value.
#[derive(Debug, Clone, Copy, Default)]
pub struct Int4;

impl Int8 {
    /// Its byte.
    pub const ID: CodecId = CodecId(3);
    const LAYOUT: Layout = Layout { bits: ValueBits::Eight, block: 256 };
}

impl Int4 {
    /// Its byte.
    pub const ID: CodecId = CodecId(4);
    /// Smaller blocks follow the values more closely than those of 256 and cost 0.125 bits a value more (docs/adr/0021).
    const LAYOUT: Layout = Layout { bits: ValueBits::Four, block: 128 };
}

macro_rules! codec {
    ($codec:ty) => {
        impl Codec for $codec {
            fn id(&self) -> CodecId {
                Self::ID
            }

            fn lossless(&self) -> bool {
                false
            }

            fn encode(&self, manifest: &ModelManifest, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
                Self::LAYOUT.encode(manifest, Source::Values(values))
            }

            fn encode_residual(&self, manifest: &ModelManifest, sum: Residual<'_>) -> Result<Vec<u8>, EncodeError> {
                Self::LAYOUT.encode(manifest, Source::Residual(sum))
            }

            fn decode(&self, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
                Self::LAYOUT.decode(manifest, bytes)
            }
        }
    };
}
codec!(Int8);
codec!(Int4);

/// Tensors with fewer elements are sent whole: their entries matter more than their bytes.
const DENSE_BELOW: usize = 1_024;
/// Elements that pass through the caches together: whole blocks.
const CHUNK: usize = 4_096;
const SCALE_BYTES: usize = 4;

/// How values lie in a payload.
#[derive(Debug, Clone, Copy)]
struct Layout {
    bits: ValueBits,
    /// Elements under one scale.
    block: usize,
}

impl Layout {
    fn tensor_bytes(self, elements: usize) -> usize {
        if elements < DENSE_BELOW {
            return elements * 2;
        }
        // Every block but the last holds whole bytes.
        elements.div_ceil(self.block) * SCALE_BYTES + self.bits.bytes(elements)
    }

    fn payload_bytes(self, manifest: &ModelManifest) -> usize {
        manifest.ranges().map(|(_, range)| self.tensor_bytes(range.len())).sum()
    }

    fn encode(self, manifest: &ModelManifest, mut source: Source<'_>) -> Result<Vec<u8>, EncodeError> {
        check_length(manifest, source.len())?;
        let mut out = Vec::with_capacity(self.payload_bytes(manifest));
        let keeps = matches!(source, Source::Residual(_));
        let (mut quantized, mut sent) = (Quantized::default(), Vec::with_capacity(CHUNK));
        for (_, tensor) in manifest.ranges() {
            if tensor.len() < DENSE_BELOW {
                source.write_halves(tensor, &mut out)?;
                continue;
            }
            for chunk in pieces(tensor, CHUNK) {
                let start = chunk.start;
                let values = source.values(chunk);
                sent.clear();
                let finite = match keeps {
                    true => vectorized!(self.encode_chunk::<true>(values, &mut quantized, &mut out, &mut sent)),
                    false => vectorized!(self.encode_chunk::<false>(values, &mut quantized, &mut out, &mut sent)),
                };
                if !finite {
                    return Err(non_finite(values, start));
                }
                source.sent(start, &sent);
            }
        }
        Ok(out)
    }

    /// Appends whole blocks to `out`, and, if it is kept, what they are read as to `sent`. Says whether all values are finite; stops at the
    /// first block that has another.
    #[inline(always)]
    fn encode_chunk<const KEEPS: bool>(
        self,
        values: &[f32],
        block: &mut Quantized,
        out: &mut Vec<u8>,
        sent: &mut Vec<f32>,
    ) -> bool {
        for values in values.chunks(self.block) {
            let (largest, bytes) = (largest_key(values), self.bits.bytes(values.len()));
            if largest >= INFINITE {
                return false;
            }
            if largest < SMALLEST.to_bits() {
                out.extend_from_slice(&[0; SCALE_BYTES]);
                out.extend(std::iter::repeat_n(0, bytes));
                if KEEPS {
                    sent.extend(std::iter::repeat_n(0.0, values.len()));
                }
            } else {
                let scale = block.fill_steps(self.bits, values, largest);
                out.extend_from_slice(&scale.to_le_bytes());
                out.extend_from_slice(block.bytes(bytes));
                if KEEPS {
                    sent.extend_from_slice(block.back(values.len()));
                }
            }
        }
        true
    }

    fn decode(self, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
        let expected = self.payload_bytes(manifest);
        if let Some(trailing) = bytes.len().checked_sub(expected).filter(|trailing| *trailing > 0) {
            return Err(DecodeError::Trailing(trailing));
        }
        if bytes.len() < expected {
            return Err(DecodeError::Truncated("the blocks"));
        }
        let mut values = Vec::with_capacity(manifest.params());
        let mut left = bytes;
        let mut take = |count: usize| {
            let (taken, rest) = left.split_at_checked(count).ok_or(DecodeError::Truncated("a block"))?;
            left = rest;
            Ok(taken)
        };
        for (_, tensor) in manifest.ranges() {
            if tensor.len() < DENSE_BELOW {
                read_halves(take(tensor.len() * 2)?, &mut values);
                continue;
            }
            for block in pieces(tensor, self.block) {
                let bytes = take(SCALE_BYTES + self.bits.bytes(block.len()))?;
                self.decode_block(bytes, block.len(), &mut values)?;
            }
        }
        Ok(Delta::Dense(values))
    }

    fn decode_block(self, bytes: &[u8], len: usize, values: &mut Vec<f32>) -> Result<(), DecodeError> {
        let (scale, bytes) = bytes.split_first_chunk().ok_or(DecodeError::Truncated("a scale"))?;
        if *scale != [0; SCALE_BYTES] {
            return dequantize(self.bits, f32::from_le_bytes(*scale), bytes, len, values);
        }
        values.extend(std::iter::repeat_n(0.0, len));
        if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(DecodeError::Invalid("a block of zeros")) }
    }
}

/// Appends bf16 values.
fn read_halves(bytes: &[u8], values: &mut Vec<f32>) {
    values.extend(bytes.as_chunks().0.iter().map(|half| dense::from_bf16(u16::from_le_bytes(*half))));
}

#[cfg(test)]
mod tests {
    use anabranch_testkit::codec::normal;

    use super::*;
    use crate::manifest::TensorSpec;

    fn one_tensor(elements: usize) -> ModelManifest {
        ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![elements as u64] }]).expect("valid")
    }

    /// docs/benchmarks.md has these ratios.
    #[test]
    fn the_ratio_on_a_million_values_is_the_promised_one() {
        let (manifest, values) = (one_tensor(1_000_000), normal(1_000_000, 1));
        for (codec, promised, expected) in [(&Int8 as &dyn Codec, 3.93, 3.9), (&Int4, 7.52, 7.5)] {
            let bytes = codec.encode(&manifest, &values).expect("finite").len();
            let ratio = values.len() as f64 * 4.0 / bytes as f64;
            println!("codec {}: {ratio:.2} times smaller, {expected} expected", codec.id().0);
            assert!(ratio > promised, "codec {} is {ratio:.2} times smaller, not {promised}", codec.id().0);
        }
    }

    /// Squared error over squared norm, for blocks of several sizes: normal values and values with heavy tails.
    #[test]
    fn the_error_of_nibbles_falls_with_smaller_blocks() {
        let normal = normal(1 << 18, 7);
        let heavy: Vec<f32> =
            normal.iter().zip(anabranch_testkit::codec::normal(1 << 18, 8)).map(|(a, b)| a * b).collect();
        for (name, values) in [("normal", &normal), ("product of two normals", &heavy)] {
            let errors = [64, 128, 256].map(|block| {
                let layout = Layout { bits: ValueBits::Four, block };
                let manifest = one_tensor(values.len());
                let bytes = layout.encode(&manifest, Source::Values(values)).expect("finite");
                let back = layout.decode(&manifest, &bytes).expect("as encoded").into_dense();
                let left: Vec<f32> = values.iter().zip(&back).map(|(value, back)| value - back).collect();
                let error = (super::super::euclidean_norm(&left) / super::super::euclidean_norm(values)).powi(2);
                let ratio = values.len() as f64 * 4.0 / bytes.len() as f64;
                println!("{name}, blocks of {block}: {ratio:.2} times smaller, error {error:.4}");
                error
            });
            assert!(errors.is_sorted() && errors[0] < errors[2], "{name}: {errors:?}");
        }
    }

    #[test]
    fn blocks_of_nothing_are_zeros_and_nothing_else() {
        for codec in [&Int8 as &dyn Codec, &Int4] {
            let (manifest, mut values) = (one_tensor(1_500), vec![0.0; 1_500]);
            values[3] = SMALLEST.next_down();
            values[4] = -0.0;
            let mut bytes = codec.encode(&manifest, &values).expect("finite");
            assert!(bytes.iter().all(|byte| *byte == 0));
            let read = codec.decode(&manifest, &bytes).expect("as encoded").into_dense();
            assert!(read.iter().all(|value| value.to_bits() == 0));
            bytes[5] = 1;
            assert_eq!(codec.decode(&manifest, &bytes), Err(DecodeError::Invalid("a block of zeros")));
        }
    }

    #[test]
    fn a_payload_has_the_length_that_the_manifest_says() {
        for elements in [1, 1_023, 1_024, 1_025, 1_151, 1_281, 4_097, 10_007] {
            for (codec, layout) in [(&Int8 as &dyn Codec, Int8::LAYOUT), (&Int4, Int4::LAYOUT)] {
                let (manifest, values) = (one_tensor(elements), normal(elements, elements as u64));
                let bytes = codec.encode(&manifest, &values).expect("finite");
                assert_eq!(bytes.len(), layout.payload_bytes(&manifest));
                assert_eq!(codec.decode(&manifest, &bytes[1..]), Err(DecodeError::Truncated("the blocks")));
                let longer = [&bytes[..], &[0]].concat();
                assert_eq!(codec.decode(&manifest, &longer), Err(DecodeError::Trailing(1)));
            }
        }
    }
}
