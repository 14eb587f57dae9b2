//! A trainer in a process of its own: any program that speaks `docs/trainer-protocol.md`.
//!
//! ```text
//!  TrainerProcess ── start ──► child: hello (who are you, how many examples)
//!        │
//!        └─ factory ──► ProcessTrainer: Trainer ──► prepare, initial, train, evaluate
//!                          │                           lines over pipes, tensors through files
//!                          └─ a child that dies, hangs or talks nonsense: TrainError::Lost, and a fresh one next time
//! ```
//! [`serve`] is the other end, for trainers in Rust.

mod child;
mod encode;
mod kin;
mod lines;
mod message;
mod modules;
mod scratch;
mod serve;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_io::model_file::{self, ReadError};

use super::{Bound, Metrics, ModulePart, ModuleTrainer, Round, RoundResult, RunPart, StepReport, TrainError, Trainer};
use crate::clock::Clock;
use crate::encode::chain::Chain;
use crate::shard::Shard;
use crate::worker::{Shards, TrainerFactory};
use child::{Child, Death, Fault};
use kin::Kin;
use scratch::Scratch;

pub use message::{
    Answer, Ask, DrawAsk, EncodeAsk, FailureKind, HelloAnswer, HelloAsk, Measured, PROTOCOL, PartAsk, StateAt,
};
pub use serve::{serve, serve_with_encoder};

/// How a trainer is started.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Where it is started; none: where the agent was.
    pub work_dir: Option<PathBuf>,
    /// The agent's directory.
    pub home: PathBuf,
    /// The agent's name.
    pub agent: String,
    /// What it is told to train on.
    pub shard: Option<PathBuf>,
    /// What it is told to evaluate on.
    pub eval_shard: Option<PathBuf>,
    /// How many threads it is told to use.
    pub threads: Option<usize>,
    /// How much memory it is told that its process may have, in bytes.
    pub max_memory_bytes: Option<u64>,
    /// How long a request may go on without a step or an answer.
    pub patience: Duration,
}

/// Why a trainer cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no such program, or it may not be executed.
    #[error("cannot start the trainer {program:?}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is no place for tensors.
    #[error("cannot make a directory for the trainer's tensors")]
    Scratch(#[source] io::Error),
    /// A signal has asked this process to end; the trainer has ended.
    #[error("stopped while the trainer started")]
    Stopped,
    /// It does not do what a trainer does.
    #[error("the trainer is not usable: {0}")]
    Unusable(String),
}

/// A trainer's process, and its successors.
#[derive(Debug, Clone)]
pub struct TrainerProcess {
    host: Arc<Mutex<Host>>,
    home: PathBuf,
    kin: Arc<Kin>,
    hello: HelloAnswer,
}

impl TrainerProcess {
    /// Starts it and hears who it is.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn start(options: ProcessOptions) -> Result<Self, ProcessError> {
        let scratch = Scratch::new(&options.home).map_err(ProcessError::Scratch)?;
        let (home, kin) = (options.home.clone(), Arc::new(Kin::of(&options.home).map_err(ProcessError::Scratch)?));
        let (bounds, in_host) = (Vec::new(), Arc::clone(&kin));
        let mut host = Host { options, scratch, kin: in_host, child: None, bounds, last_micro_batch: None, next_id: 1 };
        let hello = host.start()?;
        if hello.train_examples == 0 && hello.eval_examples == 0 && !hello.stages {
            return Err(ProcessError::Unusable("it has no examples, neither to train nor to evaluate on".to_owned()));
        }
        Ok(Self { host: Arc::new(Mutex::new(host)), home, kin, hello })
    }

    /// What it said of itself.
    #[must_use]
    pub fn hello(&self) -> &HelloAnswer {
        &self.hello
    }

    /// Its examples, which can be counted here but not read.
    #[must_use]
    pub fn shards(&self) -> Shards {
        let held = |examples| {
            let examples = usize::try_from(examples).unwrap_or(usize::MAX);
            (examples > 0).then(|| Box::new(HeldElsewhere { examples }) as Box<dyn Shard>)
        };
        Shards { train: held(self.hello.train_examples), eval: held(self.hello.eval_examples) }
    }

    /// Makes trainers that pass everything on to it.
    #[must_use]
    pub fn factory(&self) -> TrainerFactory {
        let host = Arc::clone(&self.host);
        Box::new(move |run: &RunPart| {
            let prepared = lock(&host).prepare(run)?;
            modules::check(run, &prepared)?;
            let (host, run) = (Arc::clone(&host), run.clone());
            Ok(Box::new(ProcessTrainer { host, run, prepared }))
        })
    }

    /// Ends it at once, whatever it does, and removes its tensors: for a process that is about to exit.
    pub fn abandon(&self) {
        self.kin.end(Duration::ZERO);
        scratch::sweep(&self.home);
    }

    /// Lets it end: in order if it is idle, by force if it is not. Nothing of it is left then.
    pub fn close(&self) {
        let clock = Clock::start();
        let grace = Duration::from_millis(limits::TRAINER_STOP_MS);
        loop {
            match self.host.try_lock() {
                Ok(mut host) => break host.close(grace),
                Err(TryLockError::Poisoned(host)) => break host.into_inner().close(Duration::ZERO),
                // A request is open, and is not waited for any longer.
                Err(TryLockError::WouldBlock) if clock.elapsed() >= grace => break,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        self.abandon();
    }
}

/// Ends what a trainer has left behind whose agent was killed, and removes its tensors. The agent of the directory `home`
/// calls this while no other process can use the directory.
pub fn sweep(home: &Path) {
    // A directory that cannot be looked at has never had a trainer.
    let left = Kin::of(home).map_or(0, |kin| kin.end(Duration::from_millis(limits::TRAINER_STOP_MS)));
    if left > 0 {
        tracing::warn!(processes = left, "ended what the trainer of an agent that was killed had left behind");
    }
    scratch::sweep(home);
}

fn lock(host: &Mutex<Host>) -> MutexGuard<'_, Host> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child and all that its successor needs.
#[derive(Debug)]
struct Host {
    options: ProcessOptions,
    scratch: Scratch,
    kin: Arc<Kin>,
    child: Option<Living>,
    /// What rounds that ran out of memory have taught,, for each run.
    bounds: Vec<(RunPart, Bound)>,
    /// How many examples the child that ran out of memory computed at once, if it said so.
    last_micro_batch: Option<u32>,
    next_id: u64,
}

/// A child, and what it knows.
#[derive(Debug)]
struct Living {
    child: Child,
    /// For which run it is prepared, and what it said then.
    prepared: Option<(RunPart, Prepared)>,
    /// The states of its encoder, if it has one.
    chain: Option<Chain>,
    /// The parts of the model that it computes in the round that has begun last.
    parts: Vec<ModulePart>,
}

/// What a child says once it is prepared.
#[derive(Debug, Clone, PartialEq)]
struct Prepared {
    /// Of what its model is made.
    manifest: ModelManifest,
    /// Whether it adds the proximal term.
    proximal: bool,
    /// How many of the tensors belong to each module; none where it does not compute its model in parts.
    modules: Vec<usize>,
}

impl Host {
    fn start(&mut self) -> Result<HelloAnswer, ProcessError> {
        self.scratch.ensure().map_err(ProcessError::Scratch)?;
        let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
        let options = &self.options;
        let hello = HelloAsk {
            min_protocol: PROTOCOL,
            max_protocol: PROTOCOL,
            dir: self.scratch.path().to_owned(),
            agent: options.agent.clone(),
            shard: absolute(&options.shard).map_err(ProcessError::Scratch)?,
            eval_shard: absolute(&options.eval_shard).map_err(ProcessError::Scratch)?,
            threads: options.threads,
            max_memory: options.max_memory_bytes,
        };
        let program = || options.command.first().map_or_else(String::new, |program| program.display().to_string());
        let mut child = Child::start(&options.command, options.work_dir.as_deref(), &hello, Arc::clone(&self.kin))
            .map_err(|source| ProcessError::Start { program: program(), source })?;
        match child.greet(&hello) {
            Ok(answer) => {
                let (name, pid) = (answer.name.as_str(), child.pid());
                tracing::info!(name, pid, train_examples = answer.train_examples, "trainer started");
                let chain = answer.encodes.then(Chain::default);
                self.child = Some(Living { child, prepared: None, chain, parts: Vec::new() });
                Ok(answer)
            }
            Err(Fault::Unwanted) => {
                child.terminate(Duration::from_millis(limits::TRAINER_STOP_MS));
                Err(ProcessError::Stopped)
            }
            Err(fault) => Err(ProcessError::Unusable(child.bury(&fault).text)),
        }
    }

    /// Has a child that is prepared for `run`, and returns what it said then.
    fn prepare(&mut self, run: &RunPart) -> Result<Prepared, TrainError> {
        if self.child.is_none() {
            self.start().map_err(|error| TrainError::Lost(format!("{:#}", anyhow::Error::new(error))))?;
        }
        if let Some(Living { prepared: Some((of, prepared)), .. }) = &self.child
            && of == run
        {
            return Ok(prepared.clone());
        }
        let answer = self.request(|id| Ask::Prepare { id, run: run.clone() }, &mut |_| ControlFlow::Continue(()))?;
        let Answer::Prepared { tensors, proximal, modules, .. } = answer else { return Err(self.breach(&answer)) };
        let now = Prepared { manifest: ModelManifest::new(tensors)?, proximal, modules };
        if let Some(Living { prepared, .. }) = &mut self.child {
            *prepared = Some((run.clone(), now.clone()));
        }
        Ok(now)
    }

    /// Asks the child. One that fails in a way that does not end it keeps living.
    fn request(
        &mut self,
        ask: impl FnOnce(u64) -> Ask,
        control: &mut dyn FnMut(StepReport) -> ControlFlow<()>,
    ) -> Result<Answer, TrainError> {
        let id = self.next_id;
        self.next_id += 1;
        let Some(Living { child, .. }) = &mut self.child else {
            return Err(TrainError::Lost("there is none".to_owned()));
        };
        match child.request(id, &ask(id), self.options.patience, control) {
            Ok(Answer::Failed { kind: FailureKind::Diverged, message, .. }) => Err(TrainError::DivergedThere(message)),
            Ok(Answer::Failed { kind: FailureKind::Memory, message, .. }) => Err(TrainError::OutOfMemory(message)),
            Ok(Answer::Failed { kind: FailureKind::Error, message, .. }) => Err(TrainError::Failed(message)),
            Ok(answer) => Ok(answer),
            Err(fault) => Err(self.bury(&fault)),
        }
    }

    fn bury(&mut self, fault: &Fault) -> TrainError {
        let death = self.child.take().map(|living| living.child.bury(fault));
        let told = death.as_ref().map_or_else(|| fault.to_string(), |death| death.text.clone());
        tracing::warn!("the trainer's process is lost: {told}; a fresh one is started for the next request");
        match death {
            Some(Death { out_of_memory: true, micro_batch, .. }) => {
                self.last_micro_batch = micro_batch;
                TrainError::OutOfMemory(told)
            }
            _ => TrainError::Lost(told),
        }
    }

    /// A round ran out of memory: the next one computes half as many examples at once.
    fn back_off(&mut self, run: &RunPart, batch: u32) {
        let living = self.child.as_ref().and_then(|living| living.child.micro_batch());
        let tried = self.last_micro_batch.take().or(living).or(self.most(run)).unwrap_or(batch);
        let next = self.failed(run, tried);
        tracing::warn!(
            tried,
            max_micro_batch = next,
            "a round ran out of memory; the next one takes smaller micro-batches"
        );
    }

    /// The most examples of a run at once.
    fn most(&self, run: &RunPart) -> Option<u32> {
        self.bounds.iter().find(|(of, _)| of == run).and_then(|(_, bound)| bound.most())
    }

    /// A round of a run failed with `tried` examples at once. Returns how many the next one may compute.
    fn failed(&mut self, run: &RunPart, tried: u32) -> u32 {
        if let Some((_, bound)) = self.bounds.iter_mut().find(|(of, _)| of == run) {
            return bound.failed(tried);
        }
        if self.bounds.len() >= limits::RUNS_PER_CONNECTION as usize {
            // The oldest is learned again if that run goes on.
            self.bounds.remove(0);
        }
        let mut bound = Bound::default();
        let next = bound.failed(tried);
        self.bounds.push((run.clone(), bound));
        next
    }

    /// A round fitted: after enough of them larger micro-batches are tried again.
    fn round_fitted(&mut self, run: &RunPart, batch: u32) {
        let bound = self.bounds.iter_mut().find(|(of, _)| of == run);
        if let Some(next) = bound.and_then(|(_, bound)| bound.fitted(batch)) {
            tracing::info!(max_micro_batch = next, "rounds fit into memory; larger micro-batches are tried again");
        }
    }

    /// The answer is not one to what was asked.
    fn breach(&mut self, answer: &Answer) -> TrainError {
        self.bury(&Fault::Broken(format!("{answer:?} is no answer to what was asked")))
    }

    fn put(&mut self, name: &str, manifest: &ModelManifest, values: &[f32]) -> Result<Tensors, TrainError> {
        let file = Tensors(self.scratch.path().join(name));
        let Err(error) = model_file::hand_over(&file.0, manifest, values) else { return Ok(file) };
        let full = error.kind() == io::ErrorKind::StorageFull && matches!(self.scratch.move_home(), Ok(true));
        if full {
            // The child knows the old place only.
            self.child = None;
            return Err(TrainError::Lost(
                "shared memory has no room for its tensors; they go to the disk now".to_owned(),
            ));
        }
        Err(TrainError::Failed(format!("cannot write {}: {error}", file.0.display())))
    }

    /// Reads what the child has written.
    fn take(&mut self, file: &Tensors, manifest: &ModelManifest) -> Result<Vec<f32>, TrainError> {
        match model_file::read(&file.0, Some(manifest)) {
            Ok((_, values)) => Ok(values),
            Err(error @ ReadError::NotFinite(_)) => Err(TrainError::DivergedThere(error.to_string())),
            Err(error) => Err(self.bury(&Fault::Broken(error.to_string()))),
        }
    }

    fn close(&mut self, grace: Duration) {
        if let Some(Living { mut child, .. }) = self.child.take() {
            child.end(grace);
        }
    }
}

/// A file that is removed when it has been used.
#[derive(Debug)]
struct Tensors(PathBuf);

impl Tensors {
    fn name(&self) -> String {
        self.0.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }
}

impl Drop for Tensors {
    fn drop(&mut self) {
        // A child that did not get that far has written none.
        let _ = fs::remove_file(&self.0);
    }
}

/// Examples that only the trainer's process can read.
#[derive(Debug)]
struct HeldElsewhere {
    examples: usize,
}

impl Shard for HeldElsewhere {
    fn len(&self) -> usize {
        self.examples
    }

    fn input_shape(&self) -> &[u64] {
        &[]
    }

    fn classes(&self) -> u32 {
        0
    }

    fn is_elsewhere(&self) -> bool {
        true
    }

    fn read(&self, _indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>) {
        inputs.clear();
        labels.clear();
    }
}

/// The trainer of one run, in another process.
#[derive(Debug)]
struct ProcessTrainer {
    host: Arc<Mutex<Host>>,
    run: RunPart,
    prepared: Prepared,
}

impl ProcessTrainer {
    /// The host, with a child that is prepared for this run and still has the same model.
    fn ready(&self) -> Result<MutexGuard<'_, Host>, TrainError> {
        let mut host = lock(&self.host);
        if host.prepare(&self.run)? == self.prepared {
            return Ok(host);
        }
        host.child = None;
        Err(TrainError::Lost("started again, it describes other tensors than before".to_owned()))
    }
}

impl Trainer for ProcessTrainer {
    fn manifest(&self) -> &ModelManifest {
        &self.prepared.manifest
    }

    fn adds_proximal_term(&self) -> bool {
        self.prepared.proximal
    }

    fn modules(&self) -> Option<&dyn ModuleTrainer> {
        self.computes_parts().then_some(self)
    }

    fn initial(&mut self, seed: u64) -> Result<Vec<f32>, TrainError> {
        let mut host = self.ready()?;
        let out = Tensors(host.scratch.path().join("initial.safetensors"));
        let ask = |id| Ask::Initial { id, seed, out: out.name() };
        match host.request(ask, &mut |_| ControlFlow::Continue(()))? {
            Answer::Initial { .. } => host.take(&out, self.manifest()).map_err(|error| match error {
                // Nothing has trained yet.
                TrainError::DivergedThere(told) => TrainError::Failed(format!("the initial model is unusable: {told}")),
                other => other,
            }),
            other => Err(host.breach(&other)),
        }
    }

    fn train(&mut self, round: Round<'_>) -> Result<RoundResult, TrainError> {
        let Round { base, plan, seed, context, keep, encode, control, .. } = round;
        let mut host = self.ready()?;
        let encoding = encode.map_or(Ok(None), |order| host.encoding(order, self.manifest()))?;
        let from = host.put("base.safetensors", self.manifest(), base)?;
        let out = Tensors(host.scratch.path().join("end.safetensors"));
        let max_micro_batch = host.most(&self.run);
        let ask = |id| Ask::Train {
            id,
            base: from.name(),
            out: out.name(),
            seed,
            context,
            plan: Box::new(plan.clone()),
            max_micro_batch,
            keep,
            encode: encoding.as_ref().map(|encoding| encoding.ask.clone()),
        };
        let mut stopping = false;
        let mut control = |report| {
            let flow = control(report);
            stopping |= flow.is_break();
            flow
        };
        let stopped = |steps, num_examples| {
            let end = base.to_vec();
            RoundResult { end, num_examples, steps, mean_loss: 0.0, stopped: true, encoded: None }
        };
        let answer = match host.request(ask, &mut control) {
            Ok(answer) => answer,
            // It was killed because it did not stop: then it has stopped.
            Err(TrainError::Lost(_) | TrainError::OutOfMemory(_)) if stopping => return Ok(stopped(0, 0)),
            Err(error @ TrainError::OutOfMemory(_)) => {
                host.back_off(&self.run, plan.batch_size);
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        match answer {
            Answer::Trained { steps, num_examples, stopped: true, .. } if stopping => Ok(stopped(steps, num_examples)),
            Answer::Trained { steps, num_examples, mean_loss, stopped: false, encoded, .. }
                if (1..=plan.local_steps).contains(&steps) && num_examples > 0 =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "losses are reported as f32")]
                let mean_loss = mean_loss as f32;
                if !mean_loss.is_finite() {
                    return Err(TrainError::Diverged { step: steps });
                }
                let end = host.take(&out, self.manifest())?;
                host.round_fitted(&self.run, plan.batch_size);
                let params = self.manifest().params();
                let encoded = encoding.and_then(|encoding| host.encoded(encoding, encoded, params));
                Ok(RoundResult { end, num_examples, steps, mean_loss, stopped: false, encoded })
            }
            other => Err(host.breach(&other)),
        }
    }

    fn evaluate(&mut self, model: &[f32], _shard: &dyn Shard) -> Result<Metrics, TrainError> {
        let mut host = self.ready()?;
        let from = host.put("model.safetensors", self.manifest(), model)?;
        let ask = |id| Ask::Evaluate { id, model: from.name() };
        match host.request(ask, &mut |_| ControlFlow::Continue(()))? {
            Answer::Evaluated { measured, .. } => {
                let metrics = measured.metrics().map_err(TrainError::Failed)?;
                let Metrics { accuracy, num_examples, .. } = metrics;
                if accuracy.is_finite() && !(0.0..=1.0).contains(&accuracy) || num_examples == 0 {
                    let expected = "expected an accuracy in [0, 1] and at least one example";
                    let found = format!("it measured the accuracy {accuracy} over {num_examples} examples");
                    return Err(TrainError::Failed(format!("{found}, {expected}")));
                }
                Ok(metrics)
            }
            other => Err(host.breach(&other)),
        }
    }
}

#[cfg(test)]
mod tests;
