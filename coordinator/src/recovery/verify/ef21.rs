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
    n: u64,
    norm: f64,
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
    waits: bool,
    g: Vec<f32>,
    held: BTreeMap<AgentId, Held>,
}

impl Ef21 {
    /// An empty state; `None` if the rule is another one.
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        let MergeSpec::Ef21 { server_lr } = spec else { return None };
        let lr = f64::from(*server_lr);
        Some(Self { lr, arrivals: 0, agents: 0, waits: false, g: vec![0.0; params], held: BTreeMap::new() })
    }

    /// Takes over what a checkpoint has saved.
    pub(super) fn load(&mut self, saved: &Saved<'_>) -> Result<(), RecoveryError> {
        let [g] = saved.vectors() else { return Err(saved.different()) };
        self.g = saved.load(g)?;
        let (figures, memories) = beside_vectors(saved)?;
        let Figures { arrivals, active, pending } = figures;
        (self.arrivals, self.agents, self.waits) = (arrivals, active, pending);
        self.held = memories.into_iter().map(|(agent, memory)| (agent, held(&memory))).collect();
        Ok(())
    }

    pub(super) fn set(&mut self, spec: &MergeSpec) {
        if let MergeSpec::Ef21 { server_lr } = spec {
            self.lr = f64::from(*server_lr);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the sum is f32")]
    pub(super) fn contribute(&mut self, delta: &Delta, contribution: &Contribution) {
        let Some(inputs) = &contribution.memory else { return };
        let (agent, w) = (contribution.meta.key.agent, contribution.weight);
        for gone in inputs.left.iter().chain(inputs.begins.then_some(&agent)) {
            if let Some(held) = self.held.remove(gone) {
                let weight = held.weight();
                for at in 0..self.g.len() {
                    let part = weight * held.h[at];
                    self.g[at] -= part;
                }
            }
        }
        let none = Held { h: vec![0.0; self.g.len()], n: 0, norm: 0.0, f: 1.0 };
        let mut own = self.held.remove(&agent).unwrap_or(none);
        let before = own.weight();
        add(&mut own.h, delta, w);
        own.norm = norm(&own.h);
        own.n = contribution.mean_weight;
        let mut norms: Vec<f64> = self.held.values().map(|held| held.norm).collect();
        norms.push(own.norm);
        norms.sort_by(f64::total_cmp);
        let most = 4.0 * norms[(norms.len() - 1) / 2];
        own.f = if most > 0.0 && own.norm > most { most / own.norm } else { 1.0 };
        let after = own.weight();
        add(&mut self.g, delta, before * w);
        if after != before {
            let more = (f64::from(after) - f64::from(before)) as f32;
            for at in 0..self.g.len() {
                let part = more * own.h[at];
                self.g[at] += part;
            }
        }
        self.held.insert(agent, own);
        self.arrivals += 1;
        self.agents = if inputs.active == 0 { 1 } else { inputs.active };
        self.waits = true;
        if self.arrivals.is_multiple_of(16 * self.held.len() as u64) {
            self.g.fill(0.0);
            for held in self.held.values() {
                let weight = held.weight();
                for at in 0..self.g.len() {
                    let part = weight * held.h[at];
                    self.g[at] += part;
                }
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
        let rate = self.lr / (f64::from(self.agents) * examples);
        for (at, x) in x.iter_mut().enumerate() {
            *x = (f64::from(*x) + rate * f64::from(self.g[at])) as f32;
        }
    }

    /// Whether a checkpoint has saved this state.
    pub(super) fn is_in(&self, saved: &Saved<'_>) -> Result<bool, RecoveryError> {
        if saved.vectors() != [Digest::of_f32(&self.g)] {
            return Ok(false);
        }
        let (figures, memories) = beside_vectors(saved)?;
        let same = figures == Figures { arrivals: self.arrivals, active: self.agents, pending: self.waits };
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
    let Memory { values, examples, norm, factor } = memory;
    Held { h: values.to_vec(), n: *examples, norm: *norm, f: *factor }
}

fn norm(values: &[f32]) -> f64 {
    let mut sum = 0.0;
    for value in values {
        sum += f64::from(*value) * f64::from(*value);
    }
    sum.sqrt()
}
