//! The order in which a stage computes: a state machine without I/O. Each member of a pod drives its own.
//!
//! ```text
//!  activations of a micro-batch arrived ─► activation() ─┐
//!  gradient of its output arrived       ─► gradient()   ─┴► ready() ─► Work ─► carried out ─► done()
//! ```
//!
//! What is next never depends on when something arrives, so that a round has the same bits however slow a link or a member is:
//!
//! | schedule | next at stage k of N |
//! |---|---|
//! | sequential | forward and backward pass of one micro-batch in turn |
//! | flush, pipelined | forward passes until N - k micro-batches are in flight, then backward and forward passes in turn (1F1B) |
//! | all | after the backward pass of the last micro-batch of a step: the update |
//! | sequential, flush | no forward pass of a step before the update of the step before |

use std::collections::VecDeque;

use super::{Schedule, Weights};

/// A round as its stages take turns in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    schedule: Schedule,
    stages: u32,
    micro_batches: u32,
    steps: u32,
}

/// Why a round cannot be computed in an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There is no stage, no micro-batch or no step.
    #[error("a round of a pod has at least one stage, one micro-batch and one step")]
    Nothing,
    /// The version before the last update is not there in time.
    #[error("2bw weights take at least {least} micro-batches a step for {stages} stages, not {micro_batches}")]
    TooFewMicroBatches {
        /// Stages.
        stages: u32,
        /// Micro-batches of a step.
        micro_batches: u32,
        /// How many there have to be.
        least: u32,
    },
}

/// Something arrived that the order has no use for: the peer breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} for micro-batch {micro_batch} arrived out of turn")]
pub struct OutOfTurn {
    /// Activations, or a gradient.
    pub what: &'static str,
    /// Number of the micro-batch in the round, from 0.
    pub micro_batch: u64,
}

/// A micro-batch of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroBatch {
    /// The step to whose gradient it belongs, from 0.
    pub step: u32,
    /// Which of that step's it is, from 0.
    pub index: u32,
}

/// What a stage does next. `version` is the number of updates after which weights are what the work is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The forward pass of a micro-batch; its output goes to the next stage.
    Forward {
        /// The micro-batch.
        micro_batch: MicroBatch,
        /// The weights.
        version: u32,
        /// Updates by which the weights are moved on: s of W - s lr d. d is the direction of the update in progress by the gradients
        /// of micro-batches that are backward here, before the first of them that of the last update. 0 unless weights are predicted.
        ahead: u32,
    },
    /// The backward pass of a micro-batch; the gradient of its input goes to the stage before.
    Backward {
        /// The micro-batch.
        micro_batch: MicroBatch,
        /// The weights.
        version: u32,
    },
    /// The optimizer's step, with the sum of the gradients of a step's micro-batches.
    Update {
        /// The step, from 0.
        step: u32,
    },
}

impl Order {
    /// Checks a round of `steps` steps of `micro_batches` micro-batches in `stages` stages.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn new(schedule: Schedule, stages: u32, micro_batches: u32, steps: u32) -> Result<Self, OrderError> {
        if stages == 0 || micro_batches == 0 || steps == 0 {
            return Err(OrderError::Nothing);
        }
        let least = stages - 1;
        if schedule == Schedule::Pipelined(Weights::TwoVersions) && micro_batches < least {
            return Err(OrderError::TooFewMicroBatches { stages, micro_batches, least });
        }
        Ok(Self { schedule, stages, micro_batches, steps })
    }

    /// Returns the state machine of stage `stage`, counted from 0.
    ///
    /// # Panics
    /// There is no such stage.
    #[must_use]
    pub fn stage(&self, stage: u32) -> StageOrder {
        assert!(stage < self.stages, "stage {stage} of {}", self.stages);
        StageOrder {
            order: *self,
            stage,
            activations: 0,
            gradients: 0,
            forwards: 0,
            backwards: 0,
            updates: 0,
            stashed: VecDeque::new(),
        }
    }

    /// Number of updates of the first stage after which its part of a tied tensor is what the last stage computes step `step` with:
    /// the newest that is there in time, whatever the speed of stages and links.
    #[must_use]
    pub fn tied_version(&self, step: u32) -> u32 {
        match self.schedule {
            Schedule::Sequential | Schedule::Flush => step,
            Schedule::Pipelined(Weights::TwoVersions) => step.saturating_sub(1),
            Schedule::Pipelined(_) => step.saturating_sub((self.stages - 1).div_ceil(self.micro_batches)),
        }
    }

    /// Whether weights are predicted.
    #[must_use]
    pub fn predicts(&self) -> bool {
        self.schedule == Schedule::Pipelined(Weights::Predict)
    }

    fn micro_batch(&self, number: u64) -> MicroBatch {
        let of = u64::from(self.micro_batches);
        let small = |number: u64| u32::try_from(number).expect("steps and micro-batches are counted in 32 bits");
        MicroBatch { step: small(number / of), index: small(number % of) }
    }

    /// Micro-batches of the first `steps` steps.
    fn first(&self, steps: u32) -> u64 {
        u64::from(steps.min(self.steps)) * u64::from(self.micro_batches)
    }
}

/// The order of one stage. Micro-batches are numbered through the round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageOrder {
    order: Order,
    stage: u32,
    /// Micro-batches whose input has arrived.
    activations: u64,
    /// Micro-batches of which the gradient of the output has arrived.
    gradients: u64,
    forwards: u64,
    backwards: u64,
    updates: u32,
    /// Versions that the micro-batches in flight were forwarded with.
    stashed: VecDeque<u32>,
}

impl StageOrder {
    /// Returns what comes next in the order, whether or not its input is there; `None` after the last update.
    #[must_use]
    pub fn next(&self) -> Option<Work> {
        if self.updates == self.order.steps {
            return None;
        }
        if self.backwards == self.order.first(self.updates + 1) {
            return Some(Work::Update { step: self.updates });
        }
        Some(if self.is_forward() { self.forward() } else { self.backward() })
    }

    /// Returns what comes next, if its input is there.
    #[must_use]
    pub fn ready(&self) -> Option<Work> {
        self.next().filter(|work| match work {
            Work::Forward { .. } => self.stage == 0 || self.activations > self.forwards,
            Work::Backward { .. } => self.is_last() || self.gradients > self.backwards,
            Work::Update { .. } => true,
        })
    }

    /// The stage before has sent the activations of the next micro-batch.
    ///
    /// # Errors
    /// It has no next one, or does not keep to the order.
    pub fn activation(&mut self) -> Result<(), OutOfTurn> {
        let ahead = self.activations - self.backwards;
        // The stage before has at most this many in flight, and they are not backward here.
        let most =
            self.order.schedule.in_flight(self.stage.saturating_sub(1), self.order.stages, self.order.micro_batches);
        if self.stage == 0 || self.activations == self.order.first(self.order.steps) || ahead >= most.into() {
            return Err(OutOfTurn { what: "activations", micro_batch: self.activations });
        }
        self.activations += 1;
        Ok(())
    }

    /// The stage behind has sent the gradient of the next micro-batch.
    ///
    /// # Errors
    /// The output for it was never sent.
    pub fn gradient(&mut self) -> Result<(), OutOfTurn> {
        if self.is_last() || self.gradients == self.forwards {
            return Err(OutOfTurn { what: "a gradient", micro_batch: self.gradients });
        }
        self.gradients += 1;
        Ok(())
    }

    /// What was [`ready`](Self::ready) has been carried out.
    pub fn done(&mut self) {
        match self.next() {
            Some(Work::Forward { version, .. }) => {
                self.stashed.push_back(version);
                self.forwards += 1;
            }
            Some(Work::Backward { .. }) => {
                self.stashed.pop_front();
                self.backwards += 1;
            }
            Some(Work::Update { .. }) => self.updates += 1,
            None => {}
        }
    }

    /// Updates done.
    #[must_use]
    pub fn updates(&self) -> u32 {
        self.updates
    }

    /// Returns the oldest version of the weights that is still computed with. Older ones need not be kept.
    #[must_use]
    pub fn oldest_version(&self) -> u32 {
        let next = match self.order.schedule {
            Schedule::Pipelined(Weights::TwoVersions) => self.updates.saturating_sub(1),
            _ => self.updates,
        };
        match self.order.schedule {
            Schedule::Pipelined(Weights::Stash) => self.stashed.front().map_or(next, |oldest| next.min(*oldest)),
            _ => next,
        }
    }

    fn is_last(&self) -> bool {
        self.stage + 1 == self.order.stages
    }

    fn is_forward(&self) -> bool {
        let Order { schedule, stages, micro_batches, steps } = self.order;
        let begun = if matches!(schedule, Schedule::Pipelined(_)) { steps } else { self.updates + 1 };
        let in_flight = self.forwards - self.backwards;
        self.forwards < self.order.first(begun)
            && in_flight < schedule.in_flight(self.stage, stages, micro_batches).into()
    }

    fn forward(&self) -> Work {
        let micro_batch = self.order.micro_batch(self.forwards);
        let version = match self.order.schedule {
            Schedule::Pipelined(Weights::TwoVersions) => micro_batch.step.saturating_sub(1),
            _ => self.updates,
        };
        let ahead = if self.order.predicts() { micro_batch.step - version } else { 0 };
        Work::Forward { micro_batch, version, ahead }
    }

    fn backward(&self) -> Work {
        let micro_batch = self.order.micro_batch(self.backwards);
        let version = match self.order.schedule {
            Schedule::Pipelined(Weights::TwoVersions) => micro_batch.step.saturating_sub(1),
            Schedule::Pipelined(Weights::Stash) => self.stashed.front().copied().unwrap_or(self.updates),
            _ => self.updates,
        };
        Work::Backward { micro_batch, version }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Schedule; 6] = [
        Schedule::Sequential,
        Schedule::Flush,
        Schedule::Pipelined(Weights::Stale),
        Schedule::Pipelined(Weights::Stash),
        Schedule::Pipelined(Weights::TwoVersions),
        Schedule::Pipelined(Weights::Predict),
    ];
    /// How long the passes of a micro-batch take. An update takes no time.
    const FORWARD: u64 = 1;
    const BACKWARD: u64 = 2;

    /// What a stage did, and when it was done.
    type Log = Vec<(u64, Work)>;

    /// Runs a round on stages that take equal time, over links that take none.
    fn run(order: &Order) -> Vec<Log> {
        let mut stages: Vec<StageOrder> = (0..order.stages).map(|stage| order.stage(stage)).collect();
        let mut logs: Vec<Log> = vec![Log::new(); stages.len()];
        let mut busy: Vec<Option<(u64, Work)>> = vec![None; stages.len()];
        let mut now = 0;
        loop {
            for stage in 0..stages.len() {
                if busy[stage].is_none()
                    && let Some(work) = stages[stage].ready()
                {
                    let takes = match work {
                        Work::Forward { .. } => FORWARD,
                        Work::Backward { .. } => BACKWARD,
                        Work::Update { .. } => 0,
                    };
                    busy[stage] = Some((now + takes, work));
                }
            }
            let Some(next) = busy.iter().flatten().map(|(at, _)| *at).min() else { return logs };
            now = next;
            for stage in 0..stages.len() {
                let Some((_, work)) = busy[stage].take_if(|(at, _)| *at == now) else { continue };
                stages[stage].done();
                logs[stage].push((now, work));
                match work {
                    Work::Forward { .. } if stage + 1 < stages.len() => {
                        stages[stage + 1].activation().expect("in turn");
                    }
                    Work::Backward { .. } if stage > 0 => stages[stage - 1].gradient().expect("in turn"),
                    _ => {}
                }
            }
        }
    }

    fn makespan(order: &Order) -> u64 {
        run(order).iter().flatten().map(|(at, _)| *at).max().unwrap_or(0)
    }

    fn forwards(log: &Log) -> Vec<(MicroBatch, u32, u32)> {
        let forward = |(_, work): &(u64, Work)| match *work {
            Work::Forward { micro_batch, version, ahead } => Some((micro_batch, version, ahead)),
            _ => None,
        };
        log.iter().filter_map(forward).collect()
    }

    fn backwards(log: &Log) -> Vec<(MicroBatch, u32)> {
        let backward = |(_, work): &(u64, Work)| match *work {
            Work::Backward { micro_batch, version } => Some((micro_batch, version)),
            _ => None,
        };
        log.iter().filter_map(backward).collect()
    }

    /// pods.md: sequential 1/N, flush M/(M+N-1) of the ideal, and without flushing one filling of the pipeline a round.
    #[test]
    fn the_bubbles_are_exactly_those_of_the_schedule() {
        let steps = 3;
        for stages in 1..=6 {
            for micro_batches in 1..=7 {
                let of = |schedule| makespan(&Order::new(schedule, stages, micro_batches, steps).expect("valid"));
                let both = FORWARD + BACKWARD;
                let [n, m, s] = [stages, micro_batches, steps].map(u64::from);
                assert_eq!(of(Schedule::Sequential), s * m * n * both, "{n} stages, {m} micro-batches");
                assert_eq!(of(Schedule::Flush), s * (m + n - 1) * both, "{n} stages, {m} micro-batches");
                let pipelined = of(Schedule::Pipelined(Weights::Predict));
                assert_eq!(pipelined, (s * m + n - 1) * both, "{n} stages, {m} micro-batches");
            }
        }
    }

    /// pods.md: s = (generation of the micro-batch) - (updates already done) = ceil(max(0, N-1-k-j)/M), at M = 1 N-1-k updates.
    #[test]
    fn a_stage_lags_by_as_many_updates_as_micro_batches_are_behind_it() {
        for (stages, micro_batches, steps) in [(1, 1, 3), (4, 1, 9), (4, 4, 4), (5, 2, 7), (8, 3, 9), (2, 5, 3)] {
            let order = Order::new(Schedule::Pipelined(Weights::Predict), stages, micro_batches, steps).expect("valid");
            for (k, log) in run(&order).iter().enumerate() {
                let k = u32::try_from(k).expect("few");
                for (MicroBatch { step, index }, version, ahead) in forwards(log) {
                    let lag = (stages - 1 - k).saturating_sub(index).div_ceil(micro_batches);
                    assert_eq!(ahead, step.min(lag), "stage {k} of {stages}, {step}/{index}");
                    assert_eq!(version, step - ahead);
                    if micro_batches == 1 && step >= stages {
                        assert_eq!(ahead, stages - 1 - k);
                    }
                }
            }
        }
    }

    #[test]
    fn every_schedule_computes_with_the_weights_that_it_says() {
        for schedule in ALL {
            let order = Order::new(schedule, 4, 3, 5).expect("valid");
            let logs = run(&order);
            for (k, log) in logs.iter().enumerate() {
                let (forwards, backwards) = (forwards(log), backwards(log));
                for ((forwarded, used, ahead), (micro_batch, version)) in forwards.into_iter().zip(backwards) {
                    assert_eq!(forwarded, micro_batch);
                    let step = micro_batch.step;
                    match schedule {
                        Schedule::Sequential | Schedule::Flush => assert_eq!([used, version, ahead], [step, step, 0]),
                        Schedule::Pipelined(Weights::TwoVersions) => {
                            let before = step.saturating_sub(1);
                            assert_eq!([used, version, ahead], [before, before, 0]);
                        }
                        Schedule::Pipelined(Weights::Stash) => assert_eq!([version, ahead], [used, 0]),
                        // All micro-batches of the steps before are backward by then.
                        Schedule::Pipelined(Weights::Stale) => assert_eq!([version, ahead], [step, 0]),
                        Schedule::Pipelined(Weights::Predict) => assert_eq!([version, used + ahead], [step, step]),
                    }
                    assert!(
                        k + 1 < logs.len() || used == step || schedule == Schedule::Pipelined(Weights::TwoVersions)
                    );
                }
            }
        }
    }

    #[test]
    fn the_order_of_three_stages_is_one_forward_one_backward() {
        let order = Order::new(Schedule::Flush, 3, 4, 1).expect("valid");
        let letters = |log: &Log| {
            let letter = |(_, work): &(u64, Work)| match work {
                Work::Forward { micro_batch, .. } => format!("F{}", micro_batch.index),
                Work::Backward { micro_batch, .. } => format!("B{}", micro_batch.index),
                Work::Update { .. } => "U".to_owned(),
            };
            log.iter().map(letter).collect::<Vec<_>>().join(" ")
        };
        let logs: Vec<String> = run(&order).iter().map(letters).collect();
        assert_eq!(logs[0], "F0 F1 F2 B0 F3 B1 B2 B3 U");
        assert_eq!(logs[1], "F0 F1 B0 F2 B1 F3 B2 B3 U");
        assert_eq!(logs[2], "F0 B0 F1 B1 F2 B2 F3 B3 U");
    }

    #[test]
    fn impossible_rounds_say_the_numbers() {
        let two = Schedule::Pipelined(Weights::TwoVersions);
        let told = Order::new(two, 5, 3, 1).expect_err("four are in flight").to_string();
        assert_eq!(told, "2bw weights take at least 4 micro-batches a step for 5 stages, not 3");
        assert!(Order::new(two, 5, 4, 1).is_ok());
        for (stages, micro_batches, steps) in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
            assert_eq!(Order::new(Schedule::Flush, stages, micro_batches, steps), Err(OrderError::Nothing));
        }
    }

    /// A peer cannot make a member keep more activations than the order has in flight.
    #[test]
    fn what_arrives_out_of_turn_is_refused() {
        let order = Order::new(Schedule::Flush, 3, 4, 1).expect("valid");
        let mut middle = order.stage(1);
        assert!(middle.gradient().is_err(), "nothing was sent");
        (0..3).for_each(|_| middle.activation().expect("stage 0 has three in flight"));
        assert_eq!(middle.activation(), Err(OutOfTurn { what: "activations", micro_batch: 3 }));
        middle.done();
        assert_eq!((middle.gradient(), middle.gradient().is_err()), (Ok(()), true));
        assert!(order.stage(0).activation().is_err() && order.stage(2).gradient().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever the schedule: every micro-batch passes every stage once in each direction, in order; as many are in flight, and
        /// as many versions kept, as the schedule says.
        #[test]
        fn every_round_is_complete_and_within_its_bounds(
            kind in 0usize..6, stages in 1u32..7, micro_batches in 1u32..7, steps in 1u32..5,
        ) {
            let schedule = ALL[kind];
            let Ok(order) = Order::new(schedule, stages, micro_batches, steps) else {
                prop_assert_eq!(schedule, Schedule::Pipelined(Weights::TwoVersions));
                return Ok(());
            };
            let numbers: Vec<MicroBatch> =
                (0..u64::from(steps * micro_batches)).map(|number| order.micro_batch(number)).collect();
            for (k, log) in run(&order).iter().enumerate() {
                let k = u32::try_from(k).expect("few");
                let passed: Vec<_> = forwards(log).into_iter().map(|(micro_batch, ..)| micro_batch).collect();
                prop_assert_eq!(&passed, &numbers);
                let passed: Vec<_> = backwards(log).into_iter().map(|(micro_batch, _)| micro_batch).collect();
                prop_assert_eq!(&passed, &numbers);
                let updates = log.iter().filter(|(_, work)| matches!(work, Work::Update { .. })).count();
                prop_assert_eq!(updates as u64, u64::from(steps));
                // Once more, for what is held in between.
                let mut stage = order.stage(k);
                while let Some(work) = stage.next() {
                    let version = match work {
                        Work::Forward { version, .. } | Work::Backward { version, .. } => version,
                        Work::Update { .. } => stage.updates(),
                    };
                    prop_assert!(version >= stage.oldest_version() && version <= stage.updates());
                    let held = 1 + stage.updates() - stage.oldest_version();
                    prop_assert!(held <= schedule.versions(k, stages, micro_batches), "{:?}", stage);
                    stage.done();
                    let in_flight = stage.forwards - stage.backwards;
                    prop_assert!(in_flight <= schedule.in_flight(k, stages, micro_batches).into());
                }
            }
        }
    }
}
