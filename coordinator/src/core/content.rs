//! The content of an upload as the core carries it: decoded and measured outside of the loop,
//! with its memory reserved.
//!
//! ```text
//!  transport ──► decode, measure, reserve ──► Event ─► Core ─► gate ─► Command::Merge ─► merger
//!                                                       │                                  │
//!                                                       └── refused: dropped               └── merged: dropped
//! ```
//! The reservation ends with the content. A record's payload never outlives it: the record waits
//! for the writer, and its content waits in the gate until the writer has answered.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use anabranch_common::codec::Delta;

/// Keeps memory reserved until its last clone is dropped. The core only carries it: the policy
/// of uploads puts its parts of the budgets into it, simulations and tests put nothing into it.
#[derive(Clone, Default)]
pub struct Reservation(Option<Arc<dyn Any + Send + Sync>>);

impl Reservation {
    /// Reserves whatever `guard` holds until it is dropped.
    #[must_use]
    pub fn of(guard: impl Any + Send + Sync) -> Self {
        Self(Some(Arc::new(guard)))
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Reservation(held)" } else { "Reservation(none)" })
    }
}

/// A decoded update or initial model, and what its admission needs to know of its values.
#[derive(Debug)]
pub struct Content {
    delta: Arc<Delta>,
    norm: f64,
    finite: bool,
    _reservation: Reservation,
}

impl Content {
    /// Measures a decoded vector. This reads every value: it does not belong on the loop.
    #[must_use]
    pub fn measure(delta: Delta, reservation: Reservation) -> Self {
        let norm = delta.norm();
        let finite = delta.is_finite() && norm.is_finite();
        Self { delta: Arc::new(delta), norm, finite, _reservation: reservation }
    }

    /// The vector.
    #[must_use]
    pub fn delta(&self) -> &Arc<Delta> {
        &self.delta
    }

    /// Euclidean norm of the vector (see [`Delta::norm`]).
    #[must_use]
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// Whether every value and the norm are finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.finite
    }
}

/// The same vector: norm and finiteness follow from it, and a reservation is no part of what is
/// said.
impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.delta == other.delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measure_is_that_of_the_vector() {
        let content = Content::measure(Delta::Dense(vec![3.0, -4.0]), Reservation::default());
        assert_eq!((content.norm(), content.is_finite()), (5.0, true));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let delta = Delta::Sparse { len: 9, indices: vec![1, 7], values: vec![0.5, value] };
            assert!(!Content::measure(delta, Reservation::default()).is_finite(), "{value}");
        }
        let largest = Content::measure(Delta::Dense(vec![f32::MAX; 3]), Reservation::default());
        assert!(largest.is_finite(), "its norm fits an f64");
    }

    #[test]
    fn a_reservation_ends_with_the_last_that_holds_it() {
        let guard = Arc::new(());
        let first = Reservation::of(Arc::clone(&guard));
        let second = first.clone();
        let content = Content::measure(Delta::Dense(vec![]), first);
        drop(second);
        assert_eq!(Arc::strong_count(&guard), 2, "the content holds it");
        drop(content);
        assert_eq!(Arc::strong_count(&guard), 1);
    }
}
