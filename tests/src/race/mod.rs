//! The race: real training in virtual time, or with real processes (docs/race.md).
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
//! With a real clock, `real` takes the place of the world: daemons as processes, and models replayed from the journal.
//! `replicas` takes the place of the world where all agents are one synchronous group. `pipeline` compares the schedules of a pod in
//! place of merge rules.
//! Races run beside each other, one a strategy and seed. Each has one thread, and its seed decides everything in it.

mod course;
pub(crate) mod data;
mod finish;
mod learner;
mod page;
pub mod pipeline;
mod real;
mod replicas;
mod report;
mod scoreboard;
pub mod search;
mod split;
mod strategy;
mod texts;
mod workload;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use anabranch_common::codec::Codec as _;
use anabranch_common::codec::dense::Planes32;
use anabranch_common::ids::AgentId;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::RunSpec;
use anabranch_common::transfer::Budgets;
use anabranch_coordinator::config::{Config, ConfigError};
use anyhow::{Context as _, anyhow, bail};
use parking_lot::Mutex;
use toml::Table;

use crate::sim::{DECODERS, Overhead, Setting, Stopped, World, agent_id, panic_text};

pub(crate) use course::{Hit, Kills};
pub(crate) use data::DataSet;
use learner::Native;
use real::RealRace;
pub(crate) use real::run_toml;
use replicas::RingRace;
use scoreboard::{Judge, Scoreboard};

pub use finish::{Finish, Participation};
pub use report::{RaceReport, StrategyReport};
pub use scoreboard::{Look, Score};
pub use strategy::{Grouping, Override, Strategy};
pub(crate) use strategy::{put, written};
pub(crate) use workload::AgentGroup;
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
    /// Whose time passes.
    pub clock: Clock,
}

/// Whose time passes in a race.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clock {
    /// That of the simulation.
    Virtual,
    /// This machine's: the daemons run as processes, one race after the other.
    Real {
        /// The binary that is every daemon.
        lab: PathBuf,
        /// The agent, counted from 0, that also holds the test examples and evaluates as the run asks for it.
        evaluator: Option<usize>,
    },
}

impl Clock {
    /// Returns its name in a report.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Virtual => "virtual",
            Self::Real { .. } => "real",
        }
    }
}

/// Another race with the same seed, with which one is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// Processes that the workload kills stand still instead, for as long as they would be gone.
    Pauses,
    /// One machine holds all data, and makes as many local rounds as all agents together.
    Pooled,
}

impl Reference {
    /// Its name in figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pauses => "pauses",
            Self::Pooled => "pooled",
        }
    }
}

/// What races with every seed.
struct Entrant {
    name: String,
    workload: Workload,
    config: Config,
    /// The same as it is written in run.toml.
    table: Table,
    kills: Kills,
    holders: Holders,
    grouping: Grouping,
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
    let data = DataSet::open(workload, options.data.as_deref())?;
    let pooled = data.pooled();
    let data_of = |holders| match holders {
        Holders::Agents => &data,
        Holders::One => &pooled,
    };
    let entries: Vec<(usize, u64)> =
        (0..entrants.len()).flat_map(|entrant| (*seed..seed + seeds).map(move |seed| (entrant, seed))).collect();
    let jobs = if options.clock == Clock::Virtual { options.jobs } else { 1 };
    let finishes = in_parallel(jobs, entries.len(), |entry| {
        let (entrant, seed) = entries[entry];
        let entrant = &entrants[entrant];
        guarded(|| entrant.race(data_of(entrant.holders), seed, &options.clock))
    });
    let mut races: Vec<Vec<Finish>> = vec![Vec::new(); entrants.len()];
    for ((entrant, seed), finish) in entries.iter().zip(finishes) {
        let name = &entrants[*entrant].name;
        races[*entrant].push(finish.map_err(|error| anyhow!("{name} with seed {seed}: {error:#}"))?);
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
    let Options { workload, strategies, overrides, seed, references, clock, .. } = options;
    if references.contains(&Reference::Pauses) && !workload.kills() {
        bail!("--pauses: the workload {} kills no process", workload.name);
    }
    let mut entrants: Vec<Entrant> = Vec::new();
    for strategy in strategies {
        let mut entrant = Entrant::new(workload, strategy, overrides, *seed)?;
        strategy::check_overrides(workload, strategy, overrides, clock)?;
        if entrant.grouping == Grouping::Replicas {
            replicas::check(workload, &entrant.config.spec, clock)?;
        }
        let name = entrant.name.clone();
        entrant.references = references.iter().copied().zip(entrants.len() + 1..).collect();
        entrants.push(entrant);
        for reference in references {
            let name = format!("{name}, {}", reference.name());
            entrants.push(match reference {
                Reference::Pauses => {
                    Entrant { name, kills: Kills::Pause, ..Entrant::new(workload, strategy, overrides, *seed)? }
                }
                Reference::Pooled => {
                    let (strategy, overrides) = Strategy::pooled();
                    let holders = Holders::One;
                    Entrant { name, holders, ..Entrant::new(&workload.pooled(), &strategy, &overrides, *seed)? }
                }
            });
        }
    }
    Ok(entrants)
}

/// run.toml of a strategy with these overrides, checked.
pub(crate) fn config(
    workload: &Workload,
    strategy: &Strategy,
    overrides: &[Override],
    seed: u64,
) -> anyhow::Result<Config> {
    strategy::config(workload, strategy, overrides, seed).map_err(|error| match error {
        ConfigError::Value { key, problem, .. } => anyhow!("strategy {}: {key} {problem}", strategy.name),
        ConfigError::Syntax { problem, .. } => anyhow!("strategy {}: {problem}", strategy.name),
        other => other.into(),
    })
}

/// Does so many pieces of work, several at a time. Returns their results in order.
fn in_parallel<T: Send>(jobs: usize, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1).min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let result = work(index);
                    done.lock().push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

fn guarded<T>(race: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    catch_unwind(AssertUnwindSafe(race)).unwrap_or_else(|panic| bail!("it panicked: {}", panic_text(&*panic)))
}

/// Who holds the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holders {
    /// Each agent its part.
    Agents,
    /// One machine all of it.
    One,
}

impl Entrant {
    fn new(workload: &Workload, strategy: &Strategy, overrides: &[Override], seed: u64) -> anyhow::Result<Self> {
        Ok(Self {
            name: strategy.name.clone(),
            workload: workload.clone(),
            config: config(workload, strategy, overrides, seed)?,
            table: strategy::table(workload, strategy, overrides, seed),
            kills: Kills::Kill,
            holders: Holders::Agents,
            grouping: strategy.grouping(),
            references: Vec::new(),
        })
    }

    fn race(&self, data: &DataSet, seed: u64, clock: &Clock) -> anyhow::Result<Finish> {
        let layers = self.config.spec.model.layers()?.context("the model is not a native one")?;
        let judge = Judge::new(&self.config.spec.model, &data.test)?;
        let board = Scoreboard::new(judge, &self.workload);
        match clock {
            Clock::Virtual if self.grouping == Grouping::Replicas => {
                let spec = RunSpec { seed, ..self.config.spec.clone() };
                RingRace { workload: &self.workload, spec: &spec, shards: &data.shards }.run(board)
            }
            Clock::Virtual => self.in_virtual_time(data, seed, board, layers.manifest),
            Clock::Real { lab, evaluator } => {
                let (workload, kills, params) = (&self.workload, self.kills, layers.manifest.params());
                RealRace { lab, workload, data, kills, seed, evaluator: *evaluator }.run(&self.table, board, params)
            }
        }
    }

    fn in_virtual_time(
        &self,
        data: &DataSet,
        seed: u64,
        mut board: Scoreboard,
        manifest: ModelManifest,
    ) -> anyhow::Result<Finish> {
        let (workload, params) = (&self.workload, manifest.params());
        let mut world = self.world(data, seed, manifest.clone());
        while let Some(at_ms) = board.next_ms().filter(|_| !world.is_broken()) {
            world.advance(at_ms);
            board.look(at_ms, world.served_model(), world.merged(), world.traffic());
        }
        let agents_downlink_bytes = world.down_bytes();
        let whole = world.served_model().map(|model| Planes32.encode(&manifest, model)).transpose()?;
        let (outcome, journal) = world.finish();
        let ids: Vec<AgentId> = (1..=workload.agent_count()).map(agent_id).collect();
        let mut finish = Finish::new(workload, board.into_looks(), &outcome, &journal, params, &ids);
        finish.agents_downlink_bytes = agents_downlink_bytes;
        finish.metrics.extend(whole.map(|whole| ("snapshot_bytes".to_owned(), whole.len() as f64)));
        Ok(finish)
    }
    /// Returns the world of a race before anything has happened.
    fn world(&self, data: &DataSet, seed: u64, manifest: ModelManifest) -> World {
        let params = manifest.params();
        let mut config = self.config.clone();
        config.spec.seed = seed;
        let setting = Setting {
            spec: config.spec.clone(),
            learner: Box::new(Native::new(manifest, data.shards.clone())),
            overhead: Overhead::None,
            stopped: Stopped::StandsStill,
            budgets: Budgets::with_decoders(DECODERS),
            overlap: self.workload.overlap,
            devices: None,
        };
        let schedule = course::schedule(&self.workload, &config, params, seed, self.kills);
        World::with(seed, schedule, setting, false)
    }
}
