//! Whether a shard and a model belong together.

use super::architecture::Architecture;
use crate::shard::{Shard, same_shape};
use crate::train::TrainError;

/// What has to be known of a shard to tell; kept where the shard itself is out of reach.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    examples: usize,
    shape: Vec<u64>,
    classes: u32,
    /// Bytes, where it is text.
    text: Option<usize>,
}

impl Held {
    pub(crate) fn of(shard: &dyn Shard) -> Self {
        let text = shard.text().map(|text| text.bytes().len());
        Self { examples: shard.len(), shape: shard.input_shape().to_vec(), classes: shard.classes(), text }
    }

    /// # Errors
    /// What of the shard the model cannot take.
    pub(super) fn check(&self, architecture: &Architecture) -> Result<(), TrainError> {
        if self.examples == 0 {
            return Err(TrainError::EmptyShard);
        }
        match (&architecture.gpt, self.text) {
            (Some(gpt), Some(found)) if found as u64 <= u64::from(gpt.context) => {
                return Err(TrainError::TooShort { context: gpt.context, found });
            }
            (Some(_), Some(_)) => return Ok(()),
            (Some(_), None) => return Err(TrainError::NotText),
            (None, Some(_)) => return Err(TrainError::Text),
            (None, None) => {}
        }
        if !same_shape(&self.shape, &architecture.input) {
            return Err(TrainError::Shape { expected: architecture.input.clone(), found: self.shape.clone() });
        }
        let classes = architecture.classes;
        if self.classes > classes {
            return Err(TrainError::Classes { classes, largest: self.classes - 1 });
        }
        Ok(())
    }
}
