//! Updates that the child encodes: what it is asked for, and what it made.

use std::fs::File;
use std::io::Read as _;

use anabranch_common::codec::CodecSpec;
use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::quantize::ValueBits;
use anabranch_common::manifest::ModelManifest;

use super::message::{EncodeAsk, StateAt};
use super::{Host, Living, Tensors, TrainError};
use crate::encode::EncodeOrder;
use crate::encode::chain::Origin;
use crate::session::event::{Encoded, FeedbackState};

/// An update that a child is to encode.
#[derive(Debug)]
pub(super) struct Encoding {
    codec: CodecSpec,
    pub(super) ask: EncodeAsk,
    out: Tensors,
    /// The state, where it has to be given: there until the round is over.
    _left_out: Option<Tensors>,
}

impl Host {
    /// What to ask the child for; nothing where it has no encoder for this.
    pub(super) fn encoding(
        &mut self,
        order: EncodeOrder,
        manifest: &ModelManifest,
    ) -> Result<Option<Encoding>, TrainError> {
        let Some(Living { chain: Some(chain), .. }) = &self.child else { return Ok(None) };
        let EncodeOrder { codec, feedback_decay, states } = order;
        let CodecSpec::TopK { fraction, bits: ValueBits::Eight } = codec else { return Ok(None) };
        let Some(origin) = chain.origin(states.as_ref()) else { return Ok(None) };
        let (from, state, file) = match origin {
            Origin::Kept(from) => (from, StateAt::Kept, None),
            Origin::Given(from, left_out) if left_out.len() == manifest.params() => {
                let file = self.put("left-out.safetensors", manifest, &left_out)?;
                (from, StateAt::File(file.name()), Some(file))
            }
            // Nothing, or something of another model: the encoder on the CPU drops it too.
            Origin::Given(from, _) => (from, StateAt::Empty, None),
        };
        // Without feedback no state is ever made.
        let made = if Feedback::new(feedback_decay).is_on() { states.fresh() } else { FeedbackState::EMPTY };
        let out = Tensors(self.scratch.path().join("payload.bin"));
        let ask = EncodeAsk { fraction, feedback_decay, from, state, made, out: out.name() };
        Ok(Some(Encoding { codec, ask, out, _left_out: file }))
    }

    /// What the child has encoded for a model of `params` parameters. A payload that cannot be read is none: the agent
    /// encodes.
    pub(super) fn encoded(&mut self, encoding: Encoding, said_so: bool, params: usize) -> Option<Encoded> {
        let Some(Living { chain: Some(chain), .. }) = &mut self.child else { return None };
        let read = || {
            // An encoder that compresses needs far less.
            let most = 8 * params as u64 + 4096;
            let mut payload = Vec::new();
            File::open(&encoding.out.0)?.take(most).read_to_end(&mut payload)?;
            Ok::<_, std::io::Error>(payload)
        };
        let payload =
            if said_so { read().inspect_err(|error| tracing::warn!(%error, "no payload")).ok() } else { None };
        let Some(payload) = payload else {
            chain.missed();
            return None;
        };
        let Encoding { codec, ask: EncodeAsk { feedback_decay, from, made, .. }, .. } = encoding;
        chain.went_on(from, made);
        Some(Encoded { codec, feedback_decay, from, made, payload })
    }
}
