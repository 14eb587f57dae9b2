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

use std::ops::{ControlFlow, Range};

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::pod::{PodRound, memory};
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::{ModelSpec, TrainSpec};

use super::check_plan;
use super::fit::Held;
use super::gpt::to_usize;
use super::memory::{Budget, Needs, Room};
use super::pipeline::{PipelineError, Trained};
use crate::pod::Wire;
use crate::shard::Shard;
use crate::train::{StepReport, TrainError};
use exchange::{Base, Exchange, OWNER};
use gradients::{StageSize, Staged, summed_together};
use ring::Ring;
use steps::{Steps, Watch};

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
}

/// What this process may have in memory: a batch that does not fit is computed in micro-batches.
#[derive(Debug, Clone)]
pub struct ReplicaMemory(Budget);

impl ReplicaMemory {
    /// At most `max_bytes` for this process; `None` is what the machine has free. Call before anything is trained.
    #[must_use]
    pub fn of_process(max_bytes: Option<u64>) -> Self {
        Self(Budget::new(max_bytes, Room::Process))
    }
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
    memory: &mut ReplicaMemory,
    base: &[f32],
    seed: u64,
    wire: &mut dyn Wire,
    control: &mut dyn FnMut(StepReport) -> ControlFlow<()>,
) -> Result<Trained, PipelineError> {
    train_watched(task, memory, base, seed, wire, &mut |report, _| control(report))
}

/// Trains as [`train_owned`] does, and shows `watch` the model after each step.
///
/// # Errors
/// As [`train_owned`].
pub fn train_watched(
    task: &ReplicaTask<'_>,
    memory: &mut ReplicaMemory,
    base: &[f32],
    seed: u64,
    wire: &mut dyn Wire,
    watch: &mut dyn FnMut(StepReport, &[f32]) -> ControlFlow<()>,
) -> Result<Trained, PipelineError> {
    Replica::new(task, memory, StageSize::default())?.train_owned(base, seed, wire, watch)
}

/// Trains with the owner of a round. Returns when everything that the others need of this member was sent.
///
/// # Errors
/// As [`train_owned`].
pub fn serve(task: &ReplicaTask<'_>, memory: &mut ReplicaMemory, wire: &mut dyn Wire) -> Result<(), PipelineError> {
    Replica::new(task, memory, StageSize::default())?.serve(wire)
}

/// What a member of a ring sums at once: the gradient of some layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// Consecutive layers of the model.
    pub layers: Range<usize>,
    /// Values that the member sends to the next one meanwhile.
    pub sends: usize,
    /// Values that it receives from the one before.
    pub receives: usize,
}

/// Returns what the member at `place` of a ring of `members` sums in each step of training a model, in this order: the gradient of
/// the last layers first. That of the first ones is the end of the step.
///
/// # Errors
/// The model cannot be built.
pub fn sums(model: &ModelSpec, place: usize, members: usize) -> Result<Vec<Sum>, TrainError> {
    let ring = Ring::new(place, members);
    let sum = |(layers, values): (Range<usize>, usize)| {
        let (sends, receives) = ring.traffic(values);
        Sum { layers, sends, receives }
    };
    Ok(summed_together(model, StageSize::default())?.into_iter().map(sum).collect())
}

/// A member of a ring that has everything it needs.
struct Replica<'a> {
    task: &'a ReplicaTask<'a>,
    staged: Staged,
    /// The members in the order of the ring, and this one's place among them.
    members: Vec<AgentId>,
    place: usize,
    /// Examples that are computed at once.
    micro_batch: usize,
}

impl<'a> Replica<'a> {
    /// Builds the model, and checks plan, shard and memory.
    fn new(task: &'a ReplicaTask<'a>, memory: &mut ReplicaMemory, size: StageSize) -> Result<Self, PipelineError> {
        let ReplicaTask { model, plan, round, me, shard, threads } = *task;
        check_plan(plan)?;
        let members = round.members();
        let place = members.iter().position(|member| *member == me);
        let place = place.ok_or(PipelineError::Round("no replica of the model is computed here"))?;
        let staged = Staged::new(model, size, threads)?;
        Held::of(shard).check(&staged.architecture)?;
        let mut needs = Needs::of(&staged.architecture, plan);
        let params = staged.architecture.manifest.params() as u64;
        let owned = if place == OWNER { memory::replica_owner_bytes(params) } else { 0 };
        needs.fixed_bytes = needs.fixed_bytes.saturating_add(memory::replica_links_bytes(params)).saturating_add(owned);
        let micro_batch = to_usize(memory.0.micro_batch(&needs, plan.batch_size)?);
        Ok(Self { task, staged, members, place, micro_batch })
    }

    fn train_owned(
        &self,
        base: &[f32],
        seed: u64,
        wire: &mut dyn Wire,
        watch: &mut Watch<'_>,
    ) -> Result<Trained, PipelineError> {
        if self.place != OWNER {
            return Err(PipelineError::Round("the first member of a ring is the owner of the round"));
        }
        let expected = self.params();
        if base.len() != expected {
            return Err(TrainError::Length { expected, found: base.len() }.into());
        }
        let mut exchange = Exchange::new(wire, &self.members, self.place, expected);
        exchange.send_base(seed, base)?;
        let trained = self.steps().train(base, member_seed(seed, self.place), &mut exchange, watch)?;
        if trained.stopped {
            return Ok(Trained { end: Vec::new(), ..trained });
        }
        exchange.receive_ends(Digest::of_f32(&trained.end))?;
        Ok(trained)
    }

    fn serve(&self, wire: &mut dyn Wire) -> Result<(), PipelineError> {
        if self.place == OWNER {
            return Err(PipelineError::Round("the first member of a ring is the owner of the round"));
        }
        let mut exchange = Exchange::new(wire, &self.members, self.place, self.params());
        let Base { seed, values } = exchange.receive_base()?;
        let go_on = &mut |_: StepReport, _: &[f32]| ControlFlow::Continue(());
        let trained = self.steps().train(&values, member_seed(seed, self.place), &mut exchange, go_on)?;
        exchange.send_end(Digest::of_f32(&trained.end))
    }

    fn steps(&self) -> Steps<'_> {
        let Self { task, staged, members, micro_batch, .. } = self;
        Steps { staged, task, members: members.len(), micro_batch: *micro_batch }
    }

    fn params(&self) -> usize {
        self.staged.architecture.manifest.params()
    }
}

/// The seed of the batches of the member at `place`, of a round with this seed.
fn member_seed(seed: u64, place: usize) -> u64 {
    SplitMix64::new(seed ^ (place as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)).next_u64()
}

#[cfg(test)]
mod tests;
