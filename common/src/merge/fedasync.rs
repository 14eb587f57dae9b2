//! FedAsync (Xie et al. 2019) in delta form.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Arrival, MergeRule, RestoreError, SavedRule, check_no_parts, check_shape};
use crate::codec::Delta;

/// x += w * delta at every close.
///
/// The paper mixes whole models, x = (1 - alpha) x + alpha x_agent, which drags x back towards the base that the agent
/// started from; with the delta against that base only the agent's own work is added.
#[derive(Debug, Clone)]
pub struct FedAsync {
    params: usize,
    /// Contributions that wait for their close, each with its weight: at most one, since one is a full buffer.
    waiting: Vec<(Arc<Delta>, f32)>,
}

impl FedAsync {
    /// Returns the rule with nothing that waits, for a model of `params` parameters.
    #[must_use]
    pub fn new(params: usize) -> Self {
        Self { params, waiting: Vec::new() }
    }
}

impl MergeRule for FedAsync {
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        self.waiting.push((Arc::clone(delta), arrival.weight));
    }

    fn close(&mut self, model: &mut [f32]) {
        for (delta, weight) in self.waiting.drain(..) {
            delta.add_scaled_to(model, weight);
        }
    }

    /// One vector for each contribution that waits, w * delta. An entry that a sparse delta leaves out is -0, the number
    /// that changes no other when it is added.
    fn save(&self) -> SavedRule<'_> {
        let step = |(delta, weight): &(Arc<Delta>, f32)| {
            let mut step = vec![-0.0; self.params];
            delta.add_scaled_to(&mut step, *weight);
            Cow::Owned(step)
        };
        SavedRule { vectors: self.waiting.iter().map(step).collect(), parts: Vec::new() }
    }

    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError> {
        let SavedRule { vectors, parts } = saved;
        check_shape(&vectors, vectors.len().min(1), self.params)?;
        check_no_parts(&parts)?;
        self.waiting = vectors.into_iter().map(|step| (Arc::new(Delta::Dense(step.into_owned())), 1.0)).collect();
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

    fn of_weight(weight: f32) -> Arrival<'static> {
        Arrival::of(AgentId([1; 16]), weight)
    }

    #[test]
    fn the_rule_by_hand() {
        let (mut merge, mut model) = (FedAsync::new(3), [1.0, 2.0, 3.0]);
        merge.contribute(&model, &Arc::new(Delta::Dense(vec![2.0, 0.0, -4.0])), &of_weight(0.5));
        assert_eq!(merge.save().vectors, [&[1.0, 0.0, -2.0][..]]);
        merge.close(&mut model);
        let sparse = Delta::Sparse { len: 3, indices: vec![1], values: vec![8.0] };
        merge.contribute(&model, &Arc::new(sparse), &of_weight(0.25));
        assert_eq!(model, [2.0, 2.0, 1.0], "a contribution alone moves nothing");
        merge.close(&mut model);
        assert_eq!((model, merge.save().vectors.len()), ([2.0, 4.0, 1.0], 0));
    }

    /// A model may hold -0, to which 0 must not be added where the delta has no entry.
    #[test]
    fn a_saved_step_keeps_the_sign_of_every_zero() {
        let sparse = Arc::new(Delta::Sparse { len: 3, indices: vec![1], values: vec![-3.0] });
        for weight in [0.0, 0.25] {
            let (mut whole, mut model) = (FedAsync::new(3), [-0.0_f32, -0.0, 0.0]);
            whole.contribute(&model, &sparse, &of_weight(weight));
            let (mut resumed, mut copy) = (FedAsync::new(3), model);
            resumed.restore(whole.save().into_owned()).expect("one vector");
            whole.close(&mut model);
            resumed.close(&mut copy);
            assert_eq!(model.map(f32::to_bits), copy.map(f32::to_bits), "weight {weight}");
        }
    }
}
