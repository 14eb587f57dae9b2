//! Which state of the error feedback the ledger has, for encoders elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::session::event::FeedbackState;

/// The ledger's state by number, and numbers for new ones. The ledger changes it; others look.
#[derive(Debug, Default)]
pub struct States {
    current: AtomicU64,
    last: AtomicU64,
    there: AtomicU64,
}

impl States {
    /// The ledger's.
    #[must_use]
    pub fn current(&self) -> FeedbackState {
        FeedbackState(self.current.load(Ordering::Acquire))
    }

    /// A number that no state has.
    #[must_use]
    pub fn fresh(&self) -> FeedbackState {
        FeedbackState(1 + self.last.fetch_add(1, Ordering::Relaxed))
    }

    /// How many updates were taken as their trainer had encoded them.
    #[must_use]
    pub fn encoded_there(&self) -> u64 {
        self.there.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, state: FeedbackState) {
        self.current.store(state.0, Ordering::Release);
    }

    pub(crate) fn count_one_from_there(&self) {
        self.there.fetch_add(1, Ordering::Relaxed);
    }
}
