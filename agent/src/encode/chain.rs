//! Which feedback states a child's encoder has, and what it has to be given: the agent's counterpart of the child's
//! [`RoundEncoder`](super::cuda::encoder::RoundEncoder).

use crate::encode::FeedbackSource;
use crate::session::event::FeedbackState;

/// The states of one child's encoder: a fresh one has the empty state.
#[derive(Debug, Default)]
pub struct Chain {
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
pub enum Origin {
    /// The child has it.
    Kept(FeedbackState),
    /// It has to be given; one value a parameter, or none.
    Given(FeedbackState, Vec<f32>),
}

impl Chain {
    /// What to go on from. While the latest update is still being banked the ledger has the state before it; it is taken for
    /// granted that it will be banked. If not, the ledger refuses what is made of it, and the next update gets the state anew.
    /// Nothing where the ledger has ended, or the encoder has.
    #[must_use]
    pub fn origin(&self, states: &dyn FeedbackSource) -> Option<Origin> {
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
    pub fn went_on(&mut self, from: FeedbackState, made: FeedbackState) {
        *self = Self { from, made, missed: 0 };
    }

    /// It was asked for an update and made none; its log says why.
    pub fn missed(&mut self) {
        self.missed = self.missed.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use anabranch_common::ids::BranchId;
    use anabranch_common::update::MemoryMark;

    use super::*;

    #[derive(Debug)]
    struct Numbered(u64);

    impl FeedbackSource for Numbered {
        fn current(&self) -> FeedbackState {
            FeedbackState(self.0)
        }

        fn fresh(&self) -> FeedbackState {
            FeedbackState(99)
        }

        fn fetch(&self) -> Option<(FeedbackState, Vec<f32>)> {
            (self.0 < 50).then(|| (FeedbackState(self.0), vec![1.0]))
        }

        fn held(&self, _: BranchId, _: Option<MemoryMark>, _: Range<usize>) -> Option<Vec<f32>> {
            None
        }
    }

    #[test]
    fn a_state_is_given_only_where_the_child_cannot_have_it() {
        let mut chain = Chain::default();
        let state = FeedbackState;
        assert_eq!(chain.origin(&Numbered(0)), Some(Origin::Kept(state(0))), "both have nothing");
        assert_eq!(chain.origin(&Numbered(5)), Some(Origin::Given(state(5), vec![1.0])), "the ledger was there before");
        chain.went_on(state(5), state(6));
        assert_eq!(chain.origin(&Numbered(5)), Some(Origin::Kept(state(6))), "it is still being banked");
        assert_eq!(chain.origin(&Numbered(6)), Some(Origin::Kept(state(6))), "it was banked");
        assert_eq!(chain.origin(&Numbered(7)), Some(Origin::Given(state(7), vec![1.0])), "something came back");
        assert_eq!(chain.origin(&Numbered(50)), None, "the ledger has ended");
        chain.missed();
        chain.missed();
        assert!(chain.origin(&Numbered(6)).is_some());
        chain.missed();
        assert_eq!(chain.origin(&Numbered(6)), None, "its device has failed");
    }
}
