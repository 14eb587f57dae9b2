//! The threads beside the loop, one for each kind of job. Each gets its next job when the loop has read the answer to the
//! one before: neither ever waits for the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use anabranch_common::limits;
use tokio::sync::mpsc;

use crate::identity::Identity;
use crate::node::checkpoint::{CheckpointJob, Keep};
use crate::node::merge::{MergeJob, Merger};
use crate::node::write::{self, WriteJob};
use crate::node::{Done, Job, SignJob};
use crate::store::Store;

/// A thread's inbox. Dropping it ends the thread once it has done what it has.
#[derive(Debug)]
struct Worker<J> {
    jobs: SyncSender<J>,
    thread: JoinHandle<()>,
}

impl<J: Send + 'static> Worker<J> {
    fn spawn(
        name: &'static str,
        answers: &mpsc::Sender<Done>,
        mut run: impl FnMut(J) -> Done + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = sync_channel(limits::WORKER_JOBS);
        let answers = answers.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Ok(job) = inbox.recv() {
                // Without this answer the loop would wait for ever.
                let done = catch_unwind(AssertUnwindSafe(|| run(job))).unwrap_or(Done::Panicked(name));
                if answers.blocking_send(done).is_err() {
                    tracing::trace!("the loop has ended");
                }
            }
        })?;
        Ok(Self { jobs, thread })
    }

    fn start(&self, job: J) {
        // The inbox is empty, since the answer to the job before was read; and the thread lives as long as its inbox.
        if self.jobs.try_send(job).is_err() {
            tracing::error!("a worker does not take its job");
        }
    }

    fn finish(self) {
        drop(self.jobs);
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

/// Every worker.
#[derive(Debug)]
pub(crate) struct Workers {
    writer: Worker<Vec<WriteJob>>,
    merger: Worker<Vec<MergeJob>>,
    checkpointer: Worker<Box<CheckpointJob>>,
    signer: Worker<Vec<SignJob>>,
}

/// What the workers need.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keep: Keep,
    pub(crate) identity: Arc<Identity>,
    pub(crate) agent_certificate_days: u32,
}

impl Workers {
    /// Starts the threads, which answer on `answers`.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(means: Means, answers: &mpsc::Sender<Done>) -> std::io::Result<Self> {
        let Means { store, keep, identity, agent_certificate_days: days } = means;
        let (journal, mut merger) = (Arc::clone(&store), Merger::default());
        Ok(Self {
            writer: Worker::spawn("writer", answers, move |group| Done::Write(write::write(journal.as_ref(), group)))?,
            merger: Worker::spawn("merger", answers, move |batch| Done::Merge(merger.run(batch)))?,
            checkpointer: Worker::spawn("checkpointer", answers, move |job: Box<CheckpointJob>| {
                Done::Checkpoint(job.run(store.as_ref(), keep))
            })?,
            signer: Worker::spawn("signer", answers, move |jobs: Vec<SignJob>| {
                Done::Sign(jobs.into_iter().filter_map(|job| job.run(&identity, days)).collect())
            })?,
        })
    }

    /// Hands a job to its thread, which is free.
    pub(crate) fn run(&self, job: Job) {
        match job {
            Job::Write(group) => self.writer.start(group),
            Job::Merge(batch) => self.merger.start(batch),
            Job::Checkpoint(job) => self.checkpointer.start(job),
            Job::Sign(jobs) => self.signer.start(jobs),
            // These have no thread of their own.
            Job::Decode(_) | Job::Spool(_) => {}
        }
    }

    /// Waits until the threads have ended.
    pub(crate) fn finish(self) {
        self.writer.finish();
        self.merger.finish();
        self.checkpointer.finish();
        self.signer.finish();
    }
}
