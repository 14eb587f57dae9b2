//! The threads beside the loop. The registry has one for each of its two kinds of job. All runs share the threads of the
//! other kinds: so runs that have nothing to do cost none.
//!
//! The lanes of a node let one job of each kind out at a time. So the jobs of a run stay in their order, whichever thread
//! takes them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anabranch_common::ids::RunId;
use anabranch_common::limits;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::host::Input;
use crate::node::checkpoint::Keep;
use crate::node::merge::Merger;
use crate::node::write;
use crate::node::{Done, Job};
use crate::registry::save::{self, SaveJob};
use crate::registry::{self, Signer, SignerJob};
use crate::store::Store;
use crate::web::RunEvents;

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

/// A job with what it works on.
type Work = Box<dyn FnOnce() -> Done + Send>;

/// Threads for one kind of job, of any run. There are never more than were needed at once.
#[derive(Debug)]
struct Pool {
    name: &'static str,
    jobs: SyncSender<(RunId, Work)>,
    inbox: Arc<Mutex<Receiver<(RunId, Work)>>>,
    /// Jobs that are waiting or being done.
    out: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    most: usize,
    answers: mpsc::Sender<Input>,
}

impl Pool {
    fn new(name: &'static str, most: usize, answers: &mpsc::Sender<Input>) -> Self {
        // Each run has at most one job of a kind out.
        let (jobs, inbox) = sync_channel(limits::RUNS);
        let (inbox, out) = (Arc::new(Mutex::new(inbox)), Arc::default());
        Self { name, jobs, inbox, out, threads: Vec::new(), most, answers: answers.clone() }
    }

    /// Hands over a job of a run. Returns the answer if no thread takes it.
    fn start(&mut self, run: RunId, work: impl FnOnce() -> Done + Send + 'static) -> Option<Done> {
        let out = self.out.fetch_add(1, Ordering::Relaxed) + 1;
        if out > self.threads.len() && self.threads.len() < self.most {
            match self.spawn() {
                Ok(thread) => self.threads.push(thread),
                Err(error) if self.threads.is_empty() => {
                    tracing::error!(worker = self.name, %error, "no thread can be started");
                    self.out.fetch_sub(1, Ordering::Relaxed);
                    return Some(Done::NotTaken(self.name));
                }
                Err(error) => tracing::warn!(worker = self.name, %error, "no further thread can be started"),
            }
        }
        let sent = self.jobs.try_send((run, Box::new(work)));
        sent.is_err().then(|| {
            self.out.fetch_sub(1, Ordering::Relaxed);
            Done::NotTaken(self.name)
        })
    }

    fn spawn(&self) -> std::io::Result<JoinHandle<()>> {
        let (name, answers) = (self.name, self.answers.clone());
        let (inbox, out) = (Arc::clone(&self.inbox), Arc::clone(&self.out));
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            loop {
                let next = inbox.lock().recv();
                let Ok((run, work)) = next else { return };
                // Without this answer the loop would wait for ever.
                let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Done::Panicked(name));
                out.fetch_sub(1, Ordering::Relaxed);
                if answers.blocking_send(Input::Done { run, done }).is_err() {
                    tracing::trace!("the loop has ended");
                }
            }
        })
    }

    fn finish(self) {
        drop(self.jobs);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// What the jobs of one run work on.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keep: Keep,
    /// The model, which the merger's jobs move in turn.
    pub(crate) merger: Arc<Mutex<Merger>>,
    /// Where it is noted how long they take, if anywhere.
    pub(crate) events: Option<RunEvents>,
}

/// The workers that all runs share.
#[derive(Debug)]
pub(crate) struct RunWorkers {
    writers: Pool,
    mergers: Pool,
    checkpointers: Pool,
}

impl RunWorkers {
    /// Workers that answer on `answers`. They start their threads when there is something to do.
    pub(crate) fn new(answers: &mpsc::Sender<Input>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            writers: Pool::new("writer", limits::RUN_WRITERS, answers),
            mergers: Pool::new("merger", cores, answers),
            checkpointers: Pool::new("checkpointer", limits::RUN_CHECKPOINTERS, answers),
        }
    }

    /// Hands over a job of a run. Returns the answer if no thread takes it.
    #[must_use]
    pub(crate) fn run(&mut self, run: RunId, job: Job, tools: &Tools) -> Option<Done> {
        let Tools { store, keep, merger, events } = tools.clone();
        match job {
            Job::Write(group) => self.writers.start(run, move || {
                Done::Write(match events {
                    Some(events) => events.write(store.as_ref(), group),
                    None => write::write(store.as_ref(), group),
                })
            }),
            Job::Merge(batch) => self.mergers.start(run, move || Done::Merge(merger.lock().run(batch))),
            Job::Checkpoint(job) => self.checkpointers.start(run, move || {
                Done::Checkpoint(match events {
                    Some(events) => events.checkpoint(*job, store.as_ref(), keep),
                    None => job.run(store.as_ref(), keep),
                })
            }),
            // These have no thread of their own.
            Job::Decode(_) | Job::Spool(_) | Job::Pack(_) => None,
        }
    }

    /// Waits until the threads have ended.
    pub(crate) fn finish(self) {
        self.writers.finish();
        self.mergers.finish();
        self.checkpointers.finish();
    }
}

/// The workers of the registry.
#[derive(Debug)]
pub(crate) struct RegistryWorkers {
    saver: Worker<Vec<SaveJob>>,
    signer: Worker<Vec<SignerJob>>,
}

impl RegistryWorkers {
    /// Starts the threads, which answer on `answers`.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        mut signer: Signer,
        answers: &mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let panicked = |name| Input::Registry(registry::Done::Panicked(name));
        Ok(Self {
            saver: Worker::spawn("saver", answers, panicked, move |group| {
                Input::Registry(registry::Done::Saved(save::save(store.catalogue(), group)))
            })?,
            signer: Worker::spawn("signer", answers, panicked, move |jobs: Vec<SignerJob>| {
                let signed = jobs.into_iter().filter_map(|job| job.run(&mut signer)).collect();
                Input::Registry(registry::Done::Signed(signed))
            })?,
        })
    }

    /// Hands items to the saver, which is free. Returns the answer if it does not take them.
    #[must_use]
    pub(crate) fn save(&self, group: Vec<SaveJob>) -> Option<registry::Done> {
        self.saver.start(group).err().map(registry::Done::NotTaken)
    }

    /// Hands jobs to the signer, which is free. Returns the answer if it does not take them.
    #[must_use]
    pub(crate) fn sign(&self, jobs: Vec<SignerJob>) -> Option<registry::Done> {
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
        let (answers_in, mut answers) = mpsc::channel(limits::COORDINATOR_ANSWERS);
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

    /// A run whose job takes long holds up no other: and what is idle has no thread.
    #[test]
    fn runs_share_threads_of_which_there_are_as_many_as_were_needed() {
        let (answers_in, mut answers) = mpsc::channel(limits::COORDINATOR_ANSWERS);
        let mut pool = Pool::new("writer", 2, &answers_in);
        assert_eq!(pool.threads.len(), 0);
        let (go, may_go) = sync_channel::<()>(1);
        let (slow, quick, last) = (RunId([1; 16]), RunId([2; 16]), RunId([3; 16]));
        assert!(
            pool.start(slow, move || may_go.recv().map_or(Done::NotTaken("slow"), |()| Done::NotTaken("late")))
                .is_none()
        );
        assert!(pool.start(quick, || Done::NotTaken("quick")).is_none());
        let answer = answers.blocking_recv();
        assert!(
            matches!(answer, Some(Input::Done { run, done: Done::NotTaken("quick") }) if run == quick),
            "{answer:?}"
        );
        assert!(pool.start(last, || panic!("no such job")).is_none());
        let answer = answers.blocking_recv();
        assert!(
            matches!(answer, Some(Input::Done { run, done: Done::Panicked("writer") }) if run == last),
            "{answer:?}"
        );
        go.send(()).expect("it waits");
        let answer = answers.blocking_recv();
        assert!(matches!(answer, Some(Input::Done { run, done: Done::NotTaken("late") }) if run == slow), "{answer:?}");
        assert_eq!(pool.threads.len(), 2);
        pool.finish();
    }

    /// Guards the loop: the lane of a job that was lost would wait for ever, and the process would look alive.
    #[test]
    fn a_job_that_a_worker_does_not_take_is_told() {
        let (answers_in, mut answers) = mpsc::channel(limits::COORDINATOR_ANSWERS);
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
