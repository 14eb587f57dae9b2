//! How many records, or signatures, an agent may cause without an update to show for it.
//!
//! A record costs a sync and stays in the journal; most of what an agent can say makes one. What merges is free: its
//! lease is paid back when its update is accepted, so that the fastest honest agent never feels this. Leases that come
//! to nothing, refusals, restarts and evaluations that nobody asked for are paid from a bucket that refills with time (`AGENT_RECORDS_BURST`,
//! `AGENT_RECORDS_PER_S`).

use anabranch_common::limits;

use super::event::Now;

/// The bucket of one agent; lives as long as the process, across connections. In thousandths of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    left: u64,
    at_ms: u64,
}

const RECORD: u64 = 1000;
const FULL: u64 = limits::AGENT_RECORDS_BURST * RECORD;

impl Default for Allowance {
    fn default() -> Self {
        Self { left: FULL, at_ms: 0 }
    }
}

impl Allowance {
    /// Pays for a record, if there is enough left.
    pub(crate) fn take(&mut self, now: Now) -> bool {
        let passed_ms = now.mono_ms.saturating_sub(self.at_ms);
        // Records a second are thousandths of a record a millisecond.
        let refill = passed_ms.saturating_mul(limits::AGENT_RECORDS_PER_S);
        self.left = self.left.saturating_add(refill).min(FULL);
        self.at_ms = now.mono_ms;
        let enough = self.left >= RECORD;
        if enough {
            self.left -= RECORD;
        }
        enough
    }

    /// What was paid for has come to something.
    pub(crate) fn give_back(&mut self) {
        self.left = (self.left + RECORD).min(FULL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { unix_ms: 0, mono_ms }
    }

    #[test]
    fn a_burst_is_allowed_then_so_many_a_second_and_never_more_than_a_burst() {
        let mut allowance = Allowance::default();
        let taken = |allowance: &mut Allowance, ms| (0..1000).filter(|_| allowance.take(at(ms))).count() as u64;
        assert_eq!(taken(&mut allowance, 0), limits::AGENT_RECORDS_BURST);
        assert_eq!(taken(&mut allowance, 10_000), 10 * limits::AGENT_RECORDS_PER_S);
        assert_eq!(taken(&mut allowance, 1 << 40), limits::AGENT_RECORDS_BURST);
        allowance.give_back();
        assert_eq!(taken(&mut allowance, 1 << 40), 1);
    }
}
