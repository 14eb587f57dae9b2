//! Jobs that are carried out one at a time.

use std::collections::VecDeque;

/// A queue of jobs, of which at most one runs. Whoever adds jobs bounds it: the session waits for an answer before it gives
/// the next job of a kind, and an outbox has `limits::OUTBOX_UPDATES` updates, each of which is settled and read once.
#[derive(Debug)]
pub(super) struct Lane<J> {
    waiting: VecDeque<J>,
    is_busy: bool,
}

impl<J> Default for Lane<J> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), is_busy: false }
    }
}

impl<J> Lane<J> {
    /// Adds a job behind all others.
    pub(super) fn push(&mut self, job: J) {
        self.waiting.push_back(job);
    }

    /// Returns the job to run now, if none runs.
    pub(super) fn next(&mut self) -> Option<J> {
        let job = self.waiting.pop_front_if(|_| !self.is_busy)?;
        self.is_busy = true;
        Some(job)
    }

    /// The running job is done.
    pub(super) fn done(&mut self) {
        self.is_busy = false;
    }

    /// Forgets the waiting jobs that `keep` does not keep.
    pub(super) fn retain(&mut self, keep: impl FnMut(&J) -> bool) {
        self.waiting.retain(keep);
    }

    /// Takes a waiting job back: the first of which `find` makes something. Returns that.
    pub(super) fn take_back<T>(&mut self, find: impl Fn(&J) -> Option<T>) -> Option<T> {
        let (at, found) = self.waiting.iter().enumerate().find_map(|(at, job)| Some((at, find(job)?)))?;
        self.waiting.remove(at);
        Some(found)
    }

    /// Takes all jobs that wait.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = J> {
        self.waiting.drain(..)
    }
}
