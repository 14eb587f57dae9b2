//! FedBuff (Nguyen et al. 2022, Algorithm 1) in delta form.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Arrival, MergeRule, RestoreError, SavedRule, check_no_parts, check_shape};
use crate::codec::Delta;

/// b += w * delta at every contribution; at a close, x += b and b = 0.
///
/// Each delta is taken against the base that its agent started from. (Subtracting the model of the moment instead, as
/// some public implementations do, undoes what was merged in between.)
#[derive(Debug, Clone)]
pub struct FedBuff {
    buffer: Vec<f32>,
}

impl FedBuff {
    /// An empty buffer for a model of `params` parameters.
    #[must_use]
    pub fn new(params: usize) -> Self {
        Self { buffer: vec![0.0; params] }
    }
}

impl MergeRule for FedBuff {
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        delta.add_scaled_to(&mut self.buffer, arrival.weight);
    }

    fn close(&mut self, model: &mut [f32]) {
        for (parameter, pending) in model.iter_mut().zip(&mut self.buffer) {
            *parameter += *pending;
            *pending = 0.0;
        }
    }

    fn save(&self) -> SavedRule<'_> {
        SavedRule { vectors: vec![Cow::Borrowed(&self.buffer)], parts: Vec::new() }
    }

    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError> {
        let SavedRule { mut vectors, parts } = saved;
        check_shape(&vectors, 1, self.buffer.len())?;
        check_no_parts(&parts)?;
        self.buffer = vectors.remove(0).into_owned();
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
        let mut merge = FedBuff::new(2);
        let mut model = [1.0, 1.0];
        merge.contribute(&model, &Arc::new(Delta::Dense(vec![2.0, 4.0])), &of_weight(0.5));
        assert_eq!((model, &*merge.save().vectors[0]), ([1.0, 1.0], &[1.0, 2.0][..]));
        let sparse = Delta::Sparse { len: 2, indices: vec![0], values: vec![2.0] };
        merge.contribute(&model, &Arc::new(sparse), &of_weight(0.5));
        assert_eq!((model, &*merge.save().vectors[0]), ([1.0, 1.0], &[2.0, 2.0][..]));
        merge.close(&mut model);
        assert_eq!((model, &*merge.save().vectors[0]), ([3.0, 3.0], &[0.0, 0.0][..]));
    }
}
