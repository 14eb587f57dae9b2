//! The only place in the test crate that reads a clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is clock.rs: the one place that reads the wall clock")]
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Time since it was started.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts at 0.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is clock.rs: the one place that reads the monotonic clock")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// The same in seconds.
    #[must_use]
    pub fn seconds(self) -> f64 {
        self.elapsed().as_secs_f64()
    }
}

/// How long a condition that does not hold yet is left alone before it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Looks at a condition until it holds or `patience` is over; `None` then.
///
/// # Errors
/// Whatever looking fails with.
pub fn poll<T>(patience: Duration, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<Option<T>> {
    let watch = Stopwatch::start();
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if watch.elapsed() > patience {
            return Ok(None);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
