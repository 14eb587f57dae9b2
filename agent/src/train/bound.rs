//! How many examples a trainer may compute at once, after rounds that ran out of memory.

use serde::{Deserialize, Serialize};

/// Rounds that fit, until twice as many examples at once are tried again.
const PATIENCE_ROUNDS: u32 = 16;
/// The same where larger micro-batches have failed again and again.
const LONGEST_ROUNDS: u32 = 1_024;

/// The bound. Counted in rounds: the same outcomes give the same bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The most examples at once; nothing where nothing has failed.
    most: Option<u32>,
    /// Rounds that fit since the bound was set.
    fitted: u32,
    /// Rounds that must fit before it is raised.
    patience: u32,
    /// Whether it was raised since the last failure.
    raised: bool,
}

impl Default for Bound {
    fn default() -> Self {
        Self { most: None, fitted: 0, patience: PATIENCE_ROUNDS, raised: false }
    }
}

impl Bound {
    /// The most examples at once; nothing where nothing has failed.
    #[must_use]
    pub fn most(&self) -> Option<u32> {
        self.most
    }

    /// A round ran out of memory with `tried` examples at once: half of them from now on. What was raised too early waits
    /// twice as long the next time.
    pub fn failed(&mut self, tried: u32) -> u32 {
        let next = (tried / 2).max(1);
        let next = self.most.map_or(next, |most| most.min(next));
        if std::mem::take(&mut self.raised) {
            self.patience = self.patience.saturating_mul(2).min(LONGEST_ROUNDS);
        }
        (self.most, self.fitted) = (Some(next), 0);
        next
    }

    /// A round of batches of `batch` examples fitted. What the bound is raised to, if it is time for that; none is left
    /// where a whole batch is allowed again.
    pub fn fitted(&mut self, batch: u32) -> Option<u32> {
        let most = self.most?;
        self.fitted += 1;
        if self.fitted < self.patience {
            return None;
        }
        let next = most.saturating_mul(2).min(batch);
        (self.most, self.fitted, self.raised) = ((next < batch).then_some(next), 0, true);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rounds that fit until the bound is raised the next time, and what to.
    fn next_raise(bound: &mut Bound, batch: u32) -> Option<(u32, u32)> {
        (1..=2_000).find_map(|round| Some((round, bound.fitted(batch)?)))
    }

    #[test]
    fn a_bound_is_halved_at_once_and_doubled_with_patience_until_it_is_gone() {
        let mut bound = Bound::default();
        assert_eq!((bound.most(), next_raise(&mut bound, 32)), (None, None), "what never failed has no bound");
        assert_eq!((bound.failed(32), bound.failed(16), bound.most()), (16, 8, Some(8)));
        assert_eq!(next_raise(&mut bound, 32), Some((16, 16)));
        assert_eq!(next_raise(&mut bound, 32), Some((16, 32)));
        assert_eq!(bound.most(), None);
    }

    #[test]
    fn what_fails_again_after_it_was_raised_is_raised_more_and_more_rarely() {
        let mut bound = Bound::default();
        bound.failed(32);
        for rounds in [16, 32, 64, 128, 256, 512, 1_024, 1_024] {
            assert_eq!(next_raise(&mut bound, 32), Some((rounds, 32)));
            assert_eq!(bound.failed(32), 16);
        }
        assert_eq!((bound.failed(16), bound.failed(8)), (8, 4));
        assert_eq!(next_raise(&mut bound, 32), Some((1_024, 8)), "failures in a row are one lesson");
    }

    #[test]
    fn a_bound_is_at_least_one_example_and_never_grows_by_failing() {
        let mut bound = Bound::default();
        assert_eq!((bound.failed(3), bound.failed(1), bound.failed(1)), (1, 1, 1));
        assert_eq!(bound.failed(100), 1, "a child that never heard of the bound");
        assert_eq!(next_raise(&mut bound, 1), Some((16, 1)), "of batches of one example");
        assert_eq!(bound.most(), None);
    }
}
