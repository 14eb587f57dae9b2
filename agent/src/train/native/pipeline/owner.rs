//! What the owner of a round knows besides its first part: the losses, and what the layers come to.

use std::collections::VecDeque;
use std::ops::Range;

use super::content::{Assembly, Contribution};
use super::error::ParcelError;
use crate::pod::LayerContent;

/// The owner's side of a round.
#[derive(Debug)]
pub(super) struct Owner {
    /// Sums of the losses of steps, which were not reported.
    waiting: VecDeque<f64>,
    /// Losses that arrived.
    losses: u32,
    /// What the layers come to, where the round is to be sent.
    assembly: Option<Assembly>,
}

impl Owner {
    /// The owner of a round. Without an `assembly` it is over after the last step.
    pub(super) fn new(assembly: Option<Assembly>) -> Self {
        Self { waiting: VecDeque::new(), losses: 0, assembly }
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

    /// Takes what a layer comes to, of the part that has this range of the model.
    ///
    /// # Errors
    /// It is not awaited, or is not sound.
    pub(super) fn take_layer(&mut self, part: &Range<usize>, content: LayerContent) -> Result<(), ParcelError> {
        match &mut self.assembly {
            Some(assembly) => assembly.take(part, content),
            None => Err(ParcelError::Unexpected { what: "a layer's content" }),
        }
    }

    /// Returns the loss of the next step that was not reported.
    pub(super) fn loss(&mut self) -> Option<f64> {
        self.waiting.pop_front()
    }

    /// Returns how many losses arrived.
    pub(super) fn losses(&self) -> u32 {
        self.losses
    }

    /// Returns whether the content of a layer of the part that has this range of the model is not there.
    pub(super) fn is_without(&self, part: &Range<usize>) -> bool {
        self.assembly.as_ref().is_some_and(|assembly| assembly.is_without(part))
    }

    /// Returns whether the loss of each of `steps` steps and the content of every layer are there.
    pub(super) fn is_through(&self, steps: u32) -> bool {
        self.losses == steps && self.assembly.as_ref().is_none_or(Assembly::is_whole)
    }

    /// Takes what the round comes to, once all of it is there.
    pub(super) fn contribution(&mut self) -> Option<Contribution> {
        self.assembly.take_if(|assembly| assembly.is_whole()).map(Assembly::finish)
    }
}
