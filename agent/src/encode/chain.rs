//! Which feedback states a child's encoder has, and what it has to be given.

use crate::encode::FeedbackSource;
use crate::session::event::FeedbackState;

/// The states of one child's encoder: a fresh one has the empty state.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// What the latest update went on from.
    from: FeedbackState,
    /// What it made.
    made: FeedbackState,
    /// How often in a row it made nothing.
    missed: u8,
}

/// Rounds in a row that an encoder makes nothing of until it is not asked any more.
const MISSES: u8 = 3;

/// The state that the next update goes on from.
#[derive(Debug, PartialEq)]
pub(crate) enum Origin {
    /// The child has it.
    Kept(FeedbackState),
    /// It has to be given; one value a parameter, or none.
    Given(FeedbackState, Vec<f32>),
}

impl Chain {
    /// What to go on from. While the latest update is still being banked the ledger has the state before it; it is taken for
    /// granted that it will be banked. If not, the ledger refuses what is made of it, and the next update gets the state anew.
    /// Nothing where the ledger has ended, or the encoder has.
    pub(crate) fn origin(&self, states: &dyn FeedbackSource) -> Option<Origin> {
        if self.missed >= MISSES {
            return None;
        }
        let current = states.current();
        if current == self.made || current == self.from {
            return Some(Origin::Kept(self.made));
        }
        states.fetch().map(|(state, values)| Origin::Given(state, values))
    }

    /// An update was made.
    pub(crate) fn went_on(&mut self, from: FeedbackState, made: FeedbackState) {
        *self = Self { from, made, missed: 0 };
    }

    /// It was asked for an update and made none; its log says why.
    pub(crate) fn missed(&mut self) {
        self.missed = self.missed.saturating_add(1);
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
