//! FedAvgM, after Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
//! Classification", section 4.3: [federated averaging](super::fedavg) with momentum at the server, behind a
//! [barrier](super::barrier).
//!
//! ```text
//! every contribution:  b += n_i w_i delta_i;   n += n_i          as in federated averaging
//! close:               v  = beta v + b / n
//!                      x += server_lr v;   b = 0;   n = 0
//! ```
//! | symbol | key | default | meaning |
//! |---|---|---|---|
//! | beta | `momentum` | 0.9 | decay of the momentum, in [0, 1); the paper tries 0 to 0.997 |
//! | server_lr | `server_lr` | 1 | step along the momentum |
//! | n_i | - | - | examples that the agent holds |
//! | x, b, v | - | - | model, sum of the round, momentum: f32 |
//!
//! At a close each parameter is computed in f64, from what is kept in f32, with `+ * /` only; the step uses v as it is kept.
//!
//! Bad at: what federated averaging is bad at, and a `server_lr` of 1 with much momentum and much local work: in the long
//! run the step is 1 / (1 - beta) times the mean.

use std::sync::Arc;

use super::fedavg::RoundMean;
use super::{Arrival, MergeRule, MergeSpec, RestoreError, SavedRule};
use crate::codec::Delta;

/// What a user may set.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Settings {
    server_lr: f64,
    beta: f64,
}

impl Settings {
    fn of(spec: &MergeSpec) -> Self {
        match spec {
            MergeSpec::FedAvgM { server_lr, momentum, .. } => {
                Self { server_lr: f64::from(*server_lr), beta: f64::from(*momentum) }
            }
            _ => Self::default(),
        }
    }
}

/// The rule with its state. See the [module](self).
#[derive(Debug, Clone)]
pub struct FedAvgM {
    settings: Settings,
    mean: RoundMean,
    v: Vec<f32>,
}

impl FedAvgM {
    /// Returns the rule with empty state for a model of `params` parameters.
    #[must_use]
    pub fn new(spec: &MergeSpec, params: usize) -> Self {
        Self { settings: Settings::of(spec), mean: RoundMean::new(params), v: vec![0.0; params] }
    }
}

impl MergeRule for FedAvgM {
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        self.mean.add(delta, arrival);
    }

    #[expect(clippy::cast_possible_truncation, reason = "model and momentum are f32")]
    fn close(&mut self, model: &mut [f32]) {
        let Settings { server_lr, beta } = self.settings;
        for ((x, v), mean) in model.iter_mut().zip(&mut self.v).zip(self.mean.take()) {
            *v = (beta * f64::from(*v) + mean) as f32;
            *x = (f64::from(*x) + server_lr * f64::from(*v)) as f32;
        }
    }

    fn configure(&mut self, spec: &MergeSpec) {
        self.settings = Settings::of(spec);
    }

    /// The vectors b and v. One part, n.
    fn save(&self) -> SavedRule<'_> {
        self.mean.save([&self.v])
    }

    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError> {
        self.mean.restore(saved, [&mut self.v])
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

    #[test]
    fn the_rule_by_hand() {
        let spec = MergeSpec::FedAvgM { server_lr: 0.5, momentum: 0.5, barrier: Barrier::default() };
        let (mut rule, mut model) = (FedAvgM::new(&spec, 1), [0.0]);
        round(&mut rule, &mut model, &[(2.0, 1.0, 30), (6.0, 1.0, 10)]);
        assert_eq!((model, &*rule.save().vectors[1]), ([1.5], &[3.0][..]), "v = 3");
        round(&mut rule, &mut model, &[(1.0, 1.0, 5)]);
        assert_eq!((model, &*rule.save().vectors[1]), ([2.75], &[2.5][..]), "v = 1.5 + 1");
    }
}
