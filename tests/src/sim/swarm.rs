//! Many worlds: one a seed, spread over threads, reported in the order of seeds.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use crate::clock;
use crate::report::Report;

use super::schedule::Schedule;
use super::{Outcome, draw, draw_pods, run, search};

/// Outcomes that may wait to be told.
const OUTCOMES_WAITING: usize = 1024;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which seeds.
    pub seeds: Range<u64>,
    /// Which worlds.
    pub worlds: Worlds,
    /// Threads.
    pub jobs: usize,
}

/// Which world belongs to a seed.
#[derive(Debug, Clone)]
pub enum Worlds {
    /// The one that it draws.
    Drawn,
    /// The one with pods that it draws.
    WithPods,
    /// The one with a search that it draws.
    WithSearch,
    /// One that is written down.
    Written(Box<Schedule>),
}

impl Worlds {
    /// Returns the world of a seed; nothing where that has a search, which is another kind of world.
    #[must_use]
    pub fn draw(&self, seed: u64) -> Option<Schedule> {
        match self {
            Self::Drawn => Some(draw(seed)),
            Self::WithPods => Some(draw_pods(seed)),
            Self::WithSearch => None,
            Self::Written(schedule) => Some((**schedule).clone()),
        }
    }

    /// Runs the world of a seed.
    #[must_use]
    pub fn run(&self, seed: u64, traced: bool) -> Outcome {
        match self.draw(seed) {
            Some(schedule) => run(seed, &schedule, traced),
            None => search::run(seed, &search::draw(seed), traced),
        }
    }
}

/// Runs every seed and hands each outcome to `each`, in the order of seeds. Returns the sums.
pub fn run_all(options: &Options, command: &str, mut each: impl FnMut(&Outcome)) -> Report {
    let began = clock::Stopwatch::start();
    let next = AtomicU64::new(options.seeds.start);
    let (results, finished) = mpsc::sync_channel::<Outcome>(OUTCOMES_WAITING);
    let mut report = Report::new(command, options.seeds.start);
    let mut sums = Sums::default();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            let (results, next) = (results.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= options.seeds.end || results.send(one(options, seed)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        let mut early = std::collections::BTreeMap::new();
        let mut due = options.seeds.start;
        for outcome in finished {
            early.insert(outcome.seed, outcome);
            while let Some(outcome) = early.remove(&due) {
                sums.add(&outcome);
                each(&outcome);
                due += 1;
            }
        }
    });
    sums.report(&mut report, began.seconds());
    report
}

fn one(options: &Options, seed: u64) -> Outcome {
    options.worlds.run(seed, false)
}

#[derive(Debug, Default)]
struct Sums {
    seeds: u64,
    failed: u64,
    acknowledged: u64,
    lost: u64,
    duplicated: u64,
    versions: u64,
    pod_rounds: u64,
    pod_rounds_again: u64,
    trials: u64,
    recoveries: u64,
    faults: u64,
    virtual_ms: u64,
}

impl Sums {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.failed += u64::from(outcome.violation.is_some());
        self.acknowledged += outcome.acknowledged;
        self.lost += outcome.lost;
        self.duplicated += outcome.duplicated;
        self.versions += outcome.versions;
        self.pod_rounds += outcome.pod_rounds.0;
        self.pod_rounds_again += outcome.pod_rounds.1;
        self.trials += outcome.searched.as_ref().map_or(0, |searched| searched.trials);
        self.recoveries += outcome.recoveries;
        self.faults += outcome.faults;
        self.virtual_ms += outcome.virtual_ms;
    }

    fn report(&self, report: &mut Report, wall_s: f64) {
        report.pass = self.failed == 0;
        let figures = [
            ("seeds_run", self.seeds as f64),
            ("seeds_failed", self.failed as f64),
            ("updates_accepted", self.acknowledged as f64),
            ("updates_lost", self.lost as f64),
            ("updates_duplicated", self.duplicated as f64),
            ("versions", self.versions as f64),
            ("pod_rounds", self.pod_rounds as f64),
            ("pod_rounds_of_later_attempts", self.pod_rounds_again as f64),
            ("trials", self.trials as f64),
            ("recoveries", self.recoveries as f64),
            ("faults", self.faults as f64),
            ("virtual_s", self.virtual_ms as f64 / 1000.0),
            ("wall_s", wall_s),
            ("worlds_per_s", self.seeds as f64 / wall_s.max(1e-9)),
        ];
        figures.into_iter().for_each(|(name, value)| report.metric(name, value));
    }
}
