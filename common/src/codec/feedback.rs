//! Error feedback: what compression leaves out of one update is added to the next.
//!
//! ```text
//! v  = beta * e + delta        the update, and what was left out before it
//! c  = C(v)                    what is sent
//! e' = v - decode(c)           what is left out now
//! ```
//! EF14 (Seide et al. 2014), with a decay beta. The state e is all that has to survive a restart; losing it costs
//! accuracy, never correctness.

use std::ops::Range;

use super::vector::vectorized;
use super::{Codec, DecodeError, Delta, EncodeError};
use crate::manifest::ModelManifest;

/// Why a payload that was made elsewhere cannot be taken for an update.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SentError {
    /// There is nothing that could have been encoded.
    #[error(transparent)]
    Delta(#[from] EncodeError),
    /// It is no payload of this codec for this model.
    #[error(transparent)]
    Payload(#[from] DecodeError),
}

/// v in the place of e: an encoder computes it and takes off what it sends, one part of the vector after another, so that
/// each part passes through the caches once.
#[derive(Debug)]
pub struct Residual<'a> {
    /// e, then v, then e'.
    values: &'a mut [f32],
    /// delta and beta; nothing if the values are v already.
    added: Option<(&'a [f32], f32)>,
}

impl Residual<'_> {
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Computes and returns v over `range`: once for each part.
    pub(super) fn sum(&mut self, range: Range<usize>) -> &[f32] {
        let values = &mut self.values[range.clone()];
        if let Some((delta, decay)) = self.added {
            let delta = &delta[range];
            vectorized!(add(values, delta, decay));
        }
        values
    }

    /// Returns v over `range`, where it is computed already.
    pub(super) fn seen(&self, range: Range<usize>) -> &[f32] {
        &self.values[range]
    }

    /// The same over a part of the vector.
    pub(super) fn part(&mut self, range: Range<usize>) -> Residual<'_> {
        let added = self.added.map(|(delta, decay)| (&delta[range.clone()], decay));
        Residual { values: &mut self.values[range], added }
    }

    /// Takes off what is sent of the values from `start` on.
    pub(super) fn sent(&mut self, start: usize, sent: &[f32]) {
        let values = &mut self.values[start..start + sent.len()];
        vectorized!(subtract(values, sent));
    }

    /// Takes off what is sent of the values at `positions` after `start`.
    pub(super) fn sent_at(&mut self, start: usize, positions: &[u32], sent: &[f32]) {
        let values = &mut self.values[start..];
        for (position, sent) in positions.iter().zip(sent) {
            let value = &mut values[*position as usize];
            *value = finite_or(*value - sent, 0.0);
        }
    }

    /// Takes off what is sent of the whole vector.
    pub(super) fn keep(&mut self, sent: &Delta) {
        match sent {
            Delta::Dense(sent) => self.sent(0, sent),
            Delta::Sparse { indices, values, .. } => self.sent_at(0, indices, values),
        }
    }
}

/// e becomes v; where that would be infinite, delta.
#[inline(always)]
fn add(left_out: &mut [f32], delta: &[f32], decay: f32) {
    for (left_out, delta) in left_out.iter_mut().zip(delta) {
        *left_out = finite_or(delta + decay * *left_out, *delta);
    }
}

#[inline(always)]
fn subtract(values: &mut [f32], sent: &[f32]) {
    for (value, sent) in values.iter_mut().zip(sent) {
        *value = finite_or(*value - sent, 0.0);
    }
}

/// The feedback state of one agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    decay: f32,
    left_out: Vec<f32>,
}

impl Feedback {
    /// An empty state. `decay` is beta: 1 keeps everything, 0 (or anything outside of [0, 1]) switches feedback off.
    #[must_use]
    pub fn new(decay: f32) -> Self {
        let decay = if decay > 0.0 && decay <= 1.0 { decay } else { 0.0 };
        Self { decay, left_out: Vec::new() }
    }

    /// A state saved from [`left_out`](Self::left_out). One that is not finite is dropped.
    #[must_use]
    pub fn restore(decay: f32, left_out: Vec<f32>) -> Self {
        let sound = left_out.iter().all(|value| value.is_finite());
        let empty = Self::new(decay);
        if sound && empty.is_on() { Self { left_out, ..empty } } else { empty }
    }

    /// e: what is left out so far, to be saved. Empty, or of the length of the latest update.
    #[must_use]
    pub fn left_out(&self) -> &[f32] {
        &self.left_out
    }

    /// The same without a copy.
    #[must_use]
    pub fn into_left_out(self) -> Vec<f32> {
        self.left_out
    }

    /// Whether anything is ever carried over.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.decay > 0.0
    }

    /// Encodes `delta` together with what was left out before, and keeps what is left out now. A state for a model of
    /// another length is dropped first.
    ///
    /// # Errors
    /// `delta` does not fit the manifest or is not finite; the state is as before.
    pub fn encode(
        &mut self,
        codec: &dyn Codec,
        manifest: &ModelManifest,
        delta: &[f32],
    ) -> Result<Vec<u8>, EncodeError> {
        super::check_input(manifest, delta)?;
        if self.keeps_nothing(codec) {
            return codec.encode(manifest, delta);
        }
        codec.encode_residual(manifest, self.residual(delta))
    }

    /// The same for a payload that somebody else made of `delta` and this state: keeps what it leaves out. Whatever it
    /// chose to send, nothing is lost; if it is what [`encode`](Self::encode) would have made, so is the state.
    ///
    /// # Errors
    /// `delta` cannot be encoded, or the payload is none; the state is as before.
    pub fn sent(
        &mut self,
        codec: &dyn Codec,
        manifest: &ModelManifest,
        delta: &[f32],
        payload: &[u8],
    ) -> Result<(), SentError> {
        super::check_input(manifest, delta)?;
        let sent = codec.decode(manifest, payload)?;
        if !self.keeps_nothing(codec) {
            let mut residual = self.residual(delta);
            residual.sum(0..delta.len());
            residual.keep(&sent);
        }
        Ok(())
    }

    fn keeps_nothing(&self, codec: &dyn Codec) -> bool {
        !self.is_on() || codec.lossless() && self.left_out.is_empty()
    }

    /// v, to be computed.
    fn residual<'a>(&'a mut self, delta: &'a [f32]) -> Residual<'a> {
        if self.left_out.len() == delta.len() {
            return Residual { values: &mut self.left_out, added: Some((delta, self.decay)) };
        }
        self.left_out = delta.to_vec();
        Residual { values: &mut self.left_out, added: None }
    }

    /// Takes back the content of an update that was refused for a reason whose
    /// [`content_returns`](crate::update::RefusalReason::content_returns). Content of another length, or not finite, is
    /// dropped.
    pub fn returned(&mut self, content: &Delta) {
        if !self.is_on() || !content.is_finite() {
            return;
        }
        if self.left_out.is_empty() {
            self.left_out = vec![0.0; content.len()];
        }
        if self.left_out.len() == content.len() {
            content.add_scaled_to(&mut self.left_out, 1.0);
            self.left_out.iter_mut().for_each(|left_out| *left_out = finite_or(*left_out, 0.0));
        }
    }

    /// Forgets everything: the model's history is another one now.
    pub fn reset(&mut self) {
        self.left_out = Vec::new();
    }
}

#[inline(always)]
fn finite_or(value: f32, otherwise: f32) -> f32 {
    if value.is_finite() { value } else { otherwise }
}

#[cfg(test)]
mod tests {
    use anabranch_testkit::codec::normal;

    use super::*;
    use crate::codec::dense::Planes32;
    use crate::codec::sparse::TopK;
    use crate::manifest::TensorSpec;

    const PARAMS: usize = 4_000;

    fn manifest(params: usize) -> ModelManifest {
        ModelManifest::new(vec![TensorSpec { name: "w".into(), shape: vec![params as u64] }]).expect("valid")
    }

    fn send(feedback: &mut Feedback, codec: &dyn Codec, delta: &[f32]) -> Delta {
        let manifest = manifest(delta.len());
        let payload = feedback.encode(codec, &manifest, delta).expect("finite");
        codec.decode(&manifest, &payload).expect("as encoded")
    }

    #[test]
    fn nothing_is_lost_with_a_decay_of_one() {
        let mut feedback = Feedback::new(1.0);
        let (mut wanted, mut sent) = (vec![0.0f64; PARAMS], vec![0.0f64; PARAMS]);
        for round in 0..50 {
            let delta = normal(PARAMS, round);
            let content = send(&mut feedback, &TopK::new(0.05), &delta).into_dense();
            wanted.iter_mut().zip(&delta).for_each(|(sum, value)| *sum += f64::from(*value));
            sent.iter_mut().zip(&content).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        for ((wanted, sent), left_out) in wanted.iter().zip(&sent).zip(feedback.left_out()) {
            assert!(
                (wanted - sent - f64::from(*left_out)).abs() < 1e-3,
                "{wanted} wanted, {sent} sent, {left_out} kept"
            );
        }
    }

    #[test]
    fn a_constant_delta_is_sent_in_the_end_only_with_feedback() {
        let delta = normal(PARAMS, 3);
        let sent_share = |decay: f32| {
            let mut feedback = Feedback::new(decay);
            let mut touched = vec![false; PARAMS];
            for _ in 0..200 {
                let content = send(&mut feedback, &TopK::new(0.05), &delta).into_dense();
                touched.iter_mut().zip(content).for_each(|(touched, value)| *touched |= value != 0.0);
            }
            touched.iter().filter(|touched| **touched).count() as f64 / PARAMS as f64
        };
        assert!(sent_share(1.0) > 0.9, "only {} of the entries were ever sent", sent_share(1.0));
        assert!(sent_share(0.0) < 0.06);
    }

    #[test]
    fn returned_content_is_sent_again() {
        let mut feedback = Feedback::new(1.0);
        let mut delta = vec![0.0; PARAMS];
        delta[17] = 5.0;
        let content = send(&mut feedback, &TopK::new(0.01), &delta);
        feedback.returned(&content);
        let again = send(&mut feedback, &TopK::new(0.01), &vec![0.0; PARAMS]).into_dense();
        assert!((again[17] - 5.0).abs() < 1e-5, "the refused entry came back as {}", again[17]);
    }

    #[test]
    fn a_saved_state_goes_on_like_the_one_that_was_saved() {
        let mut feedback = Feedback::new(0.95);
        send(&mut feedback, &TopK::new(0.05), &normal(PARAMS, 1));
        let mut restored = Feedback::restore(0.95, feedback.left_out().to_vec());
        let delta = normal(PARAMS, 2);
        assert_eq!(send(&mut feedback, &TopK::new(0.05), &delta), send(&mut restored, &TopK::new(0.05), &delta));
        assert_eq!(restored, feedback);
    }

    /// A payload of a GPU, or of one that has gone mad.
    #[test]
    fn a_payload_made_elsewhere_leaves_what_it_did_not_send() {
        let (codec, manifest, delta) = (TopK::new(0.05), manifest(PARAMS), normal(PARAMS, 2));
        let mut here = Feedback::new(0.95);
        send(&mut here, &codec, &normal(PARAMS, 1));
        let mut there = here.clone();
        let payload = here.encode(&codec, &manifest, &delta).expect("finite");
        there.sent(&codec, &manifest, &delta, &payload).expect("a payload");
        assert_eq!(there, here, "the same payload, another state");

        let mad = codec.encode(&manifest, &normal(PARAMS, 9)).expect("finite");
        let (before, content) = (there.left_out().to_vec(), codec.decode(&manifest, &mad).expect("valid").into_dense());
        there.sent(&codec, &manifest, &delta, &mad).expect("a payload");
        for (at, left_out) in there.left_out().iter().enumerate() {
            let wanted = 0.95 * before[at] + delta[at];
            assert!(
                (wanted - content[at] - left_out).abs() < 1e-5,
                "lost at {at}: {wanted} {} {left_out}",
                content[at]
            );
        }

        let (state, cut) = (there.clone(), &payload[..payload.len() - 1]);
        assert!(matches!(there.sent(&codec, &manifest, &delta, cut), Err(SentError::Payload(_))));
        let infinite = vec![f32::INFINITY; PARAMS];
        let refused = there.sent(&codec, &manifest, &infinite, &payload);
        assert_eq!(refused, Err(SentError::Delta(EncodeError::NonFinite(0))));
        assert_eq!(there, state, "a refused payload changed the state");
        let mut off = Feedback::new(0.0);
        off.sent(&codec, &manifest, &delta, &payload).expect("a payload");
        assert!(off.left_out().is_empty());
    }

    #[test]
    fn what_does_not_fit_or_is_not_finite_never_stays() {
        let mut feedback = Feedback::new(1.0);
        send(&mut feedback, &TopK::new(0.05), &normal(PARAMS, 1));
        let before = feedback.clone();
        let mut bad = normal(PARAMS, 2);
        bad[3] = f32::NAN;
        assert_eq!(feedback.encode(&TopK::ANY, &manifest(PARAMS), &bad), Err(EncodeError::NonFinite(3)));
        feedback.returned(&Delta::Dense(bad));
        feedback.returned(&Delta::Dense(vec![1.0; PARAMS + 1]));
        assert_eq!(feedback, before, "a refused input changed the state");

        let longer = normal(PARAMS + 100, 3);
        let fresh = send(&mut Feedback::new(1.0), &TopK::new(0.05), &longer);
        assert_eq!(send(&mut feedback, &TopK::new(0.05), &longer), fresh, "the old model's state leaked into the new");
        assert!(Feedback::restore(1.0, vec![f32::INFINITY]).left_out().is_empty());

        let huge = vec![f32::MAX; PARAMS];
        for _ in 0..5 {
            assert!(send(&mut feedback, &TopK::new(0.05), &huge).is_finite());
            assert!(feedback.left_out().iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn a_decay_of_zero_and_a_lossless_codec_keep_nothing() {
        let mut off = Feedback::new(0.0);
        send(&mut off, &TopK::new(0.05), &normal(PARAMS, 1));
        off.returned(&Delta::Dense(vec![1.0; PARAMS]));
        assert!(off.left_out().is_empty());
        let mut lossless = Feedback::new(0.9);
        let content = send(&mut lossless, &Planes32, &normal(PARAMS, 1));
        assert_eq!((content.into_dense(), lossless.left_out()), (normal(PARAMS, 1), &[][..]));
    }
}
