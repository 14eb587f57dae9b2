//! Workload files: what is trained on what, by whom, over which lines, and what goes wrong (docs/race.md).

use std::path::{Path, PathBuf};

use anabranch_common::limits;
use anabranch_common::spec::{AdmitSpec, ModelKind, ModelSpec, TrainSpec, UploadSpec};
use anabranch_coordinator::config::ConfigError;
use anabranch_io::text_file;
use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use crate::sim::schedule::Hostile;

use super::course::Hit;
use super::data::DataName;
use super::split::Split;
use super::strategy::{self, Strategy};

/// Most agents of a workload: each has a model in memory.
const AGENTS_MAX: usize = 1_000;
/// Longest race in seconds of virtual time: what a journal in memory has room for.
const SECONDS_MAX: f64 = 7_200.0;
/// Slowest line in kbit/s.
const LINE_MIN_KBIT_S: f64 = 1.0;

/// A workload file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its name, from the file's.
    #[serde(skip)]
    pub name: String,
    /// The folder of the file, in which files that it names are.
    #[serde(skip)]
    pub folder: PathBuf,
    /// What it is, in a sentence.
    pub about: String,
    /// Virtual time that agents train, in seconds.
    pub seconds: f64,
    /// Accuracies whose times are taken, each in (0, 1], rising.
    #[serde(default)]
    pub targets: Vec<f64>,
    /// Losses whose times are taken, in nats, falling.
    #[serde(default)]
    pub loss_targets: Vec<f64>,
    /// Time between two looks at the served model in seconds: until the first target is reached, and afterwards, then at
    /// whole multiples of it.
    #[serde(default = "looks")]
    pub look_s: [f64; 2],
    /// Classes whose accuracy is told apart.
    #[serde(default)]
    pub watch: Vec<u32>,
    /// The data set.
    pub data: DataName,
    /// Who holds which examples.
    pub split: Split,
    /// `[model]` of run.toml.
    pub model: ModelSpec,
    /// `[train]` of run.toml.
    pub train: TrainSpec,
    /// `[upload]` of run.toml; what `init` writes where it is absent.
    #[serde(default)]
    pub upload: Option<UploadSpec>,
    /// `[admit]` of run.toml; what `init` writes where it is absent.
    #[serde(default)]
    pub admit: Option<AdmitSpec>,
    /// The agents, in groups.
    pub agents: Vec<AgentGroup>,
    /// Whether agents prepare the next round during the current one, where that is worth it; `false` is `--no-overlap`.
    #[serde(default = "yes")]
    pub overlap: bool,
    /// The line of each agent that has none of its own.
    #[serde(default)]
    pub line: LinePlan,
    /// What goes wrong.
    #[serde(default)]
    pub faults: Faults,
}

/// What a model is to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At least this share of the test examples is classified correctly.
    Accuracy(f64),
    /// The mean loss of the test examples in nats is at most this.
    Loss(f64),
}

impl Target {
    /// Its name in figures: an accuracy of 0.9 is `90`, one of 0.975 is `97_5`, a loss of 1.8 is `loss_1_8`.
    #[must_use]
    pub fn name(self) -> String {
        let number = match self {
            Self::Accuracy(share) => {
                let tenths = (share * 1_000.0).round();
                let decimals = if tenths % 10.0 == 0.0 { 0 } else { 1 };
                format!("{:.decimals$}", tenths / 10.0)
            }
            Self::Loss(loss) => format!("loss_{loss}"),
        };
        number.replace('.', "_")
    }
}

/// Agents that are alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentGroup {
    /// How many.
    #[serde(default = "one")]
    pub count: usize,
    /// How long a local round of `train.local_steps` takes, in seconds.
    pub round_s: f64,
    /// Their line.
    #[serde(default)]
    pub line: Option<LinePlan>,
    /// What they send in place of what they computed, if they are attackers.
    #[serde(default)]
    pub hostile: Option<Hostile>,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn looks() -> [f64; 2] {
    [0.25, 1.0]
}

/// A line between an agent and the coordinator. Without anything said it takes no time.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinePlan {
    /// To the coordinator.
    pub up: Way,
    /// From the coordinator.
    pub down: Way,
}

impl LinePlan {
    /// Whether it takes no time.
    pub(super) fn is_free(&self) -> bool {
        [&self.up, &self.down].into_iter().all(|way| *way == Way::default())
    }
}

/// One way of a line.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Way {
    /// Rate in kbit/s; without it, unlimited.
    pub kbit_s: Option<f64>,
    /// Delay in milliseconds.
    pub delay_ms: u64,
    /// Share of messages and chunks that are lost and sent again, in [0, 1).
    pub loss: f64,
}

/// What goes wrong.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Kills of every agent.
    pub agents: Option<RandomKills>,
    /// Kills of the coordinator.
    pub coordinator: Option<TimedKills>,
    /// What a benchmark does beside.
    #[serde(skip)]
    pub(crate) planned: Vec<Hit>,
}

/// Kills at times that the race's seed draws.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomKills {
    /// Mean of the exponential time from a start to the next kill, in seconds.
    pub mean_s: f64,
    /// Time until the process starts again, in seconds.
    pub down_s: f64,
}

/// Kills at times that are written down.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimedKills {
    /// When, in seconds.
    pub at_s: Vec<f64>,
    /// Time until the process starts again, in seconds.
    pub down_s: f64,
}

/// Returns whether a workload file has a key at its top, which tells of what kind it is.
pub(super) fn has_key(path: &Path, key: &str) -> bool {
    let text = text_file::read(path, limits::CONFIG_FILE_BYTES).unwrap_or_default();
    text.parse::<toml::Table>().is_ok_and(|table| table.contains_key(key))
}

impl Workload {
    /// Reads and checks a workload file.
    ///
    /// # Errors
    /// The file cannot be read, has an unknown key, or a value that makes no sense. The text names file, line and key.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = text_file::read(path, limits::CONFIG_FILE_BYTES);
        let text = text.with_context(|| format!("cannot read the workload {}", path.display()))?;
        Self::parse(path, &text)
    }

    /// Checks `text` as if it had been read from `path`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(path: &Path, text: &str) -> anyhow::Result<Self> {
        let mut workload: Self = toml::from_str(text)
            .map_err(|error| at(path, text, error.span().unwrap_or_default().start, error.message()))?;
        workload.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        workload.folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let checked = workload.check().and_then(|()| workload.check_run());
        checked
            .map_err(|Problem { key, problem }| at(path, text, offset_of(text, &key), &format!("{key} {problem}")))?;
        Ok(workload)
    }

    /// Returns the workload with another length in seconds.
    ///
    /// # Errors
    /// The length makes no sense.
    pub fn lasting(self, seconds: f64) -> anyhow::Result<Self> {
        let workload = Self { seconds, ..self };
        workload.check().map_err(|Problem { key, problem }| anyhow!("{key} {problem}"))?;
        Ok(workload)
    }

    /// Returns the group of each agent.
    pub fn each_agent(&self) -> impl Iterator<Item = &AgentGroup> {
        self.agents.iter().flat_map(|group| std::iter::repeat_n(group, group.count))
    }

    /// Whether it kills a process.
    #[must_use]
    pub fn kills(&self) -> bool {
        self.faults.agents.is_some() || self.faults.coordinator.as_ref().is_some_and(|kills| !kills.at_s.is_empty())
    }

    /// Returns what models are to reach: accuracies, then losses.
    pub fn all_targets(&self) -> impl Iterator<Item = Target> {
        let accuracies = self.targets.iter().copied().map(Target::Accuracy);
        accuracies.chain(self.loss_targets.iter().copied().map(Target::Loss))
    }

    /// Returns the workload of one machine that holds all data: it makes as many local rounds as all agents together, on a
    /// line that takes no time, and nothing goes wrong.
    #[must_use]
    pub fn pooled(&self) -> Self {
        let rounds_per_s: f64 = self.each_agent().map(|group| 1.0 / group.round_s).sum();
        let agents = vec![AgentGroup { count: 1, round_s: 1.0 / rounds_per_s, line: None, hostile: None }];
        let (line, faults) = (LinePlan::default(), Faults::default());
        Self { agents, overlap: false, line, faults, ..self.clone() }
    }

    /// Returns how many agents there are.
    #[must_use]
    pub fn agent_count(&self) -> usize {
        self.agents.iter().map(|group| group.count).sum()
    }

    fn check(&self) -> Checked {
        ensure(self.seconds > 0.0 && self.seconds <= SECONDS_MAX, "seconds", || {
            format!("must be more than 0 and at most {SECONDS_MAX}, but is {}", self.seconds)
        })?;
        let rising = self.targets.windows(2).all(|pair| pair[0] < pair[1]);
        let shares = self.targets.iter().all(|target| *target > 0.0 && *target <= 1.0);
        ensure(rising && shares && self.all_targets().next().is_some(), "targets", || {
            format!("must be rising numbers above 0 and at most 1, but is {:?}", self.targets)
        })?;
        let falling = self.loss_targets.windows(2).all(|pair| pair[0] > pair[1]);
        let losses = self.loss_targets.iter().all(|target| *target > 0.0 && target.is_finite());
        ensure(falling && losses, "loss_targets", || {
            format!("must be falling numbers above 0, but is {:?}", self.loss_targets)
        })?;
        self.look_s.iter().try_for_each(|look_s| positive(*look_s, || "look_s".to_owned()))?;
        let (is_text, kind) = (self.data == DataName::Text, self.model.kind);
        let fits = if is_text { kind == ModelKind::Gpt } else { matches!(kind, ModelKind::Mlp | ModelKind::Cnn) };
        ensure(fits, "model.kind", || {
            let expected = if is_text { "gpt for text" } else { "mlp or cnn" };
            format!("must be {expected}, but is {}", kind.as_str())
        })?;
        let of_text = matches!(self.split, Split::Folders { .. });
        ensure(of_text == is_text, "split", || "must be of kind folders for text, and for nothing else".to_owned())?;
        ensure(self.watch.iter().all(|class| *class < self.model.classes), "watch", || {
            format!("names a class beyond model.classes ({}): {:?}", self.model.classes, self.watch)
        })?;
        let agents = self.agent_count();
        ensure((1..=AGENTS_MAX).contains(&agents), "agents", || {
            format!("must be 1 to {AGENTS_MAX} in all, but are {agents}")
        })?;
        for (index, group) in self.agents.iter().enumerate() {
            positive(group.round_s, || format!("agents.{index}.round_s"))?;
            if let Some(line) = &group.line {
                check_line(line, &format!("agents.{index}.line"))?;
            }
        }
        check_line(&self.line, "line")?;
        if let Some(kills) = &self.faults.agents {
            positive(kills.mean_s, || "faults.agents.mean_s".to_owned())?;
            positive(kills.down_s, || "faults.agents.down_s".to_owned())?;
        }
        if let Some(kills) = &self.faults.coordinator {
            positive(kills.down_s, || "faults.coordinator.down_s".to_owned())?;
            kills.at_s.iter().try_for_each(|at_s| positive(*at_s, || "faults.coordinator.at_s".to_owned()))?;
        }
        self.split.check(agents, self.model.classes).map_err(|(key, problem)| Problem { key, problem })
    }

    /// The sections of run.toml are checked as run.toml is.
    fn check_run(&self) -> Checked {
        match strategy::config(self, &Strategy::init(), &[], 0) {
            Ok(_) => Ok(()),
            Err(ConfigError::Value { key, problem, .. }) => Err(Problem { key, problem }),
            Err(error) => Err(Problem { key: "model".to_owned(), problem: error.to_string() }),
        }
    }
}

/// A key and what is wrong with its value.
#[derive(Debug)]
struct Problem {
    key: String,
    problem: String,
}

type Checked = Result<(), Problem>;

fn ensure(holds: bool, key: &str, problem: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Problem { key: key.to_owned(), problem: problem() }) }
}

fn positive(value: f64, key: impl FnOnce() -> String) -> Checked {
    if value.is_finite() && value >= 0.001 {
        return Ok(());
    }
    Err(Problem { key: key(), problem: format!("must be at least 0.001, but is {value}") })
}

fn check_line(line: &LinePlan, key: &str) -> Checked {
    for (way, name) in [(&line.up, "up"), (&line.down, "down")] {
        ensure((0.0..1.0).contains(&way.loss), &format!("{key}.{name}.loss"), || {
            format!("must be at least 0 and less than 1, but is {}", way.loss)
        })?;
        let rate = way.kbit_s.is_none_or(|rate| rate.is_finite() && rate >= LINE_MIN_KBIT_S);
        ensure(rate, &format!("{key}.{name}.kbit_s"), || {
            format!("must be at least {LINE_MIN_KBIT_S}, but is {}", way.kbit_s.unwrap_or_default())
        })?;
    }
    Ok(())
}

fn at(path: &Path, text: &str, offset: usize, problem: &str) -> anyhow::Error {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    anyhow!("{}:{line}:{column}: {problem}", path.display())
}

/// Byte offset of the value at a dotted path, in which a number is a place in an array; of the nearest one above it that is
/// written.
fn offset_of(text: &str, key: &str) -> usize {
    let Ok(root) = DeTable::parse(text) else { return 0 };
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let Some(mut value) = root.get_ref().get(first) else { return 0 };
    for part in rest.into_iter().flat_map(|rest| rest.split('.')) {
        let next = match value.get_ref() {
            DeValue::Table(table) => table.get(part),
            DeValue::Array(items) => part.parse().ok().and_then(|index: usize| items.get(index)),
            _ => None,
        };
        let Some(next) = next else { break };
        value = next;
    }
    value.span().start
}
