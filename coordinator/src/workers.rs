//! The threads beside the loop, one for each kind of job. Each gets its next job when the loop has read the answer to the
//! one before: neither ever waits for the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use anabranch_common::ids::RunId;
use anabranch_common::limits;
use tokio::sync::mpsc;

use crate::host::Input;
use crate::identity::Identity;
use crate::node::checkpoint::{CheckpointJob, Keep};
use crate::node::merge::{MergeJob, Merger};
use crate::node::write::{self, WriteJob};
use crate::node::{Done, Job};
use crate::registry::save::{self, SaveJob};
use crate::registry::{self, SignJob};
use crate::store::Store;

/// A thread's inbox. Dropping it ends the thread once it has done what it has.
#[derive(Debug)]
struct Worker<J> {
    name: &'static str,
    jobs: SyncSender<J>,
    thread: JoinHandle<()>,
}

impl<J: Send + 'static> Worker<J> {
    fn spawn(
        name: &'static str,
        answers: &mpsc::Sender<Input>,
        panicked: impl Fn(&'static str) -> Input + Send + 'static,
        mut run: impl FnMut(J) -> Input + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = sync_channel(limits::WORKER_JOBS);
        let answers = answers.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Ok(job) = inbox.recv() {
                // Without this answer the loop would wait for ever.
                let done = catch_unwind(AssertUnwindSafe(|| run(job))).unwrap_or_else(|_| panicked(name));
                if answers.blocking_send(done).is_err() {
                    tracing::trace!("the loop has ended");
                }
            }
        })?;
        Ok(Self { name, jobs, thread })
    }

    /// Hands over a job. Returns the worker's name if it does not take it: nobody would ever answer.
    fn start(&self, job: J) -> Result<(), &'static str> {
        // The inbox is empty, since the answer to the job before was read; and the thread lives as long as its inbox.
        self.jobs.try_send(job).map_err(|_| self.name)
    }

    fn finish(self) {
        drop(self.jobs);
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

/// The workers of one run.
#[derive(Debug)]
pub(crate) struct RunWorkers {
    writer: Worker<Vec<WriteJob>>,
    merger: Worker<Vec<MergeJob>>,
    checkpointer: Worker<Box<CheckpointJob>>,
}

impl RunWorkers {
    /// Starts the threads, which answer on `answers`.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(
        run: RunId,
        store: Arc<dyn Store>,
        keep: Keep,
        answers: &mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let answer = move |done| Input::Done { run, done };
        let panicked = move |name| answer(Done::Panicked(name));
        let (journal, mut merger) = (Arc::clone(&store), Merger::default());
        Ok(Self {
            writer: Worker::spawn("writer", answers, panicked, move |group| {
                answer(Done::Write(write::write(journal.as_ref(), group)))
            })?,
            merger: Worker::spawn("merger", answers, panicked, move |batch| answer(Done::Merge(merger.run(batch))))?,
            checkpointer: Worker::spawn("checkpointer", answers, panicked, move |job: Box<CheckpointJob>| {
                answer(Done::Checkpoint(job.run(store.as_ref(), keep)))
            })?,
        })
    }

    /// Hands a job to its thread, which is free. Returns the answer if the thread does not take it.
    #[must_use]
    pub(crate) fn run(&self, job: Job) -> Option<Done> {
        let started = match job {
            Job::Write(group) => self.writer.start(group),
            Job::Merge(batch) => self.merger.start(batch),
            Job::Checkpoint(job) => self.checkpointer.start(job),
            // These have no thread of their own.
            Job::Decode(_) | Job::Spool(_) | Job::Pack(_) => Ok(()),
        };
        started.err().map(Done::NotTaken)
    }

    /// Waits until the threads have ended.
    pub(crate) fn finish(self) {
        self.writer.finish();
        self.merger.finish();
        self.checkpointer.finish();
    }
}

/// The workers of the registry.
#[derive(Debug)]
pub(crate) struct RegistryWorkers {
    saver: Worker<Vec<SaveJob>>,
    signer: Worker<Vec<SignJob>>,
}

impl RegistryWorkers {
    /// Starts the threads, which answer on `answers`. Certificates of agents are issued for so many days.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        identity: Arc<Identity>,
        days: u32,
        answers: &mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let panicked = |name| Input::Registry(registry::Done::Panicked(name));
        Ok(Self {
            saver: Worker::spawn("saver", answers, panicked, move |group| {
                Input::Registry(registry::Done::Saved(save::save(store.catalogue(), group)))
            })?,
            signer: Worker::spawn("signer", answers, panicked, move |jobs: Vec<SignJob>| {
                let signed = jobs.into_iter().filter_map(|job| job.run(&identity, days)).collect();
                Input::Registry(registry::Done::Signed(signed))
            })?,
        })
    }

    /// Hands items to the saver, which is free. Returns the answer if it does not take them.
    #[must_use]
    pub(crate) fn save(&self, group: Vec<SaveJob>) -> Option<registry::Done> {
        self.saver.start(group).err().map(registry::Done::NotTaken)
    }

    /// Hands requests for certificates to the signer, which is free. Returns the answer if it does not take them.
    #[must_use]
    pub(crate) fn sign(&self, jobs: Vec<SignJob>) -> Option<registry::Done> {
        self.signer.start(jobs).err().map(registry::Done::NotTaken)
    }

    /// Waits until the threads have ended.
    pub(crate) fn finish(self) {
        self.saver.finish();
        self.signer.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panicked(name: &'static str) -> Input {
        Input::Registry(registry::Done::Panicked(name))
    }

    #[test]
    fn a_panic_is_answered_and_the_next_job_is_done() {
        let (answers_in, mut answers) = mpsc::channel(limits::COORDINATOR_WORKERS);
        let worker = Worker::spawn("saver", &answers_in, panicked, |job: u64| {
            assert!(job > 0, "no such job");
            Input::Registry(registry::Done::Saved(Ok(vec![job])))
        })
        .expect("a thread");
        worker.start(0).expect("it is free");
        let answer = answers.blocking_recv();
        assert!(matches!(answer, Some(Input::Registry(registry::Done::Panicked("saver")))), "{answer:?}");
        worker.start(7).expect("it is free");
        let answer = answers.blocking_recv();
        assert!(
            matches!(&answer, Some(Input::Registry(registry::Done::Saved(Ok(tickets)))) if *tickets == [7]),
            "{answer:?}"
        );
        worker.finish();
    }

    /// Guards the loop: the lane of a job that was lost would wait for ever, and the process would look alive.
    #[test]
    fn a_job_that_a_worker_does_not_take_is_told() {
        let (answers_in, mut answers) = mpsc::channel(limits::COORDINATOR_WORKERS);
        let (begun_in, begun) = sync_channel(1 + limits::WORKER_JOBS);
        let (go, may_go) = sync_channel(1 + limits::WORKER_JOBS);
        let worker = Worker::spawn("signer", &answers_in, panicked, move |job: u64| {
            begun_in.send(job).expect("the test waits for it");
            may_go.recv().expect("the test lets it go");
            Input::Registry(registry::Done::Signed(vec![]))
        })
        .expect("a thread");
        worker.start(0).expect("it is free");
        assert_eq!(begun.recv(), Ok(0));
        (0..limits::WORKER_JOBS).for_each(|_| worker.start(1).expect("its inbox is empty"));
        assert_eq!(worker.start(2), Err("signer"), "its inbox is full");
        (0..=limits::WORKER_JOBS).for_each(|_| go.send(()).expect("it is there"));
        worker.finish();
        drop(answers_in);
        let answered = std::iter::from_fn(|| answers.blocking_recv()).count();
        assert_eq!(answered, 1 + limits::WORKER_JOBS);
    }
}
