//! The thread that owns the store.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anabranch_common::ids::{AgentId, BranchId, RunId};
use anabranch_common::limits;
use anabranch_common::update::MemoryMark;
use tokio::sync::oneshot;

use super::{Inputs, guarded};
use crate::encode::{FeedbackSource, States};
use crate::node::{Done, Input, StoreDone, StoreJob, storage_failed};
use crate::session::command::Ending;
use crate::session::event::{Event, FeedbackState};
use crate::store::Ledger;

/// Work for the store's thread.
#[derive(Debug)]
enum Task {
    /// A job of the node.
    Job(StoreJob),
    /// Reads the feedback state, for a trainer that encodes.
    Residual { reply: oneshot::Sender<(FeedbackState, Vec<f32>)> },
    /// Reads what is held of a range, for a pod.
    Held { of: (BranchId, Option<MemoryMark>), range: Range<usize>, reply: oneshot::Sender<Vec<f32>> },
    /// No more work.
    End,
}

/// The store's thread, and the way to it.
#[derive(Debug)]
pub struct StoreThread {
    tasks: SyncSender<Task>,
    states: Arc<States>,
    thread: JoinHandle<()>,
}

impl StoreThread {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(ledger: Ledger, run: RunId, agent: AgentId, inputs: Inputs) -> std::io::Result<Self> {
        let (tasks, queue) = sync_channel(limits::AGENT_JOBS);
        let states = ledger.states();
        let worker = StoreWorker { ledger, run, agent, inputs };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || worker.run(&queue))?;
        Ok(Self { tasks, states, thread })
    }

    /// Gives it a job. Returns false if the thread has ended.
    #[must_use]
    pub fn run(&self, job: StoreJob) -> bool {
        self.tasks.try_send(Task::Job(job)).is_ok()
    }

    /// The feedback state, for encoders elsewhere.
    #[must_use]
    pub fn feedback(&self) -> Arc<dyn FeedbackSource> {
        Arc::new(Feedback { states: Arc::clone(&self.states), tasks: self.tasks.clone() })
    }

    /// How many updates were taken as their trainer had encoded them.
    #[must_use]
    pub fn encoded_there(&self) -> u64 {
        self.states.encoded_there()
    }

    /// Lets it finish what it was given, and closes the store.
    pub fn finish(self) {
        // One that has ended by itself needs no word.
        let _ = self.tasks.send(Task::End);
        // A panic there was reported by its own thread, and what it had not finished was never offered to anybody.
        let _ = self.thread.join();
    }
}

#[derive(Debug)]
struct Feedback {
    states: Arc<States>,
    tasks: SyncSender<Task>,
}

impl FeedbackSource for Feedback {
    fn current(&self) -> FeedbackState {
        self.states.current()
    }

    fn fresh(&self) -> FeedbackState {
        self.states.fresh()
    }

    fn fetch(&self) -> Option<(FeedbackState, Vec<f32>)> {
        let (reply, state) = oneshot::channel();
        self.tasks.send(Task::Residual { reply }).ok()?;
        state.blocking_recv().ok()
    }

    fn held(&self, branch: BranchId, memory: Option<MemoryMark>, range: Range<usize>) -> Option<Vec<f32>> {
        let (reply, held) = oneshot::channel();
        self.tasks.send(Task::Held { of: (branch, memory), range, reply }).ok()?;
        held.blocking_recv().ok()
    }
}

struct StoreWorker {
    ledger: Ledger,
    run: RunId,
    agent: AgentId,
    inputs: Inputs,
}

impl StoreWorker {
    fn run(mut self, queue: &Receiver<Task>) {
        while let Ok(task) = queue.recv() {
            match task {
                Task::Job(job) => {
                    let done = self.job(job);
                    let has_failed = matches!(done, StoreDone::Event(Event::Failed(_)));
                    // A loop that has ended waits for nothing, and what it gave before is still carried out.
                    let _ = self.inputs.tell(Input::Done(Done::Store(done)));
                    // No later job may build on what a failed one has left.
                    if has_failed {
                        return;
                    }
                }
                Task::Residual { reply } => {
                    let left_out = self.ledger.residual().unwrap_or_default().to_vec();
                    // The trainer that wanted it is gone.
                    let _ = reply.send((self.ledger.states().current(), left_out));
                }
                Task::Held { of: (branch, memory), range, reply } => {
                    // As above.
                    let _ = reply.send(self.ledger.held(branch, memory, range).to_vec());
                }
                Task::End => return,
            }
        }
    }

    fn job(&mut self, job: StoreJob) -> StoreDone {
        let Self { ledger, run, agent, .. } = self;
        match guarded(|| job.run(ledger, *run, *agent)) {
            Ok(done) => done.unwrap_or_else(|error| StoreDone::Event(storage_failed(&error))),
            Err(panic) => StoreDone::Event(Event::Failed(Ending::Storage(panic))),
        }
    }
}
