//! What goes from part to part of a model, and the seams over which it goes: to whoever computes, a [`Wire`]; to whoever opens
//! an attempt, [`OpenLinks`].

use std::fmt;
use std::time::Duration;

use anabranch_common::codec;
use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::wire::pod::LayerFigures;

use super::{Attempt, Stop};

/// What one member sends to another: the stage of one part to that of another, or a replica of the model to another one.
#[derive(Debug, Clone, PartialEq)]
pub enum Parcel {
    /// From the owner, before anything else: the weights to start from.
    Weights {
        /// Those of the part.
        own: Vec<f32>,
        /// The tied tensor that another part owns; empty where the part uses none.
        tied: Vec<f32>,
        /// What the part's content is encoded with: what compression left out of it before, or the memory of it. Empty: nothing.
        held: Vec<f32>,
    },
    /// The output of the part before for the next micro-batch, row by row.
    Activations {
        /// Its values.
        values: Vec<f32>,
        /// Rows and columns.
        shape: [usize; 2],
    },
    /// The gradient of this part's output for the next micro-batch, in the layout of that output.
    Gradient {
        /// Its values.
        values: Vec<f32>,
        /// Rows and columns.
        shape: [usize; 2],
    },
    /// The labels of the next micro-batch, for the last part, where labels travel.
    Labels(Vec<u32>),
    /// From the last part, after each step: the sum of the losses of the step's labels.
    Loss(f64),
    /// From the last part, after each step: the sum of the gradients of the tied tensor.
    TiedSum(Vec<f32>),
    /// The tied tensor after so many updates, from the part that owns it.
    Tied {
        /// The number of updates, from 1. Versions that nothing is computed with any more are not sent.
        version: u32,
        /// Its values.
        values: Vec<f32>,
        /// lr times the direction of the last update; empty where no weights are predicted.
        moved: Vec<f32>,
    },
    /// To the owner, at the end: what each layer of the part comes to, in their order.
    Layer(LayerContent),
    /// Of replicas, from the owner along the ring, before anything else: the next part of the model to start from.
    Base {
        /// What the seeds of all members' batches follow from.
        seed: u64,
        /// Its values.
        values: Vec<f32>,
    },
    /// Of replicas, to the next member of the ring: a part of a gradient that is summed.
    Chunk {
        /// How many of them this member has sent in the round before.
        number: u64,
        /// The sum so far, or the whole one.
        values: Vec<f32>,
    },
    /// Of replicas, to the owner, at the end: the digest of the model.
    Ended(Digest),
}

impl Parcel {
    /// Returns what it is, in words of errors.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Weights { .. } => "weights",
            Self::Activations { .. } => "activations",
            Self::Gradient { .. } => "a gradient",
            Self::Labels(_) => "labels",
            Self::Loss(_) => "a loss",
            Self::TiedSum(_) => "a tied tensor's gradient",
            Self::Tied { .. } => "a tied tensor",
            Self::Layer(_) => "a layer's content",
            Self::Base { .. } => "a model",
            Self::Chunk { .. } => "a gradient's chunk",
            Self::Ended(_) => "the end of a round",
        }
    }
}

/// What a layer comes to at the end of a round.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerContent {
    /// Number of the layer in the model, from 0.
    pub layer: u32,
    /// The difference to what the round started from, encoded.
    pub payload: Vec<u8>,
    /// What the payload leaves out, one value a parameter; empty where nothing is kept of it.
    pub left_out: Vec<f32>,
    /// What the owner adds up.
    pub figures: LayerFigures,
}

impl Parcel {
    /// Returns whether no value of it is NaN or infinite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        match self {
            Self::Weights { own, tied, held } => [own, tied, held].iter().all(|values| codec::is_finite(values)),
            Self::Tied { values, moved, .. } => codec::is_finite(values) && codec::is_finite(moved),
            Self::Activations { values, .. }
            | Self::Gradient { values, .. }
            | Self::TiedSum(values)
            | Self::Base { values, .. }
            | Self::Chunk { values, .. } => codec::is_finite(values),
            // What its payload holds is looked at where it is decoded.
            Self::Layer(LayerContent { left_out, figures, .. }) => {
                let LayerFigures { base_dot: _, delta_square, left_out_square } = figures;
                codec::is_finite(left_out) && !delta_square.is_nan() && !left_out_square.is_nan()
            }
            Self::Loss(sum) => sum.is_finite(),
            Self::Labels(_) | Self::Ended(_) => true,
        }
    }
}

/// Between which parts of the model a parcel goes, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The part that sends it.
    pub from: usize,
    /// The part that it is for.
    pub to: usize,
}

/// Why nothing more comes or goes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A member cannot be reached, is gone, or does not keep to the protocol.
    #[error("{reason}")]
    Member {
        /// Which.
        agent: AgentId,
        /// What is wrong.
        reason: String,
    },
    /// The attempt is not larger than one at the same lease that was opened here.
    #[error("attempt {attempt} at this lease is not larger than attempt {newest}, which was opened here before")]
    Repeated {
        /// The attempt.
        attempt: u32,
        /// The largest one that was opened here.
        newest: u32,
    },
    /// The agent is told to stop.
    #[error("the attempt is over")]
    Over,
}

/// The way to the other members of a pod, for the thread that computes. Parcels between two parts arrive in the order in which
/// they were sent.
pub trait Wire: Send {
    /// Hands over a parcel for another member. May wait until there is room for it.
    ///
    /// # Errors
    /// See [`WireError`].
    fn send(&mut self, address: Address, parcel: Parcel) -> Result<(), WireError>;

    /// Waits for the next parcel for a part of this member. `from` of its address is a part of the member that sent it: the wire
    /// refuses others, as whoever computes the part is blamed for the parcel.
    ///
    /// A member may leave as soon as everything that others need of it was sent. So its loss is told once, after every parcel that
    /// came from it, and the other members are heard until they are lost too.
    ///
    /// # Errors
    /// See [`WireError`]. A member whose process gives no sign of life for as long as `pod.deadline_s` is lost; one that does may
    /// take any time for its next parcel.
    fn receive(&mut self) -> Result<(Address, Parcel), WireError>;
}

/// The links of one attempt. Dropping it gives the attempt up: the members at the other ends hear of it at once, and what is on
/// its way to them is lost. A member that is through with the round calls [`Self::finish`].
pub trait MemberWire: Wire {
    /// Waits until everything that was sent has arrived, and closes the links. To the others, this member has then left in good
    /// order: what they still send to it is dropped, and they go on with each other.
    ///
    /// # Errors
    /// See [`WireError`]; a member that has left itself needs nothing more.
    fn finish(self: Box<Self>) -> Result<(), WireError>;

    /// Closes the links at once: this member has everything that it needs of the others, and they need nothing more of it. To
    /// them it has left in good order.
    fn close(self: Box<Self>);
}

/// Opens the links of attempts. [`Links`](super::Links) does so over the network; a simulation has its own.
pub trait OpenLinks: fmt::Debug + Send + Sync {
    /// Opens the links of an attempt, within `deadline` of the owner's. Blocks until they are there, or `stop` says so.
    ///
    /// # Errors
    /// [`WireError::Member`] with a member that was not reached, or that has given up; [`WireError::Over`] when `stop` says so;
    /// [`WireError::Repeated`] for an attempt that was opened before, or of whose lease a later one was.
    fn open(&self, attempt: Attempt<'_>, deadline: Duration, stop: Stop) -> Result<Box<dyn MemberWire>, WireError>;
}
