//! A run's configuration is kept and sent as canonical TOML: the tables of `run.toml` that decide what is computed, with
//! every key that is not at its default. A new key needs no new version: older text lacks it, and a program that does
//! not know it says which key that is.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Layout, Reader, SchemaError, Writer};
use crate::ids::Digest;
use crate::limits;
use crate::merge::MergeSpec;
use crate::spec::{
    AdmitSpec, AgentSpec, DownlinkSpec, EvaluateSpec, ModelSpec, PodSpec, RunSpec, TargetSpec, TrainSpec, UploadSpec,
};

/// Why a text is not a run's configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("configuration of a run: {0}")]
pub struct RunTextError(String);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunTable {
    name: String,
    seed: u64,
}

/// What an agent is told.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentTables {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    in_turn: bool,
    run: RunTable,
    model: ModelSpec,
    train: TrainSpec,
    upload: UploadSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<PodSpec>,
}

/// What the journal keeps.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunTables {
    run: RunTable,
    model: ModelSpec,
    train: TrainSpec,
    upload: UploadSpec,
    merge: MergeSpec,
    admit: AdmitSpec,
    #[serde(default, skip_serializing_if = "DownlinkSpec::is_default")]
    downlink: DownlinkSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<PodSpec>,
    evaluate: EvaluateSpec,
    #[serde(default)]
    target: TargetSpec,
}

fn to_text(tables: &impl Serialize) -> Result<String, RunTextError> {
    toml::to_string(tables).map_err(|error| RunTextError(error.to_string()))
}

fn from_text<T: DeserializeOwned>(text: &str) -> Result<T, RunTextError> {
    toml::from_str(text).map_err(|error| RunTextError(error.message().to_owned()))
}

impl RunSpec {
    /// Returns the canonical text.
    ///
    /// # Errors
    /// A value has no form in TOML; every value that was read from TOML has one.
    pub fn to_toml(&self) -> Result<String, RunTextError> {
        let Self { name, seed, model, train, upload, merge, admit, downlink, pod, evaluate, target } = self.clone();
        to_text(&RunTables {
            run: RunTable { name, seed },
            model,
            train,
            upload,
            merge,
            admit,
            downlink,
            pod,
            evaluate,
            target,
        })
    }

    /// Reads the canonical text.
    ///
    /// # Errors
    /// A key is missing or not known, or a value has another type.
    pub fn from_toml(text: &str) -> Result<Self, RunTextError> {
        let RunTables { run, model, train, upload, merge, admit, downlink, pod, evaluate, target } = from_text(text)?;
        let RunTable { name, seed } = run;
        Ok(Self { name, seed, model, train, upload, merge, admit, downlink, pod, evaluate, target })
    }
}

impl AgentSpec {
    /// Returns the canonical text.
    ///
    /// # Errors
    /// As [`RunSpec::to_toml`].
    pub fn to_toml(&self) -> Result<String, RunTextError> {
        let Self { name, seed, model, train, upload, in_turn, pod } = self.clone();
        to_text(&AgentTables { in_turn, run: RunTable { name, seed }, model, train, upload, pod })
    }

    /// Returns the digest of the canonical text: the same for everybody who was told the same.
    ///
    /// # Errors
    /// As [`RunSpec::to_toml`].
    pub fn digest(&self) -> Result<Digest, RunTextError> {
        self.to_toml().map(|text| Digest::of(text.as_bytes()))
    }

    /// Reads the canonical text.
    ///
    /// # Errors
    /// As [`RunSpec::from_toml`].
    pub fn from_toml(text: &str) -> Result<Self, RunTextError> {
        let AgentTables { in_turn, run: RunTable { name, seed }, model, train, upload, pod } = from_text(text)?;
        Ok(Self { name, seed, model, train, upload, in_turn, pod })
    }
}

/// A run's configuration as its text, which is not parsed before somebody asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunText(String);

impl RunText {
    /// Returns the canonical text of `spec`.
    ///
    /// # Errors
    /// As [`RunSpec::to_toml`].
    pub fn of(spec: &RunSpec) -> Result<Self, SchemaError> {
        spec.to_toml().map(Self).map_err(|error| malformed(&error))
    }

    /// Returns the configuration.
    ///
    /// # Errors
    /// As [`RunSpec::from_toml`].
    pub fn parse(&self) -> Result<RunSpec, RunTextError> {
        RunSpec::from_toml(&self.0)
    }
}

impl Layout for RunText {
    fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
        self.0.write(out)
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
        let text = String::read(input)?;
        if text.len() > limits::RUN_SPEC_BYTES {
            return Err(SchemaError::TooLarge { found: text.len(), max: limits::RUN_SPEC_BYTES });
        }
        Ok(Self(text))
    }
}

fn malformed(error: &RunTextError) -> SchemaError {
    SchemaError::Malformed(error.to_string())
}

macro_rules! as_text {
    ($($spec:ty),*) => {$(
        impl Layout for $spec {
            fn write(&self, out: &mut Writer) -> Result<(), SchemaError> {
                self.to_toml().map_err(|error| malformed(&error))?.write(out)
            }

            fn read(input: &mut Reader<'_>) -> Result<Self, SchemaError> {
                Self::from_toml(&RunText::read(input)?.0).map_err(|error| malformed(&error))
            }
        }
    )*};
}

as_text!(RunSpec, AgentSpec);
