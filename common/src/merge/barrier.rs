//! Closing policies: when the contributions that wait become a version.
//!
//! ```text
//!  at once      every contribution is closed by the next record
//!  when full    the K-th contribution is
//!  barrier      a round: agents with a lease on the newest version deliver once each, then wait.
//!               The round closes when no agent is at work under a lease on that version, or at its deadline.
//! ```
//! The rules of a barrier, for a round at version v:
//!
//! - An agent gets a lease on v unless it has delivered an update of v. Then its request waits for the close.
//! - An update of an older version than v is refused as `stale`, and so is a second update of one agent. The agent
//!   takes the content of such an update back into its error feedback.
//! - The round closes as soon as it has a contribution and no agent is at work under a lease on v: each has delivered,
//!   or its lease was returned, has expired or was superseded.
//! - With `deadline_s` the round also closes once that time has passed since v was published, if at least `quorum` of the
//!   active agents has delivered. Active agents are those that have delivered and those that hold a lease on any version.
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `barrier.deadline_s` | none | seconds from the publication of a version to the deadline of its round |
//! | `barrier.quorum` | 0.5 | share of active agents, in (0, 1], without which the deadline closes no round |
//!
//! Bad at: agents of different speed. Without a deadline every round takes as long as its slowest agent, and an agent
//! that has died holds the round until its lease expires. With a deadline agents that are always slower never contribute.

use serde::{Deserialize, Serialize};

use super::SpecError;
use crate::limits;

/// When contributions become a version.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Closing {
    /// When so many contributions wait, at least 1.
    Full(u32),
    /// When the agents of a round have delivered.
    Barrier(Barrier),
}

/// How long a round waits for its agents. See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Barrier {
    /// Share of the active agents, in (0, 1], that must have delivered at the deadline.
    pub quorum: f64,
    /// Seconds between the publication of a version and the deadline of its round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<f64>,
}

impl Default for Barrier {
    fn default() -> Self {
        Self { quorum: 0.5, deadline_s: None }
    }
}

impl Barrier {
    /// Returns the milliseconds between the publication of a version and the deadline of its round.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded by `validate`; else saturates"
    )]
    pub fn deadline_ms(&self) -> Option<u64> {
        self.deadline_s.map(|seconds| (seconds * 1_000.0).ceil() as u64)
    }

    /// Returns how many of `active` agents must have delivered at the deadline: at least one.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the number of agents")]
    pub fn needed(&self, active: usize) -> usize {
        ((self.quorum * active as f64).ceil() as usize).max(1)
    }

    /// Checks both keys.
    ///
    /// # Errors
    /// One is out of range; the error names it.
    pub(super) fn validate(&self) -> Result<(), SpecError> {
        if !(self.quorum > 0.0 && self.quorum <= 1.0) {
            let expected = "a number above 0 and at most 1";
            return Err(SpecError { field: "barrier.quorum", found: self.quorum, expected });
        }
        match self.deadline_s {
            Some(found) if !(found > 0.0 && found <= limits::ROUND_DEADLINE_S) => {
                Err(SpecError { field: "barrier.deadline_s", found, expected: "a number above 0 and at most 31536000" })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_rounded_up_and_never_nobody() {
        let needed = |quorum: f64, active| Barrier { quorum, deadline_s: None }.needed(active);
        assert_eq!([0, 1, 2, 3, 10].map(|active| needed(0.5, active)), [1, 1, 1, 2, 5]);
        assert_eq!([1, 3, 10].map(|active| needed(1.0, active)), [1, 3, 10]);
        assert_eq!([1, 10, 100].map(|active| needed(0.01, active)), [1, 1, 1]);
    }

    #[test]
    fn validation_names_the_key() {
        let field = |quorum, deadline_s| Barrier { quorum, deadline_s }.validate().map_err(|error| error.field);
        assert_eq!([field(1.0, None), field(0.5, Some(2.5))], [Ok(()); 2]);
        for quorum in [0.0, -0.5, 1.1, f64::NAN] {
            assert_eq!(field(quorum, None), Err("barrier.quorum"));
        }
        for deadline_s in [0.0, -1.0, f64::INFINITY, f64::NAN, 1e9] {
            assert_eq!(field(0.5, Some(deadline_s)), Err("barrier.deadline_s"));
        }
    }

    #[test]
    fn it_reads_well_in_toml() {
        let read = |text: &str| toml::from_str::<Barrier>(text);
        assert_eq!(read(""), Ok(Barrier::default()));
        assert_eq!(read("deadline_s = 2.5"), Ok(Barrier { quorum: 0.5, deadline_s: Some(2.5) }));
        assert!(read("deadline = 2.5").is_err(), "a misspelt key");
        let barrier = Barrier { quorum: 0.75, deadline_s: Some(30.0) };
        assert_eq!(barrier.deadline_ms(), Some(30_000));
        assert_eq!(read(&toml::to_string(&barrier).expect("serializable")), Ok(barrier));
    }
}
