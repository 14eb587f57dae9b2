//! EF21: every agent has a memory of its updates, which the coordinator and the agent both hold, and the model steps
//! along the mean of all memories at every arrival, whoever has sent it.
//!
//! ```text
//! h_i  memory of agent i, 0 at first       n_i  examples that it holds       C  active agents
//!
//! agent:        c = C(delta - h_i)                     what is sent: the difference against the memory, compressed
//! accepted:     h_i += w c                             here, and at the agent, which learns w from its verdict
//!               S = sum n_i;   G = sum n_i f_i h_i     over the agents with a memory
//!               f_i = min(1, NORM_CAP median |h_j| / |h_i|)      as of the latest arrival of i; 1 where the median is 0
//! close:        x += server_lr / C * G / S
//! ```
//! | symbol | key | default | meaning |
//! |---|---|---|---|
//! | server_lr | `server_lr` | 1 | step of the whole fleet: each arrival steps a C-th of it |
//! | w | - | - | 1, and damped as admission damps it (`admit.clip_norm_ratio`, `admit.max_influence`) |
//! | n_i | - | - | examples that the agent says it holds, in the contribution |
//! | x, G, h_i | - | - | model, sum, memories: f32 |
//!
//! | part | source |
//! |---|---|
//! | c, h_i | Richtárik, Sokolov and Fatkhullin 2021, "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback", its form for several nodes |
//! | a step along all memories at every arrival | Schmidt, Le Roux and Bach 2017, "Minimizing Finite Sums with the Stochastic Average Gradient" (SAG); for agents that come when they will, Gu, Huang, Zhang and Huang 2021, "Fast Federated Learning in the Presence of Arbitrary Device Unavailability" (MIFA) |
//!
//! Different from them: S counts the agents that have sent something, in place of waiting for all; memories are weighed
//! by examples; and f_i bounds how far one memory carries the model, since it acts at every later arrival of any agent.
//! The median is the lower one of the memories' norms: agents that grow theirs without end are bounded by the others.
//!
//! **Who agrees on what.** A memory is named by its [`MemoryMark`](crate::update::MemoryMark), which follows from the
//! payloads and weights that made it. A lease says the mark that the coordinator has, the update the mark that its
//! content is a difference against. An agent with another mark begins at 0 and says so, and so does the coordinator
//! then ([`MemoryInputs::begins`]). An update against a mark that the coordinator does not have is refused as
//! `unknown_memory`. An agent has one undecided update at a time.
//!
//! **Who is left out.** The memory of an agent that is revoked or absent ([shares](super::shares)) is subtracted, and
//! that of the agent that was silent for longest where there would be more than `limits::EF21_MEMORIES` or
//! `limits::EF21_MEMORY_BYTES`. The contribution names them.
//!
//! G changes by what was sent alone where f_i stays as it is. So that its rounding errors do not add up, it is
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
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Arrival, MergeRule, MergeSpec, RestoreError, SavedRule, check_shape};
use crate::codec::{Delta, euclidean_norm};
use crate::ids::AgentId;

pub use inputs::{MemoryInputs, most_memories};
pub use saved::{Figures, Memory, read as read_parts};

/// Norm of a memory beyond which it counts for less, in units of the median of all memories' norms.
pub const NORM_CAP: f64 = 4.0;
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

    /// f: what a memory of this norm counts for, beside the others.
    fn bounded(&self, norm: f64) -> f64 {
        let mut norms: Vec<f64> = self.memories.values().map(|memory| memory.norm).chain([norm]).collect();
        let middle = (norms.len() - 1) / 2;
        let (_, median, _) = norms.select_nth_unstable_by(middle, f64::total_cmp);
        let widest = NORM_CAP * *median;
        if widest > 0.0 && norm > widest { widest / norm } else { 1.0 }
    }

    fn refresh(&mut self) {
        self.sum.fill(0.0);
        for memory in self.memories.values() {
            add(&mut self.sum, &memory.values, memory.part());
        }
    }
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
    #[expect(clippy::cast_possible_truncation, reason = "the sum is f32")]
    fn contribute(&mut self, _model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        let Some(MemoryInputs { active, begins, left }) = arrival.memory else { return };
        left.iter().for_each(|agent| self.forget(*agent));
        if *begins {
            self.forget(arrival.agent);
        }
        let params = self.sum.len();
        let mut memory = self.memories.remove(&arrival.agent).unwrap_or_else(|| Memory::empty(params));
        let before = memory.part();
        let values = Arc::make_mut(&mut memory.values);
        delta.add_scaled_to(values, arrival.weight);
        let norm = euclidean_norm(values);
        (memory.examples, memory.norm, memory.factor) = (arrival.mean_weight, norm, self.bounded(norm));
        let after = memory.part();
        if after == before {
            delta.add_scaled_to(&mut self.sum, after * arrival.weight);
        } else {
            // What is in the sum is the memory as it was, at the part that it had.
            delta.add_scaled_to(&mut self.sum, before * arrival.weight);
            add(&mut self.sum, &memory.values, (f64::from(after) - f64::from(before)) as f32);
        }
        self.memories.insert(arrival.agent, memory);
        self.figures.arrivals += 1;
        (self.figures.active, self.figures.pending) = ((*active).max(1), true);
        if self.figures.arrivals.is_multiple_of(REFRESH_PER_MEMORY * self.memories.len() as u64) {
            self.refresh();
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "models are f32")]
    fn close(&mut self, model: &mut [f32]) {
        if !std::mem::take(&mut self.figures.pending) {
            return;
        }
        let examples = self.memories.values().fold(0_u64, |sum, memory| sum.saturating_add(memory.examples)).max(1);
        let rate = self.server_lr / (f64::from(self.figures.active) * examples as f64);
        for (x, sum) in model.iter_mut().zip(&self.sum) {
            *x = (f64::from(*x) + rate * f64::from(*sum)) as f32;
        }
    }

    fn configure(&mut self, spec: &MergeSpec) {
        self.server_lr = step(spec);
    }

    fn is_finite(&self) -> bool {
        let finite = |values: &[f32]| values.iter().fold(true, |finite, value| finite & value.is_finite());
        finite(&self.sum) && self.memories.values().all(|memory| finite(&memory.values))
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
            let inputs = MemoryInputs { active: 2, begins, left };
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
