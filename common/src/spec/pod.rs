//! `[pod]`: agents that compute one local round together.

use serde::{Deserialize, Serialize};

use super::StageCount;
use crate::pod::{Schedule, Weights};

/// How pods compute, by what their members hold. Without this table every agent computes its rounds alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum PodSpec {
    /// Consecutive layers of the model.
    Stages(StagesSpec),
    /// The whole model: each trains on data of its own, and gradients are summed in every step.
    Replicas(ReplicasSpec),
}

/// `kind = "replicas"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicasSpec {
    /// Most members of a pod; there are fewer where fewer agents of its site are there.
    pub members: u32,
    /// As in [`StagesSpec::deadline_s`].
    #[serde(default = "deadline_s")]
    pub deadline_s: f64,
}

/// `kind = "stages"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagesSpec {
    /// Members of a pod.
    pub stages: StageCount,
    /// When members compute.
    #[serde(default)]
    pub schedule: ScheduleKind,
    /// Which weights a pipeline that never flushes computes with; no key of other schedules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// Micro-batches of a step; as many as there are parts of the model where it is not said. It is said where pods differ in their
    /// number of members: with `sequential` and `flush` these then change no bit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batches: Option<u32>,
    /// How activations and their gradients travel.
    #[serde(default)]
    pub activations: Activations,
    /// Where labels are.
    #[serde(default)]
    pub labels: Labels,
    /// A member that has not sent for so long what another one waits for counts as dead, in seconds.
    #[serde(default = "deadline_s")]
    pub deadline_s: f64,
}

/// A schedule by its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// See [`Schedule::Sequential`].
    Sequential,
    /// See [`Schedule::Flush`].
    #[default]
    Flush,
    /// See [`Schedule::Pipelined`].
    Pipelined,
}

/// How activations and their gradients travel from member to member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// As they are.
    #[default]
    F32,
    /// In 16 bits each, rounded to the nearest.
    Bf16,
    /// In 8 bits each, with a scale for each row.
    Int8,
}

/// Where the labels of a pod's examples are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Labels {
    /// With their owner, who computes the first and the last part of the model.
    #[default]
    Stay,
    /// At the last member too.
    Travel,
}

fn deadline_s() -> f64 {
    10.0
}

impl PodSpec {
    /// Returns after how many seconds of silence a member counts as dead.
    #[must_use]
    pub fn deadline_s(&self) -> f64 {
        match self {
            Self::Stages(stages) => stages.deadline_s,
            Self::Replicas(replicas) => replicas.deadline_s,
        }
    }

    /// Returns in what form activations travel, and their gradients. Replicas send none.
    #[must_use]
    pub fn activations(&self) -> Activations {
        match self {
            Self::Stages(stages) => stages.activations,
            Self::Replicas(_) => Activations::F32,
        }
    }
}

impl StagesSpec {
    /// Returns the schedule, with predicted weights where a pipeline's are not said.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        match self.schedule {
            ScheduleKind::Sequential => Schedule::Sequential,
            ScheduleKind::Flush => Schedule::Flush,
            ScheduleKind::Pipelined => Schedule::Pipelined(self.weights.unwrap_or(Weights::Predict)),
        }
    }

    /// Returns into how many parts so many members cut the model: one a member, and another one for the owner of the data where
    /// labels stay.
    #[must_use]
    pub fn parts_of(&self, members: u32) -> u32 {
        members.saturating_add((self.labels == Labels::Stay).into())
    }

    /// Returns into how many parts the model is cut, if that is the same in every pod.
    #[must_use]
    pub fn parts(&self) -> Option<u32> {
        match self.stages {
            StageCount::Auto => None,
            StageCount::Exactly(members) => Some(self.parts_of(members)),
        }
    }

    /// Returns the micro-batches of a step.
    #[must_use]
    pub fn micro_batches(&self) -> u32 {
        // A configuration that says neither is refused.
        self.micro_batches.or(self.parts()).unwrap_or(1)
    }

    /// Returns the examples of every micro-batch of a batch but the last, which may have fewer.
    #[must_use]
    pub fn micro_batch_examples(&self, batch_size: u32) -> u32 {
        batch_size.div_ceil(self.micro_batches().max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default() {
        let read = |text: &str| match toml::from_str(text).expect("complete") {
            PodSpec::Stages(spec) => spec,
            PodSpec::Replicas(spec) => panic!("{spec:?}"),
        };
        let spec = read("kind = \"stages\"\nstages = 2");
        assert_eq!((spec.schedule(), spec.parts(), spec.micro_batches()), (Schedule::Flush, Some(3), 3));
        let text = "kind = \"stages\"\nstages = 4\nschedule = \"pipelined\"\nlabels = \"travel\"\n";
        let spec = read(text);
        assert_eq!((spec.schedule(), spec.parts()), (Schedule::Pipelined(Weights::Predict), Some(4)));
        let spec = read(&format!("{text}weights = \"2bw\"\nmicro_batches = 8"));
        assert_eq!((spec.schedule(), spec.micro_batches()), (Schedule::Pipelined(Weights::TwoVersions), 8));
        let spec = read("kind = \"stages\"\nstages = \"auto\"\nmicro_batches = 8");
        assert_eq!((spec.parts(), spec.parts_of(2), spec.micro_batches()), (None, 3, 8));
    }

    #[test]
    fn each_kind_has_its_own_keys() {
        let read = |text: &str| toml::from_str::<PodSpec>(text).map_err(|error| error.to_string());
        let replicas = PodSpec::Replicas(ReplicasSpec { members: 3, deadline_s: deadline_s() });
        assert_eq!(read("kind = \"replicas\"\nmembers = 3"), Ok(replicas));
        for text in ["kind = \"replicas\"\nmembers = 3\nstages = 2", "kind = \"stages\"\nstages = 2\nmembers = 3"] {
            let error = read(text).expect_err(text);
            assert!(error.contains("unknown field"), "{error}");
        }
        assert!(read("kind = \"replicas\"").expect_err("refused").contains("missing field `members`"));
    }
}
