//! The child's end of the protocol, for trainers written in Rust.

use std::io::{self, BufReader, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_io::model_file;
use anyhow::{Context as _, bail};
use parking_lot::Mutex;

use super::lines::{self, Line};
use super::message::{Answer, Ask, EncodeAsk, FailureKind, HelloAnswer, HelloAsk, PROTOCOL, StateAt};
use crate::encode::cuda::encoder::{Order, RoundEncoder};
use crate::train::{MicroBatchBudget, Round, RoundResult, RunPart, StepReport, TrainError, Trainer};
use crate::worker::{Shards, TrainerFactory};

/// Time between two signs of life.
const HEARTBEAT: Duration = Duration::from_millis(limits::TRAINER_HEARTBEAT_MS);

/// Speaks the trainer protocol on standard input and output until the agent leaves. `make` opens what is trained on, once
/// the agent has said where that is.
///
/// # Errors
/// There is no agent at the other end, or `make` failed.
pub fn serve<M>(name: &str, make: M) -> anyhow::Result<()>
where
    M: FnOnce(&HelloAsk) -> anyhow::Result<(Shards, TrainerFactory)>,
{
    serve_with_encoder(name, None, make)
}

/// The same with an encoder for what was trained.
///
/// # Errors
/// As [`serve`].
pub fn serve_with_encoder<M>(name: &str, encoder: Option<RoundEncoder>, make: M) -> anyhow::Result<()>
where
    M: FnOnce(&HelloAsk) -> anyhow::Result<(Shards, TrainerFactory)>,
{
    let stop = Arc::new(AtomicU64::new(0));
    let (asks, asked) = sync_channel(limits::TRAINER_QUEUE);
    let reading = Arc::clone(&stop);
    std::thread::Builder::new().name("asks".to_owned()).spawn(move || read_asks(&asks, &reading))?;
    let hello = match asked.recv().context("there is no agent at the other end of standard input")? {
        Ask::Hello(hello) => hello,
        other => bail!("the first line is {other:?} instead of `hello`"),
    };
    if !(hello.min_protocol..=hello.max_protocol).contains(&PROTOCOL) {
        let HelloAsk { min_protocol, max_protocol, .. } = hello;
        bail!("the agent speaks versions {min_protocol} to {max_protocol} of the trainer protocol, this is {PROTOCOL}");
    }
    let (shards, factory) = make(&hello)?;
    let examples = |shard: &Option<Box<dyn crate::shard::Shard>>| shard.as_ref().map_or(0, |shard| shard.len() as u64);
    let (train_examples, eval_examples) = (examples(&shards.train), examples(&shards.eval));
    let busy = Arc::new(AtomicBool::new(false));
    let mouth = Mouth::default();
    let (name, encodes) = (name.to_owned(), encoder.is_some());
    let answer = HelloAnswer { protocol: PROTOCOL, name, train_examples, eval_examples, encodes, stages: false };
    mouth.say(&Answer::Hello(answer));
    let (beating, at_work) = (mouth.clone(), Arc::clone(&busy));
    std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(HEARTBEAT);
            if at_work.load(Ordering::Relaxed) {
                beating.say(&Answer::Heartbeat);
            }
        }
    })?;
    let server = Server { hello, shards, factory, trainer: None, encoder, mouth, stop };
    server.run(&asked, &busy)
}

/// Lines to the agent. One that cannot be told anything has gone, and then so does this process.
#[derive(Debug, Clone, Default)]
struct Mouth(Arc<Mutex<()>>);

impl Mouth {
    fn say(&self, answer: &Answer) {
        let _turn = self.0.lock();
        let mut line = serde_json::to_vec(answer).expect("an answer consists of numbers and strings");
        line.push(b'\n');
        let mut output = io::stdout().lock();
        if output.write_all(&line).and_then(|()| output.flush()).is_err() {
            std::process::exit(0);
        }
    }
}

/// Reads beside the work, so that a stop is seen and the agent's end ends this process at once.
fn read_asks(to: &SyncSender<Ask>, stop: &AtomicU64) {
    let mut input = BufReader::new(io::stdin());
    while let Ok(Line::Text(line)) = lines::read(&mut input, limits::TRAINER_LINE_BYTES) {
        match serde_json::from_str(&line) {
            Ok(Ask::Stop { id }) => stop.store(id, Ordering::Relaxed),
            Ok(Ask::Exit) => break,
            Ok(ask) => {
                if to.send(ask).is_err() {
                    break;
                }
            }
            Err(error) => {
                tracing::error!("{line:?} is no message ({error}); start a trainer through `anabranch-agent run`");
                std::process::exit(2);
            }
        }
    }
    std::process::exit(0);
}

struct Server {
    hello: HelloAsk,
    shards: Shards,
    factory: TrainerFactory,
    trainer: Option<Box<dyn Trainer>>,
    encoder: Option<RoundEncoder>,
    mouth: Mouth,
    stop: Arc<AtomicU64>,
}

/// Why a request cannot be done.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    File(#[from] model_file::ReadError),
    #[error("cannot write {0}: {1}")]
    Write(String, #[source] io::Error),
    #[error("{0}")]
    Order(&'static str),
}

impl Server {
    fn run(mut self, asked: &Receiver<Ask>, busy: &AtomicBool) -> anyhow::Result<()> {
        while let Ok(ask) = asked.recv() {
            busy.store(true, Ordering::Relaxed);
            let (id, answer) = match ask {
                Ask::Hello(_) => bail!("a second `hello`"),
                Ask::Prepare { id, run } => (id, self.prepare(id, &run)),
                Ask::Initial { id, seed, out } => (id, self.initial(id, seed, &out)),
                Ask::Train { .. } => self.train(ask),
                Ask::Evaluate { id, model } => (id, self.evaluate(id, &model)),
                // The agent asks only trainers that said `modules`.
                Ask::Stages { id, .. }
                | Ask::Weights { id, .. }
                | Ask::Forward { id, .. }
                | Ask::Backward { id, .. } => (id, Err(Refusal::Order("this trainer computes no parts of its model"))),
                Ask::Stop { .. } | Ask::Exit => continue,
            };
            let answer = answer.unwrap_or_else(|refusal| {
                let kind = match &refusal {
                    Refusal::Train(TrainError::Diverged { .. } | TrainError::DivergedThere(_)) => FailureKind::Diverged,
                    Refusal::Train(TrainError::OutOfMemory(_)) => FailureKind::Memory,
                    _ => FailureKind::Error,
                };
                Answer::Failed { id, kind, message: refusal.to_string() }
            });
            busy.store(false, Ordering::Relaxed);
            self.mouth.say(&answer);
        }
        Ok(())
    }

    fn trainer(trainer: &mut Option<Box<dyn Trainer>>) -> Result<&mut dyn Trainer, Refusal> {
        match trainer {
            Some(trainer) => Ok(trainer.as_mut()),
            None => Err(Refusal::Order("nothing was prepared")),
        }
    }

    fn path(&self, name: &str) -> Result<std::path::PathBuf, Refusal> {
        if Path::new(name).components().count() != 1 || name.contains(['/', '\0']) || name == ".." {
            return Err(Refusal::Order("a file's name leads out of the directory"));
        }
        Ok(self.hello.dir.join(name))
    }

    fn prepare(&mut self, id: u64, run: &RunPart) -> Result<Answer, Refusal> {
        let trainer = (self.factory)(run)?;
        let (tensors, proximal) = (trainer.manifest().tensors().to_vec(), trainer.adds_proximal_term());
        self.trainer = Some(trainer);
        Ok(Answer::Prepared { id, tensors, proximal, modules: Vec::new() })
    }

    fn initial(&mut self, id: u64, seed: u64, out: &str) -> Result<Answer, Refusal> {
        let path = self.path(out)?;
        let trainer = Self::trainer(&mut self.trainer)?;
        let values = trainer.initial(seed)?;
        let written = model_file::hand_over(&path, trainer.manifest(), &values);
        written.map_err(|error| Refusal::Write(out.to_owned(), error))?;
        Ok(Answer::Initial { id })
    }

    fn train(&mut self, ask: Ask) -> (u64, Result<Answer, Refusal>) {
        let Ask::Train { id, base, out, seed, context, plan, max_micro_batch, keep, encode } = ask else {
            return (0, Err(Refusal::Order("not a round")));
        };
        let mut work = || {
            let (from, to) = (self.path(&base)?, self.path(&out)?);
            let trainer = Self::trainer(&mut self.trainer)?;
            let (manifest, base) = model_file::read(&from, Some(trainer.manifest()))?;
            let shard = self.shards.train.as_deref().ok_or(Refusal::Order("there is no shard to train on"))?;
            let (mouth, stop, mut seen) = (&self.mouth, &self.stop, 0);
            let mut begins = |micro_batch| {
                let micro_batch = Some(micro_batch);
                mouth.say(&Answer::Step { id, step: 0, examples: 0, loss: 0.0, micro_batch });
            };
            let mut control = |StepReport { step, loss, examples, micro_batch }: StepReport| {
                seen += u64::from(examples);
                mouth.say(&Answer::Step { id, step, examples: seen, loss: loss.into(), micro_batch });
                if stop.load(Ordering::Relaxed) == id { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let budget = Some(MicroBatchBudget { most: max_micro_batch, begins: &mut begins });
            let round = Round::new(&base, &plan, seed, shard, &mut control);
            let round = Round { context, budget, keep: keep.clone(), ..round };
            let RoundResult { end, num_examples, steps, mean_loss, stopped, .. } = trainer.train(round)?;
            let mut encoded = false;
            if !stopped {
                let written = model_file::hand_over(&to, &manifest, &end);
                written.map_err(|error| Refusal::Write(out.clone(), error))?;
                if let Some(ask) = &encode {
                    encoded = self.encode(ask, &manifest, &base, &end);
                }
            }
            Ok(Answer::Trained { id, steps, num_examples, mean_loss: mean_loss.into(), stopped, encoded })
        };
        (id, work())
    }

    /// Writes the payload; whether there is one. What goes wrong here costs the agent an encoding, not the round.
    fn encode(&mut self, ask: &EncodeAsk, manifest: &ModelManifest, base: &[f32], end: &[f32]) -> bool {
        let mut work = || -> anyhow::Result<bool> {
            let left_out = match &ask.state {
                StateAt::Kept => None,
                StateAt::Empty => Some(Vec::new()),
                StateAt::File(name) => Some(model_file::read(&self.path(name)?, Some(manifest))?.1),
            };
            let Some(encoder) = &mut self.encoder else { return Ok(false) };
            let EncodeAsk { fraction, feedback_decay, from, made, .. } = *ask;
            let order = Order { fraction, feedback_decay, from, left_out, made };
            let Some(payload) = encoder.encode(manifest, order, base, end) else { return Ok(false) };
            std::fs::write(self.path(&ask.out)?, payload)?;
            Ok(true)
        };
        work().unwrap_or_else(|error| {
            tracing::warn!("not encoded here: {error:#}");
            false
        })
    }

    fn evaluate(&mut self, id: u64, model: &str) -> Result<Answer, Refusal> {
        let path = self.path(model)?;
        let trainer = Self::trainer(&mut self.trainer)?;
        let (_, values) = model_file::read(&path, Some(trainer.manifest()))?;
        let shard = self.shards.eval.as_deref().ok_or(Refusal::Order("there is no shard to evaluate on"))?;
        Ok(Answer::Evaluated { id, measured: trainer.evaluate(&values, shard)?.into() })
    }
}
