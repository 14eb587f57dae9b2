//! How the learning rate changes during a run.
//!
//! The coordinator computes the factor of a lease from the records before it, and journals it with
//! the lease: agents multiply, and every machine gets the same bits. Only `+ - * /` in f64 are
//! used, which round the same way everywhere; the cosine of a system's maths library does not.
//!
//! ```text
//!  1 ┤    ╭───╮                     progress: versions, or examples merged, before the lease
//!    │   ╱     ╲ cosine             below `warmup`: linearly from a tenth to 1
//!    │  ╱       ╲                   from there on what `kind` says
//!    │ ╱         ╲____ final_fraction
//!  0 ┼┴───┬──────┬───►
//!        warmup  length
//! ```

use serde::{Deserialize, Serialize};

/// The factor at the start of a warm-up. Not 0: the first round of every agent would be computed
/// for nothing.
const WARMUP_START: f64 = 0.1;
/// Terms of the cosine's series: the first one left out is below 2^-53 for angles up to pi/2.
const COSINE_TERMS: u32 = 11;

/// `[train.schedule]`: what the learning rate of `train.optimizer` is multiplied with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum LrSchedule {
    /// 1 throughout, once warmed up.
    Constant {
        /// What progress is counted in.
        #[serde(default)]
        over: ScheduleUnit,
        /// The factor rises linearly from a tenth to 1 during this much progress.
        #[serde(default)]
        warmup: u64,
    },
    /// Half a cosine from 1 down to `final_fraction` (Loshchilov and Hutter 2017, SGDR, without
    /// restarts).
    Cosine {
        /// What progress is counted in.
        #[serde(default)]
        over: ScheduleUnit,
        /// As in `Constant`.
        #[serde(default)]
        warmup: u64,
        /// Progress at which the end is reached, the warm-up included.
        length: u64,
        /// The factor from there on, in [0, 1].
        #[serde(default)]
        final_fraction: f32,
    },
    /// Multiplied with `factor` after each `every` of progress beyond the warm-up.
    Step {
        /// What progress is counted in.
        #[serde(default)]
        over: ScheduleUnit,
        /// As in `Constant`.
        #[serde(default)]
        warmup: u64,
        /// Progress from one step to the next.
        every: u64,
        /// What each step multiplies with, in (0, 1].
        factor: f32,
    },
}

/// What the progress of a schedule is counted in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleUnit {
    /// Model versions.
    #[default]
    Versions,
    /// Examples credited to the updates that were merged.
    Examples,
}

/// A key of `[train.schedule]` whose value makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleProblem {
    /// The dotted key.
    pub key: &'static str,
    /// What is there.
    pub found: String,
    /// What would be right.
    pub expected: String,
}

impl LrSchedule {
    /// Checks every value.
    ///
    /// # Errors
    /// The first key whose value makes no sense.
    pub fn check(&self) -> Result<(), ScheduleProblem> {
        let refuse =
            |key, found: String, expected: &str| Err(ScheduleProblem { key, found, expected: expected.into() });
        match *self {
            Self::Constant { .. } => Ok(()),
            Self::Cosine { warmup, length, .. } if length <= warmup => refuse(
                "train.schedule.length",
                length.to_string(),
                &format!("more than train.schedule.warmup ({warmup})"),
            ),
            Self::Cosine { final_fraction, .. } if !(0.0..=1.0).contains(&final_fraction) => {
                refuse("train.schedule.final_fraction", final_fraction.to_string(), "0 to 1")
            }
            Self::Step { every: 0, .. } => refuse("train.schedule.every", "0".to_owned(), "at least 1"),
            Self::Step { factor, .. } if !(factor > 0.0 && factor <= 1.0) => {
                refuse("train.schedule.factor", factor.to_string(), "more than 0 and at most 1")
            }
            Self::Cosine { .. } | Self::Step { .. } => Ok(()),
        }
    }

    /// What the progress is counted in.
    #[must_use]
    pub fn over(&self) -> ScheduleUnit {
        match self {
            Self::Constant { over, .. } | Self::Cosine { over, .. } | Self::Step { over, .. } => *over,
        }
    }

    /// The factor after this much progress, in [0, 1].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "learning rates are f32")]
    pub fn factor(&self, progress: u64) -> f32 {
        let (Self::Constant { warmup, .. } | Self::Cosine { warmup, .. } | Self::Step { warmup, .. }) = *self;
        if progress < warmup {
            return (WARMUP_START + (1.0 - WARMUP_START) * (progress as f64 / warmup as f64)) as f32;
        }
        let beyond = progress - warmup;
        let factor = match *self {
            Self::Constant { .. } => 1.0,
            Self::Cosine { length, final_fraction, .. } => {
                let all = length.saturating_sub(warmup);
                if beyond >= all {
                    return final_fraction;
                }
                let (last, share) = (f64::from(final_fraction), beyond as f64 / all as f64);
                last + (1.0 - last) * 0.5 * (1.0 + cosine_of_half_turns(share))
            }
            Self::Step { every, factor, .. } => power(f64::from(factor), beyond / every.max(1)),
        };
        factor as f32
    }
}

/// cos(pi `share`) for a share in [0, 1].
fn cosine_of_half_turns(share: f64) -> f64 {
    if share > 0.5 {
        return -cosine_of_half_turns(1.0 - share);
    }
    let angle = std::f64::consts::PI * share;
    let squared = angle * angle;
    // Horner's scheme for 1 - x^2/2! (1 - x^2/(3 4) (1 - ...)).
    (1..=COSINE_TERMS).rev().fold(1.0, |inner, term| {
        let twice = f64::from(2 * term);
        1.0 - squared / ((twice - 1.0) * twice) * inner
    })
}

/// `base` to the power of `exponent`, by squaring.
fn power(base: f64, exponent: u64) -> f64 {
    let (mut result, mut square, mut left) = (1.0, base, exponent);
    while left > 0 {
        if left % 2 == 1 {
            result *= square;
        }
        square *= square;
        left /= 2;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(warmup: u64, length: u64, final_fraction: f32) -> LrSchedule {
        LrSchedule::Cosine { over: ScheduleUnit::Versions, warmup, length, final_fraction }
    }

    fn step(warmup: u64, every: u64, factor: f32) -> LrSchedule {
        LrSchedule::Step { over: ScheduleUnit::Examples, warmup, every, factor }
    }

    fn close(found: f32, expected: f64) {
        assert!((f64::from(found) - expected).abs() < 1e-7, "{found} is not {expected}");
    }

    #[test]
    fn a_warm_up_rises_linearly_from_a_tenth_and_ends_at_one() {
        let schedule = LrSchedule::Constant { over: ScheduleUnit::Versions, warmup: 10 };
        for (progress, expected) in [(0, 0.1), (1, 0.19), (5, 0.55), (9, 0.91), (10, 1.0), (u64::MAX, 1.0)] {
            close(schedule.factor(progress), expected);
        }
        for schedule in [cosine(10, 20, 0.0), step(10, 5, 0.5)] {
            close(schedule.factor(0), 0.1);
            close(schedule.factor(10), 1.0);
        }
        close(LrSchedule::Constant { over: ScheduleUnit::Versions, warmup: 0 }.factor(0), 1.0);
    }

    #[test]
    fn a_cosine_starts_at_one_is_half_way_in_the_middle_and_stays_at_its_end() {
        let schedule = cosine(0, 1000, 0.0);
        assert_eq!(schedule.factor(0).to_bits(), 1.0f32.to_bits());
        close(schedule.factor(500), 0.5);
        close(schedule.factor(250), 0.5 + 0.5 * std::f64::consts::FRAC_1_SQRT_2);
        for progress in [1000, 1001, u64::MAX] {
            assert_eq!(schedule.factor(progress).to_bits(), 0.0f32.to_bits(), "the end is exact");
        }
        let schedule = cosine(50, 1050, 0.2);
        close(schedule.factor(550), 0.6);
        assert_eq!(schedule.factor(1050).to_bits(), 0.2f32.to_bits());
        let falling = (50..1050).map(|progress| schedule.factor(progress));
        assert!(falling.clone().zip(falling.skip(1)).all(|(before, after)| after < before));
    }

    /// The series is the cosine, to the last bits of an f32 and beyond; the bits below were
    /// computed once.
    #[test]
    fn the_cosine_is_right_and_its_bits_are_fixed() {
        for part in 0..=1000 {
            let share = f64::from(part) / 1000.0;
            let (found, expected) = (cosine_of_half_turns(share), (std::f64::consts::PI * share).cos());
            assert!((found - expected).abs() < 1e-15, "cos(pi {share}) is {expected}, found {found}");
        }
        let bits = [1, 333, 700, 999].map(|progress| cosine(0, 1000, 0.0).factor(progress).to_bits());
        assert_eq!(bits, [0x3F7F_FFD7, 0x3F40_1DB5, 0x3E53_0DD0, 0x3625_9598]);
    }

    #[test]
    fn steps_multiply_and_a_long_way_ends_at_nothing() {
        let schedule = step(100, 300, 0.1);
        for (progress, expected) in [(100, 1.0), (399, 1.0), (400, 0.1), (699, 0.1), (700, 0.01), (1000, 0.001)] {
            close(schedule.factor(progress), expected);
        }
        assert_eq!(schedule.factor(u64::MAX).to_bits(), 0.0f32.to_bits());
        close(step(0, 1, 1.0).factor(u64::MAX), 1.0);
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let key = |schedule: LrSchedule| schedule.check().map_err(|problem| problem.key);
        assert_eq!(key(cosine(50, 1000, 0.1)), Ok(()));
        assert_eq!(key(cosine(1000, 1000, 0.1)), Err("train.schedule.length"));
        assert_eq!(key(cosine(0, 10, 1.5)), Err("train.schedule.final_fraction"));
        assert_eq!(key(cosine(0, 10, f32::NAN)), Err("train.schedule.final_fraction"));
        assert_eq!(key(step(0, 0, 0.5)), Err("train.schedule.every"));
        for factor in [0.0, -1.0, 1.5, f32::NAN] {
            assert_eq!(key(step(0, 10, factor)), Err("train.schedule.factor"));
        }
    }
}
