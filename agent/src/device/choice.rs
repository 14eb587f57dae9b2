//! What `--device` and the key `device` say.
//!
//! | text | meaning |
//! |---|---|
//! | `auto` | the first GPU backend of this build that a probe finds usable, else the CPU |
//! | `cpu` | the CPU, whatever else is here |
//! | `cuda`, `vulkan`, `rocm`, `metal` | the first device of that backend |
//! | `cuda:1` and so on | another one |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which device the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Choice {
    /// The best device that this build can use.
    #[default]
    Auto,
    /// The CPU, whatever else is here.
    Cpu,
    /// One GPU, or nothing.
    Gpu(GpuId),
}

/// One device of a backend that this build has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct GpuId {
    /// How it is driven.
    pub backend: GpuBackend,
    /// Its number among the backend's devices, from 0.
    pub index: u16,
}

/// A way of training on something that is not the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GpuBackend {
    /// NVIDIA's.
    Cuda,
    /// AMD's.
    Rocm,
    /// Apple's.
    Metal,
    /// Anybody's.
    Vulkan,
}

/// A device that was asked for and cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// There is code for it, in other builds.
    #[error(
        "this build has no {} backend: build the agent with `--features {}`, or use auto or cpu \
         (`anabranch-agent devices` lists what is here)", .0.name(), .0.id()
    )]
    NotBuilt(GpuBackend),
    /// No such device.
    #[error("unknown device `{0}`, expected auto, cpu, cuda, vulkan, rocm or metal")]
    Unknown(String),
    /// What follows the colon.
    #[error("`{0}` does not end in the number of a device, like cuda:1")]
    Index(String),
}

impl GpuBackend {
    /// All of them, in the order in which `auto` tries them.
    pub const ALL: [Self; 4] = [Self::Cuda, Self::Rocm, Self::Metal, Self::Vulkan];

    /// What `--device` calls it, and the name of its cargo feature.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Metal => "metal",
            Self::Vulkan => "vulkan",
        }
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "CUDA",
            Self::Rocm => "ROCm",
            Self::Metal => "Metal",
            Self::Vulkan => "Vulkan",
        }
    }

    /// Whether this build has it.
    #[must_use]
    pub fn is_built(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Rocm => cfg!(feature = "rocm"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Vulkan => cfg!(feature = "vulkan"),
        }
    }

    /// Its first device.
    #[must_use]
    pub fn first(self) -> GpuId {
        GpuId { backend: self, index: 0 }
    }
}

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.backend.id(), self.index)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(id) => id.fmt(f),
        }
    }
}

impl FromStr for GpuId {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
        let backend = GpuBackend::ALL.into_iter().find(|backend| backend.id() == name);
        let backend = backend.ok_or_else(|| ChoiceError::Unknown(text.to_owned()))?;
        let index = match number {
            None => 0,
            // Not "+1", which is a number to Rust.
            Some(number) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                number.parse().map_err(|_| ChoiceError::Index(text.to_owned()))?
            }
            Some(_) => return Err(ChoiceError::Index(text.to_owned())),
        };
        if !backend.is_built() {
            return Err(ChoiceError::NotBuilt(backend));
        }
        Ok(Self { backend, index })
    }
}

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            other => other.parse().map(Self::Gpu),
        }
    }
}

impl TryFrom<String> for Choice {
    type Error = ChoiceError;

    fn try_from(text: String) -> Result<Self, ChoiceError> {
        text.parse()
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> Self {
        choice.to_string()
    }
}

impl TryFrom<String> for GpuId {
    type Error = ChoiceError;

    fn try_from(text: String) -> Result<Self, ChoiceError> {
        text.parse()
    }
}

impl From<GpuId> for String {
    fn from(id: GpuId) -> Self {
        id.to_string()
    }
}

/// Something that native models could be trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// What `--device` calls it.
    pub id: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Whether this build has it.
    pub built: bool,
}

/// Every backend that there is a name for, the CPU first.
#[must_use]
pub fn backends() -> Vec<Backend> {
    let cpu = Backend { id: "cpu", name: "CPU", built: true };
    let of = |gpu: GpuBackend| Backend { id: gpu.id(), name: gpu.name(), built: gpu.is_built() };
    [cpu].into_iter().chain(GpuBackend::ALL.map(of)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who asks for a GPU gets that one, or hears why not, instead of getting the CPU.
    #[test]
    fn a_backend_is_taken_by_name_and_number_or_refused_with_the_feature_that_has_it() {
        assert_eq!("cpu".parse(), Ok(Choice::Cpu));
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        for backend in GpuBackend::ALL {
            for (text, index) in [(backend.id().to_owned(), 0), (format!("{}:3", backend.id()), 3)] {
                match text.parse::<Choice>() {
                    Ok(choice) => {
                        assert!(backend.is_built());
                        assert_eq!(choice, Choice::Gpu(GpuId { backend, index }));
                        assert_eq!(choice.to_string().parse(), Ok(choice));
                    }
                    Err(error) => {
                        assert!(!backend.is_built());
                        let expected = format!("this build has no {} backend: ", backend.name());
                        let error = error.to_string();
                        assert!(error.starts_with(&expected), "{error}");
                        assert!(error.contains(&format!("`--features {}`", backend.id())), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn names_and_numbers_that_do_not_exist_are_refused_as_what_they_are() {
        for text in ["tpu", "cpu:0", "auto:0", "", "CUDA", "cuda0"] {
            assert_eq!(text.parse::<Choice>(), Err(ChoiceError::Unknown(text.to_owned())));
        }
        for text in ["cuda:", "cuda:x", "vulkan:-1", "vulkan:+1", "cuda:65536", "cuda:0:1"] {
            assert_eq!(text.parse::<Choice>(), Err(ChoiceError::Index(text.to_owned())), "{text}");
        }
    }
}
