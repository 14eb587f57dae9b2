//! Federated averaging behind a [barrier](super::barrier): FedAvg, FedProx and synchronous SGD.
//!
//! ```text
//! n_i = examples of agent i            w_i = 1, and damped as admission damps it
//!
//! every contribution:  b += n_i w_i delta_i;   n += n_i
//! close:               x += server_lr * b / n;   b = 0;   n = 0
//! ```
//! | symbol | key | default | meaning |
//! |---|---|---|---|
//! | server_lr | `server_lr` | 1 | step along the mean; 1 replaces the model by the mean of the agents' models |
//! | mu | `mu` | - | FedProx alone: strength of the proximal term |
//! | n_i | - | - | examples that the agent holds; with synchronous SGD the examples of its batch |
//! | x, b | - | - | model, sum of the round: f32 |
//! | n | - | - | sum of the n_i |
//!
//! | strategy | source | what is different |
//! |---|---|---|
//! | `fedavg` | McMahan, Moore, Ramage, Hampson and Agüera y Arcas 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", Algorithm 1; `server_lr` as in Reddi et al. 2021, Algorithm 1 | - |
//! | `fedprox` | Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith 2020, "Federated Optimization in Heterogeneous Networks", Algorithm 2 | agents add `mu (w - w_base)` to each gradient. A round of theirs may have fewer steps than another one's |
//! | `sync-sgd` | Chen, Pan, Monga, Bengio and Jozefowicz 2016, "Revisiting Distributed Synchronous SGD", section 2 | a round is one step of plain SGD (`train.local_steps = 1`), so that a version is one step of one machine on the joined batch |
//!
//! The sum b is kept in f32. At a close each parameter is computed in f64 with `+ * /` only. A division of zero does not
//! occur: n_i is at least 1.
//!
//! Bad at: slow agents, for which everybody waits; many local steps on data of different kinds, where the mean of the
//! agents' models is not a good model (FedProx bounds how far they move apart, and learns more slowly for it);
//! synchronous SGD: a slow network, which carries a whole model and a whole gradient for each step.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Arrival, MergeRule, MergeSpec, RestoreError, SavedRule, check_shape, only_part};
use crate::codec::Delta;
use crate::schema;

layout! {
    struct Examples { examples }
}

/// What is saved beside the vectors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Examples {
    /// n: examples behind the sum.
    examples: u64,
}

/// The weighted mean of the updates of a round.
#[derive(Debug, Clone)]
pub(super) struct RoundMean {
    sum: Vec<f32>,
    examples: Examples,
}

impl RoundMean {
    /// Returns the mean of nothing, for a model of `params` parameters.
    pub(super) fn new(params: usize) -> Self {
        Self { sum: vec![0.0; params], examples: Examples::default() }
    }

    pub(super) fn params(&self) -> usize {
        self.sum.len()
    }

    #[expect(clippy::cast_possible_truncation, reason = "the sum is f32")]
    pub(super) fn add(&mut self, delta: &Delta, arrival: &Arrival<'_>) {
        let weight = arrival.mean_weight as f64 * f64::from(arrival.weight);
        delta.add_scaled_to(&mut self.sum, weight as f32);
        self.examples.examples = self.examples.examples.saturating_add(arrival.mean_weight);
    }

    /// Takes the mean, entry by entry, and begins the next one.
    pub(super) fn take(&mut self) -> impl Iterator<Item = f64> + '_ {
        let examples = std::mem::take(&mut self.examples).examples.max(1) as f64;
        self.sum.iter_mut().map(move |sum| f64::from(std::mem::take(sum)) / examples)
    }

    /// The sum as a vector, and n as a part.
    pub(super) fn save<'a>(&'a self, state: impl IntoIterator<Item = &'a Vec<f32>>) -> SavedRule<'a> {
        let vectors = std::iter::once(&self.sum).chain(state).map(|vector| Cow::Borrowed(&vector[..])).collect();
        let examples = schema::encode(&self.examples, usize::MAX).expect("a number has bytes in every version");
        SavedRule { vectors, parts: vec![examples] }
    }

    /// Takes over what [`save`](Self::save) gave, and gives the rest of the state to `state`.
    ///
    /// # Errors
    /// It has another number of vectors, vectors of another length, or other parts.
    pub(super) fn restore<const N: usize>(
        &mut self,
        saved: SavedRule<'static>,
        state: [&mut Vec<f32>; N],
    ) -> Result<(), RestoreError> {
        let SavedRule { vectors, parts } = saved;
        check_shape(&vectors, 1 + N, self.params())?;
        self.examples = only_part(&parts)?;
        let mut vectors = vectors.into_iter().map(Cow::into_owned);
        self.sum = vectors.next().unwrap_or_default();
        for (vector, saved) in state.into_iter().zip(vectors) {
            *vector = saved;
        }
        Ok(())
    }
}

/// The rule with its state. See the [module](self).
#[derive(Debug, Clone)]
pub struct FedAvg {
    server_lr: f64,
    mean: RoundMean,
}

impl FedAvg {
    /// Returns the rule with empty state for a model of `params` parameters.
    #[must_use]
    pub fn new(spec: &MergeSpec, params: usize) -> Self {
        Self { server_lr: step(spec), mean: RoundMean::new(params) }
    }
}

/// Step along the mean.
fn step(spec: &MergeSpec) -> f64 {
    match spec {
        MergeSpec::FedAvg { server_lr, .. } | MergeSpec::FedProx { server_lr, .. } => f64::from(*server_lr),
        _ => 1.0,
    }
}

impl MergeRule for FedAvg {
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        self.mean.add(delta, arrival);
    }

    #[expect(clippy::cast_possible_truncation, reason = "models are f32")]
    fn close(&mut self, model: &mut [f32]) {
        for (x, mean) in model.iter_mut().zip(self.mean.take()) {
            *x = (f64::from(*x) + self.server_lr * mean) as f32;
        }
    }

    fn configure(&mut self, spec: &MergeSpec) {
        self.server_lr = step(spec);
    }

    /// The vector b. One part, n.
    fn save(&self) -> SavedRule<'_> {
        self.mean.save([])
    }

    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError> {
        self.mean.restore(saved, [])
    }

    fn boxed(&self) -> Box<dyn MergeRule> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ids::AgentId;
    use crate::merge::barrier::Barrier;

    /// Merges a round: each update has this value in its one parameter, this weight and this many examples.
    pub(in crate::merge) fn round(rule: &mut dyn MergeRule, model: &mut [f32], updates: &[(f32, f32, u64)]) {
        for (value, weight, mean_weight) in updates {
            let arrival = Arrival { mean_weight: *mean_weight, ..Arrival::of(AgentId([1; 16]), *weight) };
            rule.contribute(model, &Arc::new(Delta::Dense(vec![*value])), &arrival);
        }
        rule.close(model);
    }

    fn spec(server_lr: f32) -> MergeSpec {
        MergeSpec::FedAvg { server_lr, barrier: Barrier::default() }
    }

    #[test]
    fn the_rule_by_hand() {
        let (mut rule, mut model) = (FedAvg::new(&spec(1.0), 1), [1.0]);
        round(&mut rule, &mut model, &[(2.0, 1.0, 30), (6.0, 1.0, 10)]);
        assert_eq!(model, [4.0], "1 + (30 * 2 + 10 * 6) / 40");
        round(&mut rule, &mut model, &[(-4.0, 1.0, 7)]);
        assert_eq!(model, [0.0], "the next round begins at 0");
        let (mut half, mut model) = (FedAvg::new(&spec(0.5), 1), [1.0]);
        round(&mut half, &mut model, &[(2.0, 1.0, 30), (6.0, 1.0, 10)]);
        assert_eq!(model, [2.5]);
    }

    /// The sum of weights is that of the examples: else a round of one clipped update would undo its clipping.
    #[test]
    fn what_admission_damps_is_damped_whoever_else_contributes() {
        let (mut rule, mut model) = (FedAvg::new(&spec(1.0), 1), [0.0]);
        round(&mut rule, &mut model, &[(8.0, 0.25, 10)]);
        assert_eq!(model, [2.0]);
        round(&mut rule, &mut model, &[(8.0, 0.25, 10), (0.0, 1.0, 10)]);
        assert_eq!(model, [3.0]);
    }

    #[test]
    fn a_mean_of_huge_numbers_of_examples_is_finite() {
        let (mut rule, mut model) = (FedAvg::new(&spec(1.0), 1), [0.0]);
        round(&mut rule, &mut model, &[(1.0, 1.0, u64::MAX), (1.0, 1.0, u64::MAX)]);
        assert!(model[0].is_finite() && rule.is_finite());
    }
}
