//! The examples that agents hold, as far as they count.
//!
//! An agent's word decides how many examples it holds. So no agent's examples count for more than 8 times the
//! median: among N agents that hold about as many, a liar is taken for `SHARE_CAP / (N - 1 + SHARE_CAP)` of the whole at
//! most, and the others keep the rest. (A multiple of the mean is no bound, because the lie moves the mean.)

/// An agent's examples count as at most this many times the median (of an even number the smaller one in the middle).
const SHARE_CAP: u64 = 8;

/// The cap on what an agent is taken to hold, and the sum of what all are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    cap: u64,
    sum: u64,
}

impl Held {
    /// Of the examples that each agent says it holds. O(agents).
    pub(super) fn of(examples: impl Iterator<Item = u64>) -> Self {
        let mut all: Vec<u64> = examples.collect();
        let Some(middle) = all.len().checked_sub(1).map(|last| last / 2) else { return Self::default() };
        let (_, median, _) = all.select_nth_unstable(middle);
        let cap = median.saturating_mul(SHARE_CAP);
        Self { cap, sum: all.iter().map(|examples| (*examples).min(cap)).sum() }
    }

    /// Returns which part of all an agent holds that says it holds `examples`.
    pub(super) fn part(self, examples: u64) -> f64 {
        examples.min(self.cap) as f64 / self.sum as f64
    }
}

/// Returns how many of the `held` examples of an agent count, beside agents that say they hold as many as `present` says. The
/// agent itself may be among them. All count where `present` is empty.
#[must_use]
pub fn counted(held: u64, present: impl Iterator<Item = u64>) -> u64 {
    let all = Held::of(present.filter(|examples| *examples > 0));
    if all == Held::default() { held } else { held.min(all.cap) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_counts_up_to_a_multiple_of_the_median() {
        let honest = Held::of([100, 200, 300].into_iter());
        assert_eq!([100, 200, 300].map(|examples| honest.part(examples)), [100.0 / 600.0, 200.0 / 600.0, 0.5]);
        for claimed in [6_000 * SHARE_CAP, 1_000_000, u64::MAX] {
            let held = Held::of([6_000; 9].into_iter().chain([claimed]));
            assert_eq!((held.part(claimed), held.part(6_000)), (8.0 / 17.0, 1.0 / 17.0), "{claimed}");
        }
        assert_eq!(Held::of(std::iter::empty()), Held::default());
        let counted = |held, present: &[u64]| counted(held, present.iter().copied());
        assert_eq!(
            [counted(900, &[100; 3]), counted(700, &[100; 3]), counted(900, &[]), counted(9, &[0])],
            [800, 700, 900, 9]
        );
    }
}
