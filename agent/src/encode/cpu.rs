//! The encoder of the agent's own process.

use anabranch_common::codec::feedback::Feedback;
use anabranch_common::codec::{CodecId, EncodeError, segments};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::pod::PodSections;
use anabranch_common::update::MemoryMark;

use super::States;
use crate::session::command::Bank;
use crate::session::event::{Encoded, FeedbackState, PodContent};

/// An encoded update.
#[derive(Debug)]
pub struct Update {
    /// The payload.
    pub payload: Vec<u8>,
    /// Its codec.
    pub codec: CodecId,
    /// What the payload leaves out, one value a parameter; `None` if feedback is off, and where there is a memory.
    pub left_out: Option<Vec<f32>>,
    /// The number of that state.
    pub state: FeedbackState,
    /// The memory that the payload is a difference against, if it is one.
    pub memory: Option<Memory>,
    /// Where the sections of the payload begin but for the first one, and whose they are, if others can send them too.
    pub sections: Option<(Vec<u64>, PodSections)>,
}

/// The state that an update continues from.
#[derive(Debug)]
pub enum Origin {
    /// That of the error feedback (EF14).
    Residual {
        /// Its number.
        state: FeedbackState,
        /// What was left out so far, one value a parameter; empty if nothing was.
        left_out: Vec<f32>,
    },
    /// The memory that the coordinator has too (EF21).
    Memory(Memory),
}

/// What the updates that were accepted since it was empty come to.
#[derive(Debug)]
pub struct Memory {
    /// Its name.
    pub mark: MemoryMark,
    /// One value a parameter; empty if it is 0.
    pub values: Vec<f32>,
}

impl Memory {
    /// Returns `delta` less this memory.
    fn taken_off(&self, delta: &[f32]) -> Vec<f32> {
        let mut left = delta.to_vec();
        left.iter_mut().zip(&self.values).for_each(|(left, held)| *left -= held);
        left
    }
}

/// Encodes the delta of `bank`, with what was left out before, or less the memory. Takes the trainer's payload if the
/// trainer continued from the state of `origin`: the payload then is what would be made here.
///
/// # Errors
/// The delta is not finite, or not of the model's size.
pub(super) fn encode(
    manifest: &ModelManifest,
    bank: &mut Bank,
    origin: Origin,
    states: &States,
) -> Result<Update, EncodeError> {
    let Bank { lease, codec, policy, feedback_decay, outcome, .. } = bank;
    let encoder = policy.encoder(*codec, manifest);
    let payload_codec = encoder.id();
    let (from, left_out) = match origin {
        Origin::Residual { state, left_out } => (state, left_out),
        Origin::Memory(memory) => {
            let payload = encoder.encode(manifest, &memory.taken_off(&outcome.delta))?;
            let (state, memory) = (FeedbackState::EMPTY, Some(memory));
            return Ok(Update { payload, codec: payload_codec, left_out: None, state, memory, sections: None });
        }
    };
    let mut feedback = Feedback::restore(*feedback_decay, left_out);
    let same = |there: &Encoded| (there.from, there.codec, there.feedback_decay) == (from, *codec, *feedback_decay);
    // Trainers encode with one codec.
    let there = outcome.encoded.take().filter(|there| policy.is_empty() && same(there)).filter(|there| {
        feedback
            .sent(&*encoder, manifest, &outcome.delta, &there.payload)
            .inspect_err(|error| tracing::warn!(%error, "what the trainer has encoded cannot be sent"))
            .is_ok()
    });
    let (payload, state) = match there {
        Some(there) => {
            tracing::debug!(lease = lease.id.0, "encoded by the trainer");
            states.count_one_from_there();
            (there.payload, there.made)
        }
        None => (feedback.encode(&*encoder, manifest, &outcome.delta)?, states.fresh()),
    };
    let left_out = Some(feedback.into_left_out()).filter(|left_out| !left_out.is_empty());
    Ok(Update { payload, codec: payload_codec, left_out, state, memory: None, sections: None })
}

/// Takes what a pod has encoded in continuation of `origin`.
pub(super) fn of_pod(content: PodContent, origin: Origin, states: &States) -> Update {
    let PodContent { payload, sections, left_out, .. } = content;
    let (left_out, state, memory) = match origin {
        Origin::Residual { .. } => (Some(left_out).filter(|left_out| !left_out.is_empty()), states.fresh(), None),
        Origin::Memory(memory) => (None, FeedbackState::EMPTY, Some(memory)),
    };
    Update { codec: segments::ID, payload, left_out, state, memory, sections }
}
