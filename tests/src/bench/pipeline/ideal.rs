//! A round in virtual time, over lines that carry exactly their rate: what the real one is held against.

use std::collections::VecDeque;
use std::time::Duration;

use anabranch_common::pod::Schedule;
use anabranch_common::pod::order::{Order, OrderError, StageOrder, Work};

/// What one stage did, and when each piece of work was done.
pub(super) type Log = Vec<(Duration, Work)>;

/// A round to time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) schedule: Schedule,
    pub(super) stages: u32,
    pub(super) micro_batches: u32,
    pub(super) steps: u32,
    /// Time of a forward pass. A backward pass takes twice as long, an update none.
    pub(super) forward: Duration,
}

/// What stands between two stages. Each pair of them has a line of its own.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Line {
    /// Time of a parcel's bytes at the line's rate.
    pub(super) parcel: Duration,
    /// Time that everything takes, each way.
    pub(super) delay: Duration,
}

/// The share of time that the slowest stage computes, or would. All stages are equally slow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Efficiency {
    /// From the begin of the round to its end, with the filling and the emptying of the pipeline.
    pub(super) whole: f64,
    /// From the first update of the first stage to its last.
    pub(super) steady: f64,
}

impl Round {
    pub(super) fn order(&self) -> Result<Order, OrderError> {
        Order::new(self.schedule, self.stages, self.micro_batches, self.steps)
    }

    /// Returns how long a device computes for a piece of work.
    pub(super) fn takes(&self, work: Work) -> Duration {
        match work {
            Work::Forward { .. } => self.forward,
            Work::Backward { .. } => self.forward * 2,
            Work::Update { .. } => Duration::ZERO,
        }
    }

    /// Returns the efficiency that the logs of all stages show, in their order.
    pub(super) fn efficiency(&self, logs: &[Log]) -> Efficiency {
        let step_s = (self.forward * 3 * self.micro_batches).as_secs_f64();
        let end_s = logs.iter().flatten().map(|(at, _)| at.as_secs_f64()).fold(0.0, f64::max);
        let is_update = |(_, work): &&(Duration, Work)| matches!(work, Work::Update { .. });
        let mut updates = logs.iter().take(1).flatten().filter(is_update).map(|(at, _)| at.as_secs_f64());
        let first_s = updates.next().unwrap_or(end_s);
        let last_s = updates.next_back().unwrap_or(first_s);
        let share = |steps: u32, of_s: f64| if of_s > 0.0 { f64::from(steps) * step_s / of_s } else { 0.0 };
        Efficiency { whole: share(self.steps, end_s), steady: share(self.steps - 1, last_s - first_s) }
    }

    /// Returns the logs of all stages, as they are where nothing but devices and lines takes time.
    pub(super) fn ideal(&self, line: Line) -> Result<Vec<Log>, OrderError> {
        let order = self.order()?;
        let mut stages: Vec<Virtual> = (0..self.stages).map(|stage| Virtual::new(order.stage(stage))).collect();
        loop {
            let mut moved = false;
            for at in 0..stages.len() {
                while let Some((work, from)) = stages[at].next(at > 0, at + 1 < self.stages as usize) {
                    let end = stages[at].free.max(from) + self.takes(work);
                    stages[at].done(work, end);
                    moved = true;
                    match work {
                        Work::Forward { .. } if at + 1 < stages.len() => {
                            let arrival = line.carry(end, &mut stages[at].behind);
                            stages[at + 1].activations.push_back(arrival);
                        }
                        Work::Backward { .. } if at > 0 => {
                            let arrival = line.carry(end, &mut stages[at].before);
                            stages[at - 1].gradients.push_back(arrival);
                        }
                        _ => {}
                    }
                }
            }
            if !moved {
                return Ok(stages.into_iter().map(|stage| stage.log).collect());
            }
        }
    }
}

impl Line {
    /// Returns when a parcel of `now` arrives, behind what is on the line already.
    fn carry(self, now: Duration, busy_until: &mut Duration) -> Duration {
        *busy_until = now.max(*busy_until) + self.parcel;
        *busy_until + self.delay
    }
}

struct Virtual {
    order: StageOrder,
    free: Duration,
    /// When inputs arrive that are not computed with.
    activations: VecDeque<Duration>,
    gradients: VecDeque<Duration>,
    /// Until when the lines to the stages behind and before are busy.
    behind: Duration,
    before: Duration,
    log: Log,
}

impl Virtual {
    fn new(order: StageOrder) -> Self {
        let none = Duration::ZERO;
        let (activations, gradients) = (VecDeque::new(), VecDeque::new());
        Self { order, free: none, activations, gradients, behind: none, before: none, log: Log::new() }
    }

    /// Takes what is next, and when its input arrives; `None` while that is not known.
    fn next(&mut self, has_before: bool, has_behind: bool) -> Option<(Work, Duration)> {
        let work = self.order.next()?;
        let input = match work {
            Work::Forward { .. } if has_before => self.activations.pop_front()?,
            Work::Backward { .. } if has_behind => self.gradients.pop_front()?,
            _ => Duration::ZERO,
        };
        Some((work, input))
    }

    fn done(&mut self, work: Work, end: Duration) {
        self.order.done();
        self.free = end;
        self.log.push((end, work));
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::pod::Weights;

    use super::*;

    const PIPELINED: Schedule = Schedule::Pipelined(Weights::Predict);

    fn round(schedule: Schedule, stages: u32, micro_batches: u32) -> Round {
        Round { schedule, stages, micro_batches, steps: 5, forward: Duration::from_millis(10) }
    }

    fn is_near(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-9
    }

    /// pods.md: sequential 1/N, flush M/(M+N-1), and without flushing one filling of the pipeline a round.
    #[test]
    fn without_lines_efficiency_is_that_of_the_schedule() {
        for (stages, micro_batches) in [(1, 1), (2, 1), (4, 8), (4, 2), (7, 3)] {
            let of = |schedule| {
                let round = round(schedule, stages, micro_batches);
                round.efficiency(&round.ideal(Line::default()).expect("valid"))
            };
            let [n, m] = [stages, micro_batches].map(f64::from);
            let sequential = of(Schedule::Sequential);
            assert!(is_near(sequential.whole, 1.0 / n) && is_near(sequential.steady, 1.0 / n), "{sequential:?}");
            let flush = of(Schedule::Flush);
            let expected = m / (m + n - 1.0);
            assert!(is_near(flush.whole, expected) && is_near(flush.steady, expected), "{flush:?}, not {expected}");
            let pipelined = of(PIPELINED);
            assert!(is_near(pipelined.steady, 1.0), "{pipelined:?}");
            assert!(is_near(pipelined.whole, 5.0 * m / (5.0 * m + n - 1.0)), "{pipelined:?}");
        }
    }

    /// Stage k has N - k micro-batches on their way, and each of them crosses N - 1 - k lines twice.
    #[test]
    fn lines_bind_by_their_bytes_or_by_their_round_trips() {
        let period_ms = |line: Line, stages: u32| {
            let round = round(PIPELINED, stages, 8);
            30.0 / round.efficiency(&round.ideal(line).expect("valid")).steady
        };
        let ms = Duration::from_millis;
        let delayed = |delay| Line { parcel: Duration::ZERO, delay: ms(delay) };
        // Two stages have two on their way: 2 * 30 ms of computing and 2 * 50 ms of line for two of them.
        assert!(is_near(period_ms(delayed(50), 2), (2.0 * 30.0 + 100.0) / 2.0), "{}", period_ms(delayed(50), 2));
        assert!(is_near(period_ms(delayed(50), 4), (4.0 * 30.0 + 300.0) / 4.0), "{}", period_ms(delayed(50), 4));
        // Bytes count twice: they delay every parcel, and no two of one direction are on a line at once.
        let rated = |parcel| Line { parcel: ms(parcel), delay: Duration::ZERO };
        assert!(is_near(period_ms(rated(100), 2), (2.0 * 30.0 + 200.0) / 2.0), "{}", period_ms(rated(100), 2));
        // Two of them on their way hide what is shorter than a pass.
        assert!(is_near(period_ms(rated(5), 2), 35.0), "{}", period_ms(rated(5), 2));
    }

    #[test]
    fn a_log_of_known_times_has_a_known_efficiency() {
        let round = Round { steps: 3, ..round(PIPELINED, 2, 4) };
        let update = |step, ms| (Duration::from_millis(ms), Work::Update { step });
        let first = vec![update(0, 200), update(1, 340), update(2, 500)];
        let second = vec![update(0, 150), update(1, 300), update(2, 450)];
        let Efficiency { whole, steady } = round.efficiency(&[first, second]);
        // A step is 4 * 30 ms; two of them took 300 ms, and three of them 500 ms.
        assert!(is_near(steady, 240.0 / 300.0) && is_near(whole, 360.0 / 500.0), "{steady}, {whole}");
    }
}
