//! The EF21 rule once more, plainly, from its description in `anabranch_common::merge::ef21`.

use std::collections::BTreeMap;

use anabranch_common::codec::Delta;
use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::journal::Contribution;
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::ef21::{Figures, Memory, read_parts};

use super::checker::add;
use super::own_state::Saved;
use crate::recovery::RecoveryError;

/// The memory of an agent.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    h: Vec<f32>,
    examples: u64,
    norm: f64,
    n: u64,
    f: f64,
}

impl Held {
    #[expect(clippy::cast_possible_truncation, reason = "the sum is f32")]
    fn weight(&self) -> f32 {
        (self.n as f64 * self.f) as f32
    }
}

/// The rule's state.
#[derive(Debug, Clone)]
pub(super) struct Ef21 {
    lr: f64,
    arrivals: u64,
    agents: u32,
    step: f32,
    waits: bool,
    /// Who has no room, and is forgotten after the close.
    passes: Option<AgentId>,
    g: Vec<f32>,
    held: BTreeMap<AgentId, Held>,
}

impl Ef21 {
    /// An empty state; `None` if the rule is another one.
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        let MergeSpec::Ef21 { server_lr } = spec else { return None };
        let lr = f64::from(*server_lr);
        let (g, held) = (vec![0.0; params], BTreeMap::new());
        Some(Self { lr, arrivals: 0, agents: 0, step: 0.0, waits: false, passes: None, g, held })
    }

    /// Takes over what a checkpoint has saved.
    pub(super) fn load(&mut self, saved: &Saved<'_>) -> Result<(), RecoveryError> {
        let [g] = saved.vectors() else { return Err(saved.different()) };
        self.g = saved.load(g)?;
        let (figures, memories) = beside_vectors(saved)?;
        let Figures { arrivals, active, step, pending, passing } = figures;
        (self.arrivals, self.agents, self.step) = (arrivals, active, step);
        (self.waits, self.passes) = (pending, passing);
        self.held = memories.into_iter().map(|(agent, memory)| (agent, held(&memory))).collect();
        Ok(())
    }

    pub(super) fn set(&mut self, spec: &MergeSpec) {
        if let MergeSpec::Ef21 { server_lr } = spec {
            self.lr = f64::from(*server_lr);
        }
    }

    fn forget(&mut self, agent: AgentId) {
        let Some(held) = self.held.remove(&agent) else { return };
        plus(&mut self.g, &held.h, -held.weight());
    }

    pub(super) fn contribute(&mut self, delta: &Delta, contribution: &Contribution) {
        let Some(inputs) = &contribution.memory else { return };
        let (agent, w) = (contribution.meta.key.agent, contribution.weight);
        for gone in inputs.left.iter().chain(inputs.begins.then_some(&agent)) {
            self.forget(*gone);
        }
        let none = Held { h: vec![0.0; self.g.len()], examples: 0, norm: 0.0, n: 0, f: 1.0 };
        let own = self.held.entry(agent).or_insert(none);
        add(&mut self.g, delta, own.weight() * w);
        add(&mut own.h, delta, w);
        own.norm = norm(&own.h);
        own.examples = contribution.mean_weight;
        self.arrivals += 1;
        self.agents = if inputs.active == 0 { 1 } else { inputs.active };
        (self.step, self.waits) = (inputs.step, true);
        self.passes = if inputs.keeps { None } else { Some(agent) };
        let anew = self.arrivals.is_multiple_of(16 * self.held.len() as u64);
        self.weigh(agent, anew);
        if anew {
            self.g.fill(0.0);
            for held in self.held.values() {
                plus(&mut self.g, &held.h, held.weight());
            }
        }
    }

    /// What each memory counts for now, where it is far from what it did.
    fn weigh(&mut self, agent: AgentId, anew: bool) {
        let mut norms: Vec<f64> = self.held.values().map(|held| held.norm).collect();
        let mut claims: Vec<u64> = self.held.values().map(|held| held.examples).collect();
        norms.sort_by(f64::total_cmp);
        claims.sort_unstable();
        let middle = (norms.len() - 1) / 2;
        for (id, held) in &mut self.held {
            let before = held.weight();
            let n = held.examples.min(claims[middle].saturating_mul(8));
            let most = 4.0 * norms[middle];
            let f = if most > 0.0 && held.norm > most { most / held.norm } else { 1.0 };
            let now = Held { h: Vec::new(), n, f, ..*held }.weight();
            if anew || *id == agent || now > 2.0 * before || before > 2.0 * now {
                (held.n, held.f) = (n, f);
                plus(&mut self.g, &held.h, now - before);
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the model is f32")]
    pub(super) fn close(&mut self, x: &mut [f32]) {
        if !self.waits {
            return;
        }
        self.waits = false;
        let mut examples = 0_u64;
        for held in self.held.values() {
            examples = examples.saturating_add(held.n);
        }
        let examples = if examples == 0 { 1.0 } else { examples as f64 };
        let rate = self.lr * f64::from(self.step) / (f64::from(self.agents) * examples);
        for (at, x) in x.iter_mut().enumerate() {
            *x = (f64::from(*x) + rate * f64::from(self.g[at])) as f32;
        }
        if let Some(agent) = self.passes.take() {
            self.forget(agent);
        }
    }

    /// Whether a checkpoint has saved this state.
    pub(super) fn is_in(&self, saved: &Saved<'_>) -> Result<bool, RecoveryError> {
        if saved.vectors() != [Digest::of_f32(&self.g)] {
            return Ok(false);
        }
        let (figures, memories) = beside_vectors(saved)?;
        let (arrivals, active, step) = (self.arrivals, self.agents, self.step);
        let same = figures == Figures { arrivals, active, step, pending: self.waits, passing: self.passes };
        let memories = memories.iter().map(|(agent, memory)| (*agent, held(memory)));
        Ok(same && memories.eq(self.held.iter().map(|(agent, held)| (*agent, held.clone()))))
    }
}

/// What the rule saves beside vectors.
fn beside_vectors(saved: &Saved<'_>) -> Result<(Figures, BTreeMap<AgentId, Memory>), RecoveryError> {
    let read = read_parts(&saved.parts()?, saved.manifest.params());
    read.map_err(|error| RecoveryError::Merge { position: saved.position(), source: error.into() })
}

fn held(memory: &Memory) -> Held {
    let Memory { values, examples, norm, counted, factor } = memory;
    Held { h: values.to_vec(), examples: *examples, norm: *norm, n: *counted, f: *factor }
}

/// `target += weight * values`.
fn plus(target: &mut [f32], values: &[f32], weight: f32) {
    for (at, target) in target.iter_mut().enumerate() {
        let part = weight * values[at];
        *target += part;
    }
}

fn norm(values: &[f32]) -> f64 {
    let mut sum = 0.0;
    for value in values {
        sum += f64::from(*value) * f64::from(*value);
    }
    sum.sqrt()
}
