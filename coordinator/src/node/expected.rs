//! What an upload is, and what it is to the core once it is here.

use std::sync::Arc;

use anabranch_common::codec::{self, CodecId, DecodeError};
use anabranch_common::ids::Digest;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::update::UpdateMeta;

use crate::core::content::{Content, Reservation};
use crate::core::event::{Event, PeerId};

/// What a transfer is.
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
    /// Whether both are the same update, or both the model.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Update { meta: one, .. }, Self::Update { meta: other, .. }) => one.key == other.key,
            (Self::Model { .. }, Self::Model { .. }) => true,
            (Self::Update { .. }, Self::Model { .. }) | (Self::Model { .. }, Self::Update { .. }) => false,
        }
    }

    /// The most memory that decoding a payload of so many bytes takes.
    pub(crate) fn decoded_bytes(&self, payload_bytes: u64) -> u64 {
        match self {
            Self::Update { meta, manifest } => codec::max_decoded_bytes(meta.codec, manifest, payload_bytes),
            Self::Model { manifest, .. } => codec::max_decoded_bytes(INITIAL_MODEL, manifest, payload_bytes),
        }
    }
}

/// What is told about content that does not decode.
pub(crate) const UNDECODABLE: &str = "the content could not be decoded";

/// How an initial model is encoded.
const INITIAL_MODEL: CodecId = CodecId(0);

/// What a whole payload is to the core: decoded, checked against what was offered, and measured.
/// What does not decode is dropped here, with its reservation.
#[must_use]
pub fn decode(peer: PeerId, what: Expected, payload: Arc<[u8]>, reservation: Reservation) -> Event {
    match what {
        Expected::Update { meta, manifest } => {
            let decoded = if Digest::of(&payload) == meta.payload_digest {
                codec::decode(meta.codec, &manifest, &payload)
            } else {
                Err(DecodeError::Invalid("payload digest"))
            };
            let payload = if decoded.is_ok() { payload } else { Arc::from([]) };
            let content = decoded.map(|delta| Arc::new(Content::measure(delta, reservation)));
            Event::UpdateReceived { peer, meta: *meta, payload, content }
        }
        Expected::Model { manifest, digest } => {
            let Ok(model) = codec::decode(INITIAL_MODEL, &manifest, &payload) else {
                return Event::ModelFailed { peer, why: UNDECODABLE.into() };
            };
            if Digest::of_f32(model.values()) != digest {
                return Event::ModelFailed { peer, why: "an initial model that is not what was offered".into() };
            }
            let model = Arc::new(Content::measure(model, reservation));
            Event::ModelReceived { peer, manifest: (*manifest).clone(), digest, model }
        }
    }
}
