//! The lines of a ring's members in virtual time.

use std::collections::VecDeque;

use anabranch_common::rng::SplitMix64;

use super::super::workload::{LinePlan, Way};

/// Nanoseconds of a millisecond.
pub(super) const NS_PER_MS: u64 = 1_000_000;
/// Most times that a parcel is sent again.
const RETRIES: u32 = 6;
/// Time beside a round trip until a loss is noticed.
const TIMEOUT_MS: u64 = 50;
/// Nanoseconds that a bit takes at 1 kbit/s.
const NS_PER_KBIT_S: f64 = 1e6;

/// A member's line, both ways.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) up: OneWay,
    pub(super) down: OneWay,
}

impl Line {
    pub(super) fn new(LinePlan { up, down }: &LinePlan, rng: &mut SplitMix64) -> Self {
        let again_ns = (up.delay_ms + down.delay_ms + TIMEOUT_MS) * NS_PER_MS;
        let mut way = |way: &Way| OneWay::new(way, again_ns, rng.next_u64());
        Self { up: way(up), down: way(down) }
    }
}

/// Bytes that leave a line at an even rate.
#[derive(Debug)]
struct Sending {
    from_ns: u64,
    to_ns: u64,
    bytes: u64,
}

impl Sending {
    fn sent_bytes(&self, now_ns: u64) -> u64 {
        if now_ns >= self.to_ns {
            return self.bytes;
        }
        let (passed_ns, takes_ns) = (now_ns.saturating_sub(self.from_ns), self.to_ns - self.from_ns);
        let share = u128::from(self.bytes) * u128::from(passed_ns) / u128::from(takes_ns);
        u64::try_from(share).unwrap_or(self.bytes)
    }
}

/// One way of a line. Parcels leave it one after the other, and arrive in order.
#[derive(Debug)]
pub(super) struct OneWay {
    ns_per_byte: f64,
    delay_ns: u64,
    loss: f64,
    /// What a loss costs beside the bytes that are sent again.
    again_ns: u64,
    rng: SplitMix64,
    busy_until_ns: u64,
    last_ns: u64,
    sent_bytes: u64,
    queue: VecDeque<Sending>,
}

impl OneWay {
    fn new(way: &Way, again_ns: u64, seed: u64) -> Self {
        Self {
            ns_per_byte: way.kbit_s.map_or(0.0, |kbit_s| 8.0 * NS_PER_KBIT_S / kbit_s),
            delay_ns: way.delay_ms * NS_PER_MS,
            loss: way.loss,
            again_ns,
            rng: SplitMix64::new(seed),
            busy_until_ns: 0,
            last_ns: 0,
            sent_bytes: 0,
            queue: VecDeque::new(),
        }
    }

    /// Carries bytes that are here at `now_ns`, behind what waits already. Returns when they are at the other end.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; both are above 0")]
    pub(super) fn carry(&mut self, now_ns: u64, bytes: u64) -> u64 {
        let again = (0..RETRIES).take_while(|_| self.rng.next_f64() < self.loss).count() as u64;
        let bytes = bytes * (1 + again);
        let from_ns = now_ns.max(self.busy_until_ns);
        self.busy_until_ns = from_ns.saturating_add((bytes as f64 * self.ns_per_byte).ceil() as u64);
        self.queue.push_back(Sending { from_ns, to_ns: self.busy_until_ns, bytes });
        self.last_ns = self.last_ns.max(self.busy_until_ns + self.delay_ns + again * self.again_ns);
        self.last_ns
    }

    /// Returns when something small is at the other end that is here at `now_ns`, beside what waits.
    pub(super) fn beside(&self, now_ns: u64) -> u64 {
        now_ns + self.delay_ns
    }

    /// Returns the bytes that have left the line by then, with those that were sent again. Times are asked for in their order.
    pub(super) fn sent_bytes(&mut self, now_ns: u64) -> u64 {
        while let Some(sent) = self.queue.pop_front_if(|sending| sending.to_ns <= now_ns) {
            self.sent_bytes += sent.bytes;
        }
        let leaving = self.queue.iter().take_while(|sending| sending.from_ns <= now_ns);
        self.sent_bytes + leaving.map(|sending| sending.sent_bytes(now_ns)).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(kbit_s: Option<f64>, loss: f64) -> OneWay {
        let way = Way { kbit_s, delay_ms: 20, loss };
        Line::new(&LinePlan { up: way.clone(), down: way }, &mut SplitMix64::new(1)).up
    }

    #[test]
    fn parcels_leave_one_after_the_other_and_count_as_they_leave() {
        // 100 kbit/s are 12.5 bytes in a millisecond.
        let mut way = way(Some(100.0), 0.0);
        assert_eq!(way.carry(100 * NS_PER_MS, 1_000), (100 + 80 + 20) * NS_PER_MS);
        assert_eq!(way.carry(110 * NS_PER_MS, 500), (180 + 40 + 20) * NS_PER_MS, "behind the first one");
        let sent = [100, 140, 180, 200, 1_000].map(|now_ms| way.sent_bytes(now_ms * NS_PER_MS));
        assert_eq!(sent, [0, 500, 1_000, 1_250, 1_500]);
    }

    #[test]
    fn a_line_without_a_rate_takes_its_delay_alone() {
        let mut way = way(None, 0.0);
        assert_eq!(way.carry(7, 1 << 30), 7 + 20 * NS_PER_MS);
        assert_eq!((way.sent_bytes(6), way.sent_bytes(7)), (0, 1 << 30));
    }

    /// 2 % of the parcels are sent again: as many bytes more.
    #[test]
    fn what_is_lost_takes_the_line_again_and_nothing_overtakes_it() {
        let mut way = way(Some(80.0), 0.02);
        let arrivals: Vec<u64> = (0..20_000).map(|_| way.carry(0, 1_000)).collect();
        assert!(arrivals.is_sorted());
        let sent = way.sent_bytes(u64::MAX) as f64 / (20_000 * 1_000) as f64;
        assert!((1.018..1.023).contains(&sent), "{sent}");
    }
}
