//! What the latest updates were like, and whose: the measure for what is admitted, and at what weight.
//!
//! Every agent has one vote on how large an update is, its latest one, however fast it is: so fewer than half of the
//! agents cannot move the median beyond what the others send, neither with huge updates nor with tiny ones. An update
//! that is refused as an outlier takes its agent's vote away: if most agents are outliers, it is the median that is wrong,
//! and soon there is none. The same votes say how many agents are at work, and with that what an equal share is.

use std::collections::VecDeque;

use anabranch_common::ids::AgentId;
use bincode::{Decode, Encode};

/// Agents whose latest norm is remembered.
const VOTES_KEPT: usize = 255;
/// Votes from which on there is a majority to speak of.
const VOTES_NEEDED: usize = 3;
/// Accepted updates after which a vote lapses: its agent has left, or hardly takes part.
const VOTE_UPDATES: u64 = 4096;
/// Latest updates of which an agent has a share.
const LATEST_KEPT: usize = 256;

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
struct Vote {
    agent: AgentId,
    norm: f64,
    /// Updates that had been accepted when it was cast.
    at: u64,
}

/// Votes and shares; part of the fold.
#[derive(Debug, Clone, Default, PartialEq, Encode, Decode)]
pub struct Recent {
    /// One an agent, the oldest first.
    votes: VecDeque<Vote>,
    /// Whose the latest updates were, the oldest first.
    latest: VecDeque<AgentId>,
}

impl Recent {
    /// An update of `agent` was accepted, as the `at`-th.
    pub(super) fn accepted(&mut self, agent: AgentId, norm: f64, at: u64) {
        self.votes.retain(|vote| vote.agent != agent && vote.at.saturating_add(VOTE_UPDATES) > at);
        self.votes.push_back(Vote { agent, norm, at });
        if self.votes.len() > VOTES_KEPT {
            self.votes.pop_front();
        }
        self.latest.push_back(agent);
        if self.latest.len() > LATEST_KEPT {
            self.latest.pop_front();
        }
    }

    /// The vote of `agent` does not count any more: it was revoked, or its update was too large.
    pub(super) fn withdraw(&mut self, agent: AgentId) {
        self.votes.retain(|vote| vote.agent != agent);
    }

    /// Updates of another kind come from now on.
    pub(super) fn forget(&mut self) {
        self.votes.clear();
    }

    /// The norm that is larger than that of half of the voters, once there are enough of them. Updates that move nothing
    /// do not count: a median of 0 would refuse whatever moves. Of an even number it is the smaller one in the middle.
    #[must_use]
    pub fn median_norm(&self) -> Option<f64> {
        let mut norms: Vec<f64> = self.votes.iter().map(|vote| vote.norm).filter(|norm| *norm > 0.0).collect();
        if norms.len() < VOTES_NEEDED {
            return None;
        }
        let middle = (norms.len() - 1) / 2;
        Some(*norms.select_nth_unstable_by(middle, f64::total_cmp).1)
    }

    /// The factor that holds `agent`, with one more update, to `max_influence` times an equal share of the latest ones.
    #[must_use]
    pub fn influence(&self, agent: AgentId, max_influence: f64) -> f64 {
        let voted = self.votes.iter().any(|vote| vote.agent == agent);
        let agents = self.votes.len() + usize::from(!voted);
        let allowed = max_influence * LATEST_KEPT as f64 / agents as f64;
        let has = 1 + self.latest.iter().filter(|one| **one == agent).count();
        (allowed / has as f64).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: AgentId = AgentId([66; 16]);

    fn agent(number: u8) -> AgentId {
        AgentId([number; 16])
    }

    /// Seven honest agents with norms around 1, then three hostile ones, a hundred times as fast, with `norm`.
    fn world(norm: f64) -> Recent {
        let mut recent = Recent::default();
        let mut at = 0;
        for round in 0..3 {
            for honest in 1..=7 {
                at += 1;
                recent.accepted(agent(honest), 1.0 + f64::from(honest + round) / 100.0, at);
            }
            for hostile in 0..240 {
                at += 1;
                recent.accepted(agent(100 + hostile % 3), norm, at);
            }
        }
        recent
    }

    #[test]
    fn a_fast_minority_cannot_move_the_median() {
        for norm in [1e-30, 1e6] {
            let median = world(norm).median_norm().expect("ten votes");
            assert!((1.0..1.2).contains(&median), "{median} with attackers at {norm}");
        }
    }

    #[test]
    fn three_of_ten_agents_have_less_than_half_of_the_influence_however_fast_they_are() {
        let recent = world(1.0);
        let of_latest = |who: AgentId| recent.latest.iter().filter(|one| **one == who).count() as f64;
        let held: f64 = (0..3).map(|one| of_latest(agent(100 + one)) * recent.influence(agent(100 + one), 1.5)).sum();
        assert!(held < 0.46 * LATEST_KEPT as f64, "{held} of {LATEST_KEPT}");
        assert_eq!(recent.influence(agent(1), 1.5), 1.0, "the slow ones count in full");
    }

    #[test]
    fn a_lone_agent_and_a_pair_are_never_held_back() {
        let mut recent = Recent::default();
        (0..1000).for_each(|at| recent.accepted(agent(1), 1.0, at));
        assert_eq!(recent.influence(agent(1), 1.5), 1.0);
        recent.accepted(agent(2), 1.0, 1001);
        assert!(recent.influence(agent(1), 2.0) > 0.99);
    }

    #[test]
    fn a_median_that_refuses_most_agents_goes_away() {
        let mut recent = world(1.0);
        (1..=7).for_each(|honest| recent.withdraw(agent(honest)));
        recent.withdraw(agent(100));
        assert_eq!(recent.median_norm(), None);
    }

    #[test]
    fn updates_that_move_nothing_do_not_lock_the_filter_and_old_votes_lapse() {
        let mut recent = Recent::default();
        (1..60).for_each(|one| recent.accepted(agent(one), 0.0, u64::from(one)));
        assert_eq!(recent.median_norm(), None, "a median of 0 would refuse everything that moves");
        (100..103).for_each(|one| recent.accepted(agent(one), 2.0, u64::from(one)));
        assert_eq!(recent.median_norm(), Some(2.0));
        recent.accepted(HOSTILE, 9.0, 200 + VOTE_UPDATES);
        assert_eq!(recent.votes.len(), 1);
    }
}
