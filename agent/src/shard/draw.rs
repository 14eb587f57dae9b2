//! Seeded random numbers for drawing batches and for splitting data sets.

use anabranch_common::rng::SplitMix64;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is for; streams of one seed are independent of each other.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// Which examples are in a batch.
    Batches = 1,
    /// Which examples an agent gets.
    Split = 2,
    /// Which examples are held out.
    HoldOut = 3,
}

/// A ChaCha8 stream. Everything but [`log_gamma`](Self::log_gamma) is exact, hence the same on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    pub(crate) fn new(seed: u64, purpose: Purpose) -> Self {
        let mut expand = SplitMix64::new(seed);
        let mut key = [0u8; 32];
        for word in key.chunks_exact_mut(8) {
            word.copy_from_slice(&expand.next_u64().to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(purpose as u64);
        Self(rng)
    }

    /// Uniform in `0..bound` (0 when `bound` is 0), by multiplication.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let product = u128::from(self.0.next_u64()) * (bound as u128);
        usize::try_from(product >> 64).expect("the high half is below `bound`, which is a usize")
    }

    /// Uniform in (0, 1): never 0, so that its logarithm is finite.
    fn open_unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// Fisher and Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Standard normal (Marsaglia's polar method).
    fn normal(&mut self) -> f64 {
        loop {
            let (u, v) = (2.0 * self.open_unit() - 1.0, 2.0 * self.open_unit() - 1.0);
            let s = u * u + v * v;
            if s > 0.0 && s < 1.0 {
                return u * (-2.0 * s.ln() / s).sqrt();
            }
        }
    }

    /// Logarithm of a Gamma(`shape`, 1) variate (Marsaglia and Tsang 2000; for `shape` < 1 their note's boost, kept in
    /// logarithms because u^(1/shape) underflows for small shapes).
    pub(crate) fn log_gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.open_unit().ln() / shape;
            return self.log_gamma(shape + 1.0) + boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let root = 1.0 + c * x;
            if root <= 0.0 {
                continue;
            }
            let v = root * root * root;
            if self.open_unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return (d * v).ln();
            }
        }
    }

    /// Shares that sum to 1, from a symmetric Dirichlet distribution.
    pub(crate) fn dirichlet(&mut self, alpha: f64, parts: usize) -> Vec<f64> {
        let logs: Vec<f64> = (0..parts).map(|_| self.log_gamma(alpha)).collect();
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logs.iter().map(|log| (log - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_has_its_mean_and_variance() {
        let mut draw = Draw::new(7, Purpose::Split);
        for shape in [0.3, 1.0, 4.5] {
            let values: Vec<f64> = (0..40_000).map(|_| draw.log_gamma(shape).exp()).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            assert!((mean / shape - 1.0).abs() < 0.05, "mean of Gamma({shape}) was {mean}");
            assert!((variance / shape - 1.0).abs() < 0.12, "variance of Gamma({shape}) was {variance}");
        }
    }

    #[test]
    fn dirichlet_shares_sum_to_one_even_for_tiny_alpha() {
        let mut draw = Draw::new(1, Purpose::Split);
        for alpha in [1e-6, 0.1, 100.0] {
            let shares = draw.dirichlet(alpha, 5);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{shares:?}");
        }
    }

    #[test]
    fn streams_are_pinned_and_purposes_differ() {
        let mut batches = Draw::new(42, Purpose::Batches);
        let first: Vec<usize> = (0..4).map(|_| batches.below(1000)).collect();
        let mut again = Draw::new(42, Purpose::Batches);
        assert_eq!(first, (0..4).map(|_| again.below(1000)).collect::<Vec<_>>());
        let mut split = Draw::new(42, Purpose::Split);
        assert_ne!(first, (0..4).map(|_| split.below(1000)).collect::<Vec<_>>());
    }
}
