//! FedBuff (Nguyen et al. 2022, Algorithm 1) in delta form.

use super::{MergeStrategy, RestoreError, check_shape};
use crate::codec::Delta;

/// b += w * delta at every update; at the K-th, x += b and b = 0.
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

impl MergeStrategy for FedBuff {
    fn apply(&mut self, model: &mut [f32], delta: &Delta, weight: f32, closes: bool) {
        delta.add_scaled_to(&mut self.buffer, weight);
        if closes {
            for (parameter, pending) in model.iter_mut().zip(&mut self.buffer) {
                *parameter += *pending;
                *pending = 0.0;
            }
        }
    }

    fn save(&self) -> Vec<&[f32]> {
        vec![&self.buffer]
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
    use crate::merge::MergeSpec;
    use crate::merge::staleness::Staleness;
    use crate::testkit;

    #[test]
    fn conforms() {
        for buffer_size in [1, 4] {
            let staleness = Staleness::Polynomial { a: 0.5 };
            let spec = MergeSpec::FedBuff { buffer_size, server_lr: 1.0, staleness, participation: true };
            testkit::merge::conformance(&spec);
        }
    }

    #[test]
    fn the_rule_by_hand() {
        let mut merge = FedBuff::new(2);
        let mut model = [1.0, 1.0];
        merge.apply(&mut model, &Delta::Dense(vec![2.0, 4.0]), 0.5, false);
        assert_eq!((model, merge.save()), ([1.0, 1.0], vec![&[1.0, 2.0][..]]));
        merge.apply(&mut model, &Delta::Sparse { len: 2, indices: vec![0], values: vec![2.0] }, 0.5, true);
        assert_eq!((model, merge.save()), ([3.0, 3.0], vec![&[0.0, 0.0][..]]));
    }
}
