//! Magnitudes as integer keys, for [vectorized loops](crate::vector).

pub(super) use crate::vectorized;

/// The key of infinity: every finite value has a smaller one, every other value this one or a larger one.
pub(super) const INFINITE: u32 = 0x7F80_0000;

/// Returns the bits without the sign. The order of magnitudes is the order of their keys.
#[inline(always)]
pub(super) fn key(value: f32) -> u32 {
    value.to_bits() & 0x7FFF_FFFF
}

/// Returns the largest key; 0 of no values.
#[inline(always)]
pub(super) fn largest_key(values: &[f32]) -> u32 {
    values.iter().fold(0, |largest, value| largest.max(key(*value)))
}
