//! FedBuff (Nguyen et al. 2022, Algorithm 1) in delta form.

use std::borrow::Cow;
use std::sync::Arc;

use super::{MergeRule, RestoreError, check_shape};
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
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, weight: f32) {
        delta.add_scaled_to(&mut self.buffer, weight);
    }

    fn close(&mut self, model: &mut [f32]) {
        for (parameter, pending) in model.iter_mut().zip(&mut self.buffer) {
            *parameter += *pending;
            *pending = 0.0;
        }
    }

    fn save(&self) -> Vec<Cow<'_, [f32]>> {
        vec![Cow::Borrowed(&self.buffer)]
    }

    fn restore(&mut self, mut state: Vec<Vec<f32>>) -> Result<(), RestoreError> {
        check_shape(&state, 1, self.buffer.len())?;
        self.buffer = state.remove(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_by_hand() {
        let mut merge = FedBuff::new(2);
        let mut model = [1.0, 1.0];
        merge.contribute(&model, &Arc::new(Delta::Dense(vec![2.0, 4.0])), 0.5);
        assert_eq!((model, &*merge.save()[0]), ([1.0, 1.0], &[1.0, 2.0][..]));
        let sparse = Delta::Sparse { len: 2, indices: vec![0], values: vec![2.0] };
        merge.contribute(&model, &Arc::new(sparse), 0.5);
        assert_eq!((model, &*merge.save()[0]), ([1.0, 1.0], &[2.0, 2.0][..]));
        merge.close(&mut model);
        assert_eq!((model, &*merge.save()[0]), ([3.0, 3.0], &[0.0, 0.0][..]));
    }
}
