//! FADAS, after Wang, Wang, Lu and Chen 2024, "FADAS: Towards Federated Adaptive Asynchronous Optimization": a buffer, then
//! AMSGrad on the mean of its updates, with a smaller step where one of them was stale.
//!
//! ```text
//! w = 1 / K                               from the contribution, and damped as admission damps it
//!
//! every contribution:  b += w delta;   tau_max = max(tau_max, staleness)
//! close:               m     = beta_1 m + (1 - beta_1) b
//!                      v     = beta_2 v + (1 - beta_2) b^2
//!                      v_hat = max(v_hat, v)
//!                      eta   = server_lr                        where tau_max <= tau_c
//!                              min(server_lr, 1 / tau_max)      else
//!                      x    += eta m / (sqrt(v_hat) + epsilon);   b = 0;   tau_max = 0
//! ```
//! | symbol | key | default | meaning |
//! |---|---|---|---|
//! | K | `buffer_size` | - | updates in a version |
//! | eta | `server_lr` | - | step of a parameter, about; the paper's is 0.001 |
//! | beta_1, beta_2 | `beta_1`, `beta_2` | 0.9, 0.99 | decay of the moments |
//! | epsilon | `epsilon` | 1e-8 | added to the root of the second moment |
//! | tau_c | `tau_c` | 1 | staleness, in versions, up to which the step is whole |
//! | x, b, m, v, v_hat | - | - | model, mean of the buffer, moments: f32 |
//!
//! b is summed in f32. At a close each parameter is computed in f64, from what is kept in f32, with `+ - * /` and `sqrt` only;
//! the step uses m and v_hat as they are kept. Moments start at 0 and have no bias corrections, as in the paper. A moment below
//! [`LEAST_MOMENT`] is 0, and v is at most the largest f32.
//!
//! Bad at: agents of very different speed with different data, as FedBuff; a `server_lr` below 1 / `tau_max`, on which the
//! paper's bound for stale buffers has no effect; one huge update that is accepted, since v_hat never falls and its parameters
//! hardly move from then on (`admit.clip_norm_ratio` bounds it); parameters that change rarely, which a small epsilon lets
//! step as far as any.

use std::borrow::Cow;
use std::sync::Arc;

use super::recall::LEAST_MOMENT;
use super::{Arrival, MergeRule, MergeSpec, RestoreError, SavedRule, check_shape, only_part};
use crate::codec::Delta;
use crate::schema;

layout! {
    struct Buffered { staleness }
}

/// What is saved beside the vectors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Buffered {
    /// tau_max: the largest staleness in the buffer.
    staleness: u64,
}

/// What a user may set.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Settings {
    server_lr: f64,
    beta_1: f64,
    beta_2: f64,
    epsilon: f64,
    tau_c: u64,
}

impl Settings {
    fn of(spec: &MergeSpec) -> Self {
        match spec {
            MergeSpec::Fadas { server_lr, beta_1, beta_2, epsilon, tau_c, .. } => Self {
                server_lr: f64::from(*server_lr),
                beta_1: *beta_1,
                beta_2: *beta_2,
                epsilon: *epsilon,
                tau_c: *tau_c,
            },
            _ => Self::default(),
        }
    }

    /// eta, by the largest staleness in the buffer.
    fn step(&self, staleness: u64) -> f64 {
        if staleness <= self.tau_c { self.server_lr } else { self.server_lr.min(1.0 / staleness as f64) }
    }
}

/// The rule with its state. See the [module](self).
#[derive(Debug, Clone)]
pub struct Fadas {
    settings: Settings,
    buffered: Buffered,
    buffer: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    v_hat: Vec<f32>,
}

impl Fadas {
    /// Returns the rule with empty state for a model of `params` parameters.
    #[must_use]
    pub fn new(spec: &MergeSpec, params: usize) -> Self {
        let zeros = || vec![0.0; params];
        let (settings, buffered) = (Settings::of(spec), Buffered::default());
        Self { settings, buffered, buffer: zeros(), m: zeros(), v: zeros(), v_hat: zeros() }
    }
}

impl MergeRule for Fadas {
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        delta.add_scaled_to(&mut self.buffer, arrival.weight);
        self.buffered.staleness = self.buffered.staleness.max(arrival.staleness);
    }

    #[expect(clippy::cast_possible_truncation, reason = "models and moments are f32")]
    fn close(&mut self, model: &mut [f32]) {
        let Settings { beta_1, beta_2, epsilon, .. } = self.settings;
        let eta = self.settings.step(std::mem::take(&mut self.buffered).staleness);
        let second_moments = self.v.iter_mut().zip(&mut self.v_hat);
        let state = self.buffer.iter_mut().zip(&mut self.m).zip(second_moments);
        for (x, ((buffer, m), (v, v_hat))) in model.iter_mut().zip(state) {
            let mean = f64::from(std::mem::take(buffer));
            let first = beta_1 * f64::from(*m) + (1.0 - beta_1) * mean;
            let second = beta_2 * f64::from(*v) + (1.0 - beta_2) * (mean * mean);
            *m = if first.abs() < LEAST_MOMENT { 0.0 } else { first as f32 };
            *v = if second < LEAST_MOMENT { 0.0 } else { second.min(f64::from(f32::MAX)) as f32 };
            *v_hat = v_hat.max(*v);
            let step = eta * f64::from(*m) / (f64::from(*v_hat).sqrt() + epsilon);
            *x = (f64::from(*x) + step) as f32;
        }
    }

    fn configure(&mut self, spec: &MergeSpec) {
        self.settings = Settings::of(spec);
    }

    /// The vectors b, m, v and v_hat. One part, tau_max.
    fn save(&self) -> SavedRule<'_> {
        let vectors = [&self.buffer, &self.m, &self.v, &self.v_hat].map(|vector| Cow::Borrowed(&vector[..])).into();
        let buffered = schema::encode(&self.buffered, usize::MAX).expect("a number has bytes in every version");
        SavedRule { vectors, parts: vec![buffered] }
    }

    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError> {
        let SavedRule { vectors, parts } = saved;
        check_shape(&vectors, 4, self.m.len())?;
        self.buffered = only_part(&parts)?;
        let mut vectors = vectors.into_iter().map(Cow::into_owned);
        for vector in [&mut self.buffer, &mut self.m, &mut self.v, &mut self.v_hat] {
            *vector = vectors.next().unwrap_or_default();
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn MergeRule> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::AgentId;

    fn spec(server_lr: f32) -> MergeSpec {
        MergeSpec::Fadas { buffer_size: 2, server_lr, beta_1: 0.5, beta_2: 0.75, epsilon: 1.0, tau_c: 1 }
    }

    /// Merges two updates, each of this value, and returns by how much the model moves.
    fn version(rule: &mut Fadas, values: [f32; 2], staleness: [u64; 2]) -> f32 {
        let mut model = [0.0];
        for (value, staleness) in values.into_iter().zip(staleness) {
            let arrival = Arrival { staleness, ..Arrival::of(AgentId([1; 16]), 0.5) };
            rule.contribute(&model, &Arc::new(Delta::Dense(vec![value])), &arrival);
        }
        rule.close(&mut model);
        model[0]
    }

    #[test]
    fn the_rule_by_hand() {
        let mut rule = Fadas::new(&spec(1.0), 1);
        assert_eq!(version(&mut rule, [2.0, 6.0], [0, 1]), 2.0 / 3.0, "m = 2, v = 4");
        assert_eq!(rule.save().vectors, [&[0.0][..], &[2.0], &[4.0], &[4.0]]);
        assert_eq!(version(&mut rule, [0.0, 0.0], [0, 0]), 1.0 / 3.0, "m = 1, v = 3, and v_hat is still 4");
        assert_eq!(rule.save().vectors, [&[0.0][..], &[1.0], &[3.0], &[4.0]]);
    }

    #[test]
    fn the_largest_staleness_in_the_buffer_decides_on_the_step() {
        for (staleness, server_lr, whole) in
            [([0, 1], 1.0, 1.0), ([2, 0], 1.0, 0.5), ([0, 4], 1.0, 0.25), ([4, 0], 0.125, 0.125)]
        {
            let mut rule = Fadas::new(&spec(server_lr), 1);
            assert_eq!(version(&mut rule, [2.0, 6.0], staleness), whole * 2.0 / 3.0, "{staleness:?}");
            assert_eq!(version(&mut rule, [0.0, 0.0], [0, 0]), server_lr / 3.0, "the next buffer begins at 0");
        }
    }

    #[test]
    fn a_second_moment_that_does_not_fit_leaves_the_state_finite() {
        let mut rule = Fadas::new(&spec(1.0), 1);
        assert!(version(&mut rule, [1e30, 1e30], [0, 0]).is_finite());
        assert!(rule.is_finite());
        assert_eq!(rule.save().vectors[3][0], f32::MAX);
    }
}
