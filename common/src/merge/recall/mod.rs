//! Recall: fresh updates, the last updates of agents that lack participation, an adaptive step, and an average to serve.
//!
//! Published rules forget what only slow agents know: their updates are rare, and between two of them nothing of them
//! arrives. This rule keeps the last update of each agent and adds it, at every arrival of any agent, as far as its agent's
//! share of arrivals falls short of its share of the data. Whether a memory still says something is measured by how far the
//! model has moved along it since its agent's base.
//!
//! ```text
//! x    the model that agents train from              C    active agents        N    parameters
//! c    the update's content, b = <x_base, c>         w, lack * fade            from the contribution (merge::shares)
//!
//! n    += 1
//! s0    = clip((<x, c> - b) / |c|^2, -1, M)           own deltas that the model has moved along c since the base
//! memory[a] = (c, <x, c> - s0 |c|^2, |c|^2, rho = clip(1 - s0, 0, 1))
//! D     = w c + sum over recalled j of lack_j fade_j phi_j c_j
//!   s   = (<x, c_j> - origin_j) / |c_j|^2
//!   phi = rho_j clip(2 (1 - s / M), 0, 1) min(1, NCAP sigma sqrt(N) / |c_j|)      the norm bound is 1 while sigma is 0
//! sigma += max(1 / (4 C), 1 / n) (|c| / sqrt(N) - sigma)
//! lag   += max(1 / (4 C), 1 / n) (min(tau, C) - lag)                             tau: versions since the update's base
//! m     = beta1 m + (1 - beta1) D;   u = beta2 u + (1 - beta2) D^2                 beta2 = 1 - 1 / (10 C)
//! close:
//! x    += kappa sigma / sqrt(1 + n / (130 C)) * m_hat / (sqrt(u_hat) + EPSILON sigma)
//!   kappa = step / sqrt(C max(C, 10)) * min(1, (C + 1) / (2 lag))
//! xbar += (Q + 1) / (n + Q + 1) (x - xbar)            served and exported
//! ```
//! The second moment calms the last layer under skewed labels, as in FADAS (2024) and Adam (Kingma and Ba 2015, with its
//! bias corrections, here as running products since C changes). Memories that stand in for their agents are those of SAG
//! (Schmidt et al. 2017), MIFA (Gu et al. 2021) and CA2FL (2024). The averaging is polynomial-decay averaging (Shamir and
//! Zhang 2013). The constants were found with 10 agents on MNIST at 5 % top-k; with fewer the
//! step of one arrival grows with 1 / sqrt(C) instead of 1 / C. Where updates are staler than those of agents that end their
//! rounds together, whose bases are half a fleet old, the step of all is smaller by as much: a long step from old bases
//! overshoots (docs/adr/0028-lag.md). Staleness damps the common step only. A weight that falls with the staleness of an
//! update would silence slow agents.
//!
//! | what | kept as | computed in |
//! |---|---|---|
//! | x, xbar, m, u, memories' values | f32 | |
//! | D | - | f32, in the order of the contribution |
//! | dot products, figures, the update of each m, u and x | f64 for figures | f64; sums in index order |
//! | the update of xbar | | f32 |
//!
//! `+ - * /` and `sqrt` only, one rounding each, so that replay has the same bits on any machine. A moment below
//! [`LEAST_MOMENT`] is 0: numbers that small are slow.
//!
//! Bad at: a hostile slow agent, whose sign-flipped update looks relevant for long and is only bounded; fewer than 1 % of
//! entries in an update; fleets of hundreds with skewed data, where it still swings.

mod inputs;
mod memories;
mod saved;

use std::borrow::Cow;
use std::sync::Arc;

use super::shares::WINDOW_PER_AGENT;
use super::{Arrival, MergeRule, MergeSpec, RestoreError, SavedRule, Served, check_shape};
use crate::codec::{Delta, is_finite};
use crate::spec::OptimizerSpec;

pub use inputs::{RecallInputs, Recalled};
pub use memories::{Memories, Memory};
pub use saved::{Figures, read as read_parts};

/// Step of the whole fleet where agents train by stochastic gradient descent: found on W1 and W3 of docs/race.md.
pub const USUAL_STEP: f32 = 23.0;
/// Step of the whole fleet where agents train by AdamW.
pub const USUAL_STEP_ADAMW: f32 = 4.0;
/// Decay of the first moment.
pub const BETA_1: f64 = 0.5;
/// Added to the root of the second moment, in units of sigma.
pub const EPSILON: f64 = 0.15;
/// M: own deltas beyond the base at which a memory has nothing left to say.
pub const MOST_MOVED: f64 = 6.0;
/// Norm of a memory beyond which it counts for less, in units of sigma sqrt(N): as long as rare data need, and no longer than
/// a slow attacker is borne with (docs/adr/0027-step-and-optimizer.md).
pub const NORM_CAP: f64 = 3.6;
/// Q: the average looks back over about 1 / (Q + 1) of the arrivals.
pub const AVERAGE_POWER: f64 = 7.0;
/// Arrivals for every agent after which the step has shrunk by sqrt(2).
pub const STEP_DECAY_PER_AGENT: f64 = 130.0;
/// Sigma looks back over this many arrivals for every agent.
pub const SIGMA_WINDOW_PER_AGENT: f64 = 4.0;
/// The staleness of an update counts as at most so many updates for every agent: slow agents say nothing of the fleet's lag,
/// and half a step is short enough where rounds overlap and bases are older still.
pub const MOST_LAG_PER_AGENT: f64 = 1.0;
/// Agents of the fleet that the step was found with. Below, a step grows more slowly than the fleet shrinks.
pub const USUAL_AGENTS: f64 = 10.0;
/// A moment below this is 0.
pub const LEAST_MOMENT: f64 = 1e-30;
/// What the square of a norm is at least.
pub const LEAST_SQUARE: f64 = 1e-12;

/// Returns the step of the whole fleet that suits a local optimizer.
///
/// A delta of stochastic gradient descent grows with the gradient, and its learning rate is far below what the sum of
/// the fleet could bear. AdamW moves each parameter by about its learning rate whatever the gradient is: its deltas are of
/// full length, and a fleet that steps many of them overshoots (docs/adr/0027-step-and-optimizer.md).
#[must_use]
pub fn usual_step(optimizer: &OptimizerSpec) -> f32 {
    match optimizer {
        OptimizerSpec::Sgd { .. } => USUAL_STEP,
        OptimizerSpec::AdamW { .. } => USUAL_STEP_ADAMW,
    }
}

/// What a user may set.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Settings {
    step: f64,
    recall: bool,
    average: bool,
}

impl Settings {
    fn of(spec: &MergeSpec) -> Self {
        match spec {
            MergeSpec::Recall { step, recall, average } => {
                Self { step: f64::from(*step), recall: *recall, average: *average }
            }
            _ => Self { step: 0.0, recall: false, average: false },
        }
    }
}

/// The rule with its state. See the [module](self).
#[derive(Debug, Clone)]
pub struct Recall {
    settings: Settings,
    figures: Figures,
    m: Vec<f32>,
    u: Vec<f32>,
    /// Begins at the model of the first arrival.
    average: Vec<f32>,
    memories: Memories,
    /// D, between its use at one arrival and the next: all 0.
    direction: Vec<f32>,
}

impl Recall {
    /// Returns the rule with empty state for a model of `params` parameters.
    #[must_use]
    pub fn new(spec: &MergeSpec, params: usize) -> Self {
        let zeros = || vec![0.0; params];
        Self {
            settings: Settings::of(spec),
            figures: Figures { beta_1_power: 1.0, beta_2_power: 1.0, ..Figures::default() },
            m: zeros(),
            u: zeros(),
            average: zeros(),
            memories: Memories::default(),
            direction: zeros(),
        }
    }

    /// D: the update at its weight, and the memories that are recalled at what is left of each.
    fn gather(&mut self, model: &[f32], delta: &Delta, arrival: &Arrival<'_>, inputs: &RecallInputs) {
        delta.add_scaled_to(&mut self.direction, arrival.weight);
        let widest = NORM_CAP * self.figures.sigma * (model.len() as f64).sqrt();
        for Recalled { agent, factor } in &inputs.recalled {
            let Some(memory) = self.memories.recall(*agent, self.figures.arrivals) else { continue };
            let moved = (dot(model, &memory.content) - memory.origin) / memory.square;
            let mut relevance = memory.relevance * (2.0 * (1.0 - moved / MOST_MOVED)).clamp(0.0, 1.0);
            if self.figures.sigma > 0.0 {
                relevance *= (widest / memory.square.sqrt()).min(1.0);
            }
            #[expect(clippy::cast_possible_truncation, reason = "a factor in [0, 1]")]
            memory.content.add_scaled_to(&mut self.direction, (f64::from(*factor) * relevance) as f32);
        }
    }

    /// The moments take D in, and D is 0 again.
    #[expect(clippy::cast_possible_truncation, reason = "moments are kept as f32")]
    fn take_in(&mut self, beta_2: f64) {
        let moments = self.m.iter_mut().zip(&mut self.u);
        for ((m, u), direction) in moments.zip(&mut self.direction) {
            let d = f64::from(std::mem::take(direction));
            let first = BETA_1 * f64::from(*m) + (1.0 - BETA_1) * d;
            let second = beta_2 * f64::from(*u) + (1.0 - beta_2) * (d * d);
            *m = if first.abs() < LEAST_MOMENT { 0.0 } else { first as f32 };
            *u = if second < LEAST_MOMENT { 0.0 } else { second.min(f64::from(f32::MAX)) as f32 };
        }
    }
}

impl MergeRule for Recall {
    /// A contribution of another rule, without its inputs, changes nothing.
    fn contribute(&mut self, model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>) {
        let Some(inputs) = arrival.recall else { return };
        let agents = f64::from(inputs.active.max(1));
        self.figures.arrivals += 1;
        if self.figures.arrivals == 1 {
            self.average.copy_from_slice(model);
        }
        let content = scaled(delta, inputs.scale);
        let square = square(&content) + LEAST_SQUARE;
        if self.settings.recall {
            let here = dot(model, &content);
            let base = arrival.base_dot.map_or(here, |base| f64::from(inputs.scale) * base);
            let moved = ((here - base) / square).clamp(-1.0, MOST_MOVED);
            let (origin, relevance) = (here - moved * square, (1.0 - moved).clamp(0.0, 1.0));
            let memory = Memory { content, origin, square, relevance, used: self.figures.arrivals };
            self.memories.insert(arrival.agent, memory);
        }
        self.gather(model, delta, arrival, inputs);
        let figures = &mut self.figures;
        let pace = (1.0 / (SIGMA_WINDOW_PER_AGENT * agents)).max(1.0 / figures.arrivals as f64);
        figures.sigma += pace * (square.sqrt() / (model.len() as f64).sqrt() - figures.sigma);
        figures.lag += pace * ((arrival.staleness as f64).min(MOST_LAG_PER_AGENT * agents) - figures.lag);
        let beta_2 = 1.0 - 1.0 / (WINDOW_PER_AGENT * agents);
        figures.beta_1_power *= BETA_1;
        figures.beta_2_power *= beta_2;
        (figures.active, figures.pending) = (inputs.active.max(1), true);
        self.take_in(beta_2);
    }

    #[expect(clippy::cast_possible_truncation, reason = "models are f32")]
    fn close(&mut self, model: &mut [f32]) {
        let figures = &mut self.figures;
        if !std::mem::take(&mut figures.pending) {
            return;
        }
        let (agents, arrivals) = (f64::from(figures.active), figures.arrivals as f64);
        let calm = (agents + 1.0) / (agents + 1.0).max(2.0 * figures.lag);
        let kappa = self.settings.step / (agents * agents.max(USUAL_AGENTS)).sqrt() * calm;
        let rate = kappa * figures.sigma / (1.0 + arrivals / (STEP_DECAY_PER_AGENT * agents)).sqrt();
        let (first, second) = (1.0 - figures.beta_1_power, 1.0 - figures.beta_2_power);
        let floor = EPSILON * figures.sigma;
        let part = ((AVERAGE_POWER + 1.0) / (arrivals + AVERAGE_POWER + 1.0)) as f32;
        let moments = self.m.iter().zip(&self.u);
        for ((x, average), (m, u)) in model.iter_mut().zip(&mut self.average).zip(moments) {
            let step = rate * (f64::from(*m) / first) / ((f64::from(*u) / second).sqrt() + floor);
            *x = (f64::from(*x) + step) as f32;
            *average += part * (*x - *average);
        }
    }

    fn configure(&mut self, spec: &MergeSpec) {
        self.settings = Settings::of(spec);
        if !self.settings.recall {
            self.memories.clear();
        }
    }

    fn served<'a>(&'a self, model: &'a [f32]) -> (Served, &'a [f32]) {
        let begun = self.settings.average && self.figures.arrivals > 0;
        if begun { (Served::Average, &self.average) } else { (Served::Model, model) }
    }

    fn is_finite(&self) -> bool {
        self.figures.sigma.is_finite() && is_finite(&self.m) && is_finite(&self.u) && is_finite(&self.average)
    }

    /// The vectors m, u and xbar; the figures, and each memory.
    fn save(&self) -> SavedRule<'_> {
        let vectors = [&self.m, &self.u, &self.average].map(|vector| Cow::Borrowed(&vector[..])).into();
        SavedRule { vectors, parts: saved::parts(&self.figures, &self.memories) }
    }

    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError> {
        let SavedRule { vectors, parts } = saved;
        check_shape(&vectors, 3, self.m.len())?;
        let (figures, memories) = saved::read(&parts, self.m.len())?;
        self.memories.clear();
        for (agent, memory) in memories {
            self.memories.insert(agent, memory);
        }
        self.figures = Figures { used: Vec::new(), ..figures };
        let mut vectors = vectors.into_iter().map(Cow::into_owned);
        for vector in [&mut self.m, &mut self.u, &mut self.average] {
            *vector = vectors.next().unwrap_or_default();
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn MergeRule> {
        Box::new(self.clone())
    }
}

/// The content times `scale`.
fn scaled(delta: &Arc<Delta>, scale: f32) -> Arc<Delta> {
    if scale == 1.0 {
        return Arc::clone(delta);
    }
    let times = |values: &[f32]| values.iter().map(|value| scale * value).collect();
    Arc::new(match &**delta {
        Delta::Dense(values) => Delta::Dense(times(values)),
        Delta::Sparse { len, indices, values } => {
            Delta::Sparse { len: *len, indices: indices.clone(), values: times(values) }
        }
    })
}

/// <model, content>, summed in f64 in index order.
#[must_use]
pub fn dot(model: &[f32], content: &Delta) -> f64 {
    let product = |x: f32, c: f32| f64::from(x) * f64::from(c);
    match content {
        Delta::Dense(values) => model.iter().zip(values).fold(0.0, |sum, (x, c)| sum + product(*x, *c)),
        Delta::Sparse { indices, values, .. } => {
            let entries = indices.iter().zip(values);
            entries.fold(0.0, |sum, (index, c)| sum + product(model[*index as usize], *c))
        }
    }
}

fn square(content: &Delta) -> f64 {
    content.values().iter().fold(0.0, |sum, c| sum + f64::from(*c) * f64::from(*c))
}
