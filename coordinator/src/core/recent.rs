//! What the latest updates were like, and whose: the measure for what is admitted, and at what weight.
//!
//! Every agent has one vote on how large an update is, its latest one, however fast it is: so fewer than half of the
//! agents cannot move the median beyond what the others send, neither with huge updates nor with tiny ones. An update
//! that is refused as an outlier takes its agent's vote away: if most agents are outliers, it is the median that is wrong,
//! and soon there is none. Likewise each agent has one say in how many updates are usual: an agent is compared with the
//! median agent, never with the sum, which the fastest would fill by itself.
//!
//! The fastest are also the first. Agents that work and have shown nothing yet, the newcomers, are therefore heard as well:
//! they have made 0 updates, and norms have a median only once two in three agents have shown one.

use std::collections::VecDeque;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;

/// Votes from which on there is a majority to speak of.
const VOTES_NEEDED: usize = 3;
/// Accepted updates after which a vote lapses: its agent has left, or hardly takes part.
const VOTE_UPDATES: u64 = 4096;
/// Updates an agent, on average, beyond which all counts are halved: what happened long ago fades.
const COUNTS_KEPT: f64 = 1024.0;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vote {
    pub(crate) agent: AgentId,
    pub(crate) norm: f64,
    /// Its updates, the old ones counting for less.
    pub(crate) count: f64,
    /// Updates that had been accepted when it was cast.
    pub(crate) at: u64,
}

/// One vote an agent, the oldest first; part of the fold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recent {
    pub(crate) votes: VecDeque<Vote>,
}

impl Recent {
    /// An update of `agent` was accepted, as the `at`-th.
    pub(super) fn accepted(&mut self, agent: AgentId, norm: f64, at: u64) {
        let count = self.count(agent) + 1.0;
        self.votes.retain(|vote| vote.agent != agent && vote.at.saturating_add(VOTE_UPDATES) > at);
        self.votes.push_back(Vote { agent, norm, count, at });
        if self.votes.len() > limits::VOTES_KEPT {
            self.votes.pop_front();
        }
        let all: f64 = self.votes.iter().map(|vote| vote.count).sum();
        if all > COUNTS_KEPT * self.votes.len() as f64 {
            self.votes.iter_mut().for_each(|vote| vote.count /= 2.0);
        }
    }

    fn count(&self, agent: AgentId) -> f64 {
        self.votes.iter().find(|vote| vote.agent == agent).map_or(0.0, |vote| vote.count)
    }

    /// The norm of `agent` does not count any more: it was revoked, or its update was too large.
    pub(super) fn withdraw(&mut self, agent: AgentId) {
        self.votes.iter_mut().filter(|vote| vote.agent == agent).for_each(|vote| vote.norm = 0.0);
    }

    /// Returns how many agents take turns at present, after `accepted` updates: as many as at least every second of the latest
    /// updates brings another one.
    #[must_use]
    pub fn reporting(&self, accepted: u64) -> u64 {
        let turns = |(vote, others): &(&Vote, u64)| accepted.saturating_sub(vote.at) < 2 * (others + 1);
        self.votes.iter().rev().zip(0..).take_while(turns).count() as u64
    }

    /// Updates of another kind come from now on.
    pub(super) fn forget(&mut self) {
        self.votes.iter_mut().for_each(|vote| vote.norm = 0.0);
    }

    /// The usual norm, once enough agents have one, of which there are `newcomers` more. Updates that move nothing do not
    /// count: a median of 0 would refuse whatever moves.
    #[must_use]
    pub fn median_norm(&self, newcomers: usize) -> Option<f64> {
        let norms: Vec<f64> = self.votes.iter().map(|vote| vote.norm).filter(|norm| *norm > 0.0).collect();
        if norms.len() < 2 * newcomers { None } else { lower_median(norms) }
    }

    /// The factor that holds `agent`, with one more update, to `max_influence` times as many as the median agent has, of
    /// all that have made one and `newcomers` that have not.
    #[must_use]
    pub fn influence(&self, agent: AgentId, max_influence: f64, newcomers: usize) -> f64 {
        let counts = self.votes.iter().map(|vote| vote.count).chain(std::iter::repeat_n(0.0, newcomers));
        let Some(usual) = lower_median(counts.collect()) else { return 1.0 };
        // One more on both sides, so that the first few updates of a run are not a matter of luck.
        (max_influence * (usual + 1.0) / (self.count(agent) + 1.0)).min(1.0)
    }
}

/// The median, once there are enough values; of an even number the smaller one in the middle.
fn lower_median(mut values: Vec<f64>) -> Option<f64> {
    if values.len() < VOTES_NEEDED {
        return None;
    }
    let middle = (values.len() - 1) / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
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
            let median = world(norm).median_norm(0).expect("ten votes");
            assert!((1.0..1.2).contains(&median), "{median} with attackers at {norm}");
        }
    }

    #[test]
    fn agents_that_take_turns_are_reporting_and_those_that_left_are_not() {
        let (mut recent, mut at) = (Recent::default(), 0);
        let mut heard = |agents: std::ops::Range<u8>| {
            agents.for_each(|number| {
                at += 1;
                recent.accepted(agent(number), 1.0, at);
            });
            recent.reporting(at)
        };
        assert_eq!([heard(0..1), heard(1..5), heard(0..5)], [1, 5, 5]);
        assert_eq!([heard(0..4), heard(0..4), heard(0..4)], [5, 5, 4], "the fifth agent is slow, or has left");
        assert_eq!((0..8).map(|_| heard(0..1)).collect::<Vec<_>>(), [4, 4, 4, 1, 1, 1, 1, 1]);
        assert_eq!(Recent::default().reporting(0), 0);
    }

    /// However fast they are: 4.5 updates of theirs for 7 of the others.
    #[test]
    fn three_of_ten_agents_have_less_weight_than_the_others() {
        let mut recent = Recent::default();
        let (mut honest, mut hostile, mut at) = (0.0, 0.0, 0);
        for round in 0..300 {
            for one in 1..=7 {
                at += 1;
                honest += recent.influence(agent(one), 1.5, 0);
                recent.accepted(agent(one), 1.0, at);
            }
            for one in 0..60 {
                at += 1;
                let weight = recent.influence(agent(100 + one % 3), 1.5, 0);
                hostile += if round < 30 { 0.0 } else { weight };
                recent.accepted(agent(100 + one % 3), 1.0, at);
            }
        }
        assert!(honest > 0.99 * 2100.0, "{honest}: the slow ones count in full");
        assert!((0.5..0.72).contains(&(hostile / (honest * 0.9))), "{hostile} against {honest}");
    }

    /// Three fast agents of ten before any other has ended its first round: what they send is not usual because nobody else has
    /// sent anything, and a thousand updates of theirs weigh no more than a few.
    #[test]
    fn who_comes_first_does_not_set_the_measure() {
        let mut recent = Recent::default();
        let mut weight = 0.0;
        for at in 0..1000 {
            let one = agent(100 + u8::try_from(at % 3).expect("below 3"));
            weight += recent.influence(one, 1.5, 7);
            recent.accepted(one, 1e6, at);
        }
        assert!(weight < 30.0, "{weight}: it grows with the logarithm of their number");
        assert_eq!(recent.median_norm(7), None);
        for honest in 1..=4 {
            assert_eq!(recent.influence(agent(honest), 1.5, 8 - usize::from(honest)), 1.0);
            recent.accepted(agent(honest), 1.0, 1000 + u64::from(honest));
        }
        assert_eq!(recent.median_norm(3), Some(1.0), "the first median is an honest one");
    }

    #[test]
    fn a_lone_agent_and_a_pair_are_never_held_back() {
        let mut recent = Recent::default();
        (0..1000).for_each(|at| recent.accepted(agent(1), 1.0, at));
        recent.accepted(agent(2), 1.0, 1001);
        assert_eq!(recent.influence(agent(1), 1.5, 0), 1.0);
    }

    #[test]
    fn a_median_that_refuses_most_agents_goes_away() {
        let mut recent = world(1.0);
        (1..=7).for_each(|honest| recent.withdraw(agent(honest)));
        recent.withdraw(agent(100));
        assert_eq!(recent.median_norm(0), None);
    }

    #[test]
    fn updates_that_move_nothing_do_not_lock_the_filter_and_old_votes_lapse() {
        let mut recent = Recent::default();
        (1..60).for_each(|one| recent.accepted(agent(one), 0.0, u64::from(one)));
        assert_eq!(recent.median_norm(0), None, "a median of 0 would refuse everything that moves");
        (100..103).for_each(|one| recent.accepted(agent(one), 2.0, u64::from(one)));
        assert_eq!(recent.median_norm(0), Some(2.0));
        recent.accepted(HOSTILE, 9.0, 200 + VOTE_UPDATES);
        assert_eq!(recent.votes.len(), 1);
    }
}
