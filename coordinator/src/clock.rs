//! The only place in the coordinator that reads a clock. Everything else gets `now` as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds, as this machine's clock has it; 0 when the clock stands before 1970.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is clock.rs: the one place that reads the wall clock")]
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// A moment on the monotonic clock, for measuring how long something took.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is clock.rs: the one place that reads the monotonic clock")]
pub fn monotonic() -> Instant {
    Instant::now()
}
