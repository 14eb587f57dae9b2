//! Values in the upper half of an f32: 8 bits of exponent, 7 of fraction.

/// Rounds to the nearest value that fits into 16 bits, of two as near to the even one. A NaN stays one.
pub(super) fn round(value: f32) -> f32 {
    const UPPER: u32 = 0xffff_0000;
    const QUIET: u32 = 0x0040_0000;
    let bits = value.to_bits();
    if value.is_nan() {
        return f32::from_bits((bits | QUIET) & UPPER);
    }
    // Half of the last place that is kept, less one where that place is even. A carry out of the fraction is the next exponent.
    let half = 0x7fff + ((bits >> 16) & 1);
    f32::from_bits((bits + half) & UPPER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_to_the_nearest_and_halves_to_the_even_one() {
        let place = f32::EPSILON * 65536.0;
        for (value, expected) in [
            (1.0, 1.0),
            (-0.0, -0.0),
            (1.0 + 0.5 * place, 1.0),
            (1.0 + 1.5 * place, 1.0 + 2.0 * place),
            (1.0 + 0.5 * place + f32::EPSILON, 1.0 + place),
            (-1.0 - 0.5 * place, -1.0),
            (2.0 - f32::EPSILON, 2.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (f32::from_bits(1), 0.0),
        ] {
            assert_eq!(round(value).to_bits(), expected.to_bits(), "{value}");
        }
    }

    #[test]
    fn a_nan_whose_upper_half_is_that_of_infinity_stays_a_nan() {
        for bits in [0x7f80_0001, 0xff80_0001, u32::MAX, 0x7fc0_0000] {
            let rounded = round(f32::from_bits(bits));
            assert!(rounded.is_nan() && rounded.to_bits() & 0xffff == 0, "{bits:x}");
        }
    }
}
