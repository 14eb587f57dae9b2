//! EF21: every agent has a memory of its updates, which the coordinator and the agent both hold, and the model steps
//! along the mean of all memories at every arrival, whoever has sent it.
//!
//! ```text
//! h_i  memory of agent i, 0 at first       C  active agents
//!
//! agent:        c = C(delta - h_i)                     what is sent: the difference against the memory, compressed
//! accepted:     h_i += w c                             here, and at the agent, which learns w from its verdict
//!               S = sum n_i;   G = sum n_i f_i h_i     over the agents with a memory
//!               n_i = min(examples of i, 8 median of all),   f_i = min(1, NORM_CAP median |h_j| / |h_i|)
//! close:        x += server_lr s / C * G / S
//! ```
//! | symbol | key | default | meaning |
//! |---|---|---|---|
//! | server_lr | `server_lr` | 1 | step of the whole fleet: each arrival steps a C-th of it |
//! | w | - | - | 1, and damped as admission damps it (`admit.clip_norm_ratio`, `admit.max_influence`) |
//! | s | - | - | clip(share of the examples / share of the updates, 1/8, 1) of the agent ([shares](super::shares)), and damped as `admit.max_influence` damps it |
//! | n_i | - | - | examples that the agent says it holds, in the contribution |
//! | x, G, h_i | - | - | model, sum, memories: f32 |
//!
//! | part | source |
//! |---|---|
//! | c, h_i | Richtárik, Sokolov and Fatkhullin 2021, "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback", its form for several nodes |
//! | a step along all memories at every arrival | Schmidt, Le Roux and Bach 2017, "Minimizing Finite Sums with the Stochastic Average Gradient" (SAG); for agents that come when they will, Gu, Huang, Zhang and Huang 2021, "Fast Federated Learning in the Presence of Arbitrary Device Unavailability" (MIFA) |
//!
//! Different from them: S counts the agents that have sent something, in place of waiting for all; memories are weighed
//! by examples; s keeps an agent that reports often from stepping as often along what the others sent long ago; and f_i
//! bounds how far one memory carries the model, since it acts at every later arrival of any agent. Medians are the
//! lower ones of the memories: agents that grow theirs without end are bounded by the others. n_i f_i is what it was
//! at the latest arrival of i, unless it is more than twice or less than half of what it would be now.
//!
//! **Who agrees on what.** A memory is named by its [`MemoryMark`](crate::update::MemoryMark), which follows from the
//! payloads and weights that made it. A lease says the mark that the coordinator has, the update the mark that its
//! content is a difference against. An agent with another mark begins at 0 and says so, and so does the coordinator
//! then ([`MemoryInputs::begins`]). An update against a mark that the coordinator does not have is refused as
//! `unknown_memory`. An agent has one undecided update at a time.
//!
//! **Who is left out.** The memory of an agent that is revoked or absent is subtracted; the contribution names it. Where
//! `limits::EF21_MEMORIES` or `limits::EF21_MEMORY_BYTES` are there, another agent gets none: what it sends counts at
//! its own close, and is forgotten ([`MemoryInputs::keeps`]).
//!
//! G changes by what was sent alone where n_i f_i stays as it is. So that its rounding errors do not add up, it is
//! summed up anew once in [`REFRESH_PER_MEMORY`] arrivals for every memory. `+ - * /` and `sqrt` only, one rounding
//! each, sums in index order: replay has the same bits on any machine.
//!
//! Bad at: speed where slow agents hold nothing of their own, since a step follows old memories as much as the fresh
//! update; a `server_lr` far above 1, which oscillates; an update that admission refuses over and over; memory, which
//! takes a vector of the model's length for each agent here and at the agent, and nothing of it where a fleet has more
//! agents than fit.

mod inputs;
mod saved;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Arrival, MergeRule, MergeSpec, RestoreError, SavedRule, check_shape};
use crate::codec::{Delta, euclidean_norm, is_finite};
use crate::ids::AgentId;

pub use inputs::{MemoryInputs, most_memories};
pub use saved::{Figures, Memory, read as read_parts};

/// Norm of a memory beyond which it counts for less, in units of the median of all memories' norms.
pub const NORM_CAP: f64 = 4.0;
/// Examples beyond which an agent's do not count, in units of the median of all agents with a memory.
pub const EXAMPLES_CAP: u64 = 8;
/// G is summed up anew once in so many arrivals for every memory.
pub const REFRESH_PER_MEMORY: u64 = 16;

/// The rule with its state. See the [module](self).
#[derive(Debug, Clone)]
pub struct Ef21 {
    server_lr: f64,
    figures: Figures,
    /// G.
    sum: Vec<f32>,
    memories: BTreeMap<AgentId, Memory>,
}

impl Ef21 {
    /// Returns the rule with empty state for a model of `params` parameters.
    #[must_use]
    pub fn new(spec: &MergeSpec, params: usize) -> Self {
        let (figures, memories) = (Figures::default(), BTreeMap::new());
        Self { server_lr: step(spec), figures, sum: vec![0.0; params], memories }
    }

    /// The memory of `agent` is 0, and no part of the mean.
    fn forget(&mut self, agent: AgentId) {
        if let Some(memory) = self.memories.remove(&agent) {
            add(&mut self.sum, &memory.values, -memory.part());
        }
    }

    /// Brings what a memory counts for up to date: that of the agent whose update came, those that are far off, and with
    /// `all` every one.
    #[expect(clippy::cast_possible_truncation, reason = "the sum is f32")]
    fn weigh(&mut self, arrived: AgentId, all: bool) {
        let norm = lower_median(self.memories.values().map(|memory| memory.norm), f64::total_cmp);
        let examples = lower_median(self.memories.values().map(|memory| memory.examples), Ord::cmp);
        for (agent, memory) in &mut self.memories {
            let counted = memory.examples.min(EXAMPLES_CAP.saturating_mul(examples));
            let widest = NORM_CAP * norm;
            let factor = if widest > 0.0 && memory.norm > widest { widest / memory.norm } else { 1.0 };
            let (before, wanted) = (memory.part(), (counted as f64 * factor) as f32);
            if all || *agent == arrived || wanted > 2.0 * before || before > 2.0 * wanted {
                (memory.counted, memory.factor) = (counted, factor);
                add(&mut self.sum, &memory.values, wanted - before);
            }
        }
    }

    fn refresh(&mut self) {
        self.sum.fill(0.0);
        for memory in self.memories.values() {
            add(&mut self.sum, &memory.values, memory.part());
        }
    }
}

/// The lower one of the two in the middle, of at least one.
fn lower_median<T: Copy + Default>(values: impl Iterator<Item = T>, order: impl Fn(&T, &T) -> Ordering) -> T {
    let mut values: Vec<T> = values.collect();
    let Some(last) = values.len().checked_sub(1) else { return T::default() };
    *values.select_nth_unstable_by(last / 2, order).1
}

fn step(spec: &MergeSpec) -> f64 {
    match spec {
        MergeSpec::Ef21 { server_lr } => f64::from(*server_lr),
        _ => 0.0,
    }
}

/// `target += part * values`.
fn add(target: &mut [f32], values: &[f32], part: f32) {
    for (target, value) in target.iter_mut().zip(values) {
        *target += part * value;
    }
}

impl MergeRule for Ef21 {
    /// A contribution of another rule, without its inputs, changes nothing.
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        let Some(MemoryInputs { active, step, begins, keeps, left }) = arrival.memory else { return };
        left.iter().for_each(|agent| self.forget(*agent));
        if *begins {
            self.forget(arrival.agent);
        }
        let params = self.sum.len();
        let memory = self.memories.entry(arrival.agent).or_insert_with(|| Memory::empty(params));
        delta.add_scaled_to(&mut self.sum, memory.part() * arrival.weight);
        let values = Arc::make_mut(&mut memory.values);
        delta.add_scaled_to(values, arrival.weight);
        (memory.examples, memory.norm) = (arrival.mean_weight, euclidean_norm(values));
        let arrivals = self.figures.arrivals + 1;
        let passing = (!keeps).then_some(arrival.agent);
        self.figures = Figures { arrivals, active: (*active).max(1), step: *step, pending: true, passing };
        let refreshes = arrivals.is_multiple_of(REFRESH_PER_MEMORY * self.memories.len() as u64);
        self.weigh(arrival.agent, refreshes);
        if refreshes {
            self.refresh();
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "models are f32")]
    fn close(&mut self, model: &mut [f32]) {
        if !std::mem::take(&mut self.figures.pending) {
            return;
        }
        let examples = self.memories.values().fold(0_u64, |sum, memory| sum.saturating_add(memory.counted)).max(1);
        let step = self.server_lr * f64::from(self.figures.step);
        let rate = step / (f64::from(self.figures.active) * examples as f64);
        for (x, sum) in model.iter_mut().zip(&self.sum) {
            *x = (f64::from(*x) + rate * f64::from(*sum)) as f32;
        }
        if let Some(agent) = self.figures.passing.take() {
            self.forget(agent);
        }
    }

    fn configure(&mut self, spec: &MergeSpec) {
        self.server_lr = step(spec);
    }

    fn is_finite(&self) -> bool {
        is_finite(&self.sum) && self.memories.values().all(|memory| is_finite(&memory.values))
    }

    /// The vector G. The figures, and each memory by agent.
    fn save(&self) -> SavedRule<'_> {
        SavedRule { vectors: vec![Cow::Borrowed(&self.sum)], parts: saved::parts(&self.figures, &self.memories) }
    }

    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError> {
        let SavedRule { mut vectors, parts } = saved;
        check_shape(&vectors, 1, self.sum.len())?;
        (self.figures, self.memories) = saved::read(&parts, self.sum.len())?;
        self.sum = vectors.remove(0).into_owned();
        Ok(())
    }

    fn boxed(&self) -> Box<dyn MergeRule> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(number: u8) -> AgentId {
        AgentId([number; 16])
    }

    struct World {
        rule: Ef21,
        model: Vec<f32>,
    }

    impl World {
        fn new(params: usize) -> Self {
            Self { rule: Ef21::new(&MergeSpec::Ef21 { server_lr: 1.0 }, params), model: vec![0.0; params] }
        }

        /// An update of an agent that holds so many examples, in a fleet of two.
        fn arrive(&mut self, number: u8, examples: u64, values: &[f32], begins: bool, left: &[u8]) {
            let left = left.iter().map(|number| agent(*number)).collect();
            let inputs = MemoryInputs { active: 2, step: 1.0, begins, keeps: true, left };
            let arrival = Arrival {
                agent: agent(number),
                weight: 1.0,
                mean_weight: examples,
                staleness: 0,
                base_dot: None,
                recall: None,
                memory: Some(&inputs),
            };
            self.rule.contribute(&self.model, &Arc::new(Delta::Dense(values.to_vec())), &arrival);
            self.rule.close(&mut self.model);
        }
    }

    #[test]
    fn the_rule_by_hand() {
        let mut world = World::new(1);
        world.arrive(1, 30, &[2.0], false, &[]);
        assert_eq!(world.model, [1.0], "half of the only memory");
        world.arrive(2, 10, &[4.0], false, &[]);
        assert_eq!(world.model, [2.25], "half of (30 * 2 + 10 * 4) / 40");
        world.arrive(2, 10, &[-2.0], false, &[]);
        assert_eq!(world.model, [3.25], "the memory of agent 2 is 2 now, that of agent 1 still is");
        world.arrive(1, 10, &[0.0], false, &[]);
        assert_eq!(world.model, [4.25], "agent 1 holds fewer examples");
        world.arrive(2, 10, &[1.0], true, &[1]);
        assert_eq!(world.model, [4.75], "agent 1 is gone, and agent 2 begins anew");
        assert_eq!((world.rule.memories.len(), &world.rule.sum[..]), (1, &[10.0][..]));
    }

    /// A clipped memory acts at every arrival; clipping what was sent would not bound it.
    #[test]
    fn a_memory_that_grows_without_end_counts_for_no_more_than_the_bound() {
        let mut world = World::new(4);
        world.arrive(1, 10, &[1.0, 1.0, 1.0, 1.0], true, &[]);
        let mut longest = 0.0_f64;
        for _ in 0..40 {
            world.arrive(2, 10, &[-1.0, -1.0, -1.0, -1.0], false, &[]);
            world.arrive(1, 10, &[1.0, 1.0, 1.0, 1.0], true, &[]);
            let memory = &world.rule.memories[&agent(2)];
            longest = longest.max(memory.factor * euclidean_norm(&memory.values));
        }
        let memory = &world.rule.memories[&agent(2)];
        assert_eq!(memory.values[0], -40.0, "both sides go on adding");
        assert!(memory.factor < 1.0 && longest <= NORM_CAP * 2.0, "{longest}, and the other one has 2");
    }

    /// Agents that come first are their own median, and need not come again.
    #[test]
    fn a_long_memory_and_a_large_claim_of_an_agent_that_is_silent_lose_their_weight() {
        let mut world = World::new(4);
        world.arrive(1, 1_000_000, &[100.0; 4], false, &[]);
        for number in 2..=4 {
            world.arrive(number, 10, &[1.0; 4], false, &[]);
        }
        let memory = &world.rule.memories[&agent(1)];
        let counts = memory.factor * memory.norm;
        assert!(memory.counted <= 160 && counts <= 2.0 * NORM_CAP * 2.0, "{} examples, {counts}", memory.counted);
    }

    #[test]
    fn an_agent_without_room_counts_at_its_own_close_alone() {
        let mut world = World::new(1);
        world.arrive(1, 10, &[2.0], false, &[]);
        let inputs = MemoryInputs { active: 2, step: 0.5, begins: true, keeps: false, left: vec![] };
        let arrival = Arrival {
            agent: agent(2),
            weight: 1.0,
            mean_weight: 10,
            staleness: 0,
            base_dot: None,
            recall: None,
            memory: Some(&inputs),
        };
        world.rule.contribute(&world.model, &Arc::new(Delta::Dense(vec![4.0])), &arrival);
        world.rule.close(&mut world.model);
        assert_eq!(world.model, [1.75], "1 + a quarter of (2 + 4) / 2");
        assert_eq!((world.rule.memories.len(), &world.rule.sum[..]), (1, &[20.0][..]));
    }

    #[test]
    fn the_sum_is_that_of_the_memories() {
        let mut world = World::new(3);
        for round in 0..200_u8 {
            let value = f32::from(round % 7) - 3.0;
            let left = if round % 31 == 30 { vec![round % 5] } else { vec![] };
            let agent = (round + 1) % 5;
            world.arrive(agent, 10 + u64::from(round % 3), &[value, 0.5 * value, 9.0 - value], round % 23 == 0, &left);
        }
        let kept = world.rule.sum.clone();
        world.rule.refresh();
        for (kept, summed) in kept.iter().zip(&world.rule.sum) {
            assert!((kept - summed).abs() <= 1e-3 * summed.abs().max(1.0), "{kept} {summed}");
        }
    }
}
