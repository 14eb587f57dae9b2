//! The parts of one member of a pod, over the links to the others.
//!
//! ```text
//!  owner:  weights of every part ─► wire;  work, report steps;  wire ─► trained weights of every part
//!  helper: wire ─► weights of its parts;   work;                trained weights of its parts ─► wire
//! ```
//! A member sends what a piece of work gave before it begins the next one, and waits for the wire where none is possible.

use anabranch_common::ids::AgentId;
use anabranch_common::pod::PodRound;
use anabranch_common::spec::{Labels, ModelSpec, StagesSpec, TrainSpec};

use super::feed::Feed;
use super::stages::{Parcels, Stages};
use super::turns::{Batches, Turns};
use super::{Control, Pipeline, PipelineError, Steps, Trained, check_plan, finite};
use crate::pod::{Wire, WireError};
use crate::shard::Shard;

/// What a member knows of its part in a round.
#[derive(Debug, Clone, Copy)]
pub struct PodTask<'a> {
    /// `[model]`.
    pub model: &'a ModelSpec,
    /// `[train]` as it counts for this round.
    pub plan: &'a TrainSpec,
    /// `[pod]`.
    pub pod: &'a StagesSpec,
    /// Who computes what.
    pub round: &'a PodRound,
    /// This member.
    pub me: AgentId,
    /// Threads for the maths; 0 is one for each core. Results do not depend on it.
    pub threads: usize,
}

/// Trains the owner's parts from `base`, on the batches that `seed` draws from `shard`, while the other members train theirs.
/// Reports each step to `control`, which may end the round there. `wire` is what the others are reached over; when this returns
/// nothing more is awaited of them.
///
/// The optimizer's state begins anew. The result has the bits of [`Pipeline::train`] with the same cut. Where `control` stopped it
/// its `end` is empty, and the other members have to be told: they wait for more.
///
/// # Errors
/// [`PipelineError::Wire`] names a member that is gone or does not keep to the protocol; otherwise as
/// [`Pipeline::train`].
pub fn train_owned(
    task: &PodTask<'_>,
    base: &[f32],
    seed: u64,
    shard: &dyn Shard,
    wire: &mut dyn Wire,
    control: &mut Control<'_>,
) -> Result<Trained, PipelineError> {
    let &PodTask { plan, pod, round, .. } = task;
    let cut = task.cut()?;
    cut.check(base, plan, shard)?;
    task.check_owner()?;
    let parts = task.parts()?;
    let feed = Feed::new(&cut.architecture, shard, plan, pod.micro_batches(), seed)?;
    let batches = feed.batches();
    let stages = Stages::new(&cut, &parts, plan, batches, Some(feed))?;
    let mut at = Seat { stages, round, wire, gone: Vec::new() };
    for part in 0..cut.stages.len() {
        let parcels = at.stages.begin(base, part)?;
        at.send(parcels)?;
    }
    let mut steps = Steps { plan, batches, control, losses: Vec::new(), stopped: false };
    loop {
        let has_worked = at.work()?;
        if steps.report(&mut at.stages)?.is_break() {
            return Ok(Trained { end: Vec::new(), losses: steps.losses, stopped: true });
        }
        if at.stages.is_through() {
            break;
        }
        if !has_worked {
            at.receive()?;
        }
    }
    let Steps { losses, stopped, .. } = steps;
    Ok(Trained { end: finite(at.stages.into_weights(), plan)?, losses, stopped })
}

/// Trains the parts of a member that helps the owner of the round. Returns when everything that the others need of it was sent.
///
/// # Errors
/// As [`train_owned`].
pub fn serve(task: &PodTask<'_>, wire: &mut dyn Wire) -> Result<(), PipelineError> {
    let &PodTask { plan, pod, round, .. } = task;
    check_plan(plan)?;
    let cut = task.cut()?;
    let parts = task.parts()?;
    let batches = Batches::new(&cut.architecture, plan, pod.micro_batches())?;
    let stages = Stages::new(&cut, &parts, plan, batches, None)?;
    let mut at = Seat { stages, round, wire, gone: Vec::new() };
    while !at.stages.is_through() {
        if !at.work()? {
            at.receive()?;
        }
    }
    Ok(())
}

impl PodTask<'_> {
    fn cut(&self) -> Result<Pipeline, PipelineError> {
        let cut = Pipeline::new(self.model, &self.round.ends(), self.threads)?;
        Ok(cut.with_activations(self.pod.activations))
    }

    /// The parts that are computed here, with their turns.
    fn parts(&self) -> Result<Vec<(usize, Turns)>, PipelineError> {
        let Self { round, pod, plan, me, .. } = self;
        let turns = Turns::new(pod.schedule(), round.parts.len(), pod.micro_batches(), plan.local_steps)?;
        let parts = round.parts.iter().enumerate().filter(|(_, part)| part.agent == *me);
        let parts: Vec<(usize, Turns)> = parts.map(|(part, _)| (part, turns)).collect();
        if parts.is_empty() {
            return Err(PipelineError::Round("no part of the model is computed here"));
        }
        Ok(parts)
    }

    /// The owner does not send examples to anybody, and labels only where the run says so.
    fn check_owner(&self) -> Result<(), PipelineError> {
        let is_mine = |part: Option<&anabranch_common::pod::PodPart>| part.is_some_and(|part| part.agent == self.me);
        if !is_mine(self.round.parts.first()) {
            return Err(PipelineError::Round("the first part belongs to the owner of the data"));
        }
        if self.pod.labels == Labels::Stay && !is_mine(self.round.parts.last()) {
            return Err(PipelineError::Round("labels stay, and the last part belongs to another member"));
        }
        Ok(())
    }
}

/// A member at its place among the others.
struct Seat<'a, 'w> {
    stages: Stages<'a>,
    round: &'a PodRound,
    wire: &'w mut dyn Wire,
    /// Members that are gone, and were through.
    gone: Vec<AgentId>,
}

impl Seat<'_, '_> {
    /// Carries out one piece of work and sends what it gave. False: none is possible.
    fn work(&mut self) -> Result<bool, PipelineError> {
        let Some(parcels) = self.stages.work()? else { return Ok(false) };
        self.send(parcels)?;
        Ok(true)
    }

    fn send(&mut self, parcels: Parcels) -> Result<(), PipelineError> {
        for (address, parcel) in parcels {
            self.wire.send(address, parcel)?;
        }
        Ok(())
    }

    /// Waits for the next parcel and takes it.
    fn receive(&mut self) -> Result<(), PipelineError> {
        match self.wire.receive() {
            Ok((address, parcel)) => self.stages.deliver(address, parcel).map_err(|error| {
                let sender = self.round.parts.get(address.from);
                let blamed = |agent| WireError::Member { agent, reason: error.to_string() }.into();
                sender.map_or_else(|| error.clone().into(), |part| blamed(part.agent))
            }),
            // A member leaves when its parts are through, and others need not be so.
            Err(WireError::Member { agent, .. }) if !self.gone.contains(&agent) && !self.expects(agent) => {
                self.gone.push(agent);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether a member still has to send something to this one.
    fn expects(&self, agent: AgentId) -> bool {
        let mut parts = self.round.parts.iter().enumerate();
        parts.any(|(part, of)| of.agent == agent && self.stages.expects(part))
    }
}
