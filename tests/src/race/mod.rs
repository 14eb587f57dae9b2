//! The race: real training in virtual time (docs/race.md).
//!
//! ```text
//!  workload ── W1.toml: data, split, model, rounds, lines, faults, targets
//!  strategy ── [merge] by name or as TOML, in what `init` writes
//!     │
//!  course ──► sim::World ── host, agents, store, network: as simulated worlds have them
//!                │  learner: the product's maths on real examples
//!                ▼
//!            scoreboard ── the served model on the test examples, at virtual times
//!                ▼
//!            finish ─► report, page
//! ```
//! Races run beside each other, one a strategy and seed. Each has one thread, and its seed decides everything in it.

mod course;
mod data;
mod finish;
mod learner;
mod page;
mod report;
mod scoreboard;
mod split;
mod strategy;
mod workload;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use anabranch_common::transfer::Budgets;
use anabranch_coordinator::config::{Config, ConfigError};
use anyhow::{Context as _, anyhow, bail};
use parking_lot::Mutex;

use crate::sim::{DECODERS, Overhead, Setting, Stopped, World, panic_text};

use course::Kills;
use data::DataSet;
use learner::Native;
use scoreboard::{Judge, Scoreboard};

pub use finish::{Finish, Participation};
pub use report::{RaceReport, StrategyReport};
pub use scoreboard::{Look, Score};
pub use strategy::{Override, Strategy};
pub use workload::Workload;

/// What to race.
#[derive(Debug, Clone)]
pub struct Options {
    /// The command, as it can be typed again.
    pub command: String,
    /// The workload.
    pub workload: Workload,
    /// The strategies; the figures of the first one are the report's.
    pub strategies: Vec<Strategy>,
    /// Keys of run.toml that are set for all of them.
    pub overrides: Vec<Override>,
    /// The first seed.
    pub seed: u64,
    /// How many seeds, at least 1.
    pub seeds: u64,
    /// Where data sets are.
    pub data: Option<PathBuf>,
    /// Races at a time.
    pub jobs: usize,
    /// What every strategy is compared with.
    pub references: BTreeSet<Reference>,
}

/// Another race with the same seed, with which one is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// Processes that the workload kills stand still instead, for as long as they would be gone.
    Pauses,
}

impl Reference {
    /// Its name in figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pauses => "pauses",
        }
    }
}

/// What races with every seed.
struct Entrant {
    name: String,
    config: Config,
    kills: Kills,
    /// Those with which it is compared, among all entrants.
    references: Vec<(Reference, usize)>,
}

/// Races every strategy with every seed.
///
/// # Errors
/// The data are not there, or do not fit the workload; a strategy makes no sense; a race panics.
pub fn run(options: &Options) -> anyhow::Result<RaceReport> {
    let Options { workload, seed, seeds, .. } = options;
    let entrants = entrants(options)?;
    let data = DataSet::open(workload.data, options.data.as_deref(), &workload.model)?;
    let rows = workload.split.rows(&workload.folder, workload.agent_count(), data.labels())?;
    let shared = Shared { workload, data, rows };
    let entries: Vec<(usize, u64)> =
        (0..entrants.len()).flat_map(|entrant| (*seed..seed + seeds).map(move |seed| (entrant, seed))).collect();
    let (next, finishes) = (AtomicUsize::new(0), Mutex::new(vec![None; entries.len()]));
    let race = || {
        loop {
            let entry = next.fetch_add(1, Ordering::Relaxed);
            let Some((entrant, seed)) = entries.get(entry).copied() else { return };
            let finish = guarded(|| shared.race(&entrants[entrant], seed)).map_err(|error| format!("{error:#}"));
            finishes.lock()[entry] = Some(finish);
        }
    };
    std::thread::scope(|scope| {
        (0..options.jobs.clamp(1, entries.len().max(1))).for_each(|_| _ = scope.spawn(race));
    });
    let mut races: Vec<Vec<Finish>> = vec![Vec::new(); entrants.len()];
    for ((entrant, seed), finish) in entries.iter().zip(finishes.into_inner()) {
        let finish = finish.context("a race has not been run")?;
        let name = &entrants[*entrant].name;
        races[*entrant].push(finish.map_err(|error| anyhow!("{name} with seed {seed}: {error}"))?);
    }
    for (entrant, Entrant { references, .. }) in entrants.iter().enumerate() {
        for (reference, other) in references {
            let others = races[*other].clone();
            races[entrant].iter_mut().zip(&others).for_each(|(race, other)| race.compare(*reference, other));
        }
    }
    let reports = entrants.iter().zip(races).map(|(entrant, races)| StrategyReport::new(entrant, races));
    Ok(RaceReport::new(options, reports.collect()))
}

/// Each strategy, and after it those that it is compared with.
fn entrants(options: &Options) -> anyhow::Result<Vec<Entrant>> {
    let Options { workload, strategies, overrides, seed, references, .. } = options;
    let mut entrants: Vec<Entrant> = Vec::new();
    for strategy in strategies {
        let (name, config) = (strategy.name.clone(), config(workload, strategy, overrides, *seed)?);
        strategy::check_overrides(workload, strategy, overrides)?;
        let others = (entrants.len() + 1..).zip(references).map(|(at, reference)| (*reference, at)).collect();
        entrants.push(Entrant { name: name.clone(), config: config.clone(), kills: Kills::Kill, references: others });
        for reference in references {
            let Reference::Pauses = reference;
            if !workload.kills() {
                bail!("--pauses: the workload {} kills no process", workload.name);
            }
            let (name, config) = (format!("{name}, {}", reference.name()), config.clone());
            entrants.push(Entrant { name, config, kills: Kills::Pause, references: Vec::new() });
        }
    }
    Ok(entrants)
}

fn config(workload: &Workload, strategy: &Strategy, overrides: &[Override], seed: u64) -> anyhow::Result<Config> {
    strategy::config(workload, strategy, overrides, seed).map_err(|error| match error {
        ConfigError::Value { key, problem, .. } => anyhow!("strategy {}: {key} {problem}", strategy.name),
        ConfigError::Syntax { problem, .. } => anyhow!("strategy {}: {problem}", strategy.name),
        other => other.into(),
    })
}

fn guarded<T>(race: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    catch_unwind(AssertUnwindSafe(race)).unwrap_or_else(|panic| bail!("it panicked: {}", panic_text(&*panic)))
}

/// What all races of a workload share.
struct Shared<'a> {
    workload: &'a Workload,
    data: DataSet,
    /// Of each agent.
    rows: Vec<Vec<usize>>,
}

impl Shared<'_> {
    fn race(&self, entrant: &Entrant, seed: u64) -> anyhow::Result<Finish> {
        let mut config = entrant.config.clone();
        config.spec.seed = seed;
        let layers = config.spec.model.layers()?.context("the model is not a native one")?;
        let params = layers.manifest.params();
        let shards = self.rows.iter().map(|rows| self.data.shard(rows.clone())).collect();
        let setting = Setting {
            spec: config.spec.clone(),
            learner: Box::new(Native::new(layers.manifest, shards)),
            overhead: Overhead::None,
            stopped: Stopped::StandsStill,
            budgets: Budgets::with_decoders(DECODERS),
            overlap: self.workload.overlap,
        };
        let judge = Judge::new(&config.spec.model, self.data.test())?;
        let mut board = Scoreboard::new(judge, self.workload);
        let schedule = course::schedule(self.workload, &config, params, seed, entrant.kills);
        let mut world = World::with(seed, schedule, setting, false);
        while let Some(at_ms) = board.next_ms().filter(|_| !world.is_broken()) {
            world.advance(at_ms);
            board.look(at_ms, world.served_model(), world.merged(), world.traffic());
        }
        let (outcome, journal) = world.finish();
        Ok(Finish::new(self.workload, board.into_looks(), &outcome, &journal, params))
    }
}
