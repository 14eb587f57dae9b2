//! Rounds of pods over links: opens an attempt's links, computes this member's parts over them, and says how it ended.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::{AgentId, LeaseId};
use anabranch_common::pod::{PodProblem, PodRound, cut};
use anabranch_common::spec::{AgentSpec, Layers, ModelSpec, PodSpec, TrainSpec};

use super::{PodEndedBy, PodTrained, PodTraining, Pods, StopSignal};
use crate::pod::{Attempt, LinkWire, Links, ParcelSizes, WireError};
use crate::train::TrainError;
use crate::train::native::pipeline::{PipelineError, PodTask, serve, train_owned};

/// Bytes of a value of activations.
const VALUE: u64 = 4;

/// Computes rounds with other agents over an agent's links.
#[derive(Debug)]
pub struct LinkedPods {
    links: Arc<Links>,
    me: AgentId,
    threads: usize,
    /// The lease over which a helper last sent values that are not finite.
    not_finite: Option<LeaseId>,
}

impl LinkedPods {
    /// Returns what computes as `me`, with so many threads; 0 is one for each core.
    #[must_use]
    pub fn new(links: Arc<Links>, me: AgentId, threads: usize) -> Self {
        Self { links, me, threads, not_finite: None }
    }

    fn open(&self, round: &PodRound, spec: &AgentSpec, stop: &Arc<StopSignal>) -> Result<LinkWire, PodEndedBy> {
        let pod = of_pods(spec)?;
        let layers = layers(&spec.model)?;
        let (sizes, part_params) = (sizes(&layers, &spec.train, pod), part_params(&layers, round));
        let stop = Arc::clone(stop);
        // The configuration was checked; whatever it says here is a time.
        let deadline = Duration::try_from_secs_f64(pod.deadline_s).unwrap_or(Duration::MAX);
        let attempt = Attempt { round, spec: pod, sizes, part_params: &part_params };
        self.links.open(attempt, deadline, Arc::new(move || stop.is_set())).map_err(|error| ended_by(error.into()))
    }

    fn task<'a>(&self, round: &'a PodRound, spec: &'a AgentSpec) -> Result<PodTask<'a>, PodEndedBy> {
        let pod = of_pods(spec)?;
        Ok(PodTask { model: &spec.model, plan: &spec.train, pod, round, me: self.me, threads: self.threads })
    }
}

impl Pods for LinkedPods {
    fn train(&mut self, order: PodTraining<'_>) -> Result<PodTrained, PodEndedBy> {
        let PodTraining { lease, round, spec, start, shard, control, stop } = order;
        let task = self.task(round, spec)?;
        let mut wire = self.open(round, spec, stop)?;
        let trained = train_owned(&task, start, lease.seed, shard, &mut wire, control);
        let trained = trained.map_err(|error| owned_ended_by(error, lease.id, &mut self.not_finite))?;
        if trained.stopped {
            return Err(PodEndedBy::Stopped);
        }
        // All that is awaited has come, and who has sent its trained weights waits for no parcel.
        wire.close();
        Ok(trained_of(trained.end, &trained.losses, &spec.train))
    }

    fn serve(&mut self, round: &PodRound, spec: &AgentSpec, stop: &Arc<StopSignal>) -> Result<(), PodEndedBy> {
        let task = self.task(round, spec)?;
        let mut wire = self.open(round, spec, stop)?;
        serve(&task, &mut wire).map_err(ended_by)?;
        wire.finish().map_err(|error| ended_by(error.into()))
    }
}

fn of_pods(spec: &AgentSpec) -> Result<&PodSpec, PodEndedBy> {
    spec.pod.as_ref().ok_or_else(|| problem(None, "the run's configuration has no [pod]"))
}

fn problem(member: Option<AgentId>, reason: impl ToString) -> PodEndedBy {
    PodEndedBy::Problem(PodProblem { member, reason: reason.to_string() })
}

#[expect(clippy::cast_possible_truncation, reason = "losses are reported as f32")]
fn trained_of(end: Vec<f32>, losses: &[f32], plan: &TrainSpec) -> PodTrained {
    let sum: f64 = losses.iter().copied().map(f64::from).sum();
    PodTrained {
        end,
        num_examples: u64::from(plan.batch_size) * u64::from(plan.local_steps),
        steps: plan.local_steps,
        mean_loss: (sum / losses.len().max(1) as f64) as f32,
    }
}

fn layers(model: &ModelSpec) -> Result<Layers, PodEndedBy> {
    let layers = model.layers().map_err(|error| problem(None, error))?;
    layers.ok_or_else(|| problem(None, "a model of kind custom is not computed in pods"))
}

/// Returns the parameters of each part of a round.
fn part_params(layers: &Layers, round: &PodRound) -> Vec<usize> {
    let (ends, layers) = (round.ends(), &layers.layers);
    let starts = [0].into_iter().chain(ends.iter().copied());
    let of_part = |(start, end): (usize, usize)| layers.get(start..end).unwrap_or_default();
    let params = starts.zip(ends.iter().copied()).map(of_part).map(|part| part.iter().map(|layer| layer.params).sum());
    params.map(|params: u64| usize::try_from(params).unwrap_or(usize::MAX)).collect()
}

/// Returns how large the parcels of a round are.
fn sizes(layers: &Layers, plan: &TrainSpec, pod: &PodSpec) -> ParcelSizes {
    let widest = cut::table(layers).iter().map(|row| row.cost.output_bytes / VALUE).max().unwrap_or(0);
    let tied = layers.layers.iter().find_map(|layer| layer.tied);
    let tied = tied.and_then(|index| layers.manifest.tensors().get(index)).and_then(|tensor| tensor.elements());
    let values = widest.saturating_mul(pod.micro_batch_examples(plan.batch_size).into());
    ParcelSizes {
        params: layers.manifest.params(),
        activations: usize::try_from(values).unwrap_or(usize::MAX),
        tied: tied.unwrap_or(0),
    }
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
fn ended_by(error: PipelineError) -> PodEndedBy {
    match error {
        PipelineError::Wire(WireError::Over) => PodEndedBy::Stopped,
        PipelineError::Wire(WireError::Member { agent, reason }) => problem(Some(agent), reason),
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
        let layers_of_gpt = layers(&gpt).expect("a native model");
        let found = sizes(&layers_of_gpt, &plan, &pod);
        // Logits of 256 bytes for each of 8 places of 4 examples; an embedding of 256 by 16.
        assert_eq!((found.activations, found.tied), (4 * 8 * 256, 256 * 16));
        assert!(matches!(layers(&ModelSpec::default()), Err(PodEndedBy::Problem(_))));
        let (mark, owner) = (PodMark { lease: LeaseId(1), attempt: 1 }, AgentId([1; 16]));
        let parts = [1, 2, layers_of_gpt.layers.len()]
            .map(|end| PodPart { end: u32::try_from(end).expect("few"), agent: owner });
        let round =
            PodRound { mark, owner, parts: parts.to_vec(), peers: Vec::new(), plan: PLAN, spec: Digest([0; 32]) };
        let parts = part_params(&layers_of_gpt, &round);
        assert_eq!(parts.iter().sum::<usize>(), layers_of_gpt.manifest.params());
        // The embeddings of bytes and of places.
        assert_eq!(parts[0], 256 * 16 + 8 * 16);
        let beyond = PodRound { parts: vec![PodPart { end: 99, agent: owner }], ..round };
        assert_eq!(part_params(&layers_of_gpt, &beyond), [0], "it is no part of this model");
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
