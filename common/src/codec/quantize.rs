//! Blocks of values as small integers under one f32 scale.
//!
//! | bits | a value is | scale |
//! |---|---|---|
//! | 8 | `scale * q`, q in -127..=127 | largest magnitude / 127 |
//! | 4 | `scale * q`, q in -7..=7 | largest magnitude / 7 |
//! | 1 | `scale` or `-scale` | mean magnitude |
//!
//! q is `value / scale` rounded to the nearest integer, ties to even. Values of 4 and 1 bits fill bytes from the least
//! significant end; what is left of the last byte is 0.

use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::DecodeError;
use super::vector::{largest_key, vectorized};

/// The most values under one scale.
pub const BLOCK: usize = 256;
/// Magnitudes below this (2^-119) are too small for a scale that is a normal number: they count as 0.
pub const SMALLEST: f32 = f32::from_bits((127 - 119) << 23);

/// 1.5 * 2^23: added to a small number it rounds that to an integer, ties to even, which then is in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Bits of a quantized value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ValueBits {
    /// The sign alone.
    One,
    /// -7..=7.
    Four,
    /// -127..=127.
    #[default]
    Eight,
}

impl ValueBits {
    /// Every width.
    pub const ALL: [Self; 3] = [Self::Eight, Self::Four, Self::One];

    /// Returns the number of bits.
    #[must_use]
    pub const fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// Returns the bytes that this many values of one block take.
    #[must_use]
    pub const fn bytes(self, values: usize) -> usize {
        (values * self.count()).div_ceil(8)
    }

    /// Returns the largest q; 1 for signs.
    const fn levels(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Four => 7,
            Self::Eight => 127,
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn is_eight(&self) -> bool {
        *self == Self::Eight
    }
}

impl Serialize for ValueBits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.count() as u64).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ValueBits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bits = i64::deserialize(deserializer)?;
        let width = Self::ALL.into_iter().find(|width| i64::try_from(width.count()) == Ok(bits));
        width.ok_or_else(|| D::Error::invalid_value(Unexpected::Signed(bits), &"8, 4 or 1"))
    }
}

/// Values of one block as they are sent, and as they are read.
#[derive(Debug, Clone)]
pub struct Quantized {
    bytes: [u8; BLOCK],
    back: [f32; BLOCK],
}

impl Default for Quantized {
    fn default() -> Self {
        Self { bytes: [0; BLOCK], back: [0.0; BLOCK] }
    }
}

impl Quantized {
    /// Quantizes `values` (1 to [`BLOCK`], finite, the largest at least [`SMALLEST`]) and returns their scale.
    pub fn fill(&mut self, bits: ValueBits, values: &[f32]) -> f32 {
        match bits {
            ValueBits::One => self.fill_signs(values),
            ValueBits::Four | ValueBits::Eight => vectorized!(self.fill_steps(bits, values, largest_key(values))),
        }
    }

    /// Returns the first bytes.
    #[must_use]
    pub fn bytes(&self, len: usize) -> &[u8] {
        &self.bytes[..len]
    }

    /// Returns what the first values are read as.
    #[must_use]
    pub fn back(&self, len: usize) -> &[f32] {
        &self.back[..len]
    }

    /// The same for values of 8 or 4 bits whose largest key is known.
    #[inline(always)]
    pub(super) fn fill_steps(&mut self, bits: ValueBits, values: &[f32], largest: u32) -> f32 {
        let scale = scale(f32::from_bits(largest), bits);
        let slots = self.bytes.iter_mut().zip(&mut self.back);
        for (value, (byte, back)) in values.iter().zip(slots) {
            let shifted = value / scale + ROUND;
            *byte = shifted.to_bits().to_le_bytes()[0];
            *back = (shifted - ROUND) * scale;
        }
        if bits == ValueBits::Four {
            self.pack_nibbles(values.len());
        }
        scale
    }

    #[inline(always)]
    fn pack_nibbles(&mut self, len: usize) {
        if !len.is_multiple_of(2) {
            self.bytes[len] = 0;
        }
        let mut nibbles = [0; BLOCK / 2];
        let nibbles = &mut nibbles[..len.div_ceil(2)];
        for (nibble, pair) in nibbles.iter_mut().zip(self.bytes.as_chunks::<2>().0) {
            *nibble = pair[0] & 0xF | pair[1] << 4;
        }
        self.bytes[..nibbles.len()].copy_from_slice(nibbles);
    }

    #[expect(clippy::cast_possible_truncation, reason = "a mean of finite f32 is one")]
    fn fill_signs(&mut self, values: &[f32]) -> f32 {
        let sum: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
        let scale = (sum / values.len() as f64) as f32;
        for (byte, eight) in self.bytes.iter_mut().zip(values.chunks(8)) {
            *byte = eight.iter().rev().fold(0, |bits, value| bits << 1 | u8::from(value.is_sign_negative()));
        }
        for (back, value) in self.back.iter_mut().zip(values) {
            *back = scale.copysign(*value);
        }
        scale
    }
}

/// Largest magnitude / levels, rounded down where the largest level would be infinite.
#[inline(always)]
fn scale(largest: f32, bits: ValueBits) -> f32 {
    let levels = f32::from(bits.levels());
    let scale = largest / levels;
    if (scale * levels).is_finite() { scale } else { scale.next_down() }
}

/// Appends the `len` values of a block to `out`. `bytes` are as many as [`ValueBits::bytes`] says.
///
/// # Errors
/// The scale is none that [`Quantized::fill`] returns, the block does not reach its largest value, or bits after its end
/// are not 0.
pub fn dequantize(
    bits: ValueBits,
    scale: f32,
    bytes: &[u8],
    len: usize,
    out: &mut Vec<f32>,
) -> Result<(), DecodeError> {
    if !(scale.is_normal() && scale > 0.0 && (scale * f32::from(bits.levels())).is_finite()) {
        return Err(DecodeError::Invalid("a scale"));
    }
    let valid = match bits {
        ValueBits::Eight => vectorized!(eights(scale, bytes, out)),
        ValueBits::Four => vectorized!(fours(scale, bytes, len, out)),
        ValueBits::One => ones(scale, bytes, len, out),
    };
    if valid { Ok(()) } else { Err(DecodeError::Invalid("a block of values")) }
}

#[inline(always)]
fn signed(byte: u8) -> i8 {
    i8::from_le_bytes([byte])
}

/// Says whether the largest is 127, so that -128 is none of them.
#[inline(always)]
fn eights(scale: f32, bytes: &[u8], out: &mut Vec<f32>) -> bool {
    let largest = bytes.iter().fold(0, |largest, byte| signed(*byte).unsigned_abs().max(largest));
    let mut values = [0.0; BLOCK];
    for (value, byte) in values.iter_mut().zip(bytes) {
        *value = f32::from(signed(*byte)) * scale;
    }
    out.extend_from_slice(&values[..bytes.len()]);
    largest == ValueBits::Eight.levels()
}

/// The same for nibbles.
#[inline(always)]
fn fours(scale: f32, bytes: &[u8], len: usize, out: &mut Vec<f32>) -> bool {
    let low = |byte: u8| signed(byte << 4) >> 4;
    let high = |byte: u8| signed(byte) >> 4;
    let largest =
        bytes.iter().fold(0, |largest, byte| low(*byte).unsigned_abs().max(high(*byte).unsigned_abs()).max(largest));
    let mut values = [0.0; BLOCK];
    for (pair, byte) in values.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [f32::from(low(*byte)) * scale, f32::from(high(*byte)) * scale];
    }
    out.extend_from_slice(&values[..len]);
    let filled_up = len.is_multiple_of(2) || bytes.last().is_some_and(|last| last >> 4 == 0);
    filled_up && largest == ValueBits::Four.levels()
}

fn ones(scale: f32, bytes: &[u8], len: usize, out: &mut Vec<f32>) -> bool {
    let value = |at: usize| if bytes[at / 8] >> (at % 8) & 1 == 0 { scale } else { -scale };
    out.extend((0..len).map(value));
    len.is_multiple_of(8) || bytes.last().is_some_and(|last| last >> (len % 8) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(bits: ValueBits, values: &[f32]) -> (f32, Vec<f32>) {
        let (mut block, mut back) = (Quantized::default(), Vec::new());
        let scale = block.fill(bits, values);
        let bytes = block.bytes(bits.bytes(values.len()));
        dequantize(bits, scale, bytes, values.len(), &mut back).expect("a block is read as it was written");
        assert_eq!(back, block.back(values.len()), "the encoder expects other values than are read");
        (scale, back)
    }

    #[test]
    fn extremes_stay_finite() {
        for values in [
            &[f32::MAX, f32::MIN][..],
            &[f32::MAX; 256],
            &[f32::MAX.next_down(), 1.0],
            &[SMALLEST, 0.0, f32::from_bits(1)],
            &[-SMALLEST.next_up()],
        ] {
            for bits in ValueBits::ALL {
                let (scale, back) = round_trip(bits, values);
                assert!(back.iter().all(|value| value.is_finite()), "{values:?} came back as {back:?}");
                let off = values.iter().zip(&back).map(|(value, back)| (value - back).abs()).fold(0.0, f32::max);
                assert!(bits == ValueBits::One || off <= scale, "{values:?} came back as {back:?}");
            }
        }
    }

    #[test]
    fn ties_go_to_the_even_step() {
        let steps = |bits, values: &[f32]| {
            let mut block = Quantized::default();
            assert_eq!(block.fill(bits, values), 1.0);
            block.bytes(bits.bytes(values.len())).to_vec()
        };
        let eights = steps(ValueBits::Eight, &[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 0.500_000_06]);
        assert_eq!(eights.into_iter().map(signed).collect::<Vec<_>>(), [127, 0, 2, 2, 0, -2, -2, 126, -126, 1]);
        assert_eq!(steps(ValueBits::Four, &[-7.0, 0.5, 1.5, -2.5, 6.5]), [0x09, 0xE2, 0x06]);
    }

    #[test]
    fn signs_have_the_mean_magnitude() {
        assert_eq!(round_trip(ValueBits::One, &[1.0, -2.0, -6.0]), (3.0, vec![3.0, -3.0, -3.0]));
        let mut block = Quantized::default();
        block.fill(ValueBits::One, &[1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0]);
        assert_eq!(block.bytes(2), [0b0000_0110, 1]);
    }

    #[test]
    fn what_no_encoder_writes_is_refused() {
        let read = |bits, scale, bytes: &[u8], len| dequantize(bits, scale, bytes, len, &mut Vec::new());
        let (eight, four, one) = (ValueBits::Eight, ValueBits::Four, ValueBits::One);
        for (bits, bytes, len) in [(eight, &[127, 0][..], 2), (eight, &[129], 1), (four, &[0x70], 2), (four, &[9], 1)] {
            assert_eq!(read(bits, 1.0, bytes, len), Ok(()), "{bytes:?}: the negative end is as good as the positive");
        }
        assert_eq!(read(one, 1.0, &[0xFF, 1], 9), Ok(()));
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::from_bits(1)] {
            for bits in ValueBits::ALL {
                assert_eq!(read(bits, scale, &[7], 1), Err(DecodeError::Invalid("a scale")), "scale {scale}");
            }
        }
        assert_eq!(read(eight, f32::MAX / 126.0, &[127], 1), Err(DecodeError::Invalid("a scale")));
        assert_eq!(read(four, f32::MAX / 6.0, &[7], 1), Err(DecodeError::Invalid("a scale")));
        let refused = Err(DecodeError::Invalid("a block of values"));
        for bytes in [&[128u8, 127][..], &[126], &[]] {
            assert_eq!(read(eight, 1.0, bytes, bytes.len()), refused, "{bytes:?} was accepted");
        }
        for (bytes, len) in [(&[0x87u8][..], 2), (&[0x78], 2), (&[0x66], 2), (&[0x17], 1), (&[], 0)] {
            assert_eq!(read(four, 1.0, bytes, len), refused, "{bytes:x?} was accepted as {len} nibbles");
        }
        for (bytes, len) in [(&[2u8][..], 1), (&[0xFF, 2], 9)] {
            assert_eq!(read(one, 1.0, bytes, len), refused, "{bytes:x?} was accepted as {len} signs");
        }
    }

    proptest! {
        #[test]
        fn the_error_is_at_most_half_a_step(values in prop::collection::vec(-1e30f32..1e30, 1..=BLOCK)) {
            prop_assume!(values.iter().any(|value| value.abs() >= SMALLEST));
            for bits in [ValueBits::Eight, ValueBits::Four] {
                let (scale, back) = round_trip(bits, &values);
                for (value, back) in values.iter().zip(back) {
                    prop_assert!((value - back).abs() <= scale * 0.5001, "{} came back as {}", value, back);
                }
            }
        }

        /// As `reference` rounds: the quotient to the nearest, ties to even.
        #[test]
        fn steps_are_rounded_quotients(values in prop::collection::vec(-1e3f32..1e3, 1..=BLOCK)) {
            prop_assume!(values.iter().any(|value| value.abs() >= SMALLEST));
            for bits in [ValueBits::Eight, ValueBits::Four] {
                let (scale, back) = round_trip(bits, &values);
                for (value, back) in values.iter().zip(back) {
                    prop_assert_eq!(back.to_bits() << 1, ((value / scale).round_ties_even() * scale).to_bits() << 1);
                }
            }
        }

        #[test]
        fn signs_leave_out_no_more_than_there_is(values in prop::collection::vec(1e-3f32..1e3, 1..=BLOCK)) {
            let (_, back) = round_trip(ValueBits::One, &values);
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
            let left = norm(&mut values.iter().zip(&back).map(|(value, back)| f64::from(*value) - f64::from(*back)));
            prop_assert!(left <= norm(&mut values.iter().map(|value| f64::from(*value))));
        }
    }
}
