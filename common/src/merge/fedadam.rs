//! FedAdam, after Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar and McMahan 2021, "Adaptive Federated Optimization",
//! Algorithm 2: Adam on the mean of a round's updates, behind a [barrier](super::barrier).
//!
//! ```text
//! every contribution:  b += n_i w_i delta_i;   n += n_i          as in federated averaging
//! close:               g  = b / n
//!                      m  = beta_1 m + (1 - beta_1) g            from 0
//!                      v  = beta_2 v + (1 - beta_2) g^2          from tau^2
//!                      x += server_lr m / (sqrt(v) + tau);   b = 0;   n = 0
//! ```
//! | symbol | key | default | meaning |
//! |---|---|---|---|
//! | eta | `server_lr` | - | step of a parameter, about; the paper's grid has 0.001 to 1 |
//! | beta_1, beta_2 | `beta_1`, `beta_2` | 0.9, 0.99 | decay of the moments |
//! | tau | `tau` | 0.001 | added to the root of the second moment: the smaller, the more adaptive |
//! | n_i | - | - | examples that the agent holds |
//! | x, b, m, v | - | - | model, sum of the round, moments: f32 |
//!
//! At a close each parameter is computed in f64, from what is kept in f32, with `+ - * /` and `sqrt` only; the step uses m
//! and v as they are kept. There are no bias corrections, as in the paper. A moment below [`LEAST_MOMENT`] is 0, and v is
//! at most the largest f32. Another `tau` counts at once in the step, and leaves v as it is.
//!
//! Bad at: what federated averaging is bad at, and a `tau` that does not fit the size of the updates: far above it the
//! step is that of plain momentum, far below it parameters that change rarely step as far as any.

use std::sync::Arc;

use super::fedavg::RoundMean;
use super::recall::LEAST_MOMENT;
use super::{Arrival, MergeRule, MergeSpec, RestoreError, SavedRule};
use crate::codec::Delta;

/// What a user may set.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Settings {
    server_lr: f64,
    beta_1: f64,
    beta_2: f64,
    tau: f64,
}

impl Settings {
    fn of(spec: &MergeSpec) -> Self {
        match spec {
            MergeSpec::FedAdam { server_lr, beta_1, beta_2, tau, .. } => {
                Self { server_lr: f64::from(*server_lr), beta_1: *beta_1, beta_2: *beta_2, tau: *tau }
            }
            _ => Self::default(),
        }
    }
}

/// The rule with its state. See the [module](self).
#[derive(Debug, Clone)]
pub struct FedAdam {
    settings: Settings,
    mean: RoundMean,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl FedAdam {
    /// Returns the rule with empty state for a model of `params` parameters.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "moments are f32")]
    pub fn new(spec: &MergeSpec, params: usize) -> Self {
        let settings = Settings::of(spec);
        let v = vec![(settings.tau * settings.tau) as f32; params];
        Self { settings, mean: RoundMean::new(params), m: vec![0.0; params], v }
    }
}

impl MergeRule for FedAdam {
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        self.mean.add(delta, arrival);
    }

    #[expect(clippy::cast_possible_truncation, reason = "model and moments are f32")]
    fn close(&mut self, model: &mut [f32]) {
        let Settings { server_lr, beta_1, beta_2, tau } = self.settings;
        let moments = self.m.iter_mut().zip(&mut self.v);
        for ((x, (m, v)), mean) in model.iter_mut().zip(moments).zip(self.mean.take()) {
            let first = beta_1 * f64::from(*m) + (1.0 - beta_1) * mean;
            let second = beta_2 * f64::from(*v) + (1.0 - beta_2) * (mean * mean);
            *m = if first.abs() < LEAST_MOMENT { 0.0 } else { first as f32 };
            *v = if second < LEAST_MOMENT { 0.0 } else { second.min(f64::from(f32::MAX)) as f32 };
            *x = (f64::from(*x) + server_lr * f64::from(*m) / (f64::from(*v).sqrt() + tau)) as f32;
        }
    }

    fn configure(&mut self, spec: &MergeSpec) {
        self.settings = Settings::of(spec);
    }

    /// The vectors b, m and v. One part, n.
    fn save(&self) -> SavedRule<'_> {
        self.mean.save([&self.m, &self.v])
    }

    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError> {
        self.mean.restore(saved, [&mut self.m, &mut self.v])
    }

    fn boxed(&self) -> Box<dyn MergeRule> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::barrier::Barrier;
    use super::super::fedavg::tests::round;
    use super::*;

    fn spec(tau: f64) -> MergeSpec {
        MergeSpec::FedAdam { server_lr: 1.0, beta_1: 0.5, beta_2: 0.75, tau, barrier: Barrier::default() }
    }

    #[test]
    fn the_rule_by_hand() {
        let (mut rule, mut model) = (FedAdam::new(&spec(2.0), 1), [0.0]);
        round(&mut rule, &mut model, &[(2.0, 1.0, 30), (6.0, 1.0, 15), (4.0, 1.0, 15)]);
        let g = (60.0 + 90.0 + 60.0) / 60.0;
        let (m, v) = (0.5 * g, 0.75 * 4.0 + 0.25 * g * g);
        assert_eq!(rule.save().vectors, [&[0.0][..], &[m], &[v]], "v begins at tau^2");
        assert!((model[0] - m / (v.sqrt() + 2.0)).abs() < 1e-6, "{model:?}");
    }

    #[test]
    fn a_second_moment_that_does_not_fit_leaves_the_state_finite() {
        let (mut rule, mut model) = (FedAdam::new(&spec(1e-3), 1), [0.0]);
        round(&mut rule, &mut model, &[(1e30, 1.0, 1)]);
        assert!(model[0].is_finite() && rule.is_finite());
        assert_eq!(rule.save().vectors[2][0], f32::MAX);
    }
}
