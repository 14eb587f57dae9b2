//! Shares of arrivals: how much each active agent takes part, against how much data it holds. The part of the
//! [recall](super::recall) rule that follows from the journal alone. The [rescaled] rule uses the intervals.
//!
//! ```text
//! C       active agents: with a started epoch, not revoked, not absent
//! p_a     = examples_a / sum of examples, each at most 8 times the median        target share (see merge::examples)
//! share_a   moving share of the arrivals, over a window of 10 C; starts at p_a
//! w       = clip(p_a / share_a, MIN_WEIGHT, 1)                          fresh weight of an update
//! lack_a  = p_a - min(p_a, share_a)                                     what fresh arrivals do not give of a
//! R_a     = arrivals between the two latest of a;  r_a = arrivals since the latest
//! fade_a  = 1 while r_a <= 2 R_a, else 2^-floor(y) (1 - frac(y) / 2) with y = (r_a - 2 R_a) / R_a
//! ```
//! An arrival adds 1 / (10 C) to its agent's share and takes that part from all. Shares are kept as work over the sum of
//! work: what comes later is written larger, so that an arrival changes the part of its agent alone. An agent that becomes
//! active starts with share p, and the shares of the others shrink by 1 - p: if all agents are there before the first
//! arrival, each starts with exactly its part of the examples.
//!
//! An agent that was silent for [`ABSENT_INTERVALS`] of its own intervals, and for [`ABSENT_ARRIVALS`] C arrivals, is
//! absent: it does not count until its next arrival or epoch. Its memory has faded long before. This is looked for at every
//! C-th arrival.
//!
//! Only `+ - * /` in f64: the state is rebuilt from the journal, bit for bit, on any machine.

use std::collections::BTreeMap;

use super::examples::Held;
use super::participation::MIN_WEIGHT;
use super::recall::{RecallInputs, Recalled};
use super::rescaled;
use crate::ids::AgentId;
use crate::limits;

/// The moving share looks back over this many arrivals for every active agent.
pub const WINDOW_PER_AGENT: f64 = 10.0;
/// Silence after which an agent is absent, in intervals of its own ...
pub const ABSENT_INTERVALS: u64 = 32;
/// ... and in arrivals for every active agent.
pub const ABSENT_ARRIVALS: u64 = 100;
/// A smaller lack is none: rounding leaves as much.
const LEAST_LACK: f64 = 1e-9;
/// Work is written in a smaller unit when it has grown this much, long before f64 runs out.
const RESCALE_ABOVE: f64 = 1e100;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Member {
    examples: u64,
    /// `None` while the agent is absent.
    work: Option<f64>,
    /// Arrivals when its latest update came, or when it became active.
    last: u64,
    /// Arrivals between its two latest updates; 0 before its first one.
    interval: u64,
}

/// One agent's part, for saving: its examples, its work, the arrivals at its latest update, and its interval.
pub type Part = (u64, Option<f64>, u64, u64);

/// What there is beside the parts, for saving: the sum of work, and arrivals.
pub type Sums = (f64, u64);

/// Whose part of [`Shares`] an operation changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// That of the agent it was about, and of these.
    Also(Vec<AgentId>),
    /// That of every agent.
    EveryAgent,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Totals {
    active: u64,
    held: Held,
    work: f64,
    arrivals: u64,
}

/// What an update of an agent would be admitted with.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    /// The fresh weight, in [1/8, 1].
    pub weight: f64,
    /// C times the agent's share, this update included: below 1 where it reports less often than the mean agent.
    pub rate: f64,
    /// What the merge rule is told beside it.
    pub inputs: RecallInputs,
}

/// The active agents, and how much each takes part. Empty where the merge rule does not use it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shares {
    members: BTreeMap<AgentId, Member>,
    totals: Totals,
}

impl Totals {
    /// What fresh arrivals do not give of an agent, before and after its silent fade.
    fn lack(&self, member: &Member) -> Option<(f64, f64)> {
        let (work, true) = (member.work?, member.interval > 0) else { return None };
        let target = self.held.part(member.examples);
        let lack = target - target.min(work / self.work);
        let fade = fade(self.arrivals - member.last, member.interval);
        (lack > LEAST_LACK && fade > 0.0).then_some((lack, lack * fade))
    }
}

/// The silent fade, `silent` arrivals after the latest of an agent that came every `interval` arrivals.
fn fade(silent: u64, interval: u64) -> f64 {
    let free = interval.saturating_mul(2);
    if silent <= free {
        return 1.0;
    }
    let late = (silent - free) as f64 / interval as f64;
    let whole = late.floor();
    // 2^-64 of a share is nothing.
    if whole >= 64.0 {
        return 0.0;
    }
    let mut fade = 1.0 - (late - whole) / 2.0;
    let mut halvings = 0.0;
    while halvings < whole {
        fade /= 2.0;
        halvings += 1.0;
    }
    fade
}

impl Shares {
    /// The shares of a fleet of which no update has come, from agents and the examples that they hold.
    #[must_use]
    pub fn of(agents: impl Iterator<Item = (AgentId, u64)>) -> Self {
        let mut shares = Self::default();
        for (agent, examples) in agents {
            shares.join(agent, examples);
        }
        shares
    }

    /// Notes that `agent` is active and holds `examples` examples. Returns whose part changed.
    pub fn join(&mut self, agent: AgentId, examples: u64) -> Changed {
        let (totals, member) = self.present(agent, examples);
        self.take(agent, totals, member)
    }

    /// Notes an accepted update of `agent`, which holds `examples` examples. Returns whose part changed.
    pub fn arrive(&mut self, agent: AgentId, examples: u64) -> Changed {
        let (totals, member) = self.arrived(agent, examples);
        let changed = self.take(agent, totals, member);
        if changed == Changed::EveryAgent || !self.totals.arrivals.is_multiple_of(self.totals.active) {
            return changed;
        }
        Changed::Also(self.sweep())
    }

    /// Leaves a revoked agent out from now on. Returns whose part changed.
    pub fn leave(&mut self, agent: AgentId) -> Changed {
        self.members.remove(&agent);
        self.total();
        Changed::Also(Vec::new())
    }

    /// Forgets which agents have sent updates: the model is another one now, and memories with it. Shares stay. Returns
    /// whose part changed.
    pub fn forget_updates(&mut self) -> Changed {
        self.totals.arrivals = 0;
        for member in self.members.values_mut() {
            (member.last, member.interval) = (0, 0);
        }
        Changed::EveryAgent
    }

    /// What an update of `agent`, which holds `examples` examples, is admitted with, if it comes now. With
    /// [`Recalling::Off`] no agent is recalled.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "factors are journalled and applied as f32")]
    pub fn admit(&self, agent: AgentId, examples: u64, recalling: Recalling) -> Admitted {
        let (totals, own) = self.arrived(agent, examples);
        let share = own.work.map_or(0.0, |work| work / totals.work);
        let weight = (totals.held.part(own.examples) / share).clamp(MIN_WEIGHT, 1.0);
        let mut lacking: Vec<(f64, AgentId, f64)> = Vec::new();
        if recalling == Recalling::On {
            let others = self.members.iter().filter(|(other, _)| **other != agent);
            let all = others.chain(std::iter::once((&agent, &own)));
            lacking.extend(
                all.filter_map(|(agent, member)| totals.lack(member).map(|(lack, factor)| (lack, *agent, factor))),
            );
        }
        let most = limits::RECALLED_AGENTS;
        let by_lack = |a: &(f64, AgentId, f64), b: &(f64, AgentId, f64)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if lacking.len() > most {
            lacking.select_nth_unstable_by(most, by_lack);
            lacking.truncate(most);
        }
        lacking.sort_unstable_by(by_lack);
        let recalled =
            lacking.into_iter().map(|(_, agent, factor)| Recalled { agent, factor: factor as f32 }).collect();
        let active = u32::try_from(totals.active).unwrap_or(u32::MAX);
        let rate = totals.active as f64 * share;
        Admitted { weight, rate, inputs: RecallInputs { active, scale: 1.0, recalled } }
    }

    /// Returns what the step of `agent`'s update is multiplied with by the [rescaled] rule, if the update
    /// comes now: its interval over the number of active agents, in [1/8, 8], and 1 for its first update.
    #[must_use]
    pub fn rescale(&self, agent: AgentId, examples: u64) -> f64 {
        if self.members.get(&agent).is_none_or(|member| member.interval == 0) {
            return 1.0;
        }
        let (totals, own) = self.arrived(agent, examples);
        rescaled::factor(own.interval, totals.active)
    }

    /// Active agents.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.totals.active
    }

    /// An agent's part.
    #[must_use]
    pub fn part(&self, agent: AgentId) -> Option<Part> {
        self.members.get(&agent).map(|member| (member.examples, member.work, member.last, member.interval))
    }

    /// What there is beside the parts.
    #[must_use]
    pub fn sums(&self) -> Sums {
        (self.totals.work, self.totals.arrivals)
    }

    /// Puts together what was taken apart with [`part`](Self::part) and [`sums`](Self::sums).
    #[must_use]
    pub fn restore((work, arrivals): Sums, parts: BTreeMap<AgentId, Part>) -> Self {
        let member = |(agent, (examples, work, last, interval))| (agent, Member { examples, work, last, interval });
        let members: BTreeMap<_, Member> = parts.into_iter().map(member).collect();
        let present = || members.values().filter(|member| member.work.is_some());
        let (active, held) = (present().count() as u64, Held::of(present().map(|member| member.examples)));
        Self { members, totals: Totals { active, held, work, arrivals } }
    }

    /// The agent as it is when it is active with so many examples, and the totals with it.
    fn present(&self, agent: AgentId, examples: u64) -> (Totals, Member) {
        let examples = examples.clamp(1, limits::SHARD_EXAMPLES as u64);
        let mut totals = self.totals;
        let before = self.members.get(&agent).copied();
        if let Some(mut member) = before.filter(|member| member.work.is_some()) {
            if member.examples != examples {
                totals.held = self.held_with(agent, examples);
                member.examples = examples;
            }
            return (totals, member);
        }
        totals.active += 1;
        totals.held = self.held_with(agent, examples);
        let share = totals.held.part(examples);
        let work = if totals.active == 1 { 1.0 } else { totals.work * share / (1.0 - share) };
        totals.work = if totals.active == 1 { work } else { totals.work + work };
        let (last, interval) = before.map_or((totals.arrivals, 0), |member| (member.last, member.interval));
        (totals, Member { examples, work: Some(work), last, interval })
    }

    /// What active agents hold if `agent` is one of them and holds so many examples.
    fn held_with(&self, agent: AgentId, examples: u64) -> Held {
        let others = self.members.iter().filter(|(other, member)| **other != agent && member.work.is_some());
        Held::of(others.map(|(_, member)| member.examples).chain(std::iter::once(examples)))
    }

    /// The agent and the totals after an update of it.
    fn arrived(&self, agent: AgentId, examples: u64) -> (Totals, Member) {
        let (mut totals, mut member) = self.present(agent, examples);
        totals.arrivals += 1;
        let more = totals.work / (WINDOW_PER_AGENT * totals.active as f64 - 1.0);
        totals.work += more;
        member.work = member.work.map(|work| work + more);
        member.interval = (totals.arrivals - member.last).max(1);
        member.last = totals.arrivals;
        (totals, member)
    }

    fn take(&mut self, agent: AgentId, totals: Totals, member: Member) -> Changed {
        self.totals = totals;
        self.members.insert(agent, member);
        if self.totals.work <= RESCALE_ABOVE {
            return Changed::Also(Vec::new());
        }
        let unit = self.totals.work;
        for work in self.members.values_mut().filter_map(|member| member.work.as_mut()) {
            *work /= unit;
        }
        self.total();
        Changed::EveryAgent
    }

    /// Counts the agents that are active, and sums up what they have.
    fn total(&mut self) {
        let mut totals = Totals { arrivals: self.totals.arrivals, ..Totals::default() };
        for work in self.members.values().filter_map(|member| member.work) {
            totals.active += 1;
            totals.work += work;
        }
        let present = self.members.values().filter(|member| member.work.is_some());
        totals.held = Held::of(present.map(|member| member.examples));
        self.totals = totals;
    }

    /// Finds the agents that have become absent.
    fn sweep(&mut self) -> Vec<AgentId> {
        let Totals { active, arrivals, .. } = self.totals;
        let mut gone = Vec::new();
        for (agent, member) in self.members.iter_mut().filter(|(_, member)| member.work.is_some()) {
            let longest = (ABSENT_INTERVALS * member.interval).max(ABSENT_ARRIVALS * active);
            if arrivals - member.last > longest {
                member.work = None;
                gone.push(*agent);
            }
        }
        if !gone.is_empty() {
            self.total();
        }
        gone
    }
}

/// Whether the updates of agents that lack participation are recalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recalling {
    /// They are.
    On,
    /// They are not.
    Off,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(number: u8) -> AgentId {
        AgentId([number; 16])
    }

    fn fleet(examples: &[u64]) -> Shares {
        Shares::of((0..).zip(examples).map(|(number, examples)| (agent(number), *examples)))
    }

    fn share(shares: &Shares, number: u8) -> f64 {
        shares.part(agent(number)).and_then(|(_, work, ..)| work).map_or(0.0, |work| work / shares.totals.work)
    }

    #[test]
    fn a_fleet_that_is_there_at_the_start_has_its_parts_of_the_examples() {
        let shares = fleet(&[600, 1_200, 300, 900]);
        for (number, part) in [(0, 0.2), (1, 0.4), (2, 0.1), (3, 0.3)] {
            assert!((share(&shares, number) - part).abs() < 1e-15, "agent {number}: {}", share(&shares, number));
        }
        assert_eq!(shares.active(), 4);
    }

    /// The plain form of the rule: every share shrinks, and that of the arrival grows.
    #[test]
    fn shares_move_as_the_plain_form_says() {
        let (mut shares, mut plain) = (fleet(&[100, 100, 200]), [0.25, 0.25, 0.5]);
        for arrival in 0..400_u32 {
            let number = if arrival % 7 == 0 { 2 } else { u8::try_from(arrival % 2).expect("0 or 1") };
            let admitted = shares.admit(agent(number), if number == 2 { 200 } else { 100 }, Recalling::On);
            shares.arrive(agent(number), if number == 2 { 200 } else { 100 });
            plain.iter_mut().for_each(|share| *share *= 1.0 - 1.0 / 30.0);
            plain[usize::from(number)] += 1.0 / 30.0;
            for (number, share_there) in (0..).zip(plain) {
                assert!((share(&shares, number) - share_there).abs() < 1e-12, "arrival {arrival}, agent {number}");
            }
            let target = if number == 2 { 0.5 } else { 0.25 };
            let expected = (target / plain[usize::from(number)]).clamp(MIN_WEIGHT, 1.0);
            assert!((admitted.weight - expected).abs() < 1e-12, "arrival {arrival}");
        }
        assert!(plain[2] < 0.2);
    }

    #[test]
    fn an_agent_that_comes_later_starts_at_its_part() {
        let mut shares = fleet(&[100, 100]);
        for _ in 0..10 {
            shares.arrive(agent(0), 100);
        }
        let before = share(&shares, 1);
        assert_eq!(shares.join(agent(2), 200), Changed::Also(vec![]));
        assert!((share(&shares, 2) - 0.5).abs() < 1e-15);
        assert!((share(&shares, 1) - before / 2.0).abs() < 1e-15, "the others shrink by 1 - p");
        let before = shares.clone();
        shares.join(agent(2), 200);
        assert_eq!(shares, before, "an epoch of an agent that is active changes nothing");
    }

    #[test]
    fn only_agents_that_lack_and_have_sent_something_are_recalled_the_largest_lack_first() {
        let mut shares = fleet(&[100, 100, 100, 300]);
        for number in [1, 2, 3] {
            shares.arrive(agent(number), 100 * u64::from(number.max(1)));
        }
        for _ in 0..30 {
            shares.arrive(agent(0), 100);
        }
        let recalled = shares.admit(agent(0), 100, Recalling::On).inputs.recalled;
        assert_eq!(recalled[0].agent, agent(3), "it holds most and lacks most: {recalled:?}");
        assert_eq!(recalled.len(), 3, "all but the agent that is everywhere: {recalled:?}");
        assert!(recalled.iter().all(|recalled| recalled.factor > 0.0 && recalled.factor < 0.5));
        let own = shares.admit(agent(3), 300, Recalling::On).inputs.recalled;
        assert!(own.iter().any(|recalled| recalled.agent == agent(3)), "its own memory takes part");
        assert!(shares.admit(agent(0), 100, Recalling::Off).inputs.recalled.is_empty());
        let quiet = fleet(&[100, 100]).admit(agent(0), 100, Recalling::On).inputs.recalled;
        assert!(quiet.iter().all(|recalled| recalled.agent == agent(0)), "the other one has sent nothing: {quiet:?}");
    }

    #[test]
    fn the_number_of_recalled_agents_is_bounded() {
        let holders = 200;
        let mut shares = fleet(&vec![100; usize::from(holders)]);
        (0..holders).for_each(|number| drop(shares.arrive(agent(number), 100)));
        (0..2_000).for_each(|_| drop(shares.arrive(agent(0), 100)));
        let recalled = shares.admit(agent(0), 100, Recalling::On).inputs.recalled;
        assert_eq!(recalled.len(), limits::RECALLED_AGENTS);
    }

    #[test]
    fn the_silent_fade_is_continuous_and_ends() {
        assert_eq!([0, 10, 20].map(|silent| fade(silent, 10)), [1.0; 3]);
        assert_eq!([25, 30, 35, 40].map(|silent| fade(silent, 10)), [0.75, 0.5, 0.375, 0.25]);
        assert_eq!(fade(10_000, 10), 0.0);
    }

    #[test]
    fn an_agent_that_is_silent_for_very_long_is_absent_until_it_comes_again() {
        let mut shares = fleet(&[100, 100]);
        shares.arrive(agent(1), 100);
        let mut gone = Vec::new();
        for _ in 0..2 * ABSENT_ARRIVALS + 4 {
            if let Changed::Also(left) = shares.arrive(agent(0), 100) {
                gone.extend(left);
            }
        }
        assert_eq!((gone, shares.active()), (vec![agent(1)], 1));
        assert!((share(&shares, 0) - 1.0).abs() < 1e-12, "the other one has all");
        shares.arrive(agent(1), 100);
        assert_eq!(shares.active(), 2);
        let (.., interval) = shares.part(agent(1)).expect("known");
        assert!(interval > 2 * ABSENT_ARRIVALS, "its interval is the true one: {interval}");
    }

    #[test]
    fn a_revoked_agent_leaves_nothing_behind() {
        let mut shares = fleet(&[100, 300]);
        shares.leave(agent(1));
        assert_eq!((shares.active(), share(&shares, 0)), (1, 1.0));
        shares.leave(agent(0));
        assert_eq!(shares, Shares::default());
    }

    #[test]
    fn the_saved_state_goes_on_like_the_one_that_was_saved() {
        let mut shares = fleet(&[100, 300, 50]);
        (0..50).for_each(|arrival| drop(shares.arrive(agent(arrival % 2), 100)));
        let parts = [0, 1, 2].map(|number| (agent(number), shares.part(agent(number)).expect("known")));
        let mut restored = Shares::restore(shares.sums(), parts.into());
        assert_eq!(restored, shares);
        for number in [2, 0, 1, 0] {
            assert_eq!(restored.arrive(agent(number), 70), shares.arrive(agent(number), 70));
        }
        assert_eq!(restored, shares);
    }

    #[test]
    fn long_runs_rescale_without_a_jump() {
        let mut shares = fleet(&[100, 100]);
        let (mut rescaled, mut before) = (0, 1.0);
        for arrival in 0..12_000_u32 {
            rescaled += u32::from(shares.arrive(agent(u8::from(arrival % 3 == 0)), 100) == Changed::EveryAgent);
            let now = share(&shares, 1);
            assert!(arrival < 100 || (now / before - 1.0).abs() < 0.2, "{before} then {now}");
            before = now;
        }
        assert!(rescaled > 0, "the test is too short to rescale");
    }

    /// A lie about the examples is worth no more than the cap says, and the others are recalled all the same.
    #[test]
    fn a_liar_leaves_the_others_most_of_their_weight() {
        let mut shares = fleet(&[100; 16]);
        shares.join(agent(99), u64::MAX);
        (0..50).for_each(|_| (0..16).for_each(|number| drop(shares.arrive(agent(number), 100))));
        let weight = shares.admit(agent(0), 100, Recalling::On).weight;
        assert!(weight > 0.6, "{weight}: 16 agents are taken to hold 16 parts of 24, and send all there is");
        let target = shares.totals.held.part(limits::SHARD_EXAMPLES as u64);
        assert!((target - 8.0 / 24.0).abs() < 1e-12, "{target}");
        (0..200).for_each(|_| drop(shares.arrive(agent(0), 100)));
        let recalled = shares.admit(agent(0), 100, Recalling::On).inputs.recalled;
        assert_eq!(recalled.len(), 15, "all honest agents that lack");
    }
}
