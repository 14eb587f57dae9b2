//! int8 values, one f32 scale a block: value = scale * q with q in -127..=127 and scale = largest magnitude / 127.

use super::DecodeError;

/// Values under one scale.
pub const BLOCK: usize = 256;
/// Magnitudes below this (2^-119) are too small for a scale that is a normal number: they count as 0.
pub const SMALLEST: f32 = f32::from_bits((127 - 119) << 23);

const STEPS: f32 = 127.0;

/// Appends `values` (1 to [`BLOCK`], finite, the largest at least [`SMALLEST`]) to `out`, a byte each, and returns
/// their scale.
pub fn quantize(values: &[f32], out: &mut Vec<u8>) -> f32 {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let mut scale = largest / STEPS;
    if !(scale * STEPS).is_finite() {
        scale = scale.next_down();
    }
    out.extend(values.iter().map(|value| step(value / scale).to_le_bytes()[0]));
    scale
}

/// The nearest of -127..=127, ties away from zero.
#[expect(clippy::cast_possible_truncation, reason = "the value was clamped to the range of the type")]
fn step(value: f32) -> i8 {
    value.round().clamp(-STEPS, STEPS) as i8
}

/// Appends the values of a block to `out`.
///
/// # Errors
/// The scale is none that [`quantize`] returns, or the block does not reach its largest value.
pub fn dequantize(scale: f32, block: &[u8], out: &mut Vec<f32>) -> Result<(), DecodeError> {
    if !(scale.is_normal() && scale > 0.0 && (scale * STEPS).is_finite()) {
        return Err(DecodeError::Invalid("a scale"));
    }
    let largest = block.iter().map(|byte| i8::from_le_bytes([*byte]).unsigned_abs()).max();
    if largest != Some(127) {
        return Err(DecodeError::Invalid("a block of values"));
    }
    out.extend(block.iter().map(|byte| f32::from(i8::from_le_bytes([*byte])) * scale));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(values: &[f32]) -> (f32, Vec<f32>) {
        let (mut bytes, mut back) = (Vec::new(), Vec::new());
        let scale = quantize(values, &mut bytes);
        dequantize(scale, &bytes, &mut back).expect("a block is read as it was written");
        (scale, back)
    }

    #[test]
    fn extremes_stay_finite() {
        for values in [
            &[f32::MAX, f32::MIN][..],
            &[f32::MAX.next_down(), 1.0],
            &[SMALLEST, 0.0, f32::from_bits(1)],
            &[-SMALLEST.next_up()],
        ] {
            let (scale, back) = round_trip(values);
            assert!(back.iter().all(|value| value.is_finite()), "{values:?} came back as {back:?}");
            let off = values.iter().zip(&back).map(|(value, back)| (value - back).abs());
            assert!(off.fold(0.0, f32::max) <= scale, "{values:?} came back as {back:?}");
        }
    }

    #[test]
    fn what_no_encoder_writes_is_refused() {
        let read = |scale: f32, block: &[u8]| dequantize(scale, block, &mut Vec::new());
        assert_eq!(read(1.0, &[127, 0]), Ok(()));
        assert_eq!(read(1.0, &[129]), Ok(()), "-127 is as good as 127");
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::from_bits(1), f32::MAX / 126.0] {
            assert_eq!(read(scale, &[127]), Err(DecodeError::Invalid("a scale")), "scale {scale} was accepted");
        }
        for block in [&[128u8, 127][..], &[126], &[]] {
            assert_eq!(read(1.0, block), Err(DecodeError::Invalid("a block of values")), "{block:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn the_error_is_at_most_half_a_step(values in prop::collection::vec(-1e30f32..1e30, 1..=BLOCK)) {
            prop_assume!(values.iter().any(|value| value.abs() >= SMALLEST));
            let (scale, back) = round_trip(&values);
            for (value, back) in values.iter().zip(back) {
                prop_assert!((value - back).abs() <= scale * 0.5001, "{} came back as {}", value, back);
            }
        }
    }
}
