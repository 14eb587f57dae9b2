//! A search over configurations in virtual time, held against full runs of all of them (docs/race.md).
//!
//! ```text
//!  search.toml ─► Search (the product's) ── Make, Continue ──► Worlds: a world a trial, shared devices
//!                    ▲  └── Append ─► records, verified              │ Reached
//!                    └──── Measured ◄── judge: the test examples ◄───┘
//!  truth: every configuration alone, to its end ─► regret, random search at the same price
//! ```
//! Measuring takes no virtual time. Restarting a coordinator takes none either.

mod truth;
mod workload;
mod worlds;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use anabranch_common::ids::ModelVersion;
use anabranch_common::now::Now;
use anabranch_common::transfer::Budgets;
use anabranch_coordinator::config::Config;
use anabranch_coordinator::search::record::{Record, RecordBody, TrialId};
use anabranch_coordinator::search::{Input, Output, Search, draw, run_name, verify};
use anyhow::{Context as _, bail, ensure};

use crate::report::{Report, quantile};
use crate::sim::{DECODERS, Devices, Overhead, Setting, Stopped, World};

use super::course::{self, Kills};
use super::data::DataSet;
use super::learner::Native;
use super::scoreboard::{Judge, Score};

use truth::{FullRun, Truth, best_of};
use worlds::{Came, Worlds};

pub use workload::SearchWorkload;

/// Most time of a search, in times of the full run of its winner.
const TIME_AIM: f64 = 2.0;
/// Most bytes, likewise.
const BYTES_AIM: f64 = 2.5;
/// Most points of accuracy that the winner may be behind the best configuration.
const REGRET_AIM: f64 = 0.3;

/// What to do.
#[derive(Debug, Clone)]
pub struct SearchOptions {
    /// The command, as it can be typed again.
    pub command: String,
    /// The command that makes the file of full runs.
    pub made_by: String,
    /// The workload.
    pub workload: SearchWorkload,
    /// The first seed.
    pub seed: u64,
    /// How many seeds.
    pub seeds: u64,
    /// Where data sets are.
    pub data: Option<PathBuf>,
    /// Searches, or full runs, at a time.
    pub jobs: usize,
    /// Whether to make the file of full runs, in place of searching.
    pub exhaustive: bool,
}

/// What a search came to.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    winner: TrialId,
    /// Accuracy of the winner's last measurement.
    accuracy: f64,
    seconds: f64,
    bytes: u64,
    contributions: u64,
    /// The records of the search's journal, without their times.
    decisions: Vec<RecordBody>,
}

/// What full runs and searches are made of.
struct Course<'a> {
    workload: &'a SearchWorkload,
    data: &'a DataSet,
    seed: u64,
}

/// Searches with every seed, twice: undisturbed, and with coordinators that are killed. Or makes the file of full runs.
///
/// # Errors
/// Data or full runs are missing, a configuration is impossible, a search breaks a promise.
pub fn run(options: &SearchOptions) -> anyhow::Result<Report> {
    let data = DataSet::open(&options.workload.agents, options.data.as_deref())?;
    let seeds: Vec<u64> = (options.seed..options.seed + options.seeds).collect();
    let course = |seed| Course { workload: &options.workload, data: &data, seed };
    if options.exhaustive {
        return exhaustive(options, &seeds, &course);
    }
    let truth = Truth::read(&options.workload.truth, &options.made_by)?;
    let spec = &options.workload.spec;
    ensure!(
        truth.contributions == spec.contributions(spec.last_rung()),
        "full runs of {} contributions",
        truth.contributions
    );
    let races: Vec<(u64, bool)> = seeds.iter().flat_map(|seed| [(*seed, false), (*seed, true)]).collect();
    let found = super::in_parallel(options.jobs, races.len(), |index| {
        let (seed, kills) = races[index];
        course(seed).search(kills).with_context(|| format!("seed {seed}"))
    });
    let found = found.into_iter().collect::<anyhow::Result<Vec<Found>>>()?;
    report(options, &truth, &seeds, &found)
}

fn exhaustive<'a>(
    options: &SearchOptions,
    seeds: &[u64],
    course: &(impl Fn(u64) -> Course<'a> + Sync),
) -> anyhow::Result<Report> {
    let spec = &options.workload.spec;
    let runs: Vec<(u64, TrialId)> =
        seeds.iter().flat_map(|seed| (0..spec.trials).map(|trial| (*seed, TrialId(trial)))).collect();
    let made = super::in_parallel(options.jobs, runs.len(), |index| {
        let (seed, trial) = runs[index];
        course(seed).full_run(trial).with_context(|| format!("trial {trial} with seed {seed}"))
    });
    let mut by_seed: BTreeMap<u64, Vec<FullRun>> = BTreeMap::new();
    let mut report = Report::new(&options.command, options.seed);
    for ((seed, trial), run) in runs.iter().zip(made) {
        let run = run?;
        let name = format!("seed {seed} trial {trial}");
        report.run(&name, "accuracy", run.accuracy.unwrap_or(0.0));
        report.run(&name, "seconds", run.seconds);
        println!(
            "{name:<20} {:>8.4} {:>8.2} s  {}",
            run.accuracy.unwrap_or(0.0),
            run.seconds,
            in_words(&run.overrides)
        );
        by_seed.entry(*seed).or_default().push(run);
    }
    let truth =
        Truth { command: options.made_by.clone(), contributions: spec.contributions(spec.last_rung()), seeds: by_seed };
    let path = &options.workload.truth;
    let text = format!("{}\n", serde_json::to_string_pretty(&truth)?);
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(report)
}

impl Course<'_> {
    /// Returns the world of a trial with this run.toml, and who judges its models.
    fn world(&self, text: &str, devices: Option<Devices>) -> anyhow::Result<(World, Judge)> {
        let mut config = Config::parse(Path::new("run.toml"), text)?;
        config.spec.seed = self.seed;
        let workload = self.workload.of_trial(&config)?;
        let layers = config.spec.model.layers()?.context("the model is not a native one")?;
        let judge = Judge::new(&config.spec.model, &self.data.test)?;
        let params = layers.manifest.params();
        let setting = Setting {
            spec: config.spec.clone(),
            learner: Box::new(Native::new(layers.manifest, self.data.shards.clone())),
            overhead: Overhead::None,
            stopped: Stopped::StandsStill,
            budgets: Budgets::with_decoders(DECODERS),
            overlap: workload.overlap,
            devices,
        };
        let schedule = course::schedule(&workload, &config, params, self.seed, Kills::Kill);
        Ok((World::with(self.seed, schedule, setting, false), judge))
    }

    /// Runs one configuration alone, to its end.
    fn full_run(&self, trial: TrialId) -> anyhow::Result<FullRun> {
        let spec = &self.workload.spec;
        let overrides = draw::first(spec, trial);
        let text = self.workload.base(self.seed)?.trial(&run_name(&spec.name, trial), &overrides);
        let (world, mut judge) = self.world(&text.map_err(anyhow::Error::msg)?, None)?;
        let mut worlds = Worlds::default();
        worlds.make(trial, world);
        worlds.go_on(trial, spec.contributions(spec.last_rung()));
        let accuracy = match worlds.next() {
            Some((_, Came::Reached { .. })) => worlds.model(trial).map(|model| judge.score(model).accuracy),
            Some((_, Came::Broken { .. })) | None => None,
        };
        let (seconds, traffic) = (worlds.now_ms() as f64 / 1e3, worlds.traffic());
        Ok(FullRun { overrides, seconds, bytes: traffic.up_bytes + traffic.down_bytes, accuracy })
    }

    /// Searches. With `kills`, every coordinator and the search are killed where the workload says so.
    fn search(&self, kills: bool) -> anyhow::Result<Found> {
        let SearchWorkload { path, text, kills_after, .. } = self.workload;
        let (path, base) = (path.display().to_string(), self.workload.base(self.seed)?.text());
        let now = Now { unix_ms: 0, mono_ms: 0 };
        let mut trials = Trials {
            course: self,
            search: Search::start(now, path, text.clone(), base)?,
            worlds: Worlds::default(),
            judges: BTreeMap::new(),
            scores: BTreeMap::new(),
            records: Vec::new(),
            inputs: VecDeque::from([Input::Begin]),
            is_over: false,
        };
        let mut kills_after: VecDeque<u64> = kills_after.iter().copied().filter(|_| kills).collect();
        while !trials.is_over {
            if kills_after.front().is_some_and(|after| trials.records.len() as u64 >= *after) {
                kills_after.pop_front();
                trials.kill()?;
            }
            trials.step()?;
        }
        trials.finish()
    }
}

/// A search with its trials.
struct Trials<'a> {
    course: &'a Course<'a>,
    search: Search,
    worlds: Worlds,
    judges: BTreeMap<TrialId, Judge>,
    /// What each version comes to with which a trial came to a rung. A version that is kept can be evaluated at any time.
    scores: BTreeMap<(TrialId, ModelVersion), Score>,
    /// The search's journal.
    records: Vec<Record>,
    inputs: VecDeque<Input>,
    is_over: bool,
}

impl Trials<'_> {
    fn now(&self) -> Now {
        Now { unix_ms: self.worlds.now_ms(), mono_ms: self.worlds.now_ms() }
    }

    /// One input of the search, or what comes next in the trials' worlds.
    fn step(&mut self) -> anyhow::Result<()> {
        let input = match self.inputs.pop_front() {
            Some(input) => input,
            None => match self.worlds.next().context("no trial goes on, and the search has not ended")? {
                (trial, Came::Reached { contributions, version }) => {
                    let model = self.worlds.model(trial).context("a trial that has contributions serves a model")?;
                    let judge = self.judges.get_mut(&trial).context("a trial that was made has its judge")?;
                    self.scores.insert((trial, version), judge.score(model));
                    Input::Reached { trial, contributions, version }
                }
                (trial, Came::Broken { reason }) => Input::Diverged { trial, reason },
            },
        };
        let now = self.now();
        for output in self.search.handle(now, input) {
            self.carry_out(output)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, output: Output) -> anyhow::Result<()> {
        match output {
            Output::Append(record) => {
                self.inputs.push_back(Input::Written { position: record.position });
                self.records.push(record);
            }
            Output::Make { trial, config, .. } => {
                if !self.judges.contains_key(&trial) {
                    let (world, judge) = self.course.world(&config, Some(self.worlds.devices()))?;
                    self.judges.insert(trial, judge);
                    self.worlds.make(trial, world);
                }
            }
            Output::Continue { trial, until } => self.worlds.go_on(trial, until),
            Output::Hold { trial } | Output::End { trial, .. } => self.worlds.hold(trial),
            Output::Measure { trial, version } => {
                let score =
                    self.scores.get(&(trial, version)).context("a version that no trial came to a rung with")?;
                let (accuracy, loss) = (score.accuracy, score.loss);
                self.inputs.push_back(Input::Measured { trial, version, accuracy, loss });
            }
            Output::Copy { .. } => bail!("successive halving copies no trial"),
            Output::Finished(_) => self.is_over = true,
        }
        Ok(())
    }

    /// kill -9 of the process that serves the search and its trials. What it was told and had not written is lost.
    fn kill(&mut self) -> anyhow::Result<()> {
        self.worlds.kill_coordinator();
        self.search = Search::restore(&self.records)?;
        self.inputs = VecDeque::from([Input::Begin]);
        Ok(())
    }

    fn finish(self) -> anyhow::Result<Found> {
        if let Some(due) = verify::verify(&self.records)? {
            bail!("the search has ended, and {due:?} is due");
        }
        let state = self.search.state();
        let winner = state.outcome.and_then(|outcome| outcome.winner).context("every trial was closed")?;
        let newest = state.trials.iter().find(|trial| trial.id == winner).and_then(|trial| trial.newest());
        let accuracy = newest.map_or(0.0, |newest| newest.metric);
        let closed: Vec<TrialId> = state.trials.iter().filter(|trial| !trial.is_open()).map(|trial| trial.id).collect();
        let (seconds, traffic) = (self.worlds.now_ms() as f64 / 1e3, self.worlds.traffic());
        let contributions = self.worlds.contributions();
        let decisions = self.records.into_iter().map(|record| record.body).collect();
        let broken = self.worlds.finish().into_iter().find(|(trial, _)| !closed.contains(trial));
        if let Some((trial, violation)) = broken {
            bail!("trial {trial}: {violation}");
        }
        Ok(Found { winner, accuracy, seconds, bytes: traffic.up_bytes + traffic.down_bytes, contributions, decisions })
    }
}

/// Figures of one seed.
fn figures(truth: &Truth, runs: &[FullRun], found: &Found, killed: &Found) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let of = |trial: TrialId| runs.get(trial.0 as usize).context("every trial has a full run");
    let winner = of(found.winner)?;
    let points = |run: &FullRun| 100.0 * run.accuracy.unwrap_or(0.0);
    let best = runs.iter().map(points).max_by(f64::total_cmp).unwrap_or(0.0);
    let picks = usize::try_from(found.contributions.div_ceil(truth.contributions.max(1)))?;
    let mean = |of: &dyn Fn(&FullRun) -> f64| runs.iter().map(of).sum::<f64>() / runs.len().max(1) as f64;
    Ok(vec![
        ("search_time_ratio", found.seconds / winner.seconds),
        ("search_time_ratio_to_mean", found.seconds / mean(&|run| run.seconds)),
        ("search_bytes_ratio", found.bytes as f64 / winner.bytes as f64),
        ("search_contributions_ratio", found.contributions as f64 / truth.contributions as f64),
        ("search_regret_points", best - points(winner)),
        ("random_regret_points", best - 100.0 * best_of(runs, picks)),
        ("search_s", found.seconds),
        ("winner_trial", f64::from(found.winner.0)),
        ("winner_accuracy", found.accuracy),
        ("best_accuracy", best / 100.0),
        ("same_winner", f64::from(u8::from(found.winner == killed.winner))),
        ("same_journal", f64::from(u8::from(found.decisions == killed.decisions))),
    ])
}

fn report(options: &SearchOptions, truth: &Truth, seeds: &[u64], found: &[Found]) -> anyhow::Result<Report> {
    let mut report = Report::new(&options.command, options.seed);
    let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let spec = &options.workload.spec;
    let configurations: Vec<_> = (0..spec.trials).map(|trial| draw::first(spec, TrialId(trial))).collect();
    for (seed, pair) in seeds.iter().zip(found.chunks(2)) {
        let [found, killed] = pair else { bail!("two searches a seed") };
        let runs = truth.of(*seed, &configurations)?;
        for (name, value) in figures(truth, runs, found, killed)? {
            report.run(&format!("seed {seed}"), name, value);
            by_name.entry(name).or_default().push(value);
        }
        println!(
            "seed {seed}: trial {} of {} wins with {:.4} after {:.1} s, {} contributions, {} records: {}",
            found.winner,
            runs.len(),
            found.accuracy,
            found.seconds,
            found.contributions,
            found.decisions.len(),
            in_words(&runs[found.winner.0 as usize].overrides)
        );
    }
    for (name, mut values) in by_name {
        values.sort_by(f64::total_cmp);
        // The same winner or journal counts only where every seed has it.
        let value = if name.starts_with("same_") { quantile(&values, 0.0) } else { quantile(&values, 0.5) };
        report.metric(name, value);
    }
    let at_most = |name: &str, most: f64| report.metrics.get(name).is_some_and(|value| *value <= most);
    let aims = [
        (format!("a search takes at most {TIME_AIM} times its winner's run"), at_most("search_time_ratio", TIME_AIM)),
        (format!("it sends at most {BYTES_AIM} times the bytes"), at_most("search_bytes_ratio", BYTES_AIM)),
        (format!("its winner is within {REGRET_AIM} points of the best"), at_most("search_regret_points", REGRET_AIM)),
        ("kills change no winner".to_owned(), report.metrics.get("same_winner") == Some(&1.0)),
    ];
    aims.into_iter().for_each(|(text, reached)| report.aim(text, reached));
    Ok(report)
}

fn in_words(overrides: &BTreeMap<String, String>) -> String {
    overrides.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join(", ")
}
