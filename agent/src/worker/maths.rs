//! The maths of one run at a time: its trainer, and the jobs of its node.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anabranch_common::codec::CodecSpec;
use anabranch_common::codec::quantize::ValueBits;
use anabranch_common::ids::{LeaseId, ModelVersion};
use anabranch_common::journal::Lease;
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::pod::{PodProblem, PodRound};
use anabranch_common::spec::{AgentSpec, ModelKind, UploadSpec};

use super::{
    Inputs, KilledNote, Pace, PodEndedBy, PodResult, PodServed, PodServing, PodTrained, PodTraining, Pods, Shards,
    StopSignal, TrainerFactory,
};
use crate::clock::Clock;
use crate::encode::{EncodeOrder, FeedbackSource};
use crate::node::{Input, MathsJob, initial_model, judged};
use crate::session::command::Ending;
use crate::session::event::{Event, FeedbackState, Outcome, PodContent};
use crate::shard::Shard;
use crate::train::native::pipeline::Contribution;
use crate::train::{
    MicroBatchBudget, Reordered, Round, RoundFile, RoundResult, Rounds, RunPart, StepReport, TrainError, Trainer,
};

/// What the maths works with.
pub struct MathsSetup {
    /// Makes the trainer.
    pub factory: TrainerFactory,
    /// What it trains and evaluates on.
    pub shards: Shards,
    /// Artificial slowness.
    pub pace: Pace,
    /// Asks it to stop.
    pub stop: Arc<StopSignal>,
    /// Where long rounds are kept, if they are.
    pub rounds: Option<Rounds>,
    /// Is given how many examples the latest round computed at once, if the trainer says so.
    pub micro_batch: Arc<AtomicU32>,
    /// What is learned from being killed for memory, where trainers of this process cut batches.
    pub killed: Option<KilledNote>,
    /// The ledger's feedback state, for trainers that encode and for pods; none: nothing is ever left out.
    pub feedback: Option<Arc<dyn FeedbackSource>>,
    /// Computes with other agents; none: this agent joins no pods.
    pub pods: Option<Box<dyn Pods>>,
}

impl MathsSetup {
    /// Maths that keep no rounds, know of no kill for memory, encode nothing and join no pods.
    #[must_use]
    pub fn new(factory: TrainerFactory, shards: Shards) -> Self {
        Self {
            factory,
            shards,
            pace: Pace::default(),
            stop: Arc::default(),
            rounds: None,
            micro_batch: Arc::default(),
            killed: None,
            feedback: None,
            pods: None,
        }
    }
}

impl fmt::Debug for MathsSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MathsSetup").field("shards", &self.shards).field("pace", &self.pace).finish_non_exhaustive()
    }
}

/// What the maths has of one run beside its trainer.
#[derive(Debug)]
pub struct RunMaths {
    /// Where long rounds are kept, if they are.
    pub rounds: Option<Rounds>,
    /// Is given how many examples the latest round computed at once, if the trainer says so.
    pub micro_batch: Arc<AtomicU32>,
    /// What is learned from being killed for memory, where trainers of this process cut batches.
    pub killed: Option<KilledNote>,
    /// Hears how a round goes on, and its end.
    pub inputs: Inputs,
}

/// Carries out the jobs of the maths, one after the other. [`MathsThread`](super::MathsThread) gives it a thread of its own; a simulation
/// calls it.
pub struct Maths {
    setup: MathsSetup,
    pub(super) part: Part,
}

/// What belongs to one run.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) trainer: Option<Box<dyn Trainer>>,
    /// Which kind of model the pods of the run compute, if it has them and this agent joins them.
    pods_of: Option<ModelKind>,
    pub(super) of_run: RunMaths,
}

impl Part {
    pub(super) fn of(of_run: RunMaths) -> Self {
        Self { trainer: None, pods_of: None, of_run }
    }
}

impl fmt::Debug for Maths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maths").field("setup", &self.setup).field("part", &self.part).finish_non_exhaustive()
    }
}

impl Maths {
    /// Returns the maths of an agent that has prepared nothing yet. `inputs` hears how a round goes on.
    #[must_use]
    pub fn new(mut setup: MathsSetup, inputs: impl Into<Inputs>) -> Self {
        let (rounds, micro_batch) = (setup.rounds.take(), Arc::clone(&setup.micro_batch));
        let killed = setup.killed.take();
        Self { setup, part: Part::of(RunMaths { rounds, micro_batch, killed, inputs: inputs.into() }) }
    }

    /// Carries out a job, and returns what it led to.
    ///
    /// # Panics
    /// A round, an initial model or an evaluation is asked for before `MathsJob::Prepare`, or the trainer panics.
    pub fn work(&mut self, job: MathsJob) -> Event {
        match job {
            MathsJob::Prepare(spec) => self.prepare(&spec),
            MathsJob::Reorder(manifest) => self.reorder(*manifest),
            MathsJob::MakeInitial { seed } => self.make_initial(seed),
            MathsJob::Train { lease, spec, start, pod: None } => self.train(&lease, &spec, &start.model()),
            MathsJob::Train { lease, spec, start, pod: Some(round) } => {
                self.train_in_pod(&lease, &round, &spec, &start.model())
            }
            MathsJob::Serve { round, spec } => self.serve(&round, &spec),
            MathsJob::Evaluate { version, content } => self.evaluate(version, &content),
        }
    }

    fn make_initial(&mut self, seed: u64) -> Event {
        let (stop, trainer) = (&self.setup.stop, self.part.trainer.as_deref_mut());
        let trainer = trainer.expect("the session prepares a trainer before it uses it");
        match persistently(stop, || trainer.initial(seed)) {
            Ok(model) => initial_model(trainer.manifest(), model.into()),
            Err(error) => Event::Failed(ending(&error)),
        }
    }

    fn prepare(&mut self, spec: &AgentSpec) -> Event {
        let run = RunPart::of(spec);
        match persistently(&self.setup.stop, || (self.setup.factory)(&run)) {
            Ok(trainer) if self.lacks_proximal_term(trainer.as_ref(), &run) => {
                Event::Failed(ending(&TrainError::Spec {
                    key: "merge.mu",
                    found: run.train.proximal_mu.to_string(),
                    expected:
                        "expected a trainer that adds the proximal term (\"proximal\" in docs/trainer-protocol.md)"
                            .to_owned(),
                }))
            }
            Ok(trainer) => {
                let joins = spec.pod.is_some() && self.setup.pods.is_some();
                self.part.pods_of = joins.then_some(spec.model.kind);
                self.prepared(trainer)
            }
            Err(error) => Event::Failed(ending(&error)),
        }
    }

    /// Takes a trainer for the run, unless it cannot do what this agent is there for.
    fn prepared(&mut self, trainer: Box<dyn Trainer>) -> Event {
        let is_elsewhere = self.setup.shards.train.as_deref().is_some_and(Shard::is_elsewhere);
        let problem = match self.part.pods_of {
            Some(ModelKind::Custom) if trainer.modules().is_none() => {
                "and this agent's trainer computes no parts of a model, or has its tensors in another order than the run: \
                 expected one that calls anabranch.torch.run_stages, or an agent without --pod-listen"
            }
            Some(native) if native != ModelKind::Custom && is_elsewhere => {
                "and the pods of a native model are computed in the agent's own process: expected an agent without a program, \
                 or one without --pod-listen"
            }
            _ => {
                let manifest = trainer.manifest().clone();
                self.part.trainer = Some(trainer);
                return Event::Prepared { manifest };
            }
        };
        let (found, expected) = ("a table".to_owned(), problem.to_owned());
        Event::Failed(ending(&TrainError::Spec { key: "pod", found, expected }))
    }

    /// Whether training here would leave out the proximal term that the run asks for.
    fn lacks_proximal_term(&self, trainer: &dyn Trainer, run: &RunPart) -> bool {
        run.train.proximal_mu != 0.0 && self.setup.shards.train.is_some() && !trainer.adds_proximal_term()
    }

    fn reorder(&mut self, manifest: ModelManifest) -> Event {
        let trainer = self.part.trainer.take().expect("the session prepares a trainer before it uses it");
        match Reordered::new(trainer, manifest) {
            Ok(trainer) => self.prepared(Box::new(trainer)),
            Err(error) => Event::Failed(ending(&error)),
        }
    }

    fn train(&mut self, lease: &Lease, spec: &AgentSpec, start: &[f32]) -> Event {
        let id = lease.id;
        let clock = Clock::start();
        let Some(shard) = self.setup.shards.train.as_deref() else {
            return Event::Failed(Ending::Trainer("there is no shard to train on".to_owned()));
        };
        let trainer = self.part.trainer.as_deref_mut().expect("the session prepares a trainer before it uses it");
        let mut progress = Progress { lease: id, clock, examples: 0, told_ms: 0, inputs: &self.part.of_run.inputs };
        let stop = &self.setup.stop;
        let mut control = |report: StepReport| {
            if let Some(micro_batch) = report.micro_batch {
                self.part.of_run.micro_batch.store(micro_batch, Ordering::Relaxed);
            }
            progress.step(report);
            if stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let file = self.part.of_run.rounds.as_ref().map(|rounds| rounds.file(lease));
        let most = self.part.of_run.killed.as_ref().and_then(KilledNote::most);
        let mut begins = |micro_batch| {
            if let Some(killed) = &mut self.part.of_run.killed {
                killed.begins(micro_batch);
            }
        };
        let trained = trainer.train(Round {
            budget: Some(MicroBatchBudget { most, begins: &mut begins }),
            keep: file.clone(),
            encode: encode_order(lease, spec, self.setup.feedback.as_ref()),
            ..Round::of(lease, start, &spec.train, shard, &mut control)
        });
        // Before anybody hears of the end: a round that is over is never taken up again.
        if let Err(error) = file.as_ref().map_or(Ok(()), RoundFile::clear) {
            return Event::Failed(Ending::Storage(format!("the round that is over cannot be removed: {error}")));
        }
        let trained = match trained {
            Ok(trained) => trained,
            Err(error) if error.is_passing() => return Event::Discarded { lease: id, problem: error.to_string() },
            Err(error) => return Event::Failed(ending(&error)),
        };
        if let Some(killed) = &mut self.part.of_run.killed {
            killed.fitted(spec.train.batch_size);
        }
        self.over(id, start, trained, clock)
    }

    /// Lets a round that is computed take as long as it is to take. Returns whether it was told to stop by then.
    fn is_stopped_when_slowed(&self, clock: Clock) -> bool {
        let maths = clock.elapsed();
        self.setup.stop.wait(self.setup.pace.round(maths).saturating_sub(maths));
        self.setup.stop.is_set()
    }

    /// A round is computed: slows it down, and returns what it gave.
    fn over(&self, id: LeaseId, start: &[f32], trained: RoundResult, clock: Clock) -> Event {
        if trained.stopped || self.is_stopped_when_slowed(clock) {
            return Event::TrainingStopped { lease: id };
        }
        Event::Trained(Box::new(Outcome {
            lease: id,
            delta: difference(&trained.end, start),
            num_examples: trained.num_examples,
            local_steps: trained.steps,
            train_loss: trained.mean_loss,
            compute_ms: clock.now_ms(),
            encoded: trained.encoded,
            pod: None,
        }))
    }

    /// The same for the round of a pod, which began at `start`, and with this state of the feedback.
    fn pod_over(
        &self,
        round: &PodRound,
        (start, from): (&[f32], FeedbackState),
        trained: PodTrained,
        clock: Clock,
    ) -> Event {
        let id = round.mark.lease;
        if self.is_stopped_when_slowed(clock) {
            return Event::TrainingStopped { lease: id };
        }
        let PodTrained { result, num_examples, steps, mean_loss } = trained;
        let (delta, pod) = match result {
            PodResult::Encoded(Contribution { payload, layers, left_out, base_dot, residual_ratio }) => {
                let sections = round.sections(payload.len() as u64, &layers);
                (Arc::default(), Some(PodContent { from, payload, sections, left_out, base_dot, residual_ratio }))
            }
            PodResult::Model(end) => (difference(&end, start), None),
        };
        Event::Trained(Box::new(Outcome {
            lease: id,
            delta,
            num_examples,
            local_steps: steps,
            train_loss: mean_loss,
            compute_ms: clock.now_ms(),
            encoded: None,
            pod,
        }))
    }

    /// Computes an own round with other agents. It is not kept on disk: after a crash the same lease comes again.
    fn train_in_pod(&mut self, lease: &Lease, round: &PodRound, spec: &AgentSpec, start: &[f32]) -> Event {
        let (id, mark) = (lease.id, round.mark);
        let clock = Clock::start();
        let Some(shard) = self.setup.shards.train.as_deref() else {
            return Event::Failed(Ending::Trainer("there is no shard to train on".to_owned()));
        };
        let Some(pods) = self.setup.pods.as_deref_mut() else {
            return Event::PodFailed { mark, problem: no_pods() };
        };
        let mut progress = Progress { lease: id, clock, examples: 0, told_ms: 0, inputs: &self.part.of_run.inputs };
        let stop = &self.setup.stop;
        let mut control = |report: StepReport| {
            progress.step(report);
            if stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let feedback = self.setup.feedback.as_deref();
        let from = feedback.map_or(FeedbackState::EMPTY, FeedbackSource::current);
        let mut held = |range| {
            let held = feedback.and_then(|feedback| feedback.held(lease.branch, lease.plan.memory, range));
            held.unwrap_or_default()
        };
        let modules = self.part.trainer.as_deref().and_then(Trainer::modules);
        let (held, control) = (&mut held, &mut control);
        let order = PodTraining { lease, round, spec, start, held, shard, modules, control, stop };
        match pods.train(order) {
            Ok(trained) => self.pod_over(round, (start, from), trained, clock),
            Err(PodEndedBy::Stopped) => Event::TrainingStopped { lease: id },
            Err(PodEndedBy::Problem(problem)) => Event::PodFailed { mark, problem },
            Err(PodEndedBy::Fatal(error)) if error.is_passing() => {
                Event::Discarded { lease: id, problem: error.to_string() }
            }
            Err(PodEndedBy::Fatal(error)) => Event::Failed(ending(&error)),
        }
    }

    /// Computes a part of another agent's round.
    fn serve(&mut self, round: &PodRound, spec: &AgentSpec) -> Event {
        let mark = round.mark;
        let Some(pods) = self.setup.pods.as_deref_mut() else {
            return Event::Served { mark, problem: Some(no_pods()), parts: Vec::new() };
        };
        let shard = self.setup.shards.train.as_deref();
        let modules = self.part.trainer.as_deref().and_then(Trainer::modules);
        let order = PodServing { round, spec, shard, modules, stop: &self.setup.stop };
        let PodServed { parts, ended } = pods.serve(order);
        let problem = match ended {
            Ok(()) | Err(PodEndedBy::Stopped) => None,
            Err(PodEndedBy::Problem(problem)) => Some(problem),
            Err(PodEndedBy::Fatal(error)) if error.is_passing() => {
                Some(PodProblem { member: None, reason: error.to_string() })
            }
            Err(PodEndedBy::Fatal(error)) => return Event::Failed(ending(&error)),
        };
        Event::Served { mark, problem, parts }
    }

    fn evaluate(&mut self, version: ModelVersion, content: &[f32]) -> Event {
        let Some(shard) = self.setup.shards.eval.as_deref() else {
            return Event::EvaluationFailed { version, problem: "there is no shard to evaluate on".to_owned() };
        };
        let trainer = self.part.trainer.as_deref_mut().expect("the session prepares a trainer before it uses it");
        match trainer.evaluate(content, shard) {
            Ok(metrics) => judged(version, metrics),
            Err(error) if error.is_passing() => Event::EvaluationFailed { version, problem: error.to_string() },
            Err(error) => Event::Failed(ending(&error)),
        }
    }
}

fn difference(end: &[f32], start: &[f32]) -> Arc<[f32]> {
    end.iter().zip(start).map(|(end, start)| end - start).collect()
}

fn no_pods() -> PodProblem {
    PodProblem { member: None, reason: "this agent joins no pods".to_owned() }
}

/// What a trainer with an encoder is asked for: such encoders are for what is sent sparsely, with values of 8 bits, and know
/// of no memory and of no codecs by tensor.
fn encode_order(lease: &Lease, spec: &AgentSpec, feedback: Option<&Arc<dyn FeedbackSource>>) -> Option<EncodeOrder> {
    let UploadSpec { codec, feedback_decay, ref policy, .. } = spec.upload;
    let feedback = feedback.filter(|_| lease.plan.memory.is_none() && policy.is_empty());
    let states = feedback.filter(|_| matches!(codec, CodecSpec::TopK { bits: ValueBits::Eight, .. }))?;
    Some(EncodeOrder { codec, feedback_decay, states: Arc::clone(states) })
}

struct Progress<'a> {
    lease: LeaseId,
    clock: Clock,
    examples: u64,
    told_ms: u64,
    inputs: &'a Inputs,
}

impl Progress<'_> {
    fn step(&mut self, report: StepReport) {
        self.examples += u64::from(report.examples);
        let now_ms = self.clock.now_ms();
        if now_ms < self.told_ms + limits::ROUND_PROGRESS_MS {
            return;
        }
        self.told_ms = now_ms;
        #[expect(clippy::cast_possible_truncation, reason = "a speed for people")]
        let examples_per_s = (self.examples as f64 / self.clock.elapsed().as_secs_f64()) as f32;
        // A full queue or a loop that has ended: progress is not worth a wait.
        let event = Event::Progress { lease: self.lease, steps: report.step, examples_per_s };
        self.inputs.try_tell(Input::Event(event));
    }
}

/// Tries again what a fresh trainer may do, where there is no round to give back: a run cannot begin without it.
fn persistently<T>(stop: &StopSignal, mut work: impl FnMut() -> Result<T, TrainError>) -> Result<T, TrainError> {
    let mut tries = 1;
    loop {
        match work() {
            Err(error) if error.is_passing() && tries < limits::TRAINER_STARTS && !stop.is_set() => {
                tracing::warn!(tries, "{error}; trying again");
                tries += 1;
                stop.wait(Duration::from_millis(limits::AGENT_RETRY_MS));
            }
            done => return done,
        }
    }
}

/// Returns how an agent ends over an error of its trainer that no further try would mend.
pub(crate) fn ending(error: &TrainError) -> Ending {
    match error {
        TrainError::Shape { .. }
        | TrainError::Classes { .. }
        | TrainError::NotText
        | TrainError::Text
        | TrainError::TooShort { .. }
        | TrainError::EmptyShard => Ending::Shard(format!("the shard does not fit the run's model: {error}")),
        TrainError::Spec { .. } | TrainError::Model(_) | TrainError::Length { .. } => {
            Ending::Manifest(error.to_string())
        }
        TrainError::Manifest(_) => Ending::ModelBounds(error.to_string()),
        TrainError::Diverged { .. }
        | TrainError::DivergedThere(_)
        | TrainError::Failed(_)
        | TrainError::Memory { .. }
        | TrainError::OutOfMemory(_)
        | TrainError::Lost(_)
        | TrainError::Backend(_) => Ending::Trainer(error.to_string()),
    }
}
