//! A lane: jobs of one kind, of which at most one batch is out.

use std::collections::VecDeque;

/// The jobs of one worker that wait, and whether it is at work. What waits here is bounded by what the core lets wait for
/// the disk: the messages of each peer (`limits::PEER_QUEUE_MESSAGES`) and the budgets of uploads; for the registry by its
/// connections and by what agents may cause.
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

    /// The batch that was out is done.
    pub fn done(&mut self) {
        self.at_work = false;
    }

    /// The jobs that wait, the first one first.
    pub fn waiting(&self) -> impl Iterator<Item = &J> {
        self.waiting.iter()
    }

    /// Whether nothing waits and nothing is out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.at_work && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
