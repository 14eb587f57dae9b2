//! FedAsync (Xie et al. 2019) in delta form.

use super::{MergeStrategy, RestoreError, check_shape};
use crate::codec::Delta;

/// x += w * delta at every update.
///
/// The paper mixes whole models, x = (1 - alpha) x + alpha x_agent, which drags x back towards the base that the agent
/// started from; with the delta against that base only the agent's own work is added.
#[derive(Debug, Clone, Copy, Default)]
pub struct FedAsync;

impl MergeStrategy for FedAsync {
    fn apply(&mut self, model: &mut [f32], delta: &Delta, weight: f32, _closes: bool) {
        delta.add_scaled_to(model, weight);
    }

    fn save(&self) -> Vec<&[f32]> {
        Vec::new()
    }

    fn restore(&mut self, state: Vec<Vec<f32>>) -> Result<(), RestoreError> {
        check_shape(&state, 0, 0)
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
        for participation in [false, true] {
            let staleness = Staleness::Hinge { a: 10.0, b: 4 };
            testkit::merge::conformance(&MergeSpec::FedAsync { alpha: 0.6, staleness, participation });
        }
    }

    #[test]
    fn the_rule_by_hand() {
        let mut model = [1.0, 2.0, 3.0];
        FedAsync.apply(&mut model, &Delta::Dense(vec![2.0, 0.0, -4.0]), 0.5, true);
        let sparse = Delta::Sparse { len: 3, indices: vec![1], values: vec![8.0] };
        FedAsync.apply(&mut model, &sparse, 0.25, true);
        assert_eq!(model, [2.0, 4.0, 1.0]);
    }
}
