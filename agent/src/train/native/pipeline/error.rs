//! What can be wrong with a parcel, and with a round.

use anabranch_common::ids::AgentId;
use anabranch_common::pod::order::{OrderError, OutOfTurn};

use super::stall::{self, Waiting};
use crate::pod::WireError;
use crate::train::TrainError;

/// Why a model cannot be trained in stages.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PipelineError {
    /// Model, plan or shard cannot be used, or training diverged.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The schedule cannot be used.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// A stage sent what the next one has no use for: a fault of the order.
    #[error(transparent)]
    OutOfTurn(#[from] OutOfTurn),
    /// A stage of this process refused a parcel of another one: a fault of the program.
    #[error(transparent)]
    Parcel(ParcelError),
    /// No stage can go on, and some are not through: a fault of the order.
    #[error("no stage can go on: {}", stall::list(.0))]
    Stalled(Vec<Waiting>),
    /// Another member is gone or does not keep to the protocol, or the attempt is over.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A helper sent its owner values that are not finite. It may have done so on purpose, or training diverged at it or before it.
    #[error("member {}: {what} that are not finite, in step {step} or later", agent.short())]
    NotFinite {
        /// The helper.
        agent: AgentId,
        /// What it sent.
        what: &'static str,
        /// The first step whose loss is not known.
        step: u32,
    },
    /// This member has no such part in the round that the coordinator named.
    #[error("the round cannot be computed here: {0}")]
    Round(&'static str),
    /// Stages have to be consecutive layers that cover the model.
    #[error("stages end at the layers {ends:?}, expected increasing figures, the last one {layers}")]
    Cut {
        /// Where they end.
        ends: Vec<usize>,
        /// Layers of the model.
        layers: usize,
    },
    /// A batch has fewer examples than micro-batches, or cannot be cut into as many of equal size and a smaller rest.
    #[error("a batch of {batch} examples cannot be cut into {micro_batches} micro-batches")]
    MicroBatches {
        /// Examples of a batch.
        batch: u32,
        /// Micro-batches of a step.
        micro_batches: u32,
    },
}

/// Why a part does not take a parcel. It is then as it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParcelError {
    /// The order has no use for it now.
    #[error(transparent)]
    OutOfTurn(#[from] OutOfTurn),
    /// The same, of what is not counted by micro-batches.
    #[error("{what} arrived out of turn")]
    Unexpected {
        /// What arrived.
        what: &'static str,
    },
    /// No such parcel goes from this part to that one.
    #[error("{what} from part {from} for part {to}")]
    Address {
        /// What arrived.
        what: &'static str,
        /// From which part.
        from: usize,
        /// For which part.
        to: usize,
    },
    /// A matrix has another shape.
    #[error("{what} of shape {found:?}, expected {expected:?}")]
    Shape {
        /// What arrived.
        what: &'static str,
        /// Its rows and columns.
        found: [usize; 2],
        /// What the part takes.
        expected: [usize; 2],
    },
    /// There are more or fewer values.
    #[error("{found} values of {what}, expected {expected}")]
    Length {
        /// What arrived.
        what: &'static str,
        /// Values that arrived.
        found: usize,
        /// Values that the part takes.
        expected: usize,
    },
    /// What a layer comes to is not what a member makes.
    #[error("the content of layer {layer}: {problem}")]
    Content {
        /// Number of the layer.
        layer: u32,
        /// What is wrong.
        problem: String,
    },
    /// A label is no class of the model.
    #[error("label {label} of a model of {classes} classes")]
    Label {
        /// The label.
        label: u32,
        /// Classes of the model.
        classes: u32,
    },
}

impl From<ParcelError> for PipelineError {
    fn from(error: ParcelError) -> Self {
        match error {
            ParcelError::OutOfTurn(error) => Self::OutOfTurn(error),
            error => Self::Parcel(error),
        }
    }
}
