//! Matrices as 8-bit integers with a scale for each row.
//!
//! ```text
//!  scale of a row = largest magnitude / 127, cut to 17 bits of mantissa
//!  value          = scale * code, code from -127 to 127
//! ```
//! 17 bits of mantissa times 7 bits of a code fit into an f32. So values that were rounded once are exact multiples of
//! their scale, the largest one is 127 times the scale, and rounding them again gives the same scale and codes: the stage that
//! computes rounds, and the link finds the codes again. Rows that are all below [`SMALLEST`] are zeros. A row with a value that
//! is not finite has the scale NaN: all of it is NaN at the other end, where such values are noticed.

/// Rows of smaller values are zeros: a scale is a normal number.
const SMALLEST: f32 = f32::from_bits((127 - 119) << 23);
/// The largest code.
const LEVELS: f32 = 127.0;
/// The bits of a scale that are kept: sign, exponent, and 16 bits of fraction behind the leading one.
const CUT: u32 = 0x7F;

/// Returns the scale of a row.
pub(crate) fn scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0u32, |largest, value| largest.max(value.to_bits() & 0x7FFF_FFFF));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return f32::NAN;
    }
    if largest < SMALLEST { 0.0 } else { f32::from_bits((largest / LEVELS).to_bits() & !CUT) }
}

/// Returns the code of a value in a row of this scale.
#[expect(clippy::cast_possible_truncation, reason = "codes are from -127 to 127; that of a NaN is 0")]
pub(crate) fn code(value: f32, scale: f32) -> i8 {
    if scale > 0.0 { (value / scale).round_ties_even() as i8 } else { 0 }
}

/// Returns what a code is read as.
pub(crate) fn value(code: i8, scale: f32) -> f32 {
    f32::from(code) * scale
}

/// Rounds the rows of a matrix of so many columns.
pub(crate) fn round(values: &mut [f32], columns: usize) {
    for row in values.chunks_mut(columns.max(1)) {
        let scale = scale(row);
        row.iter_mut().for_each(|of_row| *of_row = value(code(*of_row, scale), scale));
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::rng::SplitMix64;

    use super::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// The link finds the codes of what a stage has rounded.
    #[test]
    fn what_is_rounded_already_stays_as_it_is() {
        let mut rng = SplitMix64::new(4);
        for nth in 0..20_000u32 {
            let size = f32::from_bits(((nth % 250 + 2) << 23) | ((nth * 7919) & 0x7F_FFFF));
            let mut row: Vec<f32> = (0..5).map(|_| rng.next_signed_f32() * size).collect();
            let before = row.clone();
            let scale_before = scale(&row);
            round(&mut row, 5);
            let once = row.clone();
            round(&mut row, 5);
            assert_eq!(bits(&row), bits(&once), "{before:?}");
            assert_eq!(scale(&once).to_bits(), scale_before.to_bits(), "{before:?}");
            let largest = before.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let off = before.iter().zip(&once).map(|(before, once)| (before - once).abs()).fold(0.0, f32::max);
            assert!(off <= largest / 253.0 || largest < SMALLEST, "{before:?} became {once:?}");
        }
    }

    #[test]
    fn extremes_are_finite_and_what_is_not_makes_its_row_so() {
        let mut values = [f32::MAX, 1.0, f32::MIN, 0.0, SMALLEST.next_down(), -0.0, 1.0, -1.0];
        round(&mut values, 2);
        assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
        assert_eq!(bits(&values[4..6]), [0, 0]);
        assert!((values[6] - 1.0).abs() < 1e-4 && values[6].to_bits() == (-values[7]).to_bits());
        let mut bad = [1.0, f32::INFINITY, 2.0, 3.0, f32::NAN, 4.0];
        round(&mut bad, 2);
        assert_eq!(bad.map(f32::is_nan), [true, true, false, false, true, true]);
        assert_eq!(scale(&[]).to_bits(), 0);
    }
}
