//! The parts of one member of a pod, over the links to the others.
//!
//! ```text
//!  owner:  weights of every part ─► wire;  work, report steps;  wire ─► what the layers of every part come to
//!  helper: wire ─► weights of its parts;   work;                what the layers of its parts come to ─► wire
//! ```
//! A member sends what a piece of work gave before it begins the next one, and waits for the wire where none is possible.

use std::collections::BTreeMap;
use std::ops::Range;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::pod::PodRound;
use anabranch_common::spec::{Labels, ModelKind, ModelSpec, StagesSpec, TrainSpec};

use super::cut::Cut;
use super::feed::Feed;
use super::stages::{Parcels, Stages};
use super::turns::{Batches, Turns};
use super::{Contribution, Control, Encoding, Pipeline, PipelineError, Steps, check_plan};
use crate::pod::{Parcel, Wire, WireError};
use crate::shard::Shard;
use crate::train::{ModuleDraw, ModulePart, ModuleRound, ModuleTrainer, TrainError};

/// What a member knows of its part in a round.
#[derive(Debug, Clone)]
pub struct PodTask<'a> {
    /// `[model]`.
    pub model: &'a ModelSpec,
    /// `[train]` as it counts for this round.
    pub plan: &'a TrainSpec,
    /// `[pod]`.
    pub pod: &'a StagesSpec,
    /// Who computes what.
    pub round: &'a PodRound,
    /// How what the round comes to is encoded.
    pub encoding: Encoding,
    /// This member.
    pub me: AgentId,
    /// Threads for the maths; 0 is one for each core. Results do not depend on it.
    pub threads: usize,
    /// What computes the modules of a custom model; native models are computed here.
    pub modules: Option<&'a dyn ModuleTrainer>,
}

/// What the owner of a round has in the end.
#[derive(Debug, Clone, PartialEq)]
pub struct Owned {
    /// What the round comes to; nothing if it was stopped.
    pub contribution: Option<Contribution>,
    /// Loss of each step's batch, with the weights that it was computed with.
    pub losses: Vec<f32>,
}

/// Trains the owner's parts from `base`, on the batches that `seed` draws from `shard`, while the other members train theirs.
/// Reports each step to `control`, which may end the round there. `wire` is what the others are reached over; when this returns
/// nothing more is awaited of them.
///
/// The optimizer's state begins anew. What the round comes to is that of [`Pipeline::train`] with any cut, bit for bit. Where `control`
/// stopped it there is nothing, and the other members have to be told: they wait for more. `held` gives what is held of a range
/// of the model, if anything.
///
/// # Errors
/// [`PipelineError::Wire`] names a member that is gone or does not keep to the protocol, [`PipelineError::NotFinite`] one that sent
/// values that are not finite; otherwise as [`Pipeline::train`].
pub fn train_owned(
    task: &PodTask<'_>,
    (base, held): (&[f32], &mut dyn FnMut(Range<usize>) -> Vec<f32>),
    seed: u64,
    shard: &dyn Shard,
    wire: &mut dyn Wire,
    control: &mut Control<'_>,
) -> Result<Owned, PipelineError> {
    let &PodTask { plan, pod, round, .. } = task;
    if task.model.kind == ModelKind::Custom {
        check_plan(plan)?;
        let cut = task.module_cut()?;
        if base.len() != cut.params() {
            return Err(TrainError::Length { expected: cut.params(), found: base.len() }.into());
        }
        task.check_owner()?;
        let parts = task.parts()?;
        let batches = Batches::new(1, plan, pod.micro_batches())?;
        let draw = ModuleDraw { seed, plan, micro_batch: batches.micro_batch() };
        let modules = task.begin(&parts, Some(draw))?;
        let stages = Stages::of_modules(&cut, &parts, (plan, batches), modules, (true, Some(&task.encoding)))?;
        return own(stages, round, (base, held), (plan, batches), wire, control);
    }
    let pipeline = task.pipeline()?;
    pipeline.check(base, plan, shard)?;
    task.check_owner()?;
    let parts = task.parts()?;
    let feed = Feed::new(&pipeline.architecture, shard, plan, pod.micro_batches(), seed)?;
    let batches = feed.batches();
    let stages = Stages::new(&pipeline, &parts, plan, batches, Some(feed), Some(&task.encoding))?;
    own(stages, round, (base, held), (plan, batches), wire, control)
}

/// Hands out the weights of `base`, and computes the owner's parts until the round is over or stopped.
fn own(
    stages: Stages<'_>,
    round: &PodRound,
    (base, held): (&[f32], &mut dyn FnMut(Range<usize>) -> Vec<f32>),
    (plan, batches): (&TrainSpec, Batches),
    wire: &mut dyn Wire,
    control: &mut Control<'_>,
) -> Result<Owned, PipelineError> {
    let mut at = Seat { stages, round, wire, gone: Vec::new(), kept: None, owned_step: Some(1) };
    for part in 0..round.parts.len() {
        let parcels = at.stages.begin(base, held, part)?;
        at.send(parcels)?;
    }
    let mut steps = Steps { plan, batches, control, losses: Vec::new(), stopped: false };
    loop {
        let has_worked = at.work()?;
        if steps.report(&mut at.stages)?.is_break() {
            return Ok(Owned { contribution: None, losses: steps.losses });
        }
        if at.stages.is_through() {
            break;
        }
        at.owned_step = u32::try_from(steps.losses.len()).ok().map(|done| done.saturating_add(1));
        if !has_worked {
            at.receive()?;
        }
    }
    Ok(Owned { contribution: at.stages.contribution(), losses: steps.losses })
}

/// Trains the parts of a member that helps the owner of the round. Returns when everything that the others need of it was sent,
/// with what its parts came to: the payloads of each part's layers, one after the other, as they stand in the owner's update. Where
/// these are longer than `limits::POD_KEPT_BYTES` it returns none.
///
/// # Errors
/// As [`train_owned`].
pub fn serve(task: &PodTask<'_>, wire: &mut dyn Wire) -> Result<Vec<(u32, Vec<u8>)>, PipelineError> {
    let &PodTask { plan, pod, round, .. } = task;
    check_plan(plan)?;
    if task.model.kind == ModelKind::Custom {
        let (cut, parts) = (task.module_cut()?, task.parts()?);
        let batches = Batches::new(1, plan, pod.micro_batches())?;
        let modules = task.begin(&parts, None)?;
        return help(
            Stages::of_modules(&cut, &parts, (plan, batches), modules, (false, Some(&task.encoding)))?,
            round,
            wire,
        );
    }
    let (pipeline, parts) = (task.pipeline()?, task.parts()?);
    let batches = Batches::new(pipeline.architecture.labels_each(), plan, pod.micro_batches())?;
    help(Stages::new(&pipeline, &parts, plan, batches, None, Some(&task.encoding))?, round, wire)
}

/// Computes a helper's parts until they are through. Returns what they came to.
fn help(stages: Stages<'_>, round: &PodRound, wire: &mut dyn Wire) -> Result<Vec<(u32, Vec<u8>)>, PipelineError> {
    let mut at = Seat { stages, round, wire, gone: Vec::new(), kept: Some(Kept::default()), owned_step: None };
    while !at.stages.is_through() {
        if !at.work()? {
            at.receive()?;
        }
    }
    Ok(at.kept.map(Kept::finish).unwrap_or_default())
}

impl PodTask<'_> {
    fn pipeline(&self) -> Result<Pipeline, PipelineError> {
        let pipeline = Pipeline::new(self.model, &self.round.ends(), self.threads)?;
        Ok(pipeline.with_activations(self.pod.activations))
    }

    /// The same of a custom model.
    fn module_cut(&self) -> Result<Cut, PipelineError> {
        let modules = self.model.modules().map_err(TrainError::from)?;
        let cut = Cut::of_modules(modules, &self.round.ends(), self.trainer()?.tensors())?;
        Ok(Cut { activations: self.pod.activations, ..cut })
    }

    fn trainer(&self) -> Result<&dyn ModuleTrainer, PipelineError> {
        let problem = "this agent's trainer does not compute a model in parts, as anabranch.torch.run_stages does, or has its \
                       tensors in another order than the run";
        self.modules.ok_or(PipelineError::Round(problem))
    }

    /// Tells the trainer of a custom model which of its modules are computed here in this round.
    fn begin(
        &self,
        parts: &[(usize, Turns)],
        draw: Option<ModuleDraw<'_>>,
    ) -> Result<&dyn ModuleTrainer, PipelineError> {
        let modules = self.trainer()?;
        let ends = self.round.ends();
        let part = |(part, _): &(usize, Turns)| {
            let start = part.checked_sub(1).map_or(0, |before| ends[before]);
            ModulePart { part: *part, modules: start..ends[*part] }
        };
        let parts = parts.iter().map(part).collect();
        modules.begin(&ModuleRound { number: self.round.mark.lease.0, parts, draw })?;
        Ok(modules)
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
    /// What is kept of what the layers came to, at a helper.
    kept: Option<Kept>,
    /// At the owner: the first step whose loss is not known.
    owned_step: Option<u32>,
}

/// What the parts of a helper came to.
#[derive(Debug, Default)]
struct Kept {
    parts: BTreeMap<u32, Vec<u8>>,
    bytes: usize,
}

impl Kept {
    /// Adds the payload of the next layer of a part.
    fn add(&mut self, part: usize, payload: &[u8]) {
        self.bytes = self.bytes.saturating_add(payload.len());
        if self.bytes > limits::POD_KEPT_BYTES {
            return self.parts.clear();
        }
        if let Ok(part) = u32::try_from(part) {
            self.parts.entry(part).or_default().extend_from_slice(payload);
        }
    }

    fn finish(self) -> Vec<(u32, Vec<u8>)> {
        self.parts.into_iter().collect()
    }
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
            if let (Some(kept), Parcel::Layer(content)) = (&mut self.kept, &parcel) {
                kept.add(address.from, self.stages.body(content));
            }
            // Else it would come back from others.
            if let Some(step) = self.owned_step.filter(|_| !parcel.is_finite()) {
                return Err(TrainError::Diverged { step }.into());
            }
            self.wire.send(address, parcel)?;
        }
        Ok(())
    }

    /// Waits for the next parcel and takes it.
    fn receive(&mut self) -> Result<(), PipelineError> {
        match self.wire.receive() {
            Ok((address, parcel)) if self.is_suspect(&parcel) => {
                let step = self.owned_step.unwrap_or_default();
                let sender = self.round.parts.get(address.from).map_or(self.round.owner, |part| part.agent);
                Err(PipelineError::NotFinite { agent: sender, what: parcel.name(), step })
            }
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

    /// Returns whether the owner cannot go on with a parcel. Helpers go on: they cannot tell whether the round has diverged, and the
    /// owner gets to know of it.
    fn is_suspect(&self, parcel: &Parcel) -> bool {
        self.owned_step.is_some() && !parcel.is_finite()
    }

    /// Returns whether a member still has to send something to this one.
    fn expects(&self, agent: AgentId) -> bool {
        let mut parts = self.round.parts.iter().enumerate();
        parts.any(|(part, of)| of.agent == agent && self.stages.expects(part))
    }
}
