//! Two threads beside the loop: one does the maths, one owns the store. Each has a bounded queue, and answers with
//! events.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anabranch_common::codec::{self, Codec as _, dense::Planes32};
use anabranch_common::ids::{AgentId, BranchId, Digest, LeaseId, ModelVersion, RunId};
use anabranch_common::journal::Lease;
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::RunSpec;
use anabranch_common::update::UpdateKey;
use anabranch_common::wire::transfer::TransferManifest;
use anabranch_io::durable::StorageError;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::core::command::{Bank, Ending, Lead, Settlement};
use crate::core::event::{Event, InitialModel, Outcome};
use crate::shard::Shard;
use crate::store::{Ledger, LedgerError};
use crate::train::{Metrics, RoundFile, Rounds, RunPart, StepReport, TrainError, Trainer};

/// Makes the trainer for a run; the seam for trainers that are not native.
pub type TrainerFactory = Box<dyn Fn(&RunPart) -> Result<Box<dyn Trainer>, TrainError> + Send>;

/// What an agent trains and evaluates on.
#[derive(Debug, Default)]
pub struct Shards {
    /// To train on.
    pub train: Option<Box<dyn Shard>>,
    /// To evaluate on.
    pub eval: Option<Box<dyn Shard>>,
}

/// Artificial slowness, for experiments: workloads with slow machines on one machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// A round takes at least this long.
    pub min_round: Duration,
    /// A round takes this many times as long as its maths.
    pub slow_factor: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { min_round: Duration::ZERO, slow_factor: 1.0 }
    }
}

impl Pace {
    /// How long a round takes whose maths took `maths`.
    fn round(self, maths: Duration) -> Duration {
        let factor = if self.slow_factor.is_finite() { self.slow_factor.clamp(1.0, 1e6) } else { 1.0 };
        maths.mul_f64(factor).max(self.min_round)
    }
}

/// Tells the maths to stop: looked at after each step, and it ends the wait of a slowed round.
#[derive(Debug, Default)]
pub struct StopSignal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl StopSignal {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a stop, or takes the request back.
    pub fn set(&self, stopped: bool) {
        *self.lock() = stopped;
        self.changed.notify_all();
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self.lock()
    }

    /// Waits, but not longer than until a stop is asked for.
    fn wait(&self, time: Duration) {
        let guard = self.lock();
        // Both outcomes are looked up by the caller; a poisoned mutex still guards a plain bool.
        let _ = self.changed.wait_timeout_while(guard, time, |stopped| !*stopped);
    }
}

/// What a round starts from.
#[derive(Debug)]
pub struct Start {
    /// The base's content.
    pub base: Arc<[f32]>,
    /// What to be ahead of it by.
    pub lead: Option<Lead>,
}

/// Work for the maths.
#[derive(Debug)]
pub enum MathsJob {
    /// See `Command::Prepare`.
    Prepare(Box<RunSpec>),
    /// See `Command::MakeInitial`.
    MakeInitial {
        /// The run's seed.
        seed: u64,
    },
    /// See `Command::Train`.
    Train {
        /// The lease.
        lease: Box<Lease>,
        /// The configuration.
        spec: Box<RunSpec>,
        /// What to start from.
        start: Start,
    },
    /// See `Command::Evaluate`.
    Evaluate {
        /// Its version.
        version: ModelVersion,
        /// Its content.
        content: Arc<[f32]>,
    },
}

/// Starts the thread that does the maths. It ends when the returned sender is dropped. `micro_batch` always has how many
/// examples the latest round computed at once, if the trainer says so.
///
/// # Errors
/// The system has no thread to give.
pub fn spawn_maths(
    factory: TrainerFactory,
    shards: Shards,
    pace: Pace,
    stop: Arc<StopSignal>,
    rounds: Option<Rounds>,
    micro_batch: Arc<AtomicU32>,
    events: mpsc::Sender<Event>,
) -> std::io::Result<SyncSender<MathsJob>> {
    let (jobs, queue) = sync_channel(limits::AGENT_JOBS);
    let maths = Maths { factory, shards, pace, stop, rounds, micro_batch, trainer: None, events };
    std::thread::Builder::new().name("maths".to_owned()).spawn(move || maths.run(&queue))?;
    Ok(jobs)
}

/// Runs a job; a panic in it becomes a message. Without this the thread would be gone and the loop would wait for ever.
/// Nobody uses what the job left behind: the process ends over the message.
fn guarded<T>(job: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("a worker panicked: {}", text.as_deref().unwrap_or("it did not say why"))
    })
}

struct Maths {
    factory: TrainerFactory,
    shards: Shards,
    pace: Pace,
    stop: Arc<StopSignal>,
    rounds: Option<Rounds>,
    micro_batch: Arc<AtomicU32>,
    trainer: Option<Box<dyn Trainer>>,
    events: mpsc::Sender<Event>,
}

impl Maths {
    fn run(mut self, queue: &Receiver<MathsJob>) {
        while let Ok(job) = queue.recv() {
            let event = guarded(|| self.work(job)).unwrap_or_else(|panic| Event::Failed(Ending::Trainer(panic)));
            if self.events.blocking_send(event).is_err() {
                return;
            }
        }
    }

    fn work(&mut self, job: MathsJob) -> Event {
        match job {
            MathsJob::Prepare(spec) => self.prepare(&spec),
            MathsJob::MakeInitial { seed } => self.make_initial(seed),
            MathsJob::Train { lease, spec, start: Start { base, lead } } => match lead {
                Some(lead) => self.train(&lease, &spec, &lead.from(&base)),
                None => self.train(&lease, &spec, &base),
            },
            MathsJob::Evaluate { version, content } => self.evaluate(version, &content),
        }
    }

    fn make_initial(&mut self, seed: u64) -> Event {
        let (stop, trainer) = (&self.stop, self.trainer.as_deref_mut());
        let trainer = trainer.expect("the session prepares a trainer before it uses it");
        match persistently(stop, || trainer.initial(seed)) {
            Ok(model) => initial_model(trainer.manifest(), model.into()),
            Err(error) => Event::Failed(ending(&error)),
        }
    }

    fn prepare(&mut self, spec: &RunSpec) -> Event {
        let run = RunPart::of(spec);
        match persistently(&self.stop, || (self.factory)(&run)) {
            Ok(trainer) => {
                let manifest = trainer.manifest().clone();
                self.trainer = Some(trainer);
                Event::Prepared { manifest }
            }
            Err(error) => Event::Failed(ending(&error)),
        }
    }

    fn train(&mut self, lease: &Lease, spec: &RunSpec, start: &[f32]) -> Event {
        let id = lease.id;
        let clock = Clock::start();
        let Some(shard) = self.shards.train.as_deref() else {
            return Event::Failed(Ending::Trainer("there is no shard to train on".to_owned()));
        };
        let trainer = self.trainer.as_deref_mut().expect("the session prepares a trainer before it uses it");
        let mut progress = Progress { lease: id, clock, examples: 0, told_ms: 0, events: &self.events };
        let stop = &self.stop;
        let mut control = |report: StepReport| {
            if let Some(micro_batch) = report.micro_batch {
                self.micro_batch.store(micro_batch, Ordering::Relaxed);
            }
            progress.step(report);
            if stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let round = self.rounds.as_ref().map(|rounds| rounds.file(lease, spec.train.local_steps));
        trainer.keep_round(round.clone());
        let trained = trainer.train(start, &spec.train, lease.seed, shard, &mut control);
        // Before anybody hears of the end: a round that is over is never taken up again.
        if let Err(error) = round.as_ref().map_or(Ok(()), RoundFile::clear) {
            return Event::Failed(Ending::Storage(format!("the round that is over cannot be removed: {error}")));
        }
        let trained = match trained {
            Ok(trained) => trained,
            Err(error) if error.is_passing() => return Event::Discarded { lease: id, problem: error.to_string() },
            Err(error) => return Event::Failed(ending(&error)),
        };
        let maths = clock.elapsed();
        if !trained.stopped {
            self.stop.wait(self.pace.round(maths).saturating_sub(maths));
        }
        if trained.stopped || self.stop.is_set() {
            return Event::TrainingStopped { lease: id };
        }
        let delta = trained.end.iter().zip(start).map(|(end, start)| end - start).collect();
        Event::Trained(Box::new(Outcome {
            lease: id,
            delta,
            num_examples: trained.num_examples,
            local_steps: trained.steps,
            train_loss: trained.mean_loss,
            compute_ms: clock.now_ms(),
        }))
    }

    fn evaluate(&mut self, version: ModelVersion, content: &[f32]) -> Event {
        let Some(shard) = self.shards.eval.as_deref() else {
            return Event::EvaluationFailed { version, problem: "there is no shard to evaluate on".to_owned() };
        };
        let trainer = self.trainer.as_deref_mut().expect("the session prepares a trainer before it uses it");
        match trainer.evaluate(content, shard) {
            Ok(metrics) => judged(version, metrics),
            Err(error) if error.is_passing() => Event::EvaluationFailed { version, problem: error.to_string() },
            Err(error) => Event::Failed(ending(&error)),
        }
    }
}

/// What an evaluation came to. Figures that are not finite, such as the loss of a model that an attacker has blown up, are
/// a failed evaluation: the coordinator takes them for a breach of the protocol.
#[must_use]
pub fn judged(version: ModelVersion, metrics: Metrics) -> Event {
    let Metrics { accuracy, loss, num_examples } = metrics;
    if accuracy.is_finite() && loss.is_finite() {
        return Event::Evaluated { version, accuracy, loss, num_examples };
    }
    Event::EvaluationFailed { version, problem: format!("accuracy {accuracy} and loss {loss} are not finite") }
}

/// Version 0 of a run, in every form in which it is needed; answered by `InitialMade`.
#[must_use]
pub fn initial_model(manifest: &ModelManifest, content: Arc<[f32]>) -> Event {
    match Planes32.encode(manifest, &content) {
        Ok(encoded) => {
            let transfer = TransferManifest::of(&encoded);
            let digest = Digest::of_f32(&content);
            Event::InitialMade(InitialModel { content, digest, encoded: encoded.into(), transfer })
        }
        Err(error) => Event::Failed(Ending::Trainer(format!("the initial model cannot be used: {error}"))),
    }
}

/// Decodes a downloaded model and checks that it is what was announced; answered by `Unpacked` or `UnpackFailed`.
#[must_use]
pub fn unpack(manifest: &ModelManifest, version: ModelVersion, digest: Digest, encoded: &[u8]) -> Event {
    match codec::decode(Planes32::ID, manifest, encoded) {
        Ok(delta) => {
            let content: Arc<[f32]> = delta.into_dense().into();
            let found = Digest::of_f32(&content);
            if found == digest {
                Event::Unpacked { version, digest, content }
            } else {
                let problem = format!("its digest is {}, not {}", found.short(), digest.short());
                Event::UnpackFailed { version, problem }
            }
        }
        Err(error) => Event::UnpackFailed { version, problem: error.to_string() },
    }
}

/// The same on a thread that may panic.
#[must_use]
pub fn unpack_guarded(manifest: &ModelManifest, version: ModelVersion, digest: Digest, encoded: &[u8]) -> Event {
    guarded(|| unpack(manifest, version, digest, encoded)).unwrap_or_else(|panic| Event::Failed(Ending::Trainer(panic)))
}

/// How often the loop hears of a round's progress.
const PROGRESS_EVERY_MS: u64 = 250;

struct Progress<'a> {
    lease: LeaseId,
    clock: Clock,
    examples: u64,
    told_ms: u64,
    events: &'a mpsc::Sender<Event>,
}

impl Progress<'_> {
    fn step(&mut self, report: StepReport) {
        self.examples += u64::from(report.examples);
        let now_ms = self.clock.now_ms();
        if now_ms < self.told_ms + PROGRESS_EVERY_MS {
            return;
        }
        self.told_ms = now_ms;
        #[expect(clippy::cast_possible_truncation, reason = "a speed for people")]
        let examples_per_s = (self.examples as f64 / self.clock.elapsed().as_secs_f64()) as f32;
        // A full queue or a loop that has ended: progress is not worth a wait.
        let _ = self.events.try_send(Event::Progress { lease: self.lease, steps: report.step, examples_per_s });
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

fn ending(error: &TrainError) -> Ending {
    match error {
        TrainError::Shape { .. }
        | TrainError::Classes { .. }
        | TrainError::NotText
        | TrainError::Text
        | TrainError::TooShort { .. }
        | TrainError::EmptyShard => Ending::Shard(format!("the shard does not fit the run's model: {error}")),
        TrainError::Spec { .. } | TrainError::Model(_) | TrainError::Manifest(_) | TrainError::Length { .. } => {
            Ending::Manifest(error.to_string())
        }
        TrainError::Diverged { .. }
        | TrainError::DivergedThere(_)
        | TrainError::Failed(_)
        | TrainError::Memory { .. }
        | TrainError::OutOfMemory(_)
        | TrainError::Lost(_)
        | TrainError::Backend(_) => Ending::Trainer(error.to_string()),
    }
}

/// Work for the store's thread.
#[derive(Debug)]
pub enum StoreJob {
    /// See `Command::Bank`.
    Bank {
        /// What to store.
        bank: Box<Bank>,
        /// The model's tensors.
        manifest: Arc<ModelManifest>,
    },
    /// See `Command::Settle`.
    Settle {
        /// Which update.
        key: UpdateKey,
        /// What becomes of its content.
        content: Settlement,
    },
    /// See `Command::AdoptBranch`.
    Adopt(BranchId),
    /// The payload of an update, if it is still there.
    Read {
        /// Which update.
        key: UpdateKey,
        /// Where to put it.
        reply: oneshot::Sender<Option<Vec<u8>>>,
    },
}

/// The store's thread, and the way to it.
#[derive(Debug)]
pub struct StoreThread {
    jobs: SyncSender<StoreJob>,
    thread: JoinHandle<()>,
}

impl StoreThread {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(ledger: Ledger, run: RunId, agent: AgentId, events: mpsc::Sender<Event>) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(limits::AGENT_JOBS);
        let worker = StoreWorker { ledger, run, agent, events };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || worker.run(&queue))?;
        Ok(Self { jobs, thread })
    }

    /// The way to it.
    #[must_use]
    pub fn jobs(&self) -> SyncSender<StoreJob> {
        self.jobs.clone()
    }

    /// Lets it finish what it was given, and closes the store. Every clone of [`Self::jobs`] must have been dropped.
    pub fn finish(self) {
        drop(self.jobs);
        // A panic there was reported by its own thread, and what it had not finished was never offered to anybody.
        let _ = self.thread.join();
    }
}

struct StoreWorker {
    ledger: Ledger,
    run: RunId,
    agent: AgentId,
    events: mpsc::Sender<Event>,
}

impl StoreWorker {
    fn run(mut self, queue: &Receiver<StoreJob>) {
        while let Ok(job) = queue.recv() {
            let event = match guarded(|| self.work(job)) {
                Ok(done) => done.unwrap_or_else(|error| Some(Event::Failed(storage_ending(&error)))),
                Err(panic) => Some(Event::Failed(Ending::Storage(panic))),
            };
            if let Some(event) = event
                && self.events.blocking_send(event).is_err()
            {
                return;
            }
        }
    }

    fn work(&mut self, job: StoreJob) -> Result<Option<Event>, StorageError> {
        match job {
            StoreJob::Bank { bank, manifest } => {
                let lease = bank.lease.id;
                match self.ledger.bank(self.run, self.agent, &manifest, *bank) {
                    Ok(entry) => Ok(Some(Event::Banked(entry))),
                    Err(LedgerError::Storage(error)) => Err(error),
                    Err(error @ LedgerError::Encode(_)) => {
                        Ok(Some(Event::Discarded { lease, problem: error.to_string() }))
                    }
                }
            }
            StoreJob::Settle { key, content } => {
                self.ledger.settle(key, content)?;
                Ok(Some(Event::Settled { key }))
            }
            StoreJob::Adopt(branch) => {
                self.ledger.adopt(branch)?;
                Ok(None)
            }
            StoreJob::Read { key, reply } => {
                // Nobody waits for it any more when the connection is gone.
                let _ = reply.send(self.ledger.payload(key)?);
                Ok(None)
            }
        }
    }
}

fn storage_ending(error: &StorageError) -> Ending {
    Ending::Storage(match error.help() {
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by simulation (seed 1000139): an honest agent must not be thrown out for what a blown-up model gives it.
    #[test]
    fn figures_that_are_not_finite_are_a_failed_evaluation() {
        let judge = |accuracy, loss| judged(ModelVersion(3), Metrics { accuracy, loss, num_examples: 2 });
        assert!(matches!(judge(0.5, 1e30), Event::Evaluated { version: ModelVersion(3), num_examples: 2, .. }));
        for (accuracy, loss) in [(0.5, f64::INFINITY), (0.5, f64::NAN), (f64::NAN, 1.0)] {
            assert!(matches!(judge(accuracy, loss), Event::EvaluationFailed { .. }), "{accuracy} {loss}");
        }
    }

    /// A trainer of the user's may panic; the session must hear of it, or the process hangs.
    #[test]
    fn a_panic_in_the_trainer_is_told_and_the_thread_goes_on_serving() {
        let factory: TrainerFactory = Box::new(|_| panic!("no such device: {}", 7));
        let (events, mut told) = mpsc::channel(4);
        let jobs =
            spawn_maths(factory, Shards::default(), Pace::default(), Arc::default(), None, Arc::default(), events)
                .expect("a thread");
        let spec: RunSpec = toml::from_str(crate::core::SPEC_FOR_TESTS).expect("a complete spec");
        for _ in 0..2 {
            jobs.send(MathsJob::Prepare(Box::new(spec.clone()))).expect("the thread is there");
            let text = "a worker panicked: no such device: 7".to_owned();
            assert_eq!(told.blocking_recv(), Some(Event::Failed(Ending::Trainer(text))));
        }
    }

    #[test]
    fn a_slowed_round_takes_as_long_as_was_asked_for() {
        let maths = Duration::from_millis(100);
        let pace = |min_ms, slow_factor| Pace { min_round: Duration::from_millis(min_ms), slow_factor };
        assert_eq!(Pace::default().round(maths), maths);
        assert_eq!(pace(250, 1.0).round(maths), Duration::from_millis(250));
        assert_eq!(pace(250, 10.0).round(maths), Duration::from_millis(1000));
        assert_eq!(pace(0, 0.1).round(maths), maths, "nothing makes the maths faster");
        assert_eq!(pace(0, f64::NAN).round(maths), maths);
    }

    /// Guards SIGTERM in a slowed round: the wait ends when the stop is asked for, not when the time is over.
    #[test]
    fn a_stop_ends_the_wait_of_a_slowed_round() {
        let stop = Arc::new(StopSignal::default());
        let other = Arc::clone(&stop);
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(600)));
        stop.set(true);
        waiter.join().expect("the wait ends");
        assert!(stop.is_set());
    }
}
