//! The numbers of attempts: each process of the coordinator has a range of its own, so that no number occurs twice at a lease.
//!
//! ```text
//!  starts of the run (durable) ─► start 7: 7 * 4096 .. 8 * 4096 - 1 ─► start 8: 8 * 4096 .. 9 * 4096 - 1
//! ```
//! No clock has a part in it. Attempts at one lease grow from process to process, and by one within a process.

use anabranch_common::limits;

/// The numbers that one process gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    first: u32,
    last: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self::of_start(0)
    }
}

impl Numbers {
    /// Returns the numbers of the run's start number `starts`. After `u32::MAX / POD_ATTEMPTS_PER_START` starts they begin again:
    /// leases that are older than that are of no use.
    pub(super) fn of_start(starts: u64) -> Self {
        let ranges = u64::from(u32::MAX / limits::POD_ATTEMPTS_PER_START);
        let range = u32::try_from(starts % ranges).unwrap_or(0);
        let first = range * limits::POD_ATTEMPTS_PER_START;
        // Attempts are counted from 1.
        Self { first: first.max(1), last: first + (limits::POD_ATTEMPTS_PER_START - 1) }
    }

    /// Returns the number of the attempt that follows `newest`, the largest one that is known.
    pub(super) fn after(self, newest: u32) -> u32 {
        newest.saturating_add(1).clamp(self.first, self.last)
    }

    /// Whether none is left for a lease whose largest attempt is `newest`.
    pub(super) fn are_used_up_by(self, newest: u32) -> bool {
        newest >= self.last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_later_process_gives_larger_numbers(starts in 0_u64..1 << 19, later in 1_u64..1 << 19, newest in 0_u32..1 << 20) {
            let (one, other) = (Numbers::of_start(starts), Numbers::of_start(starts + later));
            let newest = newest.min(one.last - 1);
            let given = one.after(newest);
            prop_assert!((one.first..=one.last).contains(&given));
            prop_assert!(other.after(given) > given && other.after(0) > one.last);
        }
    }

    #[test]
    fn numbers_count_from_one_and_are_used_up_at_the_end_of_their_range() {
        let first = Numbers::of_start(0);
        assert_eq!((first.after(0), first.after(1)), (1, 2));
        let last = limits::POD_ATTEMPTS_PER_START - 1;
        assert!(!first.are_used_up_by(last - 1) && first.are_used_up_by(last));
        let second = Numbers::of_start(1);
        assert_eq!((second.after(0), second.after(last)), (last + 1, last + 1));
        assert!(!second.are_used_up_by(last) && second.are_used_up_by(u32::MAX));
        let ranges = u64::from(u32::MAX / limits::POD_ATTEMPTS_PER_START);
        assert_eq!(Numbers::of_start(ranges), first);
        assert!(Numbers::of_start(ranges - 1).last < u32::MAX);
        assert_eq!(Numbers::of_start(u64::MAX), Numbers::of_start(u64::MAX % ranges));
    }
}
