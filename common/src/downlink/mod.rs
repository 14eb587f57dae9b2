//! What goes down: the forms in which a model reaches an agent.
//!
//! | form | content | needs |
//! |---|---|---|
//! | snapshot | the whole vector, in the form of codec 0 | nothing |
//! | [`track`] | records of the published track, one after the other | the base at the version that the first record follows |
//! | [`chain`] | the accepted updates since an older version | that version, and a rule that agents can replay |
//! | [`xor`] | the bits in which the vector differs from an older one | the older one |
//!
//! All forms give the same bits: an agent checks the digest of what it has made.

pub mod chain;
#[cfg(test)]
mod fixture;
pub mod track;
pub mod xor;

use crate::codec::DecodeError;
use crate::ids::ModelVersion;
use crate::manifest::ModelManifest;

/// The form in which a model is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModelForm {
    /// The whole vector.
    Snapshot,
    /// Records of the published track.
    Track {
        /// The version that the first record follows: the agent holds it.
        from: ModelVersion,
    },
    /// The accepted updates since an older version.
    Chain {
        /// That version: the agent holds it.
        from: ModelVersion,
    },
    /// The bits that differ from an older version.
    Xor {
        /// That version: the agent holds it.
        from: ModelVersion,
    },
}

impl ModelForm {
    /// Returns the version that the agent must hold, if the form rests on one.
    #[must_use]
    pub fn from(self) -> Option<ModelVersion> {
        match self {
            Self::Snapshot => None,
            Self::Track { from } | Self::Xor { from } | Self::Chain { from } => Some(from),
        }
    }
}

/// What an agent needs a model for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchPurpose {
    /// To train from it.
    Train,
    /// To evaluate it.
    Evaluate,
}

/// Why a form does not lead from a base to a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// The transfer ends within a record.
    #[error("the records end within one")]
    Truncated,
    /// More records than any coordinator keeps, or than a version is made of.
    #[error("too many records")]
    TooMany,
    /// The byte of a rule that agents cannot replay.
    #[error("rule {0} cannot be replayed")]
    UnknownRule(u8),
    /// A part of it does not decode.
    #[error("a part of it does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// The base is of another model.
    #[error("base of {found} values for a manifest of {expected}")]
    Base {
        /// Parameters in the manifest.
        expected: usize,
        /// Length of the base.
        found: usize,
    },
}

impl FormError {
    /// Checks that a base has the length that the manifest says.
    fn check_base(manifest: &ModelManifest, base: &[f32]) -> Result<(), Self> {
        let (expected, found) = (manifest.params(), base.len());
        if expected == found { Ok(()) } else { Err(Self::Base { expected, found }) }
    }
}
