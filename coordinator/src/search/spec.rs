//! `SEARCH.toml`: which configurations are compared, how, and at what price.

use std::path::{Path, PathBuf};

use anabranch_common::limits;
use serde::{Deserialize, Serialize};

use super::source::{Section, Source, SpecError};
use super::space::Space;
use crate::runs::check_name;

/// Everything that `SEARCH.toml` says, checked by itself. [`check`](super::check::check) holds it against the base.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchSpec {
    /// Name of the search; its trials are the runs `NAME-0`, `NAME-1`, ...
    pub name: String,
    /// The configuration that the trials vary, as written: relative to the directory of `SEARCH.toml`.
    pub config: PathBuf,
    /// How trials are chosen, and how long each of them runs.
    pub method: Method,
    /// Trials in all; with `pbt` all of them live side by side.
    pub trials: u32,
    /// One in so many trials of a rung goes on to the next one (`asha`).
    pub eta: u32,
    /// Contributions at which trials are compared, in ascending order. The last one is `max`.
    pub rungs: Vec<u64>,
    /// Trials that run or are measured at the same time.
    pub parallel: u32,
    /// Seed of everything that the search draws.
    pub seed: u64,
    /// What trials are compared by.
    pub metric: Metric,
    /// What the trials differ in.
    pub space: Space,
}

/// How a search chooses trials and ends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934, algorithm 2).
    Asha,
    /// Every trial is drawn and runs to the end.
    Random,
    /// Every point of the space, each of which runs to the end.
    Grid,
    /// Population based training (Jaderberg et al. 2017, arXiv 1711.09846).
    Pbt,
}

/// What trials are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Share of the evaluation examples that are classified correctly: more is better.
    Accuracy,
    /// Mean loss on the evaluation examples: less is better.
    Loss,
}

impl Metric {
    /// Its name in `SEARCH.toml`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Loss => "loss",
        }
    }

    /// Whether more of it is better.
    #[must_use]
    pub fn is_maximised(self) -> bool {
        self == Self::Accuracy
    }
}

/// Words of `search.method`, in the order of [`METHODS`].
const METHOD_WORDS: [&str; 4] = ["asha", "random", "grid", "pbt"];
const METHODS: [Method; 4] = [Method::Asha, Method::Random, Method::Grid, Method::Pbt];
/// Words of `search.direction`, in the order of `METRICS`.
const DIRECTIONS: [&str; 2] = ["max", "min"];
const METRIC_WORDS: [&str; 2] = ["accuracy", "loss"];
const METRICS: [Metric; 2] = [Metric::Accuracy, Metric::Loss];
/// Keys of `[search]`.
const KEYS: [&str; 10] = ["name", "method", "trials", "eta", "r", "max", "parallel", "seed", "metric", "direction"];
/// Trials of a rung of which one goes on, where `search.eta` says nothing: as Li et al. have it.
const ETA: u64 = 4;
/// Trials that are active at the same time, where `search.parallel` says nothing.
const PARALLEL: u64 = 2;

impl SearchSpec {
    /// Checks `text` as if it had been read from `path`.
    ///
    /// # Errors
    /// See [`SpecError`]; the text names file, line, column and key, and what to do.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SpecError> {
        let source = Source::new(path, text);
        let root = source.table()?;
        if let Some(key) = root.keys().find(|key| !["config", "search", "space"].contains(&key.as_str())) {
            return Err(source.refused(&[key], "is not known, expected config, [search] or [space]"));
        }
        let config = root.get("config").and_then(toml::Value::as_str).filter(|config| !config.is_empty());
        let config = config.ok_or_else(|| {
            source.refused(&["config"], "is missing: name the run.toml that the trials vary, relative to this file")
        })?;
        let section = Section::of(source, &root, "search", &KEYS)?;
        let method = METHODS[section.word("method", &METHOD_WORDS)?];
        let space = Space::read(source, &root, method)?;
        let spec = Self {
            name: name(&section, path)?,
            config: config.into(),
            method,
            trials: trials(&section, method, &space)?,
            eta: count(&section, "eta", 2, limits::SEARCH_ETA, ETA)?,
            rungs: rungs(&section, method)?,
            parallel: count(&section, "parallel", 1, limits::SEARCH_PARALLEL, PARALLEL)?,
            // Half of what a word holds: TOML has signed numbers.
            seed: section.whole("seed", 0..=u64::MAX / 2)?.unwrap_or(0),
            metric: metric(&section)?,
            space,
        };
        Ok(spec)
    }

    /// Returns the path of the base, beside the `SEARCH.toml` at `path`.
    #[must_use]
    pub fn base_path(&self, path: &Path) -> PathBuf {
        path.parent().unwrap_or_else(|| Path::new("")).join(&self.config)
    }

    /// Index of the last rung.
    #[must_use]
    pub fn last_rung(&self) -> u32 {
        u32::try_from(self.rungs.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// Contributions at a rung; those of the last one beyond it.
    #[must_use]
    pub fn contributions(&self, rung: u32) -> u64 {
        let rung = usize::try_from(rung.min(self.last_rung())).unwrap_or(0);
        self.rungs.get(rung).copied().unwrap_or(0)
    }
}

fn count(section: &Section<'_>, key: &str, least: u64, most: u32, default: u64) -> Result<u32, SpecError> {
    let number = section.whole(key, least..=u64::from(most))?.unwrap_or(default);
    Ok(u32::try_from(number).unwrap_or(most))
}

/// The search's name: that of the file where none is written.
fn name(section: &Section<'_>, path: &Path) -> Result<String, SpecError> {
    let stem = || path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = section.text("name")?.map_or_else(stem, str::to_owned);
    // A trial's name is this one, a dash and its number.
    let longest = format!("{name}-{}", limits::SEARCH_TRIALS);
    // A search has a directory of its name, as a run has.
    check_name(&name).map_err(|problem| section.refused("name", &format!("makes no directory: {problem}")))?;
    match check_name(&longest) {
        Ok(()) => Ok(name),
        Err(_) => Err(section.refused("name", "is too long: a run's name holds it with a number")),
    }
}

fn metric(section: &Section<'_>) -> Result<Metric, SpecError> {
    let place = section.word("metric", &METRIC_WORDS)?;
    if section.has("direction") && section.word("direction", &DIRECTIONS)? != place {
        let (metric, direction) = (METRIC_WORDS[place], DIRECTIONS[place]);
        let problem =
            format!("expected {direction:?} with metric = {metric:?}: leave it out, it follows from the metric");
        return Err(section.refused("direction", &problem));
    }
    Ok(METRICS[place])
}

fn trials(section: &Section<'_>, method: Method, space: &Space) -> Result<u32, SpecError> {
    let most = u64::from(limits::SEARCH_TRIALS);
    let purpose = "the number of configurations to try";
    let trials = match method {
        Method::Grid => {
            let (points, told) = (space.points(), section.whole("trials", 1..=most)?);
            let points = points.filter(|points| *points <= most).ok_or_else(|| {
                let problem = format!("= \"grid\" has more than {most} points: leave out keys or choices of [space]");
                section.refused("method", &problem)
            })?;
            if told.is_some_and(|told| told != points) {
                let problem = format!("does not fit: the grid has {points} points, leave this key out");
                return Err(section.refused("trials", &problem));
            }
            points
        }
        Method::Pbt => section.required("trials", 2..=most, "the size of the population")?,
        Method::Asha | Method::Random => section.required("trials", 1..=most, purpose)?,
    };
    Ok(u32::try_from(trials).unwrap_or(limits::SEARCH_TRIALS))
}

/// Contributions of the rungs: `r`, `r eta`, `r eta^2`, ... and `max` with `asha`; every `r` up to `max` with `pbt`; else `max`.
fn rungs(section: &Section<'_>, method: Method) -> Result<Vec<u64>, SpecError> {
    let max = section.required("max", 1..=limits::SEARCH_CONTRIBUTIONS, "the contributions of a full run")?;
    let first = || {
        let purpose = "the contributions after which trials are compared first";
        section.required("r", 1..=max, &format!("{purpose}, at most max ({max})"))
    };
    let mut rungs = Vec::new();
    match method {
        Method::Random | Method::Grid => {}
        Method::Asha => {
            let eta = section.whole("eta", 2..=u64::from(limits::SEARCH_ETA))?.unwrap_or(ETA);
            let mut at = first()?;
            while at < max {
                rungs.push(at);
                at = at.saturating_mul(eta);
            }
        }
        Method::Pbt => {
            let step = first()?;
            let count = max.div_ceil(step);
            if count > limits::SEARCH_RUNGS as u64 {
                let problem = format!("is {step}: max ({max}) is more than {} times that", limits::SEARCH_RUNGS);
                return Err(section.refused("r", &problem));
            }
            rungs.extend((1..count).map(|number| number * step));
        }
    }
    rungs.push(max);
    Ok(rungs)
}
