//! Runs that could not begin, and when each is tried again.

use std::collections::BTreeMap;

use anabranch_common::ids::RunId;
use anabranch_common::limits;

/// Listed runs whose latest attempt to begin has failed.
#[derive(Debug, Default)]
pub(super) struct Retries(BTreeMap<RunId, Retry>);

#[derive(Debug)]
struct Retry {
    wait_ms: u64,
    at_ms: u64,
}

impl Retries {
    /// Notes that a run could not begin. Returns the wait until it is tried again, in milliseconds.
    pub(super) fn failed(&mut self, now_ms: u64, run: RunId) -> u64 {
        let (first_ms, longest_ms) = limits::RUN_BEGIN_MS;
        let before_ms = self.0.get(&run).map(|retry| retry.wait_ms);
        let wait_ms = before_ms.map_or(first_ms, |ms| ms.saturating_mul(2).min(longest_ms));
        self.0.insert(run, Retry { wait_ms, at_ms: now_ms.saturating_add(wait_ms) });
        wait_ms
    }

    /// Forgets that a run could not begin.
    pub(super) fn begun(&mut self, run: RunId) {
        self.0.remove(&run);
    }

    /// Forgets the runs that are not to be kept.
    pub(super) fn retain(&mut self, is_kept: impl Fn(RunId) -> bool) {
        self.0.retain(|run, _| is_kept(*run));
    }

    /// Whether a run may be tried now.
    pub(super) fn is_due(&self, now_ms: u64, run: RunId) -> bool {
        self.0.get(&run).is_none_or(|retry| retry.at_ms <= now_ms)
    }

    /// When the next run of those that `may_begin` is to be tried.
    pub(super) fn next_ms(&self, may_begin: impl Fn(RunId) -> bool) -> Option<u64> {
        self.0.iter().filter(|(run, _)| may_begin(**run)).map(|(_, retry)| retry.at_ms).min()
    }
}
