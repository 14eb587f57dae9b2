//! When to try again: exponential, with full jitter from a seed that the caller passes in.

use crate::rng::SplitMix64;

/// A retry schedule. It never gives up; the caller decides when trying has no point.
#[derive(Debug, Clone)]
pub struct Backoff {
    first_ms: u64,
    max_ms: u64,
    attempt: u32,
    rng: SplitMix64,
}

impl Backoff {
    /// The first wait is up to `first_ms`, each later one up to twice the one before, never above `max_ms`.
    #[must_use]
    pub fn new(first_ms: u64, max_ms: u64, seed: u64) -> Self {
        Self { first_ms: first_ms.max(1), max_ms: max_ms.max(1), attempt: 0, rng: SplitMix64::new(seed) }
    }

    /// The next wait in milliseconds: between half of the current ceiling and the whole of it.
    pub fn next_ms(&mut self) -> u64 {
        let ceiling = self.first_ms.saturating_mul(1u64 << self.attempt.min(32)).min(self.max_ms);
        self.attempt = self.attempt.saturating_add(1);
        let floor = ceiling / 2;
        floor + self.rng.below(ceiling - floor + 1)
    }

    /// What was tried has worked: the next failure starts from the beginning.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_are_the_same_for_the_same_seed() {
        let waits = |seed| {
            let mut backoff = Backoff::new(100, 5_000, seed);
            (0..12).map(|_| backoff.next_ms()).collect::<Vec<_>>()
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
        for (i, wait) in waits(3).into_iter().enumerate() {
            let ceiling = (100u64 << i).min(5_000);
            assert!((ceiling / 2..=ceiling).contains(&wait), "wait {i} is {wait} ms, ceiling {ceiling} ms");
        }
    }
}
