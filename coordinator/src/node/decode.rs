//! The decoders' jobs: what a whole upload is to the core.

use std::sync::Arc;

use anabranch_common::codec::{self, DecodeError};
use anabranch_common::ids::{Digest, PeerId};
use anabranch_common::limits;
use anabranch_common::transfer::{Expected, Guard, Sink, UploadId};

use super::job::Done;
use crate::core::content::{Content, Reservation};
use crate::core::event::Event;

/// An upload with nothing missing, to be decoded.
#[derive(Debug)]
pub struct DecodeJob {
    pub(super) upload: UploadId,
    pub(super) peer: PeerId,
    pub(super) what: Expected,
    pub(super) sink: Arc<Sink>,
    pub(super) guard: Guard,
    /// Milliseconds that its line took for it, if all of it was sent at once.
    pub(super) transfer_ms: Option<u64>,
}

impl DecodeJob {
    /// Decodes the upload. What is made of it holds its parts of the budgets.
    #[must_use]
    pub fn run(self) -> Done {
        let Self { upload, peer, what, sink, guard, transfer_ms } = self;
        let event = match sink.payload() {
            Some(payload) => decode(peer, what, payload, Reservation::of(guard), transfer_ms),
            None => failed(peer, what, UNDECODABLE.into()),
        };
        Done::Decode { upload, event }
    }

    /// What is answered if [`run`](Self::run) panics.
    #[must_use]
    pub fn failure(&self) -> Done {
        Done::Decode { upload: self.upload, event: failed(self.peer, self.what.clone(), UNDECODABLE.into()) }
    }

    /// Whether decoding takes no longer than to hand it to another thread and back: little comes in, and little can come
    /// out.
    #[must_use]
    pub fn is_short(&self) -> bool {
        let bytes = usize::try_from(self.sink.manifest().bytes).unwrap_or(usize::MAX);
        bytes <= limits::INLINE_DECODE_BYTES && self.what.manifest().params() <= limits::INLINE_DECODE_PARAMS
    }
}

/// What the core is told of an upload that cannot be received or decoded.
pub(super) fn failed(peer: PeerId, what: Expected, why: String) -> Event {
    match what {
        Expected::Model { .. } => Event::ModelFailed { peer, why },
        Expected::Update { meta, .. } => {
            let content = Err(DecodeError::Invalid("transfer"));
            Event::UpdateReceived { peer, meta: *meta, payload: Arc::from([]), content, transfer_ms: None }
        }
    }
}

/// What is told about content that does not decode.
const UNDECODABLE: &str = "the content could not be decoded";

/// What a whole payload is to the core: decoded, checked against what was offered, and measured.
/// What does not decode is dropped here, with its reservation.
fn decode(
    peer: PeerId,
    what: Expected,
    payload: Arc<[u8]>,
    reservation: Reservation,
    transfer_ms: Option<u64>,
) -> Event {
    match what {
        Expected::Update { meta, manifest } => {
            let decoded = if Digest::of(&payload) == meta.payload_digest {
                codec::decode(meta.codec, &manifest, &payload)
            } else {
                Err(DecodeError::Invalid("payload digest"))
            };
            let payload = if decoded.is_ok() { payload } else { Arc::from([]) };
            let content = decoded.map(|delta| Arc::new(Content::measure(delta, reservation)));
            Event::UpdateReceived { peer, meta: *meta, payload, content, transfer_ms }
        }
        Expected::Model { manifest, digest } => {
            let Ok(model) = codec::decode(Expected::MODEL_CODEC, &manifest, &payload) else {
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
