//! Participation weights: agents pull by how much data they hold, not by how fast they are.
//!
//! Over a long run an agent pulls on the model with its arrival rate times the weight of its updates, so that fast
//! machines win over slow ones that hold the same amount of data. The weight
//!
//! ```text
//! w_i = p_i / pihat_i      p_i    = n_i / sum n             target share: examples held, among the agents seen
//!                          pihat_i = work_i / sum work       moving share of the accepted work, newest counting most
//! ```
//! undoes that. Its mean over accepted work is 1 (sum of pihat_i * w_i = sum of p_i), so the common step keeps its
//! size. It is clipped to [`MIN_WEIGHT`]..[`MAX_WEIGHT`], and no agent's examples count for more than 8 times the median
//! (see `merge::examples`), so that a lie about n_i is worth little. Staleness damps the common step and is kept apart from this.
//!
//! # What an agent can gain by lying
//! An update is never less work than the lease asked for, whatever it says (see [`Participation::observe`]): to understate
//! it gains nothing, to overstate it costs weight. What is left is the number of examples held. Among N agents an honest
//! one that holds as many as most pulls with 1/N of the whole; a liar with at most 8/(N + 7), and less where
//! `admit.max_examples` is lower than that. No single update ever weighs more than [`MAX_WEIGHT`].
//!
//! Only `+ - * /` in f64: the state is rebuilt from the journal, bit for bit, on any machine.

use std::collections::BTreeMap;

use super::examples::Held;
use crate::ids::AgentId;
use crate::limits;

/// Smallest weight.
pub const MIN_WEIGHT: f64 = 1.0 / 8.0;
/// Largest weight.
pub const MAX_WEIGHT: f64 = 8.0;
/// The moving share looks back over this many updates for every agent seen ...
const WINDOW_PER_AGENT: f64 = 16.0;
/// ... and over at least this many.
const WINDOW_MIN: f64 = 64.0;
/// The unit of work is scaled back when it has grown this much, long before f64 runs out.
const RESCALE_ABOVE: f64 = 1e100;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Member {
    examples: u64,
    /// Work done, in units of its time: work done later is written larger instead of writing all older work smaller.
    work: f64,
}

/// Whose part of a [`Participation`] an operation changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// That of the agent it was about, if any.
    ThisAgent,
    /// That of every agent.
    EveryAgent,
}

/// One agent's part of a [`Participation`], for saving: the examples that it holds and its work.
pub type Part = (u64, f64);

/// What a [`Participation`] has beside its parts, for saving: the sum of work, and the unit of work.
pub type Sums = (f64, f64);

/// Who holds how much, and who has contributed how much lately.
#[derive(Debug, Clone, PartialEq)]
pub struct Participation {
    members: BTreeMap<AgentId, Member>,
    held: Held,
    work: f64,
    unit: f64,
}

impl Default for Participation {
    fn default() -> Self {
        Self { members: BTreeMap::new(), held: Held::default(), work: 0.0, unit: 1.0 }
    }
}

impl Participation {
    /// Notes an accepted update by `agent`, which holds `examples_held` examples and says that it used `work` of them
    /// (repetitions counted). The lease asked for `planned` of them, and an update is never less work than that, however
    /// little it says it used.
    ///
    /// Returns what changed beside the sums.
    pub fn observe(&mut self, agent: AgentId, examples_held: u64, work: u64, planned: u64) -> Changed {
        let examples = examples_held.clamp(1, limits::SHARD_EXAMPLES as u64);
        let done = work.max(planned).clamp(1, 1 << 52) as f64 * self.unit;
        let member = self.members.entry(agent).or_insert(Member { examples: 0, work: 0.0 });
        member.work += done;
        if std::mem::replace(&mut member.examples, examples) != examples {
            self.held = self.all_held();
        }
        self.work += done;
        let window = (self.members.len() as f64 * WINDOW_PER_AGENT).max(WINDOW_MIN);
        self.unit *= window / (window - 1.0);
        if self.unit > RESCALE_ABOVE {
            self.rescale();
            return Changed::EveryAgent;
        }
        Changed::ThisAgent
    }

    /// The weight of `agent`'s next update. An agent that has not been seen weighs 1: nothing is known of it.
    #[must_use]
    pub fn weight(&self, agent: AgentId) -> f64 {
        let Some(member) = self.members.get(&agent) else { return 1.0 };
        let share = member.work / self.work;
        let weight = self.held.part(member.examples) / share;
        // Work from long ago can fade to nothing beside that of today.
        if weight.is_nan() { 1.0 } else { weight.clamp(MIN_WEIGHT, MAX_WEIGHT) }
    }

    /// Leaves `agent` out of every share from now on. Returns what changed beside the sums.
    pub fn forget(&mut self, agent: AgentId) -> Changed {
        if self.members.remove(&agent).is_none() {
            return Changed::ThisAgent;
        }
        self.rescale();
        Changed::EveryAgent
    }

    /// An agent's part.
    #[must_use]
    pub fn part(&self, agent: AgentId) -> Option<Part> {
        self.members.get(&agent).map(|member| (member.examples, member.work))
    }

    /// What there is beside the parts.
    #[must_use]
    pub fn sums(&self) -> Sums {
        (self.work, self.unit)
    }

    /// Puts together what was taken apart with [`part`](Self::part) and [`sums`](Self::sums).
    #[must_use]
    pub fn restore((work, unit): Sums, parts: BTreeMap<AgentId, Part>) -> Self {
        let member = |(agent, (examples, work))| (agent, Member { examples, work });
        let mut restored = Self { members: parts.into_iter().map(member).collect(), work, unit, ..Self::default() };
        restored.held = restored.all_held();
        restored
    }

    /// Agents seen and not forgotten.
    #[must_use]
    pub fn agents(&self) -> usize {
        self.members.len()
    }

    /// Makes the present the unit again and the sums exact.
    fn rescale(&mut self) {
        let unit = std::mem::replace(&mut self.unit, 1.0);
        self.work = 0.0;
        for member in self.members.values_mut() {
            member.work /= unit;
            self.work += member.work;
        }
        self.held = self.all_held();
    }

    fn all_held(&self) -> Held {
        Held::of(self.members.values().map(|member| member.examples))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: AgentId = AgentId([1; 16]);
    const SLOW: AgentId = AgentId([2; 16]);

    /// `fast_per_slow` updates of one agent for each of the other's; both hold the same number of examples.
    fn uneven(rounds: u32, fast_per_slow: u32) -> (Participation, f64, f64) {
        let mut participation = Participation::default();
        let (mut fast, mut slow) = (0.0, 0.0);
        for _ in 0..rounds {
            for _ in 0..fast_per_slow {
                fast += participation.weight(FAST);
                participation.observe(FAST, 1000, 320, 0);
            }
            slow += participation.weight(SLOW);
            participation.observe(SLOW, 1000, 320, 0);
        }
        (participation, fast, slow)
    }

    #[test]
    fn equal_data_pulls_equally_whatever_the_speed() {
        let (_, fast, slow) = uneven(500, 4);
        let ratio = fast / slow;
        assert!((0.9..1.1).contains(&ratio), "the fast agent pulls {ratio} times as much");
        let mean = (fast + slow) / (500.0 * 5.0);
        assert!((0.9..1.1).contains(&mean), "the mean weight is {mean}");
    }

    #[test]
    fn weights_stay_inside_their_bounds() {
        let (participation, ..) = uneven(3, 500);
        assert_eq!(participation.weight(SLOW), MAX_WEIGHT);
        let mut liar = Participation::default();
        for _ in 0..200 {
            liar.observe(FAST, u64::MAX, u64::MAX, 0);
            liar.observe(SLOW, 0, 0, 0);
        }
        for agent in [FAST, SLOW] {
            assert!((MIN_WEIGHT..=MAX_WEIGHT).contains(&liar.weight(agent)));
        }
    }

    #[test]
    fn claimed_examples_count_up_to_a_multiple_of_the_median() {
        let weight_of_first = |claimed: u64| {
            let mut participation = Participation::default();
            for agent in 0..32u8 {
                participation.observe(AgentId([agent; 16]), if agent == 0 { claimed } else { 100 }, 320, 0);
            }
            participation.weight(AgentId([0; 16]))
        };
        assert!(weight_of_first(200) > 1.5, "twice the data weighs about twice as much");
        assert_eq!(weight_of_first(1 << 28).to_bits(), weight_of_first(800).to_bits());
    }

    #[test]
    fn a_claim_does_not_silence_the_others() {
        let mut participation = Participation::default();
        for round in 0..320u32 {
            let agent = u8::try_from(round % 10).expect("below ten");
            participation.observe(AgentId([agent; 16]), if agent == 0 { 1_000_000 } else { 6_000 }, 320, 0);
        }
        let others = participation.weight(AgentId([1; 16]));
        assert!(others > 0.5, "{others}");
    }

    /// The lie that used to pay: to have used one example raised the weight to its maximum.
    #[test]
    fn to_understate_the_work_of_an_update_gains_nothing() {
        let pull = |claimed: u64| {
            let mut participation = Participation::default();
            let mut pull = 0.0;
            for _ in 0..400 {
                pull += participation.weight(FAST);
                participation.observe(FAST, 1000, claimed, 320);
                participation.observe(SLOW, 1000, 320, 320);
            }
            pull
        };
        assert_eq!(pull(1).to_bits(), pull(320).to_bits(), "understated");
        assert!(pull(3200) < pull(320), "overstated");
    }

    #[test]
    fn unknown_and_forgotten_agents_weigh_one() {
        let (mut participation, ..) = uneven(50, 4);
        assert_eq!(participation.weight(AgentId([9; 16])), 1.0);
        participation.forget(FAST);
        assert_eq!(participation.weight(FAST), 1.0);
        assert_eq!(participation.weight(SLOW), 1.0, "the only agent left holds all data and does all work");
        participation.forget(SLOW);
        assert_eq!(participation, Participation::default(), "nothing is left behind");
    }

    #[test]
    fn long_runs_rescale_without_a_jump() {
        let mut participation = Participation::default();
        let mut before = [1.0, 1.0];
        let mut rescaled = 0;
        for round in 0..40_000u32 {
            participation.observe(if round.is_multiple_of(4) { SLOW } else { FAST }, 1000, 320, 0);
            rescaled += u32::from(round > 0 && participation.unit == 1.0);
            let now = [FAST, SLOW].map(|agent| participation.weight(agent));
            assert!(round < 100 || now.iter().zip(before).all(|(now, before)| (now / before - 1.0).abs() < 0.2));
            before = now;
        }
        assert!(rescaled > 0, "the test is too short to rescale");
    }

    #[test]
    fn the_saved_state_goes_on_like_the_one_that_was_saved() {
        let (mut participation, ..) = uneven(40, 3);
        let parts = [FAST, SLOW].map(|agent| (agent, participation.part(agent).expect("seen")));
        let mut restored = Participation::restore(participation.sums(), parts.into());
        for (agent, work) in [(SLOW, 10), (FAST, 2000), (SLOW, 7)] {
            participation.observe(agent, 500, work, 0);
            restored.observe(agent, 500, work, 0);
        }
        assert_eq!(restored.weight(FAST).to_bits(), participation.weight(FAST).to_bits());
        assert_eq!(restored, participation);
    }
}
