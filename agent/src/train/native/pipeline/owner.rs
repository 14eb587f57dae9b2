//! What the owner of a round knows besides its first part: the losses, and what the parts were trained to.

use std::collections::VecDeque;

use super::error::ParcelError;

/// The owner's side of a round.
#[derive(Debug)]
pub(super) struct Owner {
    /// Sums of the losses of steps, which were not reported.
    waiting: VecDeque<f64>,
    /// Losses that arrived.
    losses: u32,
    /// The weights of each part at the end.
    trained: Vec<Option<Vec<f32>>>,
}

impl Owner {
    /// The owner of a round of so many parts.
    pub(super) fn new(parts: usize) -> Self {
        Self { waiting: VecDeque::new(), losses: 0, trained: vec![None; parts] }
    }

    /// Takes the loss of the next step, of the `steps` that the last part can be through with.
    ///
    /// # Errors
    /// There is no such step.
    pub(super) fn take_loss(&mut self, sum: f64, steps: u32) -> Result<(), ParcelError> {
        if self.losses >= steps {
            return Err(ParcelError::Unexpected { what: "a loss" });
        }
        self.losses += 1;
        self.waiting.push_back(sum);
        Ok(())
    }

    /// Takes what a part was trained to.
    ///
    /// # Errors
    /// It was there already.
    pub(super) fn take_trained(&mut self, part: usize, values: Vec<f32>) -> Result<(), ParcelError> {
        match self.trained.get_mut(part) {
            Some(trained @ None) => *trained = Some(values),
            _ => return Err(ParcelError::Unexpected { what: "trained weights" }),
        }
        Ok(())
    }

    /// Returns the loss of the next step that was not reported.
    pub(super) fn loss(&mut self) -> Option<f64> {
        self.waiting.pop_front()
    }

    /// Returns how many losses arrived.
    pub(super) fn losses(&self) -> u32 {
        self.losses
    }

    /// Returns whether the end of a part is not there.
    pub(super) fn is_without(&self, part: usize) -> bool {
        self.trained.get(part).is_some_and(Option::is_none)
    }

    /// Returns whether the loss of each of `steps` steps and the end of every part are there.
    pub(super) fn is_through(&self, steps: u32) -> bool {
        self.losses == steps && self.trained.iter().all(Option::is_some)
    }

    /// Takes the end of a part, if it is there.
    pub(super) fn trained(&mut self, part: usize) -> Option<Vec<f32>> {
        self.trained.get_mut(part).and_then(Option::take)
    }
}
