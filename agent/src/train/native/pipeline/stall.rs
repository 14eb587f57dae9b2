//! What the stages of a round wait for when none of them can go on: a fault of the order, never of what is trained.

use std::fmt::{self, Display};

use anabranch_common::pod::order::{MicroBatch, Work};

use super::Round;

/// A stage that is not through with its round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The stage, from 0.
    pub stage: usize,
    /// What it does next.
    pub work: Work,
    /// What it has to have for that.
    pub input: Missing,
}

/// What a stage waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Activations of a micro-batch, from the stage before.
    Activations,
    /// The gradient of a micro-batch, from the stage behind.
    Gradient,
    /// The tied tensor after so many updates, from the first stage.
    Tied(u32),
    /// The sum of the tied tensor's gradients, from the last stage.
    TiedSum,
}

impl Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stage {} waits for ", self.stage)?;
        match self.input {
            Missing::Activations => f.write_str("the activations of "),
            Missing::Gradient => f.write_str("the gradient of "),
            Missing::Tied(version) => write!(f, "version {version} of the tied tensor for "),
            Missing::TiedSum => f.write_str("the tied tensor's gradient of "),
        }?;
        match self.work {
            Work::Forward { micro_batch: MicroBatch { step, index }, .. }
            | Work::Backward { micro_batch: MicroBatch { step, index }, .. } => {
                write!(f, "micro-batch {index} of step {step}")
            }
            Work::Update { step } => write!(f, "step {step}"),
        }
    }
}

/// Lists what stages wait for.
pub(super) fn list(waiting: &[Waiting]) -> String {
    waiting.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Round<'_> {
    /// Returns the stages that are not through, when none of them can go on.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let waiting = |(stage, member): (usize, &super::Member<'_>)| {
            let work = member.next()?;
            let input = match work {
                Work::Forward { micro_batch, .. } if member.ready().is_some() => {
                    Missing::Tied(self.order.tied_version(micro_batch.step))
                }
                Work::Forward { .. } => Missing::Activations,
                Work::Backward { .. } => Missing::Gradient,
                Work::Update { .. } => Missing::TiedSum,
            };
            Some(Waiting { stage, work, input })
        };
        self.members.iter().enumerate().filter_map(waiting).collect()
    }
}
