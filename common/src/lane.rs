//! Jobs that one worker carries out, a batch at a time.

use std::collections::VecDeque;

/// The queue of one worker's jobs, of which at most one batch is out. The queue itself has no bound: the owner of a lane
/// names the one in [`limits`](crate::limits) that holds for the jobs it pushes.
#[derive(Debug)]
pub struct Lane<J> {
    waiting: VecDeque<J>,
    at_work: bool,
}

impl<J> Default for Lane<J> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), at_work: false }
    }
}

impl<J> Lane<J> {
    /// Puts a job behind those that wait.
    pub fn push(&mut self, job: J) {
        self.waiting.push_back(job);
    }

    /// Takes the next batch out, unless one is out or nothing waits.
    pub fn next<B>(&mut self, take: impl FnOnce(&mut VecDeque<J>) -> B) -> Option<B> {
        if self.at_work || self.waiting.is_empty() {
            return None;
        }
        self.at_work = true;
        Some(take(&mut self.waiting))
    }

    /// Takes the next job out, unless one is out or none waits.
    pub fn next_job(&mut self) -> Option<J> {
        self.next(VecDeque::pop_front).flatten()
    }

    /// Notes that the batch that was out is done.
    pub fn done(&mut self) {
        self.at_work = false;
    }

    /// Returns the jobs that wait, the first one first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &J> {
        self.waiting.iter()
    }

    /// Returns the job behind all others that wait.
    pub fn last_mut(&mut self) -> Option<&mut J> {
        self.waiting.back_mut()
    }

    /// Returns whether no job waits and no batch is out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.at_work && self.waiting.is_empty()
    }

    /// Forgets the waiting jobs that `keep` does not keep.
    pub fn retain(&mut self, keep: impl FnMut(&J) -> bool) {
        self.waiting.retain(keep);
    }

    /// Removes the first waiting job for which `find` returns something, and returns that.
    pub fn take_back<T>(&mut self, find: impl Fn(&J) -> Option<T>) -> Option<T> {
        let (at, found) = self.waiting.iter().enumerate().find_map(|(at, job)| Some((at, find(job)?)))?;
        self.waiting.remove(at);
        Some(found)
    }

    /// Takes all jobs that wait, whether or not a batch is out.
    pub fn drain(&mut self) -> impl Iterator<Item = J> {
        self.waiting.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(jobs: impl IntoIterator<Item = u32>) -> Lane<u32> {
        let mut lane = Lane::default();
        jobs.into_iter().for_each(|job| lane.push(job));
        lane
    }

    #[test]
    fn one_batch_is_out_at_a_time_and_the_next_takes_what_has_come_meanwhile() {
        let mut lane = Lane::default();
        assert!(lane.is_idle() && lane.next(std::mem::take).is_none());
        lane.push(1);
        assert_eq!(lane.next(std::mem::take), Some(VecDeque::from([1])));
        (2..4).for_each(|job| lane.push(job));
        assert!(!lane.is_idle() && lane.next(std::mem::take).is_none());
        lane.done();
        assert_eq!(lane.next(std::mem::take), Some(VecDeque::from([2, 3])));
        assert!(!lane.is_idle());
        lane.done();
        assert!(lane.is_idle());
    }

    #[test]
    fn single_jobs_come_out_in_order_and_only_when_the_one_before_is_done() {
        let mut lane = lane([1, 2]);
        assert_eq!((lane.next_job(), lane.next_job()), (Some(1), None));
        lane.done();
        assert_eq!(lane.next_job(), Some(2));
        lane.done();
        assert_eq!(lane.next_job(), None);
        assert!(lane.is_idle(), "a lane that had nothing to give is free for the next job");
    }

    #[test]
    fn only_waiting_jobs_are_taken_back() {
        let mut lane = lane([1, 2, 3, 4]);
        assert_eq!(lane.next_job(), Some(1));
        let even = |job: &u32| job.is_multiple_of(2).then_some(job * 10);
        assert_eq!(lane.take_back(|job| (*job == 1).then_some(())), None, "it is out");
        assert_eq!(lane.take_back(even), Some(20), "the first one that fits");
        assert!(lane.waiting().eq(&[3, 4]));
        lane.retain(|job| *job != 3);
        assert!(lane.waiting().eq(&[4]));
        lane.push(4);
        *lane.last_mut().expect("two wait") = 5;
        assert!(lane.drain().eq([4, 5]));
        assert!(!lane.is_idle(), "the first job is still out");
        lane.done();
        assert!(lane.is_idle());
    }
}
