//! What an upload is.

use std::sync::Arc;

use super::name::UploadName;
use crate::codec::{self, CodecId};
use crate::ids::{AgentId, Digest};
use crate::manifest::ModelManifest;
use crate::update::UpdateMeta;

/// What an upload is.
#[derive(Debug, Clone)]
pub enum Expected {
    /// An update's payload.
    Update {
        /// What was offered.
        meta: Box<UpdateMeta>,
        /// The model's tensors.
        manifest: Arc<ModelManifest>,
    },
    /// The initial model.
    Model {
        /// Its tensors.
        manifest: Arc<ModelManifest>,
        /// Digest of its content.
        digest: Digest,
    },
}

impl Expected {
    /// How an initial model is encoded.
    pub const MODEL_CODEC: CodecId = CodecId(0);

    /// The name of what `agent` uploads.
    #[must_use]
    pub fn name(&self, agent: AgentId) -> UploadName {
        match self {
            Self::Update { meta, .. } => UploadName::of_update(&meta.key),
            Self::Model { .. } => UploadName::of_model(agent),
        }
    }

    /// Whether it is an initial model.
    #[must_use]
    pub fn is_model(&self) -> bool {
        matches!(self, Self::Model { .. })
    }

    /// Its tensors.
    #[must_use]
    pub fn manifest(&self) -> &ModelManifest {
        let (Self::Update { manifest, .. } | Self::Model { manifest, .. }) = self;
        manifest
    }

    /// Whether both are the same update, or both the model.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Update { meta: one, .. }, Self::Update { meta: other, .. }) => one.key == other.key,
            (Self::Model { .. }, Self::Model { .. }) => true,
            (Self::Update { .. }, Self::Model { .. }) | (Self::Model { .. }, Self::Update { .. }) => false,
        }
    }

    /// The most memory that decoding a payload of so many bytes takes.
    pub(super) fn decoded_bytes(&self, payload_bytes: u64) -> u64 {
        let codec = match self {
            Self::Update { meta, .. } => meta.codec,
            Self::Model { .. } => Self::MODEL_CODEC,
        };
        codec::max_decoded_bytes(codec, self.manifest(), payload_bytes)
    }
}
