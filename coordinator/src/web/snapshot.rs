//! What the loop publishes of the process, for everybody who watches it.

use std::time::{Duration, Instant};

use anabranch_common::limits;
use anabranch_common::status::NetworkStatus;

use crate::clock;
use crate::host::{Health, HostView};
use crate::transport::Waiting;

/// The process at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When it was taken.
    pub taken: Instant,
    /// The same in Unix time, in milliseconds.
    pub at_ms: u64,
    /// Unix time in milliseconds at which the process began to serve.
    pub started_at_ms: u64,
    /// Health, runs, searches, members.
    pub view: HostView,
    /// What became of agents' connections, and what went through them.
    pub network: NetworkStatus,
    /// What waits for the loop.
    pub waiting: Waiting,
    /// Certificates of the process.
    pub certificates: Vec<Certificate>,
}

/// A certificate of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The file in `tls/`, without its extension.
    pub name: &'static str,
    /// Unix time in seconds at which it expires.
    pub expires_at_s: i64,
}

impl Snapshot {
    /// The process before its loop begins.
    #[must_use]
    pub fn starting(certificates: Vec<Certificate>) -> Self {
        let at_ms = clock::unix_ms();
        Self {
            taken: clock::monotonic(),
            at_ms,
            started_at_ms: at_ms,
            view: HostView::default(),
            network: NetworkStatus::default(),
            waiting: Waiting::default(),
            certificates,
        }
    }

    /// Returns why the process does not do its work, in one line; nothing while it does. `now` is of the clock of `taken`.
    #[must_use]
    pub fn problem(&self, now: Instant) -> Option<String> {
        let why = match &self.view.health {
            Health::Starting => return Some("the process is starting: it reads what is stored".to_owned()),
            Health::Leaving(why) | Health::Failed(why) => Some(why.clone()),
            Health::Serving => self.stuck(now),
        };
        why.map(|why| why.replace(['\n', '\r'], " "))
    }

    /// Returns that the loop of a process that serves stands still, in one line; nothing while it goes on. A process that
    /// starts or shuts down may take long for good reasons, and runs that have failed are no fault of the loop.
    #[must_use]
    pub fn stuck(&self, now: Instant) -> Option<String> {
        let goes_on = matches!(self.view.health, Health::Serving | Health::Failed(_));
        let age = now.saturating_duration_since(self.taken);
        let is_stuck = goes_on && age >= Duration::from_millis(limits::SNAPSHOT_STALE_MS);
        is_stuck.then(|| format!("the loop of the process has not come round for {} s", age.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_serves_is_well_until_its_loop_stands_still() {
        let mut snapshot = Snapshot::starting(Vec::new());
        let now = snapshot.taken;
        assert!(snapshot.problem(now).is_some_and(|why| why.contains("starting")));
        snapshot.view.health = Health::Serving;
        let stale = Duration::from_millis(limits::SNAPSHOT_STALE_MS);
        assert_eq!(snapshot.problem(now + stale - Duration::from_millis(1)), None);
        let stuck = format!("the loop of the process has not come round for {} s", stale.as_secs());
        assert_eq!(snapshot.problem(now + stale), Some(stuck));
        snapshot.view.health = Health::Failed("run wards has failed: no\nspace".to_owned());
        assert_eq!(snapshot.problem(now).as_deref(), Some("run wards has failed: no space"));
        assert_eq!(snapshot.stuck(now), None, "the other runs are served");
        assert!(snapshot.stuck(now + stale).is_some());
        snapshot.view.health = Health::Leaving("it parks".to_owned());
        assert_eq!(snapshot.stuck(now + stale), None);
    }
}
