//! P8: an honest agent that is quick is never held up by others, whether they are slow, broken or hostile.

use super::journal::{Checked, ensure};

/// A local round that takes no longer than this is quick, in milliseconds.
const QUICK_MS: u64 = 4_000;
/// How long after the last fault a quick agent may have heard fewer than two verdicts, in milliseconds: once its own oldest offer is given
/// up ([`anabranch_common::limits::OFFER_FORGOTTEN_MS`]) nothing else is in its way.
const PATIENCE_MS: u64 = anabranch_common::limits::OFFER_FORGOTTEN_MS + 60_000;

/// What is known of an agent that is there.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Its number.
    pub agent: usize,
    /// How long its local round takes.
    pub round_ms: u64,
    /// Whether it sends what it computed.
    pub honest: bool,
    /// Verdicts that it heard since the last fault.
    pub verdicts: u64,
}

/// Looks at an agent so long after the last fault.
///
/// # Errors
/// It is quick and honest, and has heard fewer than two verdicts.
pub fn check(progress: &Progress, since_ms: u64) -> Checked {
    let Progress { agent, round_ms, honest, verdicts } = *progress;
    let late = honest && round_ms <= QUICK_MS && verdicts < 2 && since_ms > PATIENCE_MS;
    ensure(!late, "P8", || format!("agent {agent} is quick and honest, and heard {verdicts} verdicts in {since_ms} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_quick_and_honest_may_not_wait() {
        let quick = Progress { agent: 1, round_ms: 100, honest: true, verdicts: 0 };
        assert_eq!(check(&quick, PATIENCE_MS + 1).expect_err("late").invariant, "P8");
        assert!(check(&quick, PATIENCE_MS).is_ok());
        let others = [
            Progress { verdicts: 2, ..quick },
            Progress { honest: false, ..quick },
            Progress { round_ms: QUICK_MS + 1, ..quick },
        ];
        assert!(others.iter().all(|other| check(other, u64::MAX).is_ok()));
    }
}
