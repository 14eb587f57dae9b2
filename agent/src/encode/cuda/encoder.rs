//! The encoder of a training child: over an [`Engine`], with the feedback states of its latest update by number, so that
//! the agent can say which of them counts.

use anabranch_common::manifest::ModelManifest;

use super::topk::GpuTopK;
use super::{Engine, GpuError};
use crate::session::event::FeedbackState;

/// Opens a device.
pub type EngineOpener = Box<dyn Fn() -> Result<Box<dyn Engine>, GpuError>>;

/// How a round is to be encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// Share of the entries that is sent, in (0, 1].
    pub fraction: f32,
    /// EF14's beta.
    pub feedback_decay: f32,
    /// The state to go on from.
    pub from: FeedbackState,
    /// Its content, one value a parameter (none: nothing is left out); `None`: this encoder has it.
    pub left_out: Option<Vec<f32>>,
    /// What the state that it leaves is called.
    pub made: FeedbackState,
}

/// A top-k encoder with error feedback on a device. Its payloads are those of the CPU's encoder, bit for bit. A device that
/// fails is not used again: its errors stick, and the agent encodes.
pub struct RoundEncoder {
    open: EngineOpener,
    /// What was opened to see that it can be.
    spare: Option<Box<dyn Engine>>,
    model: Option<Model>,
    failed: bool,
}

/// The encoder for one model.
struct Model {
    manifest: ModelManifest,
    fraction: f32,
    topk: GpuTopK<Box<dyn Engine>>,
    from: FeedbackState,
    made: FeedbackState,
}

impl std::fmt::Debug for RoundEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoundEncoder").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl RoundEncoder {
    /// Opens the device.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn new(open: EngineOpener) -> Result<Self, GpuError> {
        let spare = Some(open()?);
        Ok(Self { open, spare, model: None, failed: false })
    }

    /// Encodes `end - base` and what was left out before. Nothing where that cannot be done; the log says why.
    pub fn encode(&mut self, manifest: &ModelManifest, order: Order, base: &[f32], end: &[f32]) -> Option<Vec<u8>> {
        if self.failed {
            return None;
        }
        match self.attempt(manifest, order, base, end) {
            Ok(payload) => payload,
            // The agent will find the same.
            Err(GpuError::Encode(error)) => {
                tracing::warn!("not encoded here: {error}");
                None
            }
            Err(error) => {
                tracing::warn!("{error}; updates are encoded on the CPU from here on");
                (self.failed, self.model) = (true, None);
                None
            }
        }
    }

    fn attempt(
        &mut self,
        manifest: &ModelManifest,
        order: Order,
        base: &[f32],
        end: &[f32],
    ) -> Result<Option<Vec<u8>>, GpuError> {
        let Order { fraction, feedback_decay, from, left_out, made } = order;
        let same = |model: &Model| model.manifest == *manifest && model.fraction.to_bits() == fraction.to_bits();
        if !self.model.as_ref().is_some_and(same) {
            // The memory of the old one first.
            self.model = None;
            let engine = self.spare.take().map_or_else(|| (self.open)(), Ok)?;
            let topk = GpuTopK::new(engine, manifest, fraction)?;
            let empty = FeedbackState::EMPTY;
            self.model = Some(Model { manifest: manifest.clone(), fraction, topk, from: empty, made: empty });
        }
        let Some(model) = &mut self.model else { return Ok(None) };
        match left_out {
            Some(left_out) => model.topk.restore(&left_out)?,
            None if from == model.made => model.topk.commit(),
            // The latest update was not taken: its state is overwritten.
            None if from == model.from => {}
            None => return Ok(None),
        }
        (model.from, model.made) = (from, from);
        let payload = model.topk.encode(base, end, feedback_decay)?;
        model.made = made;
        Ok(Some(payload))
    }
}
