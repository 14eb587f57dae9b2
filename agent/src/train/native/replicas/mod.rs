//! Synchronous data parallelism: members that hold the whole model sum their gradients in every step (docs/adr/0035).
//!
//! ```text
//!  each member:  own batch ─► forward ─► backward: last stage ... first stage ─► sum of all stages ─► optimizer
//!                                                    │ gradient of a stage        ▲
//!  its carrier (a thread of its own):                └► ring ◄─► neighbours ──────┘
//! ```
//!
//! | what | where |
//! |---|---|
//! | the order in which a vector is summed over a ring; no threads, no links | `ring` |
//! | what goes over the wire, and what is refused | `exchange` |
//! | the model in a few stages of this process, and its gradient | `gradients` |
//! | the steps of a round, with the carrier beside them | `steps` |
//! | a round of the owner, and of a helper | [`train_owned`], [`serve`] |
//!
//! Every member applies the same optimizer to the same bits of the same sum, so that all have the same model after every step. It
//! is that of one machine with the joined batch, but for rounding.

mod exchange;
mod gradients;
mod ring;
mod steps;

use std::ops::ControlFlow;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::pod::PodRound;
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{ModelSpec, TrainSpec};

use super::check_plan;
use super::fit::Held;
use super::memory::{Budget, Needs, Room};
use super::pipeline::{PipelineError, Trained};
use crate::pod::Wire;
use crate::shard::Shard;
use crate::train::{StepReport, TrainError};
use exchange::{Exchange, OWNER};
use gradients::{StageSize, Staged};
use steps::Steps;

/// What a member knows of its part in a round.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaTask<'a> {
    /// `[model]`.
    pub model: &'a ModelSpec,
    /// `[train]` as it counts for this round. Its batch is that of each member.
    pub plan: &'a TrainSpec,
    /// Who computes.
    pub round: &'a PodRound,
    /// This member.
    pub me: AgentId,
    /// The examples that this member trains on.
    pub shard: &'a dyn Shard,
    /// Threads for the maths; 0 is one for each core.
    pub threads: usize,
    /// The most that this process may have in memory; `None` is what the machine has free. A batch that does not fit is computed
    /// in micro-batches.
    pub memory_bytes: Option<u64>,
}

/// Trains from `base` together with the other members, each on its own shard: batches of this member follow from `seed`, those of
/// the others too. Reports each step of the joined batch to `control`, which may end the round there. When this returns, nothing
/// more is awaited of the others.
///
/// The optimizer's state begins anew. Where `control` stopped the round its `end` is empty, and the others have to be told.
///
/// # Errors
/// [`PipelineError::Wire`] names a member that is gone, does not keep to the protocol, or has ended with another model;
/// [`PipelineError::Train`] if model, plan or shard cannot be used or training diverges.
pub fn train_owned(
    task: &ReplicaTask<'_>,
    base: &[f32],
    seed: u64,
    wire: &mut dyn Wire,
    control: &mut dyn FnMut(StepReport) -> ControlFlow<()>,
) -> Result<Trained, PipelineError> {
    task.train_owned(StageSize::default(), base, seed, wire, control)
}

/// Trains with the owner of a round. Returns when everything that the others need of this member was sent.
///
/// # Errors
/// As [`train_owned`].
pub fn serve(task: &ReplicaTask<'_>, wire: &mut dyn Wire) -> Result<(), PipelineError> {
    task.serve(StageSize::default(), wire)
}

impl ReplicaTask<'_> {
    fn train_owned(
        &self,
        size: StageSize,
        base: &[f32],
        seed: u64,
        wire: &mut dyn Wire,
        control: &mut dyn FnMut(StepReport) -> ControlFlow<()>,
    ) -> Result<Trained, PipelineError> {
        let (members, place) = self.place()?;
        if place != OWNER {
            return Err(PipelineError::Round("the first member of a ring is the owner of the round"));
        }
        let staged = Staged::new(self.model, size, self.threads)?;
        let params = staged.architecture.manifest.params();
        if base.len() != params {
            return Err(TrainError::Length { expected: params, found: base.len() }.into());
        }
        let micro_batch = self.micro_batch(&staged)?;
        let mut exchange = Exchange::new(wire, &members, place, params);
        exchange.send_base(seed, base)?;
        let steps = Steps { staged: &staged, task: self, members: members.len(), micro_batch };
        let trained = steps.train(base, member_seed(seed, place), &mut exchange, control)?;
        if trained.stopped {
            return Ok(Trained { end: Vec::new(), ..trained });
        }
        exchange.receive_ends(Digest::of_f32(&trained.end))?;
        Ok(trained)
    }

    fn serve(&self, size: StageSize, wire: &mut dyn Wire) -> Result<(), PipelineError> {
        let (members, place) = self.place()?;
        if place == OWNER {
            return Err(PipelineError::Round("the first member of a ring is the owner of the round"));
        }
        let staged = Staged::new(self.model, size, self.threads)?;
        let micro_batch = self.micro_batch(&staged)?;
        let mut exchange = Exchange::new(wire, &members, place, staged.architecture.manifest.params());
        let (seed, base) = exchange.receive_base()?;
        let steps = Steps { staged: &staged, task: self, members: members.len(), micro_batch };
        let trained =
            steps.train(&base, member_seed(seed, place), &mut exchange, &mut |_| ControlFlow::Continue(()))?;
        exchange.send_end(Digest::of_f32(&trained.end))
    }

    /// The members in the order of the ring, and this one's place among them.
    fn place(&self) -> Result<(Vec<AgentId>, usize), PipelineError> {
        let members = self.round.members();
        match members.iter().position(|member| *member == self.me) {
            Some(place) => Ok((members, place)),
            None => Err(PipelineError::Round("no replica of the model is computed here")),
        }
    }

    /// Checks plan and shard, and returns how many examples are computed at once.
    fn micro_batch(&self, staged: &Staged) -> Result<usize, TrainError> {
        check_plan(self.plan)?;
        Held::of(self.shard).check(&staged.architecture)?;
        let needs = Needs::of(&staged.architecture, self.plan);
        let micro_batch = Budget::new(self.memory_bytes, Room::Process).micro_batch(&needs, self.plan.batch_size)?;
        Ok(super::gpt::to_usize(micro_batch))
    }
}

/// The seed of the batches of the member at `place`, of a round with this seed.
fn member_seed(seed: u64, place: usize) -> u64 {
    SplitMix64::new(seed ^ (place as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)).next_u64()
}

#[cfg(test)]
mod tests;
