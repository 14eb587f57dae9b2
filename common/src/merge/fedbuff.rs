//! FedBuff.
use super::{MergeStrategy, RestoreError};
use crate::codec::Delta;
/// FedBuff.
#[derive(Debug)]
pub struct FedBuff {
    buffer: Vec<f32>,
}
impl FedBuff {
    /// Empty.
    #[must_use]
    pub fn new(params: usize) -> Self {
        Self { buffer: vec![0.0; params] }
    }
}
impl MergeStrategy for FedBuff {
    fn apply(&mut self, model: &mut [f32], delta: &Delta, weight: f32, closes: bool) {
        delta.add_scaled_to(&mut self.buffer, weight);
        if closes {
            for (x, b) in model.iter_mut().zip(&mut self.buffer) {
                *x += *b;
                *b = 0.0;
            }
        }
    }
    fn save(&self) -> Vec<&[f32]> {
        vec![&self.buffer]
    }
    fn restore(&mut self, mut state: Vec<Vec<f32>>) -> Result<(), RestoreError> {
        if let Some(b) = state.pop() {
            self.buffer = b;
        }
        Ok(())
    }
}
