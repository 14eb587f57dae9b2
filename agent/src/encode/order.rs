//! Updates that are encoded where they were trained, such as on a GPU.
//!
//! ```text
//!  maths                    trainer                              ledger
//!  Round.encode ─────────►  train, then encode from the state
//!                           that the ledger has, as far as it is known
//!  RoundResult.encoded ◄──  payload, which state it went on from
//!       └── Outcome ─────────────────────────────────────────►   is that its state? then the payload is banked with what it
//!                                                                 leaves out; otherwise the delta is encoded here
//! ```
//! The ledger is the judge: a refused update that came back meanwhile, another branch, a round that was thrown away, or a
//! trainer that has lost its state cost an encoding, never content.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use anabranch_common::codec::CodecSpec;
use anabranch_common::ids::BranchId;
use anabranch_common::update::MemoryMark;

use crate::session::event::FeedbackState;

/// The ledger's feedback state, as an encoder elsewhere needs it.
pub trait FeedbackSource: fmt::Debug + Send + Sync {
    /// Which state the ledger has.
    fn current(&self) -> FeedbackState;

    /// A number for the state that an encoder is about to make.
    fn fresh(&self) -> FeedbackState;

    /// The state after everything that was handed in before, one value a parameter (none: nothing is left out). Waits for
    /// it; nothing where the ledger has ended.
    fn fetch(&self) -> Option<(FeedbackState, Vec<f32>)>;

    /// What is held of a range of the model for an update of `branch` under a lease that asks for this memory, or for none: see
    /// [`Ledger::held`](crate::store::Ledger::held). Waits for it; nothing where the ledger has ended.
    fn held(&self, branch: BranchId, memory: Option<MemoryMark>, range: Range<usize>) -> Option<Vec<f32>>;
}

/// How to encode a round.
#[derive(Debug, Clone)]
pub struct EncodeOrder {
    /// With what.
    pub codec: CodecSpec,
    /// EF14's beta.
    pub feedback_decay: f32,
    /// Where the feedback state is.
    pub states: Arc<dyn FeedbackSource>,
}
