//! What goes down: the forms in which a model reaches an agent.
//!
//! | form | content | needs |
//! |---|---|---|
//! | snapshot | the whole vector, in the form of codec 0 | nothing |
//! | [`track`] | records of the published track, one after the other | the base at the version that the first record follows |
//!
//! All forms give the same bits: an agent checks the digest of what it has made.

pub mod track;

use crate::ids::ModelVersion;

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
}

/// What an agent needs a model for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchPurpose {
    /// To train from it.
    Train,
    /// To evaluate it.
    Evaluate,
}
