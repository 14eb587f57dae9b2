//! Delayed Nesterov momentum, after Liu et al. 2024, "Asynchronous Local-SGD Training for Language Modeling".
//!
//! Momentum that is applied at every arrival of a stale update amplifies what is stale. This rule applies each update at
//! once, without momentum, and the momentum once in N arrivals, from the mean of all N.
//!
//! ```text
//! w = server_lr / N * s(tau) * p          from the contribution; s is the staleness function, p the participation weight
//!
//! every close:            x += w delta;   b += w delta
//! every N-th close also:  m  = momentum m + b;   x += momentum m;   b = 0
//! ```
//! | symbol | key | default | meaning |
//! |---|---|---|---|
//! | N | `buffer_size` | - | arrivals between two steps along the momentum; the paper's is the number of workers |
//! | | `server_lr` | - | step along the mean of N updates |
//! | beta | `momentum` | 0.9 | decay of m, and the step along it |
//! | x, m, b | - | - | model, momentum, sum of the weighted updates since the last step along m: f32 |
//!
//! Every arrival makes a version. The paper writes g = -delta, and m in units of g; here `server_lr` is part of w, so that m
//! and b are in units of the step, and another `server_lr` acts on later updates alone. The paper's momentum activation c is
//! its default, 0.
//!
//! A mean is applied once: N arrivals and the step after them move x by the mean, and by momentum m. One public
//! implementation adds the mean a second time with m.
//!
//! Bad at: agents of very different speed with different data, which pull by how fast they are (`participation` corrects
//! that as far as arrivals go); an N far above the number of agents, whose momentum is old when it acts; an N below it, which
//! acts on a mean of the fast agents alone.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Arrival, MergeRule, MergeSpec, RestoreError, SavedRule, check_shape, only_part};
use crate::codec::Delta;
use crate::schema;

layout! {
    struct Progress { arrivals }
}

/// What is saved beside the vectors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Progress {
    /// Closes since the last step along the momentum, below N.
    arrivals: u32,
}

/// The rule with its state. See the [module](self).
#[derive(Debug, Clone)]
pub struct DelayedNesterov {
    buffer_size: u32,
    beta: f32,
    progress: Progress,
    sum: Vec<f32>,
    momentum: Vec<f32>,
    /// Contributions that wait for their close, each with its weight: at most one, since one is a full buffer.
    waiting: Vec<(Arc<Delta>, f32)>,
}

impl DelayedNesterov {
    /// Returns the rule with empty state for a model of `params` parameters.
    #[must_use]
    pub fn new(buffer_size: u32, momentum: f32, params: usize) -> Self {
        Self {
            buffer_size: buffer_size.max(1),
            beta: momentum,
            progress: Progress::default(),
            sum: vec![0.0; params],
            momentum: vec![0.0; params],
            waiting: Vec::new(),
        }
    }

    fn step_along_momentum(&mut self, model: &mut [f32]) {
        for ((parameter, momentum), sum) in model.iter_mut().zip(&mut self.momentum).zip(&mut self.sum) {
            *momentum = self.beta * *momentum + std::mem::take(sum);
            *parameter += self.beta * *momentum;
        }
    }
}

impl MergeRule for DelayedNesterov {
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        self.waiting.push((Arc::clone(delta), arrival.weight));
    }

    fn close(&mut self, model: &mut [f32]) {
        for (delta, weight) in self.waiting.drain(..) {
            delta.add_scaled_to(model, weight);
            delta.add_scaled_to(&mut self.sum, weight);
        }
        self.progress.arrivals += 1;
        if self.progress.arrivals >= self.buffer_size {
            self.progress.arrivals = 0;
            self.step_along_momentum(model);
        }
    }

    fn configure(&mut self, spec: &MergeSpec) {
        if let MergeSpec::DelayedNesterov { momentum, .. } = spec {
            self.beta = *momentum;
        }
    }

    /// The vectors b and m, and w * delta of a contribution that waits: entries that a sparse delta leaves out are -0, the
    /// number that changes no other when it is added. One part, the number of closes since the last step along m.
    fn save(&self) -> SavedRule<'_> {
        let mut vectors = vec![Cow::Borrowed(&self.sum[..]), Cow::Borrowed(&self.momentum[..])];
        vectors.extend(self.waiting.iter().map(|(delta, weight)| {
            let mut step = vec![-0.0; self.sum.len()];
            delta.add_scaled_to(&mut step, *weight);
            Cow::Owned(step)
        }));
        let progress = schema::encode(&self.progress, usize::MAX).expect("a number has bytes in every version");
        SavedRule { vectors, parts: vec![progress] }
    }

    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError> {
        let SavedRule { vectors, parts } = saved;
        check_shape(&vectors, vectors.len().clamp(2, 3), self.sum.len())?;
        let progress: Progress = only_part(&parts)?;
        if progress.arrivals >= self.buffer_size {
            return Err(RestoreError::Part(format!("{} arrivals of {}", progress.arrivals, self.buffer_size)));
        }
        let mut vectors = vectors.into_iter().map(Cow::into_owned);
        self.progress = progress;
        self.sum = vectors.next().unwrap_or_default();
        self.momentum = vectors.next().unwrap_or_default();
        self.waiting = vectors.map(|step| (Arc::new(Delta::Dense(step)), 1.0)).collect();
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

    fn arrive(rule: &mut DelayedNesterov, model: &mut [f32], weight: f32, values: &[f32]) {
        let arrival = Arrival::of(AgentId([1; 16]), weight);
        rule.contribute(model, &Arc::new(Delta::Dense(values.to_vec())), &arrival);
        rule.close(model);
    }

    #[test]
    fn the_rule_by_hand() {
        let (mut rule, mut model) = (DelayedNesterov::new(2, 0.5, 1), [1.0]);
        arrive(&mut rule, &mut model, 0.5, &[2.0]);
        assert_eq!((model, &*rule.save().vectors[1]), ([2.0], &[0.0][..]), "the first of two moves the model alone");
        arrive(&mut rule, &mut model, 0.5, &[4.0]);
        assert_eq!((model, &*rule.save().vectors[1]), ([5.5], &[3.0][..]), "2 + 2, and half of the momentum 3");
        arrive(&mut rule, &mut model, 0.5, &[2.0]);
        assert_eq!(model, [6.5]);
        arrive(&mut rule, &mut model, 0.5, &[0.0]);
        assert_eq!((model, &*rule.save().vectors[1]), ([7.75], &[2.5][..]), "m = 1.5 + 1");
    }

    /// A public implementation adds the mean to the model at the N-th arrival, beside the N updates that it is made of.
    #[test]
    fn the_mean_is_applied_once() {
        let (mut rule, mut model) = (DelayedNesterov::new(4, 0.0, 1), [0.0]);
        for value in [1.0, 2.0, 3.0, 6.0] {
            arrive(&mut rule, &mut model, 0.25, &[value]);
        }
        assert_eq!(model, [3.0], "without momentum, N updates move the model by their mean");
        assert_eq!(*rule.save().vectors[0], [0.0], "and the next mean begins anew");
    }

    #[test]
    fn a_count_beyond_the_buffer_is_refused() {
        let mut rule = DelayedNesterov::new(2, 0.9, 1);
        let saved = |arrivals: u32| SavedRule {
            vectors: vec![Cow::Owned(vec![0.0]); 2],
            parts: vec![arrivals.to_le_bytes().to_vec()],
        };
        assert_eq!([0, 1, 2].map(|arrivals| rule.restore(saved(arrivals)).is_ok()), [true, true, false]);
    }
}
