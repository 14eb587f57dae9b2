//! The thread that does the maths of all runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anabranch_common::ids::RunId;
use anabranch_common::limits;
use parking_lot::Mutex;

use super::maths::Part;
use super::{Inputs, Maths, MathsSetup, RunMaths, guarded};
use crate::node::{Done, Input, MathsJob};
use crate::session::command::Ending;
use crate::session::event::Event;

/// A job for a run, or a change of the runs to look at.
type Task = Option<(RunId, MathsJob)>;

/// Runs that have begun, or are over, since the thread has looked: the latest of both for each run.
type Changes = Arc<Mutex<BTreeMap<RunId, Option<RunMaths>>>>;

/// The thread that does the maths of all runs, one job after the other. It ends when this is dropped.
#[derive(Debug)]
pub struct MathsThread {
    tasks: SyncSender<Task>,
    changes: Changes,
}

impl MathsThread {
    /// Starts it with one run.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(run: RunId, setup: MathsSetup, inputs: impl Into<Inputs>) -> std::io::Result<Self> {
        let (tasks, queue) = sync_channel(limits::AGENT_JOBS);
        let changes = Changes::default();
        let parts = BTreeMap::from([(run, None)]);
        let worker = Worker { maths: Maths::new(setup, inputs), at: run, parts, changes: Arc::clone(&changes) };
        std::thread::Builder::new().name("maths".to_owned()).spawn(move || worker.run(&queue))?;
        Ok(Self { tasks, changes })
    }

    /// Gives it a job. Returns false if the thread has ended.
    #[must_use]
    pub fn run(&self, run: RunId, job: MathsJob) -> bool {
        self.tasks.try_send(Some((run, job))).is_ok()
    }

    /// A run begins.
    pub fn begin(&self, run: RunId, of_run: RunMaths) {
        self.change(run, Some(of_run));
    }

    /// A run is over: its trainer is dropped when the present job is done.
    pub fn forget(&self, run: RunId) {
        self.change(run, None);
    }

    fn change(&self, run: RunId, change: Option<RunMaths>) {
        let mut changes = self.changes.lock();
        let is_first = changes.is_empty();
        changes.insert(run, change);
        drop(changes);
        if is_first {
            // A thread that has ended has no trainer, and one that is at work looks before its next job.
            let _ = self.tasks.try_send(None);
        }
    }
}

/// The maths of one run, with the parts of the others put aside.
#[derive(Debug)]
struct Worker {
    maths: Maths,
    /// Whose part the maths has.
    at: RunId,
    /// The parts of all runs, but for the one that the maths has.
    parts: BTreeMap<RunId, Option<Part>>,
    changes: Changes,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Task>) {
        while let Ok(task) = queue.recv() {
            let changes = std::mem::take(&mut *self.changes.lock());
            for (run, change) in changes {
                self.change(run, change.map(Part::of));
            }
            let Some((run, job)) = task else { continue };
            if !self.turn_to(run) {
                // The run has ended in this moment: the device is free again, and no node is there to hear of it.
                let over = || Event::Failed(Ending::Trainer("its run is over here".to_owned()));
                let event = job.stopped().unwrap_or_else(over);
                if !self.maths.part.of_run.inputs.of(run).tell(Input::Done(Done::Maths(event))) {
                    return;
                }
                continue;
            }
            let maths = &mut self.maths;
            let event = guarded(|| maths.work(job)).unwrap_or_else(|panic| Event::Failed(Ending::Trainer(panic)));
            if !self.maths.part.of_run.inputs.tell(Input::Done(Done::Maths(event))) {
                return;
            }
        }
    }

    /// A run begins with this part, or is over: what was there of it before is dropped.
    fn change(&mut self, run: RunId, part: Option<Part>) {
        let is_at = self.at == run;
        match part {
            None if is_at => {
                self.maths.part.trainer = None;
                self.parts.remove(&run);
            }
            None => _ = self.parts.remove(&run),
            Some(part) if is_at => {
                self.maths.part = part;
                self.parts.insert(run, None);
            }
            Some(part) => _ = self.parts.insert(run, Some(part)),
        }
    }

    /// Gives the maths the part of a run. Returns false if there is none.
    fn turn_to(&mut self, run: RunId) -> bool {
        if self.at == run {
            return self.parts.contains_key(&run);
        }
        let Some(part) = self.parts.get_mut(&run).and_then(Option::take) else { return false };
        let before = std::mem::replace(&mut self.maths.part, part);
        if let Some(place) = self.parts.get_mut(&self.at) {
            *place = Some(before);
        }
        self.at = run;
        true
    }
}
