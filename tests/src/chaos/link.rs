//! What a bad line does to datagrams in one direction. No socket and no clock: both are the caller's.

use std::fmt;

use anabranch_common::rng::SplitMix64;
use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// What a queue before a slow line holds at most, in time; what comes then is dropped, as routers do.
const QUEUE_US: u64 = 500_000;
/// How much later a datagram comes that others overtake, in microseconds.
const REORDER_US: u64 = 25_000;

/// What happens to datagrams.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Conditions {
    /// Share that is lost (0..1).
    pub loss: f64,
    /// Time that each takes, in milliseconds.
    pub delay_ms: u64,
    /// Time that is drawn on top, up to this, in milliseconds.
    pub jitter_ms: u64,
    /// Share that later ones overtake (0..1).
    pub reorder: f64,
    /// Share that comes twice (0..1).
    pub duplicate: f64,
    /// Bits a second in thousands; 0 for no limit.
    pub rate_kbit: u64,
    /// Larger datagrams (bytes of UDP payload) vanish; 0 for no limit.
    pub mtu: usize,
    /// Nothing passes.
    pub cut: bool,
}

impl Conditions {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for (name, share) in [("loss", self.loss), ("reorder", self.reorder), ("duplicate", self.duplicate)] {
            ensure!((0.0..=1.0).contains(&share), "{name} must be 0 to 1, not {share}");
        }
        Ok(())
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cut {
            return f.write_str(" cut");
        }
        for (name, share) in [("loss", self.loss), ("reordered", self.reorder), ("duplicated", self.duplicate)] {
            if share > 0.0 {
                write!(f, " {name} {:.0} %", share * 100.0)?;
            }
        }
        if self.delay_ms + self.jitter_ms > 0 {
            write!(f, " {} ms + {}", self.delay_ms, self.jitter_ms)?;
        }
        if self.rate_kbit > 0 {
            write!(f, " {} kbit/s", self.rate_kbit)?;
        }
        if self.mtu > 0 {
            write!(f, " nothing above {} bytes", self.mtu)?;
        }
        Ok(())
    }
}

/// One direction of a line. Times are microseconds on the caller's clock.
#[derive(Debug)]
pub struct Channel {
    rng: SplitMix64,
    busy_until_us: u64,
}

impl Channel {
    /// The seed decides every loss, delay and copy.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: SplitMix64::new(seed), busy_until_us: 0 }
    }

    /// When a datagram of `bytes` arrives that is sent now: never, once or twice.
    pub fn send(&mut self, now_us: u64, bytes: usize, on: &Conditions) -> [Option<u64>; 2] {
        // As many draws for each datagram, whatever becomes of it.
        let [lost, reordered, doubled, jitter] = [(); 4].map(|()| self.rng.next_f64());
        if on.cut || lost < on.loss || (on.mtu > 0 && bytes > on.mtu) {
            return [None; 2];
        }
        let mut at_us = now_us;
        if let Some(takes_us) = (bytes as u64 * 8_000).checked_div(on.rate_kbit) {
            let start_us = self.busy_until_us.max(now_us);
            if start_us - now_us > QUEUE_US {
                return [None; 2];
            }
            self.busy_until_us = start_us + takes_us;
            at_us = self.busy_until_us;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a jitter of milliseconds"
        )]
        let jitter_us = (jitter * on.jitter_ms as f64 * 1e3) as u64;
        at_us += on.delay_ms * 1000 + jitter_us;
        if reordered < on.reorder {
            at_us += REORDER_US;
        }
        [Some(at_us), (doubled < on.duplicate).then_some(at_us + 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send_all(on: &Conditions, count: u64) -> Vec<[Option<u64>; 2]> {
        let mut channel = Channel::new(7);
        (0..count).map(|number| channel.send(number * 100, 1000, on)).collect()
    }

    #[test]
    fn a_good_line_changes_nothing() {
        let arrivals = send_all(&Conditions::default(), 100);
        assert!(arrivals.iter().zip(0..).all(|(arrival, number)| *arrival == [Some(number * 100), None]));
    }

    #[test]
    fn shares_are_what_they_say() {
        let on = Conditions { loss: 0.1, duplicate: 0.5, ..Conditions::default() };
        let arrivals = send_all(&on, 10_000);
        let lost = arrivals.iter().filter(|arrival| arrival[0].is_none()).count();
        let doubled = arrivals.iter().filter(|arrival| arrival[1].is_some()).count();
        assert!((850..1150).contains(&lost), "{lost}");
        assert!((4200..4800).contains(&doubled), "{doubled}");
        assert_eq!(arrivals, send_all(&on, 10_000), "the same seed, the same fate");
    }

    #[test]
    fn a_slow_line_spaces_datagrams_and_drops_what_its_queue_cannot_hold() {
        // 1000 bytes at 800 kbit/s take 10 ms.
        let on = Conditions { rate_kbit: 800, ..Conditions::default() };
        let arrivals = send_all(&on, 200);
        assert_eq!(arrivals[0][0], Some(10_000));
        assert_eq!(arrivals[1][0], Some(20_000));
        let through = arrivals.iter().filter(|arrival| arrival[0].is_some()).count();
        assert!((50..56).contains(&through), "{through}");
    }

    #[test]
    fn some_are_overtaken_and_large_ones_vanish() {
        let on = Conditions { reorder: 0.4, mtu: 1200, ..Conditions::default() };
        let times: Vec<u64> = send_all(&on, 1000).into_iter().filter_map(|arrival| arrival[0]).collect();
        assert_eq!(times.len(), 1000);
        assert!(!times.is_sorted());
        assert_eq!(Channel::new(1).send(0, 1201, &on), [None; 2]);
    }
}
