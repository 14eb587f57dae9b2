//! Rounds of pods over links: opens an attempt's links, computes this member's parts over them, and says how it ended.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::pod::cut::Table;
use anabranch_common::pod::{PodProblem, PodRound};
use anabranch_common::spec::{AgentSpec, ModelSpec, PodSpec, StagesSpec, TrainSpec};

use super::{PodEndedBy, PodResult, PodServed, PodServing, PodTrained, PodTraining, Pods, StopSignal};
use crate::pod::{Attempt, ContentSizes, MemberWire, OpenLinks, ParcelSizes, WireError};
use crate::session::event::PartContent;
use crate::train::native::pipeline::{Encoding, PipelineError, PodTask, content_sizes, serve, train_owned};
use crate::train::native::replicas::ReplicaMemory;
use crate::train::{ModuleTrainer, TrainError};

/// Bytes of a value of activations.
const VALUE: u64 = 4;

/// Computes rounds with other agents over what opens an agent's links.
#[derive(Debug)]
pub struct LinkedPods {
    pub(super) links: Arc<dyn OpenLinks>,
    pub(super) me: AgentId,
    pub(super) threads: usize,
    /// What replicas cut their batches by.
    pub(super) memory: ReplicaMemory,
    /// The lease over which a helper last sent values that are not finite.
    pub(super) not_finite: Option<LeaseId>,
}

impl LinkedPods {
    /// Returns what computes as `me`, with so many threads; 0 is one for each core. Replicas keep to `memory`.
    #[must_use]
    pub fn new(links: Arc<dyn OpenLinks>, me: AgentId, threads: usize, memory: ReplicaMemory) -> Self {
        Self { links, me, threads, memory, not_finite: None }
    }

    pub(super) fn open(
        &self,
        round: &PodRound,
        spec: &AgentSpec,
        modules: Option<&dyn ModuleTrainer>,
        stop: &Arc<StopSignal>,
    ) -> Result<Box<dyn MemberWire>, PodEndedBy> {
        let pod = of_pods(spec)?;
        let table = table(&spec.model)?;
        let contents = content_sizes(&spec.model, modules.map(ModuleTrainer::tensors)).map_err(ended_by)?;
        let sizes = sizes(&spec.model, &table, (&spec.train, pod), contents)?;
        let part_params = part_params(&table, round);
        let stop = Arc::clone(stop);
        // The configuration was checked; whatever it says here is a time.
        let deadline = Duration::try_from_secs_f64(pod.deadline_s()).unwrap_or(Duration::MAX);
        let attempt = Attempt { round, spec: pod, sizes, part_params: &part_params };
        self.links.open(attempt, deadline, Arc::new(move || stop.is_set())).map_err(|error| ended_by(error.into()))
    }

    fn task<'a>(&self, round: &'a PodRound, spec: &'a AgentSpec, pod: &'a StagesSpec) -> PodTask<'a> {
        let (model, plan, encoding) = (&spec.model, &spec.train, Encoding::of(&round.plan, &spec.upload));
        PodTask { model, plan, pod, round, encoding, me: self.me, threads: self.threads, modules: None }
    }

    /// Computes this member's parts of another agent's round.
    fn serve_stages(&self, order: PodServing<'_>, pod: &StagesSpec) -> PodServed {
        let PodServing { round, spec, modules, stop, .. } = order;
        let computed = || -> Result<_, PodEndedBy> {
            let task = PodTask { modules, ..self.task(round, spec, pod) };
            let mut wire = self.open(round, spec, modules, stop)?;
            let parts = serve(&task, &mut *wire).map_err(ended_by)?;
            Ok((parts, wire))
        };
        match computed() {
            Ok((parts, wire)) => {
                let content = |(part, payload): (u32, Vec<u8>)| PartContent { part, payload: payload.into() };
                let parts = parts.into_iter().map(content).collect();
                PodServed { parts, ended: wire.finish().map_err(|error| ended_by(error.into())) }
            }
            Err(by) => PodServed::failed(by),
        }
    }
}

impl Pods for LinkedPods {
    fn train(&mut self, order: PodTraining<'_>) -> Result<PodTrained, PodEndedBy> {
        let pod = match of_pods(order.spec)? {
            PodSpec::Stages(pod) => pod,
            PodSpec::Replicas(_) => return self.train_replica(order),
        };
        let PodTraining { lease, round, spec, start, held, shard, modules, control, stop } = order;
        let task = PodTask { modules, ..self.task(round, spec, pod) };
        let mut wire = self.open(round, spec, modules, stop)?;
        let owned = train_owned(&task, (start, held), lease.seed, shard, &mut *wire, control);
        let owned = owned.map_err(|error| owned_ended_by(error, lease.id, &mut self.not_finite))?;
        let Some(contribution) = owned.contribution else { return Err(PodEndedBy::Stopped) };
        // All that is awaited has come, and who has sent what its layers come to waits for no parcel.
        wire.close();
        Ok(trained_of(PodResult::Encoded(contribution), &owned.losses, &spec.train, 1))
    }

    fn serve(&mut self, order: PodServing<'_>) -> PodServed {
        match of_pods(order.spec) {
            Ok(PodSpec::Stages(pod)) => self.serve_stages(order, pod),
            Ok(PodSpec::Replicas(_)) => PodServed { parts: Vec::new(), ended: self.serve_replica(order) },
            Err(by) => PodServed::failed(by),
        }
    }
}

fn of_pods(spec: &AgentSpec) -> Result<&PodSpec, PodEndedBy> {
    spec.pod.as_ref().ok_or_else(|| problem(None, "the run's configuration has no [pod]"))
}

pub(super) fn problem(member: Option<AgentId>, reason: impl ToString) -> PodEndedBy {
    PodEndedBy::Problem(PodProblem { member, reason: reason.to_string() })
}

/// Returns what a round gave whose steps took so many batches each.
#[expect(clippy::cast_possible_truncation, reason = "losses are reported as f32")]
pub(super) fn trained_of(result: PodResult, losses: &[f32], plan: &TrainSpec, batches: usize) -> PodTrained {
    let sum: f64 = losses.iter().copied().map(f64::from).sum();
    PodTrained {
        result,
        num_examples: u64::from(plan.batch_size) * u64::from(plan.local_steps) * batches as u64,
        steps: plan.local_steps,
        mean_loss: (sum / losses.len().max(1) as f64) as f32,
    }
}

/// Returns the parameters of each part of a round.
fn part_params(table: &Table, round: &PodRound) -> Vec<usize> {
    let ends = round.ends();
    let starts = [0].into_iter().chain(ends.iter().copied());
    let of_part = |(start, end): (usize, usize)| table.rows.get(start..end).unwrap_or_default();
    let params = starts.zip(ends.iter().copied()).map(of_part).map(|part| part.iter().map(|row| row.params).sum());
    params.map(|params: u64| usize::try_from(params).unwrap_or(usize::MAX)).collect()
}

fn table(model: &ModelSpec) -> Result<Table, PodEndedBy> {
    let table = Table::of(model).map_err(|error| problem(None, error))?;
    table.ok_or_else(|| problem(None, "a custom model without model.modules is not computed in pods"))
}

/// Returns how large the parcels of a round are.
fn sizes(
    model: &ModelSpec,
    table: &Table,
    (plan, pod): (&TrainSpec, &PodSpec),
    contents: ContentSizes,
) -> Result<ParcelSizes, PodEndedBy> {
    let params = usize::try_from(table.params).unwrap_or(usize::MAX);
    let PodSpec::Stages(pod) = pod else {
        return Ok(ParcelSizes { params, contents, activations: 0, tied: 0 });
    };
    let widest = table.rows.iter().map(|row| row.cost.output_bytes / VALUE).max().unwrap_or(0);
    let native = model.layers().map_err(|error| problem(None, error))?;
    let tied = native.and_then(|layers| {
        let tied = layers.layers.iter().find_map(|layer| layer.tied);
        tied.and_then(|index| layers.manifest.tensors().get(index)).and_then(|tensor| tensor.elements())
    });
    let values = widest.saturating_mul(pod.micro_batch_examples(plan.batch_size).into());
    Ok(ParcelSizes {
        params,
        contents,
        activations: usize::try_from(values).unwrap_or(usize::MAX),
        tied: tied.unwrap_or(0),
    })
}

/// Returns how an own round's attempt ended over an error. Values that are not finite are a problem of their sender once. The second
/// time in a row over the same lease training has diverged: no member would change that.
fn owned_ended_by(error: PipelineError, lease: LeaseId, not_finite: &mut Option<LeaseId>) -> PodEndedBy {
    match error {
        PipelineError::NotFinite { step, .. } if not_finite.replace(lease) == Some(lease) => {
            PodEndedBy::Fatal(TrainError::Diverged { step })
        }
        error => ended_by(error),
    }
}

/// Returns how an attempt ended over an error: what another pod may not meet is a problem of this one.
pub(super) fn ended_by(error: PipelineError) -> PodEndedBy {
    match error {
        PipelineError::Wire(WireError::Over) => PodEndedBy::Stopped,
        PipelineError::Wire(WireError::Member { agent, reason }) => problem(Some(agent), reason),
        // A fresh child, or another helper, may compute the same round. The coordinator counts such attempts.
        PipelineError::Train(error) if error.is_passing() && !error.is_divergence() => problem(None, error),
        PipelineError::NotFinite { agent, .. } => problem(Some(agent), error),
        PipelineError::Train(error) => PodEndedBy::Fatal(error),
        error => problem(None, error),
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::Digest;
    use anabranch_common::pod::{PodMark, PodPart};
    use anabranch_common::spec::ModelKind;
    use anabranch_testkit::lease::PLAN;

    use super::*;
    use crate::session::tests::spec;

    #[test]
    fn parcels_are_as_large_as_the_widest_layer_and_the_tied_tensor() {
        let plan = TrainSpec { batch_size: 10, ..spec().train };
        let pod: PodSpec = toml::from_str("kind = \"stages\"\nstages = 2\nmicro_batches = 3").expect("complete");
        let gpt =
            ModelSpec { kind: ModelKind::Gpt, context: 8, layers: 1, heads: 2, width: 16, ..ModelSpec::default() };
        let table_of_gpt = table(&gpt).expect("a native model");
        let found = sizes(&gpt, &table_of_gpt, (&plan, &pod), ContentSizes::default()).expect("a native model");
        // Logits of 256 bytes for each of 8 places of 4 examples; an embedding of 256 by 16.
        assert_eq!((found.activations, found.tied), (4 * 8 * 256, 256 * 16));
        let rows =
            "kind = \"custom\"\nmodules = [{ parameters = 6, output = [2, 5] }, { parameters = 3, output = [3] }]";
        let model: ModelSpec = toml::from_str(rows).expect("complete");
        let custom = sizes(&model, &table(&model).expect("a table"), (&plan, &pod), ContentSizes::default());
        let custom = custom.expect("a table");
        assert_eq!((custom.params, custom.activations, custom.tied), (9, 4 * 10, 0));
        assert!(matches!(table(&ModelSpec::default()), Err(PodEndedBy::Problem(_))));
        let (mark, owner) = (PodMark { lease: LeaseId(1), attempt: 1 }, AgentId([1; 16]));
        let parts =
            [1, 2, table_of_gpt.rows.len()].map(|end| PodPart { end: u32::try_from(end).expect("few"), agent: owner });
        let round =
            PodRound { mark, owner, parts: parts.to_vec(), peers: Vec::new(), plan: PLAN, spec: Digest([0; 32]) };
        let parts = part_params(&table_of_gpt, &round);
        // The head counts the tensor that it borrows too.
        assert_eq!(parts.iter().sum::<usize>() as u64, table_of_gpt.params + 256 * 16);
        // The embeddings of bytes and of places.
        assert_eq!(parts[0], 256 * 16 + 8 * 16);
        let beyond = PodRound { parts: vec![PodPart { end: 99, agent: owner }], ..round };
        assert_eq!(part_params(&table_of_gpt, &beyond), [0], "it is no part of this model");
    }

    #[test]
    fn a_lost_member_is_named_and_the_end_of_an_attempt_is_no_problem() {
        let agent = AgentId([7; 16]);
        let lost = WireError::Member { agent, reason: "gone".to_owned() };
        let told = PodEndedBy::Problem(PodProblem { member: Some(agent), reason: "gone".to_owned() });
        assert_eq!(ended_by(lost.into()), told);
        assert_eq!(ended_by(WireError::Over.into()), PodEndedBy::Stopped);
        // Another attempt is made, with a larger number.
        let PodEndedBy::Problem(repeated) = ended_by(WireError::Repeated { attempt: 3, newest: 4 }.into()) else {
            panic!("it is no problem");
        };
        assert!(repeated.member.is_none() && repeated.reason.contains("attempt 4"), "{repeated:?}");
        let diverged = TrainError::Diverged { step: 3 };
        assert_eq!(ended_by(diverged.clone().into()), PodEndedBy::Fatal(diverged));
    }

    /// A child that is killed looks like one that ran out of memory. Either way the round is a pure function of its lease.
    #[test]
    fn what_another_attempt_may_not_meet_costs_the_attempt_and_not_the_lease() {
        let passing = [
            TrainError::Lost("gone".to_owned()),
            TrainError::OutOfMemory("it was killed by signal 9".to_owned()),
            TrainError::Memory { needed_bytes: 2, budget_bytes: 1 },
            TrainError::Failed("ValueError: no".to_owned()),
        ];
        for error in passing {
            assert_eq!(ended_by(error.clone().into()), problem(None, error));
        }
        for error in [
            TrainError::Diverged { step: 3 },
            TrainError::DivergedThere("nan".to_owned()),
            TrainError::Backend("gone".to_owned()),
        ] {
            assert_eq!(ended_by(error.clone().into()), PodEndedBy::Fatal(error));
        }
    }

    #[test]
    fn values_that_are_not_finite_are_their_senders_problem_once_and_then_the_rounds_end() {
        let (agent, mut last) = (AgentId([7; 16]), None);
        let error = |step| PipelineError::NotFinite { agent, what: "a gradient", step };
        let mut ended = |error, lease| owned_ended_by(error, LeaseId(lease), &mut last);
        let is_blamed = |ended: &PodEndedBy| matches!(ended, PodEndedBy::Problem(PodProblem { member: Some(found), .. }) if *found == agent);
        assert!(is_blamed(&ended(error(2), 1)));
        assert_eq!(ended(WireError::Over.into(), 1), PodEndedBy::Stopped);
        assert_eq!(ended(error(3), 1), PodEndedBy::Fatal(TrainError::Diverged { step: 3 }));
        assert!(is_blamed(&ended(error(2), 2)), "another lease");
    }
}
