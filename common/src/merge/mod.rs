//! Merging: how accepted updates become versions of the model.
//!
//! The weight of an update is computed once, when it is admitted ([`MergeSpec::weight`]), and journalled. A rule uses what the
//! journal says of an update ([`Arrival`]) and nothing else, so that replay gives the same bits on any machine. Contributions wait until a close makes them
//! a version: [`MergeSpec::is_full`] says when a buffer is full, and only [`MergeRule::close`] moves the model.
//!
//! | rule | at a contribution | at a close | full at |
//! |---|---|---|---|
//! | [`FedAsync`](fedasync::FedAsync) (Xie et al. 2019), delta form | w = alpha * s(tau) * p | x += w * delta | 1 |
//! | [`FedBuff`](fedbuff::FedBuff) (Nguyen et al. 2022) | w = server_lr / K * s(tau) * p, b += w * delta | x += b, b = 0 | K |
//! | [`Recall`](recall::Recall) | w = clip(p / share, 1/8, 1), moments of w * delta and of memories | x += adaptive step | 1 |
//!
//! s is the [`Staleness`] function and p the [participation] weight.

pub mod fedasync;
pub mod fedbuff;
pub mod participation;
pub mod recall;
pub mod shares;
pub mod staleness;

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::Delta;
use crate::ids::AgentId;
use crate::limits;
use recall::RecallInputs;
use shares::Recalling;
use staleness::Staleness;

/// A merge rule as configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "strategy", rename_all = "lowercase", deny_unknown_fields)]
pub enum MergeSpec {
    /// Every update makes a version.
    FedAsync {
        /// Mixing rate, in (0, 1].
        alpha: f32,
        /// Damping of stale updates.
        #[serde(default)]
        staleness: Staleness,
        /// Weigh agents by examples held rather than by how fast they are.
        #[serde(default)]
        participation: bool,
    },
    /// Every `buffer_size`-th update makes a version.
    FedBuff {
        /// K: updates in a version.
        buffer_size: u32,
        /// eta_g: step along the buffer's mean.
        server_lr: f32,
        /// Damping of stale updates.
        #[serde(default)]
        staleness: Staleness,
        /// Weigh agents by examples held rather than by how fast they are.
        #[serde(default)]
        participation: bool,
    },
    /// Every update makes a version, and the last updates of agents that lack participation are recalled.
    Recall {
        /// Step of the whole fleet, in units of the agents' own deltas: each arrival steps a C-th of it.
        #[serde(default = "recall_step")]
        step: f32,
        /// Whether updates are recalled.
        #[serde(default = "on")]
        recall: bool,
        /// Whether the average of the models is served, in place of the newest.
        #[serde(default = "on")]
        average: bool,
    },
}

fn recall_step() -> f32 {
    14.0
}

fn on() -> bool {
    true
}

/// What is known of an update when its weight is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightInputs {
    /// Versions between the update's base and now.
    pub staleness: u64,
    /// Participation weight, mean 1 (see [`participation`]), or of a rule with shares the fresh weight, at most 1 (see
    /// [`shares`]); ignored when the rule does not use it.
    pub participation: f64,
}

/// A parameter of a merge rule that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("merge.{field} is {found}, expected {expected}")]
pub struct SpecError {
    /// Which parameter, as it is written in `run.toml` under `[merge]`.
    pub field: &'static str,
    /// Its value.
    pub found: f64,
    /// What it may be.
    pub expected: &'static str,
}

impl MergeSpec {
    /// Checks every parameter.
    ///
    /// # Errors
    /// One is out of range; the error names it.
    pub fn validate(&self) -> Result<(), SpecError> {
        let (field, found, expected, fits, staleness) = match self {
            Self::FedAsync { alpha, staleness, .. } => {
                ("alpha", *alpha, "a number above 0 and at most 1", *alpha > 0.0 && *alpha <= 1.0, staleness)
            }
            Self::FedBuff { buffer_size, server_lr, staleness, .. } => {
                if !(1..=limits::MERGE_BUFFER_UPDATES).contains(buffer_size) {
                    let found = f64::from(*buffer_size);
                    return Err(SpecError { field: "buffer_size", found, expected: "a number from 1 to 65536" });
                }
                let fits = server_lr.is_finite() && *server_lr > 0.0;
                ("server_lr", *server_lr, "a finite number above 0", fits, staleness)
            }
            Self::Recall { step, .. } => {
                let fits = *step > 0.0 && *step <= limits::RECALL_STEP;
                ("step", *step, "a number above 0 and at most 1000", fits, &Staleness::Constant)
            }
        };
        if !fits {
            return Err(SpecError { field, found: f64::from(found), expected });
        }
        staleness.validate()
    }

    /// The factor with which an update is merged: computed when it is admitted, then journalled.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a weight is journalled and applied as f32")]
    pub fn weight(&self, inputs: WeightInputs) -> f32 {
        let (step, staleness, participation) = match self {
            Self::FedAsync { alpha, staleness, participation } => (f64::from(*alpha), staleness, participation),
            Self::FedBuff { buffer_size, server_lr, staleness, participation } => {
                (f64::from(*server_lr) / f64::from((*buffer_size).max(1)), staleness, participation)
            }
            Self::Recall { .. } => (1.0, &Staleness::Constant, &true),
        };
        let participation = if *participation { inputs.participation } else { 1.0 };
        (step * staleness.factor(inputs.staleness) * participation) as f32
    }

    /// How many updates make a version.
    #[must_use]
    pub fn updates_per_version(&self) -> u32 {
        match self {
            Self::FedAsync { .. } | Self::Recall { .. } => 1,
            Self::FedBuff { buffer_size, .. } => (*buffer_size).max(1),
        }
    }

    /// Whether so many waiting contributions make a version.
    #[must_use]
    pub fn is_full(&self, waiting: u32) -> bool {
        waiting >= self.updates_per_version()
    }

    /// How many vectors of a saved state belong to so many waiting contributions.
    #[must_use]
    pub fn saved_vectors(&self, waiting: u32) -> u32 {
        match self {
            Self::FedAsync { .. } => waiting,
            Self::FedBuff { .. } => 1,
            Self::Recall { .. } => 3,
        }
    }

    /// Whether contributions that wait under the rule `before` go on waiting under this one: only those of the same rule
    /// with a buffer of the same size do.
    #[must_use]
    pub fn keeps_waiting(&self, before: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(before)
            && self.updates_per_version() == before.updates_per_version()
    }

    /// Whether agents are weighed by participation.
    #[must_use]
    pub fn uses_participation(&self) -> bool {
        match self {
            Self::FedAsync { participation, .. } | Self::FedBuff { participation, .. } => *participation,
            Self::Recall { .. } => false,
        }
    }

    /// Whether the rule uses [`shares`] of arrivals, and if so whether it recalls updates.
    #[must_use]
    pub fn recalling(&self) -> Option<Recalling> {
        match self {
            Self::FedAsync { .. } | Self::FedBuff { .. } => None,
            Self::Recall { recall, .. } => Some(if *recall { Recalling::On } else { Recalling::Off }),
        }
    }

    /// Whether the rule uses the product of an update with its base ([`Arrival::base_dot`]).
    #[must_use]
    pub fn uses_base_dot(&self) -> bool {
        self.recalling() == Some(Recalling::On)
    }

    /// Returns the rule with empty state for a model of `params` parameters.
    #[must_use]
    pub fn rule(&self, params: usize) -> Box<dyn MergeRule> {
        match self {
            Self::FedAsync { .. } => Box::new(fedasync::FedAsync::new(params)),
            Self::FedBuff { .. } => Box::new(fedbuff::FedBuff::new(params)),
            Self::Recall { .. } => Box::new(recall::Recall::new(self, params)),
        }
    }
}

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
    /// The product of its content with the model that its agent started from, if the agent has said it.
    pub base_dot: Option<f64>,
    /// What the [recall] rule needs beside.
    pub recall: Option<&'a RecallInputs>,
}

/// Which vector of a version users are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The model that agents train from.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fed_async(alpha: f32) -> MergeSpec {
        MergeSpec::FedAsync { alpha, staleness: Staleness::Polynomial { a: 1.0 }, participation: true }
    }

    fn fed_buff(buffer_size: u32, server_lr: f32) -> MergeSpec {
        MergeSpec::FedBuff { buffer_size, server_lr, staleness: Staleness::Constant, participation: false }
    }

    #[test]
    fn a_buffer_is_full_when_its_contributions_make_a_version() {
        assert_eq!([0, 1, 2].map(|waiting| fed_async(0.5).is_full(waiting)), [false, true, true]);
        assert_eq!([0, 3, 4].map(|waiting| fed_buff(4, 1.0).is_full(waiting)), [false, false, true]);
    }

    #[test]
    fn only_the_same_rule_with_the_same_buffer_keeps_what_waits() {
        assert!(fed_buff(4, 0.5).keeps_waiting(&fed_buff(4, 1.0)) && fed_async(0.1).keeps_waiting(&fed_async(0.2)));
        assert!(!fed_buff(3, 1.0).keeps_waiting(&fed_buff(4, 1.0)) && !fed_buff(1, 1.0).keeps_waiting(&fed_async(0.2)));
    }

    #[test]
    fn a_weight_is_the_product_of_its_parts() {
        let inputs = WeightInputs { staleness: 3, participation: 2.0 };
        assert_eq!(fed_async(0.5).weight(inputs), 0.25);
        assert_eq!(fed_buff(4, 1.0).weight(inputs), 0.25, "participation is ignored where the rule does not use it");
    }

    #[test]
    fn validation_names_the_field() {
        let field = |spec: MergeSpec| spec.validate().map_err(|error| error.field);
        assert_eq!(field(fed_async(1.0)), Ok(()));
        assert_eq!(field(fed_buff(10, 1.0)), Ok(()));
        for alpha in [0.0, -1.0, 1.1, f32::NAN] {
            assert_eq!(field(fed_async(alpha)), Err("alpha"));
        }
        for server_lr in [0.0, f32::INFINITY, f32::NAN] {
            assert_eq!(field(fed_buff(10, server_lr)), Err("server_lr"));
        }
        for buffer_size in [0, limits::MERGE_BUFFER_UPDATES + 1] {
            assert_eq!(field(fed_buff(buffer_size, 1.0)), Err("buffer_size"));
        }
        for step in [0.0, -1.0, f32::NAN, f32::INFINITY, 1_001.0] {
            assert_eq!(field(MergeSpec::Recall { step, recall: true, average: true }), Err("step"));
        }
        let staleness = Staleness::Hinge { a: -1.0, b: 0 };
        let error = MergeSpec::FedAsync { alpha: 0.6, staleness, participation: false }.validate();
        let text = error.expect_err("a negative slope").to_string();
        assert_eq!(text, "merge.staleness.a is -1, expected a number of at least 0");
    }

    #[test]
    fn it_reads_well_in_toml() {
        let text = "strategy = \"fedbuff\"\nbuffer_size = 4\nserver_lr = 1.0\nstaleness = { fn = \"constant\" }\n";
        assert_eq!(toml::from_str(text), Ok(fed_buff(4, 1.0)));
        let recall = MergeSpec::Recall { step: 14.0, recall: true, average: true };
        assert_eq!(toml::from_str("strategy = \"recall\"\n"), Ok(recall.clone()));
        assert_eq!(toml::from_str(&toml::to_string(&recall).expect("serializable")), Ok(recall));
        let error = toml::from_str::<MergeSpec>("strategy = \"fedasync\"\nalpha = 0.6\nalhpa = 1.0\n");
        assert!(error.expect_err("a misspelt field").to_string().contains("alhpa"));
    }
}
