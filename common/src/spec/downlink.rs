//! What agents are sent.

use serde::{Deserialize, Serialize};

use crate::codec::CodecSpec;
use crate::ids::ModelVersion;

/// What agents are sent. The keys that are off are not written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DownlinkSpec {
    /// The published track that agents train from; without it they train from the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track: Option<TrackSpec>,
}

/// A published track: see [`crate::downlink::track`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackSpec {
    /// Versions from one record of the track to the next, at least 1. Versions that are multiples of it are published.
    pub every: u64,
    /// How a record is encoded.
    pub codec: CodecSpec,
}

impl DownlinkSpec {
    /// Returns whether every key has its default.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether agents may train from `version` of the run, once it is closed.
    #[must_use]
    pub fn is_base(&self, version: ModelVersion) -> bool {
        self.track.as_ref().is_none_or(|track| track.is_due(version))
    }
}

impl TrackSpec {
    /// Returns whether the track has a record at `version`.
    #[must_use]
    pub fn is_due(&self, version: ModelVersion) -> bool {
        version.0.is_multiple_of(self.every.max(1))
    }
}
