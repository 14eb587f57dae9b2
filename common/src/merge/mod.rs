//! Merging: how accepted updates become versions of the model.
//!
//! The weight of an update is computed once, when it is admitted ([`MergeSpec::weight`]), and journalled. A rule uses what the
//! journal says of an update ([`Arrival`]) and nothing else, so that replay gives the same bits on any machine. Contributions wait until a close makes them
//! a version: [`MergeSpec::closing`] says when they do (at once, when a buffer is full, or behind a [barrier]), and only
//! [`MergeRule::close`] moves the model.
//!
//! | rule | at a contribution | at a close | closed at |
//! |---|---|---|---|
//! | [`FedAsync`](fedasync::FedAsync) (Xie et al. 2019), delta form | w = alpha * s(tau) * p | x += w * delta | 1 |
//! | [`FedBuff`](fedbuff::FedBuff) (Nguyen et al. 2022) | w = server_lr / K * s(tau) * p, b += w * delta | x += b, b = 0 | K |
//! | [`DelayedNesterov`](delayed_nesterov::DelayedNesterov) (Liu et al. 2024) | w = server_lr / N * s(tau) * p | x += w * delta, every N-th also a step along the momentum | 1 |
//! | [`Fadas`](fadas::Fadas) (Wang et al. 2024) | w = 1 / K, b += w * delta | x += AMSGrad step of b, smaller where one was stale; b = 0 | K |
//! | [rescaled] (Mahran et al. 2026) | w = alpha * s(tau) * clip(R / C, 1/8, 8) | x += w * delta | 1 |
//! | [`Recall`](recall::Recall) | w = clip(p / share, 1/8, 1), moments of w * delta and of memories | x += adaptive step | 1 |
//! | [`Ef21`](ef21::Ef21) (Richtárik et al. 2021, Schmidt et al. 2017) | h_i += w * delta, G = sum of n_i * h_i | x += server_lr / C * G / n | 1 |
//! | [`FedAvg`](fedavg::FedAvg) (McMahan et al. 2017) | b += n_i * delta, n += n_i | x += server_lr * b / n, b = 0 | barrier |
//! | [FedProx](fedavg) (Li et al. 2020) | as FedAvg; agents add mu (w - w_base) to each gradient | as FedAvg | barrier |
//! | [synchronous SGD](fedavg) (Chen et al. 2016) | as FedAvg, with n_i the examples of a batch | as FedAvg with server_lr 1 | barrier |
//! | [`FedAvgM`](fedavgm::FedAvgM) (Hsu et al. 2019) | as FedAvg | v = beta * v + b / n, x += server_lr * v | barrier |
//! | [`FedAdam`](fedadam::FedAdam) (Reddi et al. 2021) | as FedAvg | x += Adam step of b / n | barrier |
//!
//! Over each of them but recall, which has its own, an [average](averaged) of the models may be kept and served.
//!
//! s is the [`Staleness`](staleness::Staleness) function, p the [participation] weight and n_i the examples that an agent holds.

pub mod averaged;
pub mod barrier;
pub mod delayed_nesterov;
pub mod ef21;
pub mod examples;
pub mod fadas;
pub mod fedadam;
pub mod fedasync;
pub mod fedavg;
pub mod fedavgm;
pub mod fedbuff;
pub mod participation;
pub mod recall;
pub mod rescaled;
pub mod shares;
mod spec;
pub mod staleness;

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::Delta;
use crate::ids::AgentId;
use crate::schema::{self, Layout};
use ef21::MemoryInputs;
use recall::RecallInputs;

pub use spec::{MergeSpec, SpecError, WeightInputs};

/// Why a saved state is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The state belongs to another rule or to another model.
    #[error("merge state holds {found} vectors of {params} values, expected {expected}")]
    WrongShape {
        /// Vectors this rule keeps.
        expected: usize,
        /// Vectors found.
        found: usize,
        /// Parameters of the model.
        params: usize,
    },
    /// What a rule saved beside its vectors is not what it saves.
    #[error("merge state: {0}")]
    Part(String),
}

/// Checks that a saved state holds `vectors` vectors of `params` values.
fn check_shape(state: &[Cow<'_, [f32]>], vectors: usize, params: usize) -> Result<(), RestoreError> {
    let misfit = state.iter().map(|vector| vector.len()).find(|len| *len != params);
    if state.len() == vectors && misfit.is_none() {
        return Ok(());
    }
    let found_params = misfit.or(state.first().map(|vector| vector.len())).unwrap_or(0);
    Err(RestoreError::WrongShape { expected: vectors, found: state.len(), params: found_params })
}

/// Checks that a rule without parts was given none.
fn check_no_parts(parts: &[Vec<u8>]) -> Result<(), RestoreError> {
    if parts.is_empty() { Ok(()) } else { Err(RestoreError::Part("there are parts, and this rule saves none".into())) }
}

/// What the journal says of an update that is merged, beside its content.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival<'a> {
    /// Whose it is.
    pub agent: AgentId,
    /// The factor it is merged with.
    pub weight: f32,
    /// Its weight in the mean of its round, or of all memories, in examples; 0 where the rule takes no such mean.
    pub mean_weight: u64,
    /// Versions between its base and its admission.
    pub staleness: u64,
    /// The product of its content with the model that its agent started from, if the agent has said it.
    pub base_dot: Option<f64>,
    /// What the [recall] rule needs beside.
    pub recall: Option<&'a RecallInputs>,
    /// What the [EF21](ef21) rule needs beside.
    pub memory: Option<&'a MemoryInputs>,
}

impl Arrival<'_> {
    /// An update with this weight, of which nothing else is said.
    #[must_use]
    pub fn of(agent: AgentId, weight: f32) -> Self {
        Self { agent, weight, mean_weight: 0, staleness: 0, base_dot: None, recall: None, memory: None }
    }
}

/// Which vector of a version users are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Served {
    /// The model that agents train from.
    #[default]
    Model,
    /// An average of the models up to this version.
    Average,
}

impl Served {
    /// The name in exported files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Average => "average",
        }
    }
}

/// The state of a rule beside the model, as it is part of every checkpoint.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SavedRule<'a> {
    /// Waiting contributions, moments, averages: each a vector of the model's length.
    pub vectors: Vec<Cow<'a, [f32]>>,
    /// What is no such vector, as bytes: each part is a blob of its own.
    pub parts: Vec<Vec<u8>>,
}

impl SavedRule<'_> {
    /// The same with vectors of its own.
    #[must_use]
    pub fn into_owned(self) -> SavedRule<'static> {
        let owned = |vector: Cow<'_, [f32]>| Cow::Owned(vector.into_owned());
        SavedRule { vectors: self.vectors.into_iter().map(owned).collect(), parts: self.parts }
    }
}

/// Reads the only part of a rule that saves one.
fn only_part<T: Layout>(parts: &[Vec<u8>]) -> Result<T, RestoreError> {
    let [part] = parts else {
        return Err(RestoreError::Part(format!("there are {} parts, and this rule saves one", parts.len())));
    };
    schema::decode(part, usize::MAX).map_err(|error| RestoreError::Part(error.to_string()))
}

/// An aggregation rule in its applied form. Deterministic: the same calls give the same bits.
pub trait MergeRule: Send + std::fmt::Debug {
    /// Takes in one journalled contribution to the version after `model`. Infallible: the update was validated before it
    /// was journalled.
    fn contribute(&mut self, model: &[f32], delta: &Arc<Delta>, arrival: &Arrival<'_>);

    /// Makes the next version of the contributions since the last close.
    fn close(&mut self, model: &mut [f32]);

    /// Takes over the parameters of a spec that [keeps what waits](MergeSpec::keeps_waiting).
    fn configure(&mut self, _spec: &MergeSpec) {}

    /// Returns what users of the run are given.
    fn served<'a>(&'a self, model: &'a [f32]) -> (Served, &'a [f32]) {
        (Served::Model, model)
    }

    /// Whether everything beside the model is finite.
    fn is_finite(&self) -> bool {
        self.save().vectors.iter().all(|values| values.iter().all(|value| value.is_finite()))
    }

    /// Returns the state beside the model.
    fn save(&self) -> SavedRule<'_>;

    /// Takes over a saved state.
    ///
    /// # Errors
    /// The state is not what [`save`](Self::save) gives.
    fn restore(&mut self, saved: SavedRule<'static>) -> Result<(), RestoreError>;

    /// Returns a copy with its state.
    fn boxed(&self) -> Box<dyn MergeRule>;
}
