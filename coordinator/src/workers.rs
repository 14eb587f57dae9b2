//! The two threads beside the loop: the writer makes records durable, the merger moves the model. Each answers with
//! events, over a channel that the loop always reads first, so that neither can wait for the other.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anabranch_common::codec::EncodeError;
use anabranch_common::ids::{ModelVersion, Position};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::schema::SchemaError;
use anabranch_io::faults;
use tokio::sync::mpsc;

use crate::core::command::CheckpointOrder;
use crate::core::content::Content;
use crate::core::event::Event;
use crate::core::roster::ItemChange;
use crate::merger::{MergeError, ModelState};
use crate::publish::Snapshot;
use crate::recovery::{self, RecoveryError, checkpoint};
use crate::store::{StorageError, Store};

/// What a worker answers.
#[derive(Debug)]
pub enum Answer {
    /// Something happened.
    Event(Event),
    /// A version is encoded; the loop keeps it and tells the core.
    Published(Arc<Snapshot>),
    /// The worker cannot go on, and so the process must not.
    Failed(WorkerError),
}

/// Why a worker stopped.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A model or a checkpoint could not be written.
    #[error("a model or a checkpoint cannot be stored")]
    Recovery(#[from] RecoveryError),
    /// A record does not fit.
    #[error("a record cannot be stored")]
    Record(#[from] SchemaError),
    /// A durable record cannot be merged.
    #[error("a journalled record cannot be merged")]
    Merge(#[from] MergeError),
    /// A model cannot be encoded.
    #[error("the model cannot be encoded")]
    Encode(#[from] EncodeError),
}

/// A job for the writer.
#[derive(Debug)]
pub enum WriteJob {
    /// Store version 0, then record 0.
    Begin {
        /// Record 0.
        record: Arc<Record>,
        /// Version 0.
        model: Arc<Content>,
    },
    /// Append a record.
    Append(Arc<Record>),
    /// Store or delete items of the catalogue.
    Items {
        /// Comes back in the answer.
        ticket: u64,
        /// Each item, or that it is to be deleted.
        items: Vec<ItemChange>,
    },
}

/// A job for the merger.
#[derive(Debug)]
pub enum MergeJob {
    /// From here on this is the model.
    Start(Box<ModelState>),
    /// Merge a durable record.
    Merge {
        /// The record.
        record: Arc<Record>,
        /// Its decoded payload, where it has one.
        content: Option<Arc<Content>>,
    },
    /// Encode the newest version.
    Publish,
    /// Copy the model for a checkpoint.
    Checkpoint(Box<CheckpointOrder>),
}

/// A worker's inbox. Dropping it lets the worker finish what it has and end.
#[derive(Debug)]
pub struct Worker<J> {
    jobs: SyncSender<J>,
    thread: JoinHandle<()>,
}

impl<J: Send + 'static> Worker<J> {
    fn spawn(name: &str, body: impl FnOnce(Receiver<J>) + Send + 'static) -> std::io::Result<Self> {
        let (jobs, inbox) = sync_channel(limits::COORDINATOR_JOBS);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || body(inbox))?;
        Ok(Self { jobs, thread })
    }

    /// Hands over a job. A worker that has stopped has said why already.
    pub fn send(&self, job: J) {
        if self.jobs.send(job).is_err() {
            tracing::trace!("a worker has stopped");
        }
    }

    /// Waits until everything that was handed over is done.
    pub fn finish(self) {
        drop(self.jobs);
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

fn answer(answers: &mpsc::Sender<Answer>, answer: Answer) {
    if answers.blocking_send(answer).is_err() {
        tracing::trace!("the loop has ended");
    }
}

/// Starts the writer: one sync makes everything durable that has come in the meantime (group commit).
///
/// # Errors
/// No thread can be started.
pub fn writer(store: Arc<dyn Store>, answers: mpsc::Sender<Answer>) -> std::io::Result<Worker<WriteJob>> {
    Worker::spawn("writer", move |inbox| {
        while let Ok(first) = inbox.recv() {
            match write(store.as_ref(), group(first, inbox.try_iter())) {
                Ok(events) => events.into_iter().for_each(|event| answer(&answers, Answer::Event(event))),
                Err(error) => return answer(&answers, Answer::Failed(error)),
            }
        }
    })
}

/// The jobs that are made durable with one sync: those that wait, within the limits of a group.
/// Each payload of a group is copied while it is written.
fn group(first: WriteJob, mut waiting: impl Iterator<Item = WriteJob>) -> Vec<WriteJob> {
    let mut bytes = payload_bytes(&first);
    let mut jobs = vec![first];
    while jobs.len() < limits::GROUP_COMMIT_RECORDS
        && bytes < limits::GROUP_COMMIT_BYTES
        && let Some(job) = waiting.next()
    {
        bytes += payload_bytes(&job);
        jobs.push(job);
    }
    jobs
}

fn payload_bytes(job: &WriteJob) -> usize {
    match job {
        WriteJob::Append(record) => record.payload.len(),
        WriteJob::Begin { .. } | WriteJob::Items { .. } => 0,
    }
}

/// Makes a group of jobs durable with one sync; answered by `Journalled` and `ItemsSaved`.
///
/// # Errors
/// The store fails: the process must stop, and nobody may be told of any of these jobs.
pub fn write(store: &dyn Store, jobs: Vec<WriteJob>) -> Result<Vec<Event>, WorkerError> {
    let mut events = Vec::new();
    let mut records: Vec<(Position, Vec<u8>)> = Vec::new();
    for job in jobs {
        match job {
            WriteJob::Begin { record, model } => {
                if let RecordBody::Genesis { manifest, .. } = &record.body {
                    recovery::put_model(store, manifest, model.delta().values())?;
                    store.commit()?;
                    faults::point("genesis-model-stored");
                }
                records.push((record.position, record.to_bytes()?));
            }
            WriteJob::Append(record) => records.push((record.position, record.to_bytes()?)),
            WriteJob::Items { ticket, items } => {
                save_items(store, items)?;
                events.push(Event::ItemsSaved { ticket });
            }
        }
    }
    if let Some((upto, _)) = records.last() {
        let upto = *upto;
        faults::point("journal-before-write");
        store.append(&records)?;
        faults::point("journal-before-sync");
        events.push(Event::Journalled { upto });
    }
    store.commit()?;
    faults::point("journal-before-ack");
    Ok(events)
}

/// Stores or deletes items of the catalogue. Not durable until the store commits.
///
/// # Errors
/// The store fails.
pub fn save_items(store: &dyn Store, items: Vec<ItemChange>) -> Result<(), StorageError> {
    for (key, value) in items {
        match value {
            Some(value) => store.put_item(&key, &value)?,
            None => store.delete_item(&key)?,
        }
    }
    Ok(())
}

/// How many checkpoints are kept, and how much of the journal.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Checkpoints.
    pub checkpoints: usize,
    /// Records.
    pub retention: crate::config::Retention,
}

/// A checkpoint that is to be written: the order, and a copy of the model at that moment.
#[derive(Debug)]
pub struct CheckpointJob {
    order: CheckpointOrder,
    model: ModelState,
}

/// Starts the merger, and the thread that writes its checkpoints.
///
/// # Errors
/// No thread can be started.
pub fn merger(store: Arc<dyn Store>, keep: Keep, answers: mpsc::Sender<Answer>) -> std::io::Result<Worker<MergeJob>> {
    let to_loop = answers.clone();
    let checkpointer = Worker::spawn("checkpointer", move |inbox| {
        while let Ok(job) = inbox.recv() {
            match write_checkpoint(store.as_ref(), keep, job) {
                Ok(event) => answer(&to_loop, Answer::Event(event)),
                Err(error) => return answer(&to_loop, Answer::Failed(error)),
            }
        }
    })?;
    Worker::spawn("merger", move |inbox| {
        let mut merger = Merger::default();
        while let Ok(job) = inbox.recv() {
            match merger.handle(job) {
                Ok(Merged::Nothing) => {}
                Ok(Merged::NonFinite(version)) => answer(&answers, Answer::Event(Event::NonFinite { version })),
                Ok(Merged::Published(snapshot)) => answer(&answers, Answer::Published(snapshot)),
                Ok(Merged::Checkpoint(job)) => checkpointer.send(*job),
                Err(error) => {
                    answer(&answers, Answer::Failed(error));
                    break;
                }
            }
        }
        checkpointer.finish();
    })
}

/// What a job of the merger led to.
#[derive(Debug)]
pub enum Merged {
    /// Nothing that anyone waits for.
    Nothing,
    /// The model is no longer finite, from this version on.
    NonFinite(ModelVersion),
    /// A version is encoded.
    Published(Arc<Snapshot>),
    /// A copy of the model is ready to be written.
    Checkpoint(Box<CheckpointJob>),
}

/// The model, and the jobs that move it, one after the other.
#[derive(Debug, Default)]
pub struct Merger {
    /// `None` before there is a model, and again once it is no longer finite: nothing is published then.
    state: Option<ModelState>,
}

impl Merger {
    /// Does a job.
    ///
    /// # Errors
    /// A durable record cannot be merged, or the model cannot be encoded: the process must stop.
    pub fn handle(&mut self, job: MergeJob) -> Result<Merged, WorkerError> {
        if let MergeJob::Start(state) = job {
            self.state = Some(*state);
            return Ok(Merged::Nothing);
        }
        let Some(state) = &mut self.state else { return Ok(Merged::Nothing) };
        match job {
            MergeJob::Start(_) => Ok(Merged::Nothing),
            MergeJob::Merge { record, content } => {
                faults::point("merge-before");
                match (&record.body, content) {
                    (RecordBody::Contribution(contribution), Some(content)) => {
                        state.contribute(contribution, content.delta());
                    }
                    _ => state.apply(&record)?,
                }
                let overflowed = state.overflowed();
                faults::point("merge-after");
                Ok(overflowed.map_or(Merged::Nothing, |version| self.not_finite(version)))
            }
            MergeJob::Publish => {
                let snapshot = Snapshot::of(state.version(), state.manifest(), state.model())?;
                Ok(Merged::Published(Arc::new(snapshot)))
            }
            // A buffer that overflowed would take the next version with it: the run ends at the last finite one.
            MergeJob::Checkpoint(_) if !state.merge_state_is_finite() => {
                let version = state.version().next();
                Ok(self.not_finite(version))
            }
            MergeJob::Checkpoint(order) => {
                Ok(Merged::Checkpoint(Box::new(CheckpointJob { order: *order, model: state.copy()? })))
            }
        }
    }

    fn not_finite(&mut self, version: ModelVersion) -> Merged {
        self.state = None;
        Merged::NonFinite(version)
    }

    /// The model, if there is one that may be shown.
    #[must_use]
    pub fn model(&self) -> Option<&ModelState> {
        self.state.as_ref()
    }
}

/// Writes a checkpoint and prunes what it makes superfluous; answered by `Checkpointed`.
///
/// # Errors
/// The store fails.
pub fn write_checkpoint(store: &dyn Store, keep: Keep, job: CheckpointJob) -> Result<Event, WorkerError> {
    let CheckpointJob { order, model } = job;
    checkpoint::write(store, &order.state, order.chain, &model, order.at_ms)?;
    // The last checkpoint of a run prunes nothing: the version that is the result may be older than it.
    let oldest = match order.state.finished {
        Some((_, result)) => result,
        None => checkpoint::prune(store, keep.checkpoints, keep.retention)?.oldest,
    };
    Ok(Event::Checkpointed { position: order.position, version: order.state.version, oldest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(position: u64, payload_bytes: usize) -> WriteJob {
        let payload: Arc<[u8]> = vec![0; payload_bytes].into();
        WriteJob::Append(Arc::new(Record::new(Position(position), 0, RecordBody::Paused, payload)))
    }

    /// How many of these records are made durable with one sync.
    fn grouped(payload_bytes: &[usize]) -> usize {
        let mut jobs = (0..).zip(payload_bytes).map(|(position, bytes)| append(position, *bytes));
        group(jobs.next().expect("a first one"), jobs).len()
    }

    /// Each payload is copied while its group is written: without a bound a slow disk would
    /// double the budget of payloads.
    #[test]
    fn a_group_is_bounded_in_records_and_in_bytes() {
        let quarter = limits::GROUP_COMMIT_BYTES / 4;
        assert_eq!(grouped(&[0; 3]), 3);
        assert_eq!(grouped(&[0; limits::GROUP_COMMIT_RECORDS + 1]), limits::GROUP_COMMIT_RECORDS);
        assert_eq!(grouped(&[quarter; 6]), 4);
        assert_eq!(grouped(&[limits::GROUP_COMMIT_BYTES + 1, 1]), 1, "one record always fits");
        assert_eq!(grouped(&[quarter - 1; 6]), 5, "the record that reaches the bound is the last one");
    }
}
