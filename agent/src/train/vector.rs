//! Sums and products of rows, for [vectorized loops](anabranch_common::vector). Every sum has its order written out.

pub(super) use anabranch_common::vectorized;

/// Sums that are kept side by side, so that one row keeps a vector unit busy.
const LANES: usize = 16;

/// Sum of a row in a fixed order.
#[inline(always)]
pub(super) fn total(row: &[f32]) -> f32 {
    lanes(row, [0.0; LANES], |sum, value| sum + value).iter().sum()
}

/// Sum of products of two rows of equal length, in a fixed order.
#[inline(always)]
pub(super) fn dot(row: &[f32], other: &[f32]) -> f32 {
    let (chunks, others) = (row.chunks_exact(LANES), other.chunks_exact(LANES));
    let rest: f32 = chunks.remainder().iter().zip(others.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0f32; LANES];
    for (chunk, other) in chunks.zip(others) {
        for lane in 0..LANES {
            sums[lane] += chunk[lane] * other[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Largest value of a row; a NaN is passed over.
#[inline(always)]
pub(super) fn largest(row: &[f32]) -> f32 {
    let most = |most: f32, value: f32| if value > most { value } else { most };
    lanes(row, [f32::NEG_INFINITY; LANES], most).into_iter().fold(f32::NEG_INFINITY, most)
}

#[inline(always)]
fn lanes(row: &[f32], mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let chunks = row.chunks_exact(LANES);
    for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = combine(*lane, *value);
    }
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = combine(*lane, *value);
        }
    }
    lanes
}

/// `e^x` within 2e-7 of it, relatively (Cephes, `expf`), for x from -87 to 88; beyond that the value at that end. NaN
/// stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it to a small number rounds that to an integer, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series =
        ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r + 0.5;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (series * r * r + r + 1.0) * power
}

/// Share of a standard normal distribution below x, within 1e-6 of it, relatively, down to x = -5 (Press et al.,
/// Numerical Recipes, `erfcc`).
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "coefficients as they are printed")]
pub(super) fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    // Written out: the compiler makes no vectors of a loop in a loop.
    let series = ((((0.170_872_77 * t - 0.822_152_23) * t + 1.488_515_87) * t - 1.135_203_98) * t + 0.278_868_07) * t;
    let series =
        ((((series - 0.186_288_06) * t + 0.096_784_18) * t + 0.374_091_96) * t + 1.000_023_68) * t - 1.265_512_23;
    let tail = 0.5 * t * exp(series - z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// Density of a standard normal distribution.
#[inline(always)]
pub(super) fn normal_density(x: f32) -> f32 {
    /// 1 / sqrt(2 pi)
    const AT_0: f32 = 0.398_942_3;
    AT_0 * exp(-0.5 * x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_standard_library() {
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 2e-7, "exp({x}) is {expected}, not {found}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan(), "a NaN must not be hidden");
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn the_normal_distribution_is_that_of_its_density() {
        // Simpson's rule in steps of 1/64, from -8 on, where less than 1e-15 is below.
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let (step, mut below) = (1.0 / 64.0, 0.0);
        for index in 0..(16 * 64) {
            let x = f64::from(index) * step - 8.0;
            below += step / 6.0 * (density(x) + 4.0 * density(x + step / 2.0) + density(x + step));
            let x = x + step;
            #[expect(clippy::cast_possible_truncation, reason = "a multiple of 1/64")]
            let (found, slope) = (f64::from(normal_cdf(x as f32)), f64::from(normal_density(x as f32)));
            if x >= -5.0 {
                assert!((found / below - 1.0).abs() < 2e-6, "at {x}: {found}, expected {below}");
            }
            assert!((slope - density(x)).abs() < 1e-7, "at {x}: {slope}, expected {}", density(x));
        }
        assert!(normal_cdf(f32::NAN).is_nan(), "a NaN must not be hidden");
    }

    #[test]
    fn rows_of_any_length_are_summed_whole() {
        for length in [0, 1, 15, 16, 17, 40] {
            let row: Vec<f32> = (0..length).map(|value| value as f32).collect();
            let sum = (length * (length - 1)) as f32 / 2.0;
            assert_eq!(total(&row), sum);
            assert_eq!(dot(&row, &vec![2.0; row.len()]), 2.0 * sum);
            assert_eq!(largest(&row), row.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }

    #[test]
    fn an_expression_gives_the_same_bits_with_and_without_wide_vectors() {
        let mut rng = anabranch_common::rng::SplitMix64::new(1);
        let row: Vec<f32> = (0..1000).map(|_| 4.0 * rng.next_signed_f32()).collect();
        let work = || row.iter().map(|x| normal_cdf(*x)).collect::<Vec<f32>>();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        assert_eq!(bits(vectorized!(work())), bits(work()));
        assert_eq!(vectorized!(total(&row)).to_bits(), total(&row).to_bits());
    }
}
