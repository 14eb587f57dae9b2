//! Wrong tokens, counted by address: beyond some of them an address is told to come later, and nothing is logged of them.
//!
//! A good token is taken whatever was counted: 256 bits cannot be guessed, and programs of one machine share an address, so
//! that a refusal would let any of them keep the operator out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anabranch_common::limits;
use anabranch_io::web::network;

const WINDOW: Duration = Duration::from_millis(limits::PAGE_WRONG_MS);

/// How many wrong tokens came from where.
#[derive(Debug, Default)]
pub(super) struct WrongTokens {
    counts: BTreeMap<IpAddr, Count>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    since: Instant,
    wrong: u32,
}

/// What one more wrong token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The first one of an address for a while: worth a line in the log.
    First,
    /// One of few.
    Another,
    /// One of too many.
    TooMany,
}

impl WrongTokens {
    /// Counts a wrong token.
    pub(super) fn count(&mut self, address: IpAddr, now: Instant) -> Wrong {
        let address = network(address);
        self.counts.retain(|_, count| now.saturating_duration_since(count.since) < WINDOW);
        if self.counts.len() >= limits::PAGE_WRONG_ADDRESSES && !self.counts.contains_key(&address) {
            let oldest = self.counts.iter().min_by_key(|(_, count)| count.since).map(|(address, _)| *address);
            oldest.map(|oldest| self.counts.remove(&oldest));
        }
        let count = self.counts.entry(address).or_insert(Count { since: now, wrong: 0 });
        count.wrong = count.wrong.saturating_add(1);
        match count.wrong {
            1 => Wrong::First,
            2..=limits::PAGE_WRONG_TOKENS => Wrong::Another,
            _ => Wrong::TooMany,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn an_address_with_too_many_wrong_tokens_is_told_so_for_a_while() {
        let (mut wrong, now) = (WrongTokens::default(), clock::monotonic());
        let (here, there) = ([10, 0, 0, 7].into(), [10, 0, 0, 8].into());
        assert_eq!(wrong.count(here, now), Wrong::First);
        for _ in 1..limits::PAGE_WRONG_TOKENS {
            assert_eq!(wrong.count(here, now), Wrong::Another);
        }
        assert_eq!(wrong.count(here, now + WINDOW - Duration::from_millis(1)), Wrong::TooMany);
        assert_eq!(wrong.count(there, now), Wrong::First);
        assert_eq!(wrong.count(here, now + WINDOW), Wrong::First, "its time is over");
    }

    #[test]
    fn addresses_beyond_the_bound_make_the_oldest_forgotten() {
        let (mut wrong, now) = (WrongTokens::default(), clock::monotonic());
        let address = |number: usize| IpAddr::from(u32::try_from(number).expect("few").to_be_bytes());
        for number in 0..=limits::PAGE_WRONG_ADDRESSES {
            assert_eq!(wrong.count(address(number), now + Duration::from_millis(number as u64)), Wrong::First);
        }
        assert_eq!(wrong.counts.len(), limits::PAGE_WRONG_ADDRESSES);
        let later = now + Duration::from_millis(limits::PAGE_WRONG_ADDRESSES as u64 + 1);
        assert_eq!(wrong.count(address(1), later), Wrong::Another);
        assert_eq!(wrong.count(address(0), later), Wrong::First, "it has made room");
    }
}
