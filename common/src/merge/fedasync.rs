//! FedAsync.
use super::{MergeStrategy, RestoreError};
use crate::codec::Delta;
/// FedAsync.
#[derive(Debug)]
pub struct FedAsync;
impl MergeStrategy for FedAsync {
    fn apply(&mut self, model: &mut [f32], delta: &Delta, weight: f32, _: bool) {
        delta.add_scaled_to(model, weight);
    }
    fn save(&self) -> Vec<&[f32]> {
        vec![]
    }
    fn restore(&mut self, _: Vec<Vec<f32>>) -> Result<(), RestoreError> {
        Ok(())
    }
}
