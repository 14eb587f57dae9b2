//! Which of several addresses is tried when: Happy Eyeballs (RFC 8305), as a state machine without sockets or clocks.
//!
//! ```text
//!  addresses ─► in_order ─► Race ─┬─ due(now) ───► an address to start an attempt at
//!                                 ├─ wait_ms(now)  until the next one is due
//!                                 └─ failed(now) ◄ an attempt ended without a connection: the next one is due at once
//! ```
//! The first attempt that completes its handshake wins; the driver (`endpoint.rs`) cancels the others.

use std::collections::VecDeque;
use std::net::SocketAddr;

use anabranch_common::limits;

/// Returns the addresses in the order in which they are tried (RFC 8305, section 4): families alternate, beginning with
/// the family that the resolver put first; within a family the resolver's order stays. Repeated addresses are dropped, and
/// at most `limits::CONNECT_ADDRESSES` are kept.
pub(super) fn in_order(found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut unique = Vec::new();
    for address in found {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    let first_is_v6 = unique.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = unique.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            break;
        }
        order.extend(pair.into_iter().flatten());
    }
    order.truncate(limits::CONNECT_ADDRESSES);
    order
}

/// Attempts at one address after another. Moments are milliseconds since the race began.
#[derive(Debug)]
pub(super) struct Race<T> {
    waiting: VecDeque<T>,
    running: usize,
    /// From the start of an attempt to that of the next one.
    delay_ms: u64,
    /// When the next attempt is due.
    next_at_ms: u64,
}

impl<T> Race<T> {
    /// Returns a race over `order`, the first attempt of which is due at once, and each further one `delay_ms` later.
    pub(super) fn new(order: impl IntoIterator<Item = T>, delay_ms: u64) -> Self {
        Self { waiting: order.into_iter().collect(), running: 0, delay_ms, next_at_ms: 0 }
    }

    /// Returns the address of an attempt that is due, which counts as started from then on.
    pub(super) fn due(&mut self, now_ms: u64) -> Option<T> {
        if now_ms < self.next_at_ms {
            return None;
        }
        let address = self.waiting.pop_front()?;
        self.running += 1;
        self.next_at_ms = now_ms + self.delay_ms;
        Some(address)
    }

    /// Returns how long the next attempt has to wait; nothing when every address has been tried.
    pub(super) fn wait_ms(&self, now_ms: u64) -> Option<u64> {
        (!self.waiting.is_empty()).then(|| self.next_at_ms.saturating_sub(now_ms))
    }

    /// Counts an attempt that ended without a connection: the next one need not wait (RFC 8305, section 5).
    pub(super) fn failed(&mut self, now_ms: u64) {
        self.running = self.running.saturating_sub(1);
        self.next_at_ms = self.next_at_ms.min(now_ms);
    }

    /// Whether nothing runs and nothing waits.
    pub(super) fn is_lost(&self) -> bool {
        self.running == 0 && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: u64 = limits::CONNECT_ATTEMPT_DELAY_MS;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn families_alternate_from_the_first_one_on() {
        let six = ["[::1]:1", "[::2]:1", "[::3]:1"];
        let four = ["127.0.0.1:1", "127.0.0.2:1"];
        let found = addresses(&[six[0], six[1], six[2], four[0], four[1], six[0]]);
        assert_eq!(in_order(found), addresses(&[six[0], four[0], six[1], four[1], six[2]]));
        let found = addresses(&[four[0], six[0], six[1], four[0]]);
        assert_eq!(in_order(found), addresses(&[four[0], six[0], six[1]]));
        assert_eq!(in_order([]), []);
    }

    #[test]
    fn a_name_with_too_many_addresses_is_cut() {
        let many = (0..=u16::MAX).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let order = in_order(many.take(1000));
        assert_eq!(order.len(), limits::CONNECT_ADDRESSES);
    }

    /// Silent addresses: one attempt starts each 250 ms, and all of them run on.
    #[test]
    fn attempts_start_a_fixed_delay_apart() {
        let order = addresses(&["[::1]:1", "127.0.0.1:1", "[::2]:1"]);
        let mut race = Race::new(order.clone(), DELAY);
        assert_eq!((race.wait_ms(0), race.due(0)), (Some(0), Some(order[0])));
        assert_eq!((race.due(0), race.wait_ms(1)), (None, Some(DELAY - 1)));
        assert_eq!((race.due(DELAY - 1), race.due(DELAY)), (None, Some(order[1])));
        assert_eq!((race.due(DELAY + 1), race.wait_ms(DELAY)), (None, Some(DELAY)));
        // A timer that fires late does not shorten the next wait.
        assert_eq!(race.due(5 * DELAY), Some(order[2]));
        assert_eq!((race.wait_ms(5 * DELAY), race.due(9 * DELAY)), (None, None));
        for _ in 0..2 {
            race.failed(9 * DELAY);
            assert!(!race.is_lost(), "an attempt still runs");
        }
        race.failed(9 * DELAY);
        assert!(race.is_lost());
    }

    /// A refusal leaves nothing to wait for.
    #[test]
    fn an_attempt_that_fails_makes_room_for_the_next_at_once() {
        let order = addresses(&["[::1]:1", "127.0.0.1:1", "[::2]:1"]);
        let mut race = Race::new(order.clone(), DELAY);
        assert_eq!(race.due(0), Some(order[0]));
        race.failed(10);
        assert_eq!((race.is_lost(), race.wait_ms(10), race.due(10)), (false, Some(0), Some(order[1])));
        assert_eq!(race.wait_ms(10), Some(DELAY), "measured from the newest attempt");
        race.failed(20);
        assert_eq!(race.due(20), Some(order[2]));
        race.failed(30);
        assert!(race.is_lost());
        assert!(Race::<SocketAddr>::new([], DELAY).is_lost());
    }
}
