//! The round of a pod: the attempts at one lease.

use anabranch_common::ids::AgentId;
use anabranch_common::limits;

use super::form::{SOUND_MS, wait_ms};

/// Attempts at the round of a lease.
#[derive(Debug, Clone)]
pub(super) struct Round {
    pub(super) owner: AgentId,
    pub(super) stage: Stage,
    /// The largest attempt that was heard of.
    pub(super) newest: u32,
    /// Whether attempts before those of this process may be larger than any that was heard of.
    pub(super) inherited: bool,
    /// Why there is no other attempt yet.
    pub(super) problem: Option<String>,
    begun_ms: u64,
    /// Attempts in a row that failed at once.
    failures: u32,
    retry_at_ms: u64,
    /// Whether another attempt was tried since something has changed.
    pub(super) tried: bool,
}

/// How far a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// This attempt is computed.
    AtWork(u32),
    /// The owner holds the lease and waits for another attempt.
    Broken,
    /// The owner does not hold the lease any more, and has to ask for it.
    Dropped,
    /// It is computed; the update is on its way.
    Complete,
}

impl Round {
    /// A round of which this process has not heard before.
    pub(super) fn new(owner: AgentId, stage: Stage, newest: u32) -> Self {
        Self {
            owner,
            stage,
            newest,
            inherited: true,
            problem: None,
            begun_ms: 0,
            failures: 0,
            retry_at_ms: 0,
            tried: false,
        }
    }

    /// The attempt that is computed.
    pub(super) fn current(&self) -> Option<u32> {
        match self.stage {
            Stage::AtWork(attempt) => Some(attempt),
            Stage::Broken | Stage::Dropped | Stage::Complete => None,
        }
    }

    /// Whether its owner holds the lease and has not delivered.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.stage, Stage::AtWork(_) | Stage::Broken)
    }

    /// An agent says that it is at work on this attempt. Of a round that this process did not begin, the largest counts.
    pub(super) fn claimed(&mut self, attempt: u32) {
        if self.inherited && attempt > self.newest && matches!(self.stage, Stage::AtWork(_)) {
            self.stage = Stage::AtWork(attempt);
        }
        self.newest = self.newest.max(attempt);
    }

    /// Begins the next attempt. Those of an earlier process count seconds since the lease was granted at most.
    pub(super) fn begin(&mut self, lease_age_ms: u64, now_ms: u64) -> u32 {
        let seconds = u32::try_from(lease_age_ms / 1000).unwrap_or(u32::MAX).min(limits::POD_ATTEMPTS);
        let earlier = if std::mem::take(&mut self.inherited) { seconds } else { 0 };
        self.newest = self.newest.saturating_add(1).max(earlier);
        (self.stage, self.begun_ms, self.problem) = (Stage::AtWork(self.newest), now_ms, None);
        self.newest
    }

    /// The attempt came to nothing, and the owner waits for another one.
    pub(super) fn broke(&mut self) {
        (self.stage, self.tried) = (Stage::Broken, false);
    }

    /// The attempt failed. The next one begins at once, unless several have failed at once.
    pub(super) fn failed(&mut self, now_ms: u64) {
        let at_once = now_ms.saturating_sub(self.begun_ms) < SOUND_MS;
        self.failures = if at_once { self.failures.saturating_add(1) } else { 1 };
        if self.failures > 1 {
            self.retry_at_ms = now_ms.saturating_add(wait_ms(limits::POD_RETRY_MS, self.failures - 1));
        }
        self.broke();
    }

    /// Whether another attempt is to be tried.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        self.stage == Stage::Broken && !self.tried && now_ms >= self.retry_at_ms
    }
}
