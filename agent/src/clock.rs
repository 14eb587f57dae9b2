//! The only place in the agent that reads a clock. Everything else gets the time as an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds, as this machine's clock has it; 0 when the clock stands before 1970.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is clock.rs: the one place that reads the wall clock")]
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since this clock was started. It never goes backwards, whatever happens to the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at 0.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is clock.rs: the one place that reads the monotonic clock")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time on this clock in milliseconds.
    #[must_use]
    pub fn now_ms(self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Time on this clock, as precisely as the system gives it.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.start.elapsed()
    }

    /// The moment at which this clock shows `at_ms`.
    #[must_use]
    pub fn instant(self, at_ms: u64) -> Instant {
        // A time too far away to be represented is never reached: a century from now is as good.
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        self.start.checked_add(Duration::from_millis(at_ms)).unwrap_or(self.start + century)
    }
}
