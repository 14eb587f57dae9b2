//! The recall rule once more, plainly, from its description in `anabranch_common::merge::recall`.

use std::collections::BTreeMap;

use anabranch_common::codec::Delta;
use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::journal::Contribution;
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::recall::{Figures, Memory, read_parts};

use super::own_state::Saved;
use crate::recovery::RecoveryError;

/// What an agent sent last.
#[derive(Debug, Clone, PartialEq)]
struct Sent {
    entries: Vec<(usize, f32)>,
    bytes: usize,
    origin: f64,
    square: f64,
    relevance: f64,
    used: u64,
}

/// The rule's state.
#[derive(Debug, Clone)]
pub(super) struct Recall {
    step: f64,
    recalls: bool,
    n: u64,
    sigma: f64,
    lag: f64,
    /// beta1^n, and the product of every beta2.
    powers: [f64; 2],
    agents: u32,
    waits: bool,
    m: Vec<f32>,
    u: Vec<f32>,
    average: Vec<f32>,
    sent: BTreeMap<AgentId, Sent>,
}

impl Recall {
    /// An empty state; `None` if the rule is another one.
    pub(super) fn of(spec: &MergeSpec, params: usize) -> Option<Self> {
        let MergeSpec::Recall { step, recall, .. } = spec else { return None };
        Some(Self {
            step: f64::from(*step),
            recalls: *recall,
            n: 0,
            sigma: 0.0,
            lag: 0.0,
            powers: [1.0; 2],
            agents: 0,
            waits: false,
            m: vec![0.0; params],
            u: vec![0.0; params],
            average: vec![0.0; params],
            sent: BTreeMap::new(),
        })
    }

    /// Takes over what a checkpoint has saved.
    pub(super) fn load(&mut self, saved: &Saved<'_>) -> Result<(), RecoveryError> {
        let [m, u, average] = saved.vectors() else { return Err(saved.different()) };
        (self.m, self.u, self.average) = (saved.load(m)?, saved.load(u)?, saved.load(average)?);
        let (figures, memories) = beside_vectors(saved)?;
        let Figures { arrivals, sigma, lag, beta_1_power, beta_2_power, active, pending, .. } = figures;
        (self.n, self.sigma, self.powers) = (arrivals, sigma, [beta_1_power, beta_2_power]);
        (self.agents, self.waits, self.lag) = (active, pending, lag);
        self.sent = memories.into_iter().map(|(agent, memory)| (agent, sent(&memory))).collect();
        Ok(())
    }

    /// The same rule goes on with other settings.
    pub(super) fn set(&mut self, spec: &MergeSpec) {
        let MergeSpec::Recall { step, recall, .. } = spec else { return };
        (self.step, self.recalls) = (f64::from(*step), *recall);
        if !self.recalls {
            self.sent.clear();
        }
    }

    pub(super) fn contribute(&mut self, x: &[f32], delta: &Delta, contribution: &Contribution) {
        let Some(inputs) = &contribution.recall else { return };
        self.n += 1;
        if self.n == 1 {
            self.average = x.to_vec();
        }
        let raw = entries(delta);
        let c: Vec<(usize, f32)> = raw.iter().map(|(at, value)| (*at, inputs.scale * value)).collect();
        let mut square = 0.0;
        for (_, value) in &c {
            square += f64::from(*value) * f64::from(*value);
        }
        square += 1e-12;
        if self.recalls {
            let here = product(x, &c);
            let there = match contribution.meta.base_dot {
                Some(base) => f64::from(inputs.scale) * base,
                None => here,
            };
            let moved = ((here - there) / square).clamp(-1.0, 6.0);
            let relevance = (1.0 - moved).clamp(0.0, 1.0);
            let (origin, bytes) = (here - moved * square, bytes(delta));
            let last = Sent { entries: c, bytes, origin, square, relevance, used: self.n };
            self.remember(contribution.meta.key.agent, last);
        }
        let mut direction = vec![0.0_f32; x.len()];
        for (at, value) in &raw {
            let part = contribution.weight * value;
            direction[*at] += part;
        }
        let n = x.len() as f64;
        for recalled in &inputs.recalled {
            let Some(last) = self.sent.get_mut(&recalled.agent) else { continue };
            last.used = self.n;
            let moved = (product(x, &last.entries) - last.origin) / last.square;
            let mut phi = last.relevance * (2.0 * (1.0 - moved / 6.0)).clamp(0.0, 1.0);
            if self.sigma > 0.0 {
                phi *= (3.6 * self.sigma * n.sqrt() / last.square.sqrt()).min(1.0);
            }
            #[expect(clippy::cast_possible_truncation, reason = "the rule adds as f32")]
            let factor = (f64::from(recalled.factor) * phi) as f32;
            for (at, value) in &last.entries {
                let part = factor * value;
                direction[*at] += part;
            }
        }
        self.agents = inputs.active.max(1);
        self.waits = true;
        self.take_in(&direction, square, n, contribution.staleness);
    }

    #[expect(clippy::cast_possible_truncation, reason = "the moments are f32")]
    fn take_in(&mut self, direction: &[f32], square: f64, n: f64, staleness: u64) {
        let agents = f64::from(self.agents);
        let pace = (1.0 / (4.0 * agents)).max(1.0 / self.n as f64);
        self.sigma += pace * (square.sqrt() / n.sqrt() - self.sigma);
        let counted = if staleness as f64 > agents { agents } else { staleness as f64 };
        self.lag += pace * (counted - self.lag);
        let beta_2 = 1.0 - 1.0 / (10.0 * agents);
        self.powers = [self.powers[0] * 0.5, self.powers[1] * beta_2];
        for (at, d) in direction.iter().map(|d| f64::from(*d)).enumerate() {
            let m = 0.5 * f64::from(self.m[at]) + 0.5 * d;
            let u = beta_2 * f64::from(self.u[at]) + (1.0 - beta_2) * (d * d);
            self.m[at] = if m.abs() < 1e-30 { 0.0 } else { m as f32 };
            self.u[at] = if u < 1e-30 { 0.0 } else { u.min(f64::from(f32::MAX)) as f32 };
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the model is f32")]
    pub(super) fn close(&mut self, x: &mut [f32]) {
        if !self.waits {
            return;
        }
        self.waits = false;
        let (agents, n) = (f64::from(self.agents), self.n as f64);
        let mut kappa = self.step / (agents * agents.max(10.0)).sqrt();
        if 2.0 * self.lag > agents + 1.0 {
            kappa *= (agents + 1.0) / (2.0 * self.lag);
        }
        let rate = kappa * self.sigma / (1.0 + n / (130.0 * agents)).sqrt();
        let part = (8.0 / (n + 8.0)) as f32;
        for (at, x) in x.iter_mut().enumerate() {
            let m_hat = f64::from(self.m[at]) / (1.0 - self.powers[0]);
            let u_hat = f64::from(self.u[at]) / (1.0 - self.powers[1]);
            let step = rate * m_hat / (u_hat.sqrt() + 0.15 * self.sigma);
            *x = (f64::from(*x) + step) as f32;
            let behind = *x - self.average[at];
            self.average[at] += part * behind;
        }
    }

    /// Whether a checkpoint has saved this state.
    pub(super) fn is_in(&self, saved: &Saved<'_>) -> Result<bool, RecoveryError> {
        if saved.vectors() != [&self.m, &self.u, &self.average].map(|vector| Digest::of_f32(vector)) {
            return Ok(false);
        }
        let (figures, memories) = beside_vectors(saved)?;
        let same = figures.arrivals == self.n
            && [figures.sigma, figures.lag].map(f64::to_bits) == [self.sigma, self.lag].map(f64::to_bits)
            && [figures.beta_1_power, figures.beta_2_power].map(f64::to_bits) == self.powers.map(f64::to_bits)
            && (figures.active, figures.pending) == (self.agents, self.waits);
        let memories = memories.iter().map(|(agent, memory)| (*agent, sent(memory)));
        Ok(same && memories.eq(self.sent.iter().map(|(agent, sent)| (*agent, sent.clone()))))
    }

    fn remember(&mut self, agent: AgentId, last: Sent) {
        self.sent.remove(&agent);
        if last.bytes > limits::RECALL_MEMORY_BYTES {
            return;
        }
        self.sent.insert(agent, last);
        let bytes = |all: &BTreeMap<AgentId, Sent>| all.values().map(|sent| sent.bytes).sum::<usize>();
        while self.sent.len() > limits::RECALL_MEMORIES || bytes(&self.sent) > limits::RECALL_MEMORY_BYTES {
            let unused = self.sent.iter().map(|(agent, sent)| (sent.used, *agent)).min();
            unused.map(|(_, agent)| self.sent.remove(&agent));
        }
    }
}

/// What the rule saves beside vectors.
fn beside_vectors(saved: &Saved<'_>) -> Result<(Figures, Vec<(AgentId, Memory)>), RecoveryError> {
    let read = read_parts(&saved.parts()?, saved.manifest.params());
    read.map_err(|error| RecoveryError::Merge { position: saved.position(), source: error.into() })
}

fn sent(memory: &Memory) -> Sent {
    let Memory { content, origin, square, relevance, used } = memory;
    let (origin, square, relevance) = (*origin, *square, *relevance);
    Sent { entries: entries(content), bytes: bytes(content), origin, square, relevance, used: *used }
}

fn entries(delta: &Delta) -> Vec<(usize, f32)> {
    match delta {
        Delta::Dense(values) => values.iter().copied().enumerate().collect(),
        Delta::Sparse { indices, values, .. } => {
            indices.iter().map(|index| *index as usize).zip(values.iter().copied()).collect()
        }
    }
}

fn bytes(delta: &Delta) -> usize {
    match delta {
        Delta::Dense(values) => 4 * values.len(),
        Delta::Sparse { values, .. } => 8 * values.len(),
    }
}

fn product(x: &[f32], entries: &[(usize, f32)]) -> f64 {
    let mut sum = 0.0;
    for (at, value) in entries {
        sum += f64::from(x[*at]) * f64::from(*value);
    }
    sum
}
