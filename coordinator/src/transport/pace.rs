//! How fast one agent's messages are read: a burst at once, then so many a second.

use std::time::{Duration, Instant};

use anabranch_common::limits;

/// The bucket of one connection.
#[derive(Debug)]
pub(super) struct Pace {
    /// Messages taken and not worn off yet.
    level: f64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { level: 0.0, at: now }
    }

    /// Counts a message. Returns how long it has to wait.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let worn_off = now.saturating_duration_since(self.at).as_secs_f64() * limits::AGENT_MESSAGES_PER_S;
        self.level = (self.level - worn_off).max(0.0) + 1.0;
        self.at = now;
        let over = self.level - limits::AGENT_MESSAGES_BURST;
        if over > 0.0 { Duration::from_secs_f64(over / limits::AGENT_MESSAGES_PER_S) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_through_and_a_flood_is_read_at_its_rate() {
        let start = crate::clock::monotonic();
        let mut pace = Pace::new(start);
        let mut now = start;
        for _ in 0..3 * 1024 {
            now += pace.wait(now);
        }
        let expected = Duration::from_secs_f64(2.0 * 1024.0 / limits::AGENT_MESSAGES_PER_S);
        assert!(now - start >= expected && now - start < 2 * expected, "{:?}", now - start);
        assert_eq!(pace.wait(now + Duration::from_secs(60)), Duration::ZERO, "it wears off");
    }
}
