//! Every value, as byte planes: all first bytes, then all second bytes and so on, so that the bytes that resemble each
//! other (sign and exponent) lie together and zstd finds them.

use super::{Codec, CodecId, DecodeError, Delta, EncodeError, check_input, entropy};
use crate::manifest::ModelManifest;

/// f32, lossless. Payload: one zstd frame around four planes of `params` bytes each, least significant first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planes32;

/// bf16, rounded to nearest, ties to even. Payload: one zstd frame around two planes of `params` bytes each, least
/// significant first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planes16;

impl Planes32 {
    /// Its byte.
    pub const ID: CodecId = CodecId(0);
}

impl Planes16 {
    /// Its byte.
    pub const ID: CodecId = CodecId(1);
}

impl Codec for Planes32 {
    fn id(&self) -> CodecId {
        Self::ID
    }

    fn lossless(&self) -> bool {
        true
    }

    fn encode(&self, manifest: &ModelManifest, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
        check_input(manifest, values)?;
        Ok(entropy::compress(&shuffle(values.len(), values.iter().map(|value| value.to_bits()))))
    }

    fn decode(&self, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
        let planes = entropy::decompress(bytes, manifest.params() * 4)?;
        Ok(Delta::Dense(unshuffle(&planes).map(f32::from_bits).collect()))
    }
}

impl Codec for Planes16 {
    fn id(&self) -> CodecId {
        Self::ID
    }

    fn lossless(&self) -> bool {
        false
    }

    fn encode(&self, manifest: &ModelManifest, values: &[f32]) -> Result<Vec<u8>, EncodeError> {
        check_input(manifest, values)?;
        let mut planes = vec![0; values.len() * 2];
        let (low, high) = planes.split_at_mut(values.len());
        for (value, (low, high)) in values.iter().zip(low.iter_mut().zip(high)) {
            [*low, *high] = to_bf16(*value).to_le_bytes();
        }
        Ok(entropy::compress(&planes))
    }

    fn decode(&self, manifest: &ModelManifest, bytes: &[u8]) -> Result<Delta, DecodeError> {
        let params = manifest.params();
        let planes = entropy::decompress(bytes, params * 2)?;
        let (low, high) = planes.split_at(params);
        let value = |(low, high): (&u8, &u8)| from_bf16(u16::from_le_bytes([*low, *high]));
        Ok(Delta::Dense(low.iter().zip(high).map(value).collect()))
    }
}

/// Lays `len` words out as four planes of `len` bytes each, least significant first.
pub(crate) fn shuffle(len: usize, words: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut planes = vec![0; len * 4];
    let (low, high) = planes.split_at_mut(len * 2);
    let (plane_0, plane_1) = low.split_at_mut(len);
    let (plane_2, plane_3) = high.split_at_mut(len);
    let slots = plane_0.iter_mut().zip(plane_1).zip(plane_2).zip(plane_3);
    for (word, (((byte_0, byte_1), byte_2), byte_3)) in words.zip(slots) {
        [*byte_0, *byte_1, *byte_2, *byte_3] = word.to_le_bytes();
    }
    planes
}

/// Returns the words of four planes of equal length.
pub(crate) fn unshuffle(planes: &[u8]) -> impl Iterator<Item = u32> {
    let len = planes.len() / 4;
    let (low, high) = planes.split_at(len * 2);
    let (plane_0, plane_1) = low.split_at(len);
    let (plane_2, plane_3) = high.split_at(len);
    let bytes = plane_0.iter().zip(plane_1).zip(plane_2).zip(plane_3);
    bytes.map(|(((b0, b1), b2), b3)| u32::from_le_bytes([*b0, *b1, *b2, *b3]))
}

/// The bf16 nearest to a finite `value`, ties to even. Values that would round to infinity stay at the largest finite
/// one: a codec never makes an update infinite.
#[must_use]
pub fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let overflowed = u32::from(rounded & 0x7F80 == 0x7F80);
    // One below infinity is the largest finite value, in both signs.
    let [low, high, ..] = rounded.wrapping_sub(overflowed).to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// The value of a bf16.
#[must_use]
pub fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even_and_never_to_infinity() {
        let rounded = |bits: u32| to_bf16(f32::from_bits(bits));
        assert_eq!(rounded(0x3F80_8000), 0x3F80, "a tie goes to the even neighbour below");
        assert_eq!(rounded(0x3F81_8000), 0x3F82, "a tie goes to the even neighbour above");
        assert_eq!(rounded(0x3F80_8001), 0x3F81, "just above a tie goes up");
        assert_eq!(rounded(0x3F80_7FFF), 0x3F80, "just below a tie goes down");
        assert_eq!(to_bf16(f32::MAX), 0x7F7F);
        assert_eq!(to_bf16(f32::MIN), 0xFF7F);
        assert_eq!(to_bf16(-0.0), 0x8000);
        for half in (0..=u16::MAX).filter(|half| from_bf16(*half).is_finite()) {
            assert_eq!(to_bf16(from_bf16(half)), half, "a bf16 does not survive its own encoding");
        }
    }

    #[test]
    fn the_error_is_at_most_half_a_step() {
        let mut rng = crate::rng::SplitMix64::new(3);
        for _ in 0..10_000 {
            let value = rng.next_signed_f32();
            let off = (from_bf16(to_bf16(value)) - value).abs();
            assert!(off <= value.abs() / 256.0, "{value} came back off by {off}");
        }
    }
}
