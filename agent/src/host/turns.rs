//! Whose job the device computes next: deficit round robin over the runs (Shreedhar and Varghese 1995), where a job is
//! charged when it is done, with the time that it took.
//!
//! ```text
//!  run   weight   credit              a free device goes to the next run in turn that has a job waiting, and credit
//!   A      1       -310 ms            nobody has credit: each run whose job waits is given weight x 1 ms, as often
//!   B      3         +2 ms  ◄─ next   as it takes until one of them has credit
//! ```
//! A job is never interrupted for another run's. A run without a waiting job is given nothing, and loses what credit it
//! has. Its debt, which is less than the time of its latest job, stays.

use std::collections::BTreeMap;

use anabranch_common::ids::RunId;
use anabranch_common::limits;

use crate::node::MathsJob;
use crate::session::event::Event;

/// The device, and the runs that share it.
#[derive(Debug, Default)]
pub(super) struct Turns {
    runs: BTreeMap<RunId, Account>,
    /// Whose job the device has, and since when.
    device: Option<(RunId, u64)>,
    /// Who had the device last.
    last: Option<RunId>,
}

#[derive(Debug)]
struct Account {
    weight: u32,
    /// Milliseconds of the device that the run may take before others, or has taken before them.
    credit_ms: i64,
    /// At most one: a node gives the next job when this one is done.
    waiting: Option<MathsJob>,
}

impl Turns {
    /// A run takes part, or has another weight from now on.
    pub(super) fn add(&mut self, run: RunId, weight: u32) {
        let weight = weight.clamp(1, limits::RUN_WEIGHT);
        self.runs.entry(run).or_insert(Account { weight, credit_ms: 0, waiting: None }).weight = weight;
    }

    /// A run takes part no more: its waiting job is dropped. Returns whether the device is computing one of its jobs.
    pub(super) fn remove(&mut self, run: RunId) -> bool {
        self.runs.remove(&run);
        self.has_device(run)
    }

    /// A run has a job.
    pub(super) fn push(&mut self, run: RunId, job: MathsJob) {
        if let Some(account) = self.runs.get_mut(&run) {
            account.waiting = Some(job);
        }
    }

    /// Whether the device computes a job of this run.
    pub(super) fn has_device(&self, run: RunId) -> bool {
        self.device.is_some_and(|(of, _)| of == run)
    }

    /// Takes back the job of a run that waits, if it is one that can be stopped. Returns what that leads to.
    pub(super) fn take_back(&mut self, run: RunId) -> Option<Event> {
        let waiting = &mut self.runs.get_mut(&run)?.waiting;
        let stopped = waiting.as_ref()?.stopped()?;
        *waiting = None;
        Some(stopped)
    }

    /// The device is done with the job of a run.
    pub(super) fn done(&mut self, now_ms: u64, run: RunId) {
        let Some((_, since_ms)) = self.device.take_if(|(of, _)| *of == run) else { return };
        if let Some(account) = self.runs.get_mut(&run) {
            let took_ms = i64::try_from(now_ms.saturating_sub(since_ms)).unwrap_or(i64::MAX);
            account.credit_ms = account.credit_ms.saturating_sub(took_ms);
        }
    }

    /// Gives the device to the job whose turn it is, if the device is free and one waits.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<(RunId, MathsJob)> {
        if self.device.is_some() {
            return None;
        }
        for account in self.runs.values_mut().filter(|account| account.waiting.is_none()) {
            account.credit_ms = account.credit_ms.min(0);
        }
        // In how many rounds of the runs the first one has credit.
        let waiting = self.runs.values().filter(|account| account.waiting.is_some());
        let rounds = waiting.map(Account::rounds_to_credit).min()?;
        for account in self.runs.values_mut().filter(|account| account.waiting.is_some()) {
            account.credit_ms = account.credit_ms.saturating_add(rounds.saturating_mul(i64::from(account.weight)));
        }
        let after_last = self.runs.iter().filter(|(run, _)| self.last.is_none_or(|last| **run > last));
        let in_turn = after_last.chain(self.runs.iter());
        let run = in_turn.filter(|(_, account)| account.is_next()).map(|(run, _)| *run).next()?;
        let job = self.runs.get_mut(&run)?.waiting.take()?;
        (self.device, self.last) = (Some((run, now_ms)), Some(run));
        Some((run, job))
    }
}

impl Account {
    fn rounds_to_credit(&self) -> i64 {
        let missing = 1_i64.saturating_sub(self.credit_ms).max(0);
        missing.saturating_add(i64::from(self.weight) - 1) / i64::from(self.weight)
    }

    fn is_next(&self) -> bool {
        self.waiting.is_some() && self.credit_ms >= 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(number: u8) -> RunId {
        RunId([number; 16])
    }

    fn job() -> MathsJob {
        MathsJob::MakeInitial { seed: 0 }
    }

    /// Runs by number with their weights, of which those that `waits` names always have a job.
    fn turns(weights: &[u32]) -> Turns {
        let mut turns = Turns::default();
        (0..).zip(weights).for_each(|(number, weight)| turns.add(run(number), *weight));
        turns
    }

    #[test]
    fn a_run_that_is_alone_has_every_turn() {
        let mut turns = turns(&[1]);
        assert!(turns.next(0).is_none(), "there is no job");
        for now_ms in [0, 1_000, 5_000] {
            turns.push(run(0), job());
            assert!(turns.next(now_ms).is_some_and(|(turn, _)| turn == run(0)));
            assert!(turns.next(now_ms).is_none(), "the device has one job at a time");
            turns.done(now_ms + 900, run(0));
        }
    }

    #[test]
    fn a_run_that_had_nothing_to_do_has_no_credit_for_that() {
        let mut turns = turns(&[1, 1]);
        let mut now_ms = 0;
        for _ in 0..100 {
            turns.push(run(0), job());
            assert_eq!(turns.next(now_ms).map(|(turn, _)| turn), Some(run(0)));
            now_ms += 1_000;
            turns.done(now_ms, run(0));
        }
        // From here on both always have a job: they take turns.
        let mut order = Vec::new();
        for _ in 0..6 {
            [0, 1]
                .iter()
                .filter(|number| turns.runs[&run(**number)].waiting.is_none())
                .copied()
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|number| turns.push(run(number), job()));
            let (turn, _) = turns.next(now_ms).expect("both wait");
            order.push(turn.0[0]);
            now_ms += 1_000;
            turns.done(now_ms, turn);
        }
        assert_eq!(order, [1, 0, 1, 0, 1, 0]);
    }

    #[test]
    fn a_waiting_job_is_taken_back_only_if_it_can_be_stopped() {
        let mut turns = turns(&[1, 1]);
        turns.push(run(0), job());
        turns.push(run(1), job());
        assert!(turns.next(0).is_some_and(|(turn, _)| turn == run(0)));
        assert_eq!(turns.take_back(run(1)), None, "nobody stops the making of an initial model");
        assert!(turns.remove(run(0)), "its job is computed");
        turns.done(10, run(0));
        assert!(turns.next(10).is_some_and(|(turn, _)| turn == run(1)));
        assert!(!turns.remove(run(0)));
    }

    proptest! {
        /// Runs that always have a job share the device by weight, within one job of each.
        #[test]
        fn shares_are_those_of_the_weights_within_one_job(
            weights in prop::collection::vec(1_u32..=limits::RUN_WEIGHT, 1..5),
            lengths in prop::collection::vec(0_u64..5_000, 1..200),
        ) {
            let mut turns = turns(&weights);
            let mut used_ms = vec![0_u64; weights.len()];
            let mut now_ms = 0;
            (0..).zip(&weights).for_each(|(number, _)| turns.push(run(number), job()));
            for length_ms in &lengths {
                let (turn, job) = turns.next(now_ms).expect("all wait");
                now_ms += length_ms;
                turns.done(now_ms, turn);
                used_ms[usize::from(turn.0[0])] += length_ms;
                turns.push(turn, job);
            }
            let most_ms = lengths.iter().max().copied().unwrap_or(0);
            // What a run has used, by weight, is within one job and one round of credit of what any other has.
            for (of, a) in (0..).zip(&weights) {
                for (other, b) in (0..).zip(&weights) {
                    let (of_ms, other_ms): (u64, u64) = (used_ms[of], used_ms[other]);
                    let ahead = of_ms * u64::from(*b);
                    let behind = other_ms * u64::from(*a);
                    let room = (most_ms + u64::from(*a) + 1) * u64::from(*b) + (u64::from(*b) + 1) * u64::from(*a);
                    prop_assert!(ahead <= behind + room, "{used_ms:?} of {weights:?}");
                }
            }
        }
    }

    #[test]
    fn weights_one_and_three_share_the_device_so() {
        let mut turns = turns(&[1, 3]);
        let mut used_ms = [0_u64; 2];
        let mut now_ms = 0;
        [0, 1].into_iter().for_each(|number| turns.push(run(number), job()));
        for _ in 0..400 {
            let (turn, job) = turns.next(now_ms).expect("both wait");
            let number = turn.0[0];
            // Rounds of the first run take 700 ms, of the second 200 ms.
            let took_ms = if number == 0 { 700 } else { 200 };
            now_ms += took_ms;
            used_ms[usize::from(number)] += took_ms;
            turns.done(now_ms, turn);
            turns.push(turn, job);
        }
        let [one, three] = used_ms;
        assert!((one * 3).abs_diff(three) <= 3 * 700 + 200, "{used_ms:?}");
    }
}
