//! Strategies: the `[merge]` section by name or as it stands in run.toml, put into what `init` writes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anabranch_common::spec::{EvaluateSpec, ModelSpec, RunSpec, TargetSpec, TrainSpec};
use anabranch_coordinator::config::{Config, ConfigError, DEFAULT_PORT, Retention, ServerConfig, TemplateOptions};
use anyhow::{Context as _, bail};
use toml::{Table, Value};

use super::Clock;
use super::workload::Workload;

/// Strategies with a name, with the keys that the comments of run.toml name.
const NAMED: [(&str, &str); 11] = [
    ("fedasync", "strategy = \"fedasync\"\nalpha = 0.6"),
    ("fedbuff", "strategy = \"fedbuff\"\nbuffer_size = 4\nserver_lr = 1.0"),
    ("recall", "strategy = \"recall\""),
    ("delayed-nesterov", "strategy = \"delayed-nesterov\"\nbuffer_size = 4\nserver_lr = 1.0"),
    ("fadas", "strategy = \"fadas\"\nbuffer_size = 4\nserver_lr = 0.001"),
    ("rescaled", "strategy = \"rescaled\"\nalpha = 0.6"),
    ("ef21", "strategy = \"ef21\""),
    ("fedavg", "strategy = \"fedavg\""),
    ("fedprox", "strategy = \"fedprox\"\nmu = 0.01"),
    ("fedavgm", "strategy = \"fedavgm\""),
    ("fedadam", "strategy = \"fedadam\"\nserver_lr = 0.01"),
];
/// What `init` writes.
const INIT: &str = "init";
/// All agents as one synchronous group.
const REPLICAS: &str = "replicas";

/// How the agents of a race train together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Each by itself, and a coordinator merges their updates.
    Apart,
    /// As one group of replicas, without a coordinator.
    Replicas,
}

/// A merge rule with its name in a race, or what takes its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Strategy {
    /// For people.
    pub name: String,
    /// `[merge]`; what `init` writes where it is absent.
    merge: Option<Table>,
    grouping: Grouping,
}

impl Strategy {
    /// Returns what one machine that holds all data does: each update takes the place of the model, and nothing is
    /// compressed or bounded.
    pub(super) fn pooled() -> (Self, Vec<Override>) {
        let merge = "strategy = \"fedasync\"\nalpha = 1.0\nstaleness = { fn = \"constant\" }";
        let merge = Some(merge.parse().expect("it is TOML"));
        let strategy = Self { name: "pooled".to_owned(), merge, grouping: Grouping::Apart };
        let overrides = [
            "upload.codec={ kind = \"f32\" }",
            "upload.feedback_decay=0.0",
            "admit.max_norm_ratio=0.0",
            "admit.clip_norm_ratio=0.0",
            "admit.max_influence=0.0",
            "train.keep_optimizer_state=true",
        ];
        (strategy, overrides.map(|text| Override::parse(text).expect("it has a key and a value")).into())
    }

    /// Returns what `anabranch-coordinator init` writes.
    #[must_use]
    pub fn init() -> Self {
        Self { name: INIT.to_owned(), merge: None, grouping: Grouping::Apart }
    }

    /// Returns how agents train together.
    pub(super) fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// Reads a name, or a `[merge]` section: its lines, or an inline table.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        if text == INIT {
            return Ok(Self::init());
        }
        if text == REPLICAS {
            return Ok(Self { name: REPLICAS.to_owned(), grouping: Grouping::Replicas, ..Self::init() });
        }
        let named = NAMED.iter().find(|(name, _)| *name == text).map(|(_, merge)| *merge);
        let known = || NAMED.iter().map(|(name, _)| *name).chain([INIT, REPLICAS]).collect::<Vec<_>>().join(", ");
        if named.is_none() && !text.contains('=') {
            bail!("--strategy {text}: no such strategy; there are {}, or the [merge] section as TOML", known());
        }
        let merge = read(named.unwrap_or(text)).with_context(|| format!("--strategy {text}"))?;
        let name = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Self { name, merge: Some(merge), grouping: Grouping::Apart })
    }
}

fn read(text: &str) -> anyhow::Result<Table> {
    if !text.starts_with('{') {
        return Ok(text.parse()?);
    }
    let table: Table = format!("merge = {text}").parse()?;
    match table.get("merge") {
        Some(Value::Table(merge)) => Ok(merge.clone()),
        _ => bail!("it is no table"),
    }
}

/// A key of run.toml that a race sets for all its strategies.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    key: String,
    value: Value,
}

impl Override {
    /// Reads `KEY=VALUE`, such as `upload.codec={ kind = "f32" }`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (key, value) = text.split_once('=').with_context(|| format!("--set {text}: expected KEY=VALUE"))?;
        let table: Table = format!("value = {value}").parse().with_context(|| format!("--set {text}"))?;
        let value = table.get("value").cloned().with_context(|| format!("--set {text}: there is no value"))?;
        Ok(Self { key: key.trim().to_owned(), value })
    }

    /// Sets the key in a configuration.
    pub(crate) fn apply(&self, table: &mut Table) {
        let mut parts: Vec<&str> = self.key.split('.').collect();
        let Some(last) = parts.pop() else { return };
        let mut inner = table;
        for part in parts {
            let next = inner.entry(part).or_insert_with(|| Value::Table(Table::new()));
            if !next.is_table() {
                *next = Value::Table(Table::new());
            }
            let Value::Table(next) = next else { return };
            inner = next;
        }
        inner.insert(last.to_owned(), self.value.clone());
    }
}

/// Returns run.toml as [`table`] has it, checked.
///
/// # Errors
/// As [`Config::parse`]; lines are those of a text that nobody sees, keys are as they were written.
pub(super) fn config(
    workload: &Workload,
    strategy: &Strategy,
    overrides: &[Override],
    seed: u64,
) -> Result<Config, ConfigError> {
    Config::parse(Path::new("run.toml"), &table(workload, strategy, overrides, seed).to_string())
}

/// Returns run.toml as `init` writes it.
pub(crate) fn written(name: &str, seed: u64) -> Table {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT));
    let options = TemplateOptions { name: name.to_owned(), seed, listen, names: Vec::new() };
    Config::template(&options).parse().expect("what `init` writes is TOML")
}

/// Sets a key of a section, which need not be there.
pub(crate) fn put(table: &mut Table, section: &str, key: &str, value: Value) {
    let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        section.insert(key.to_owned(), value);
    }
}

/// Returns run.toml as `init` writes it, with the workload's sections, the strategy's `[merge]` and these overrides.
pub(super) fn table(workload: &Workload, strategy: &Strategy, overrides: &[Override], seed: u64) -> Table {
    let mut table = written("race", seed);
    let mut put = |name: &str, section: Option<Value>| {
        if let Some(section) = section {
            table.insert(name.to_owned(), section);
        }
    };
    let known = "a section that was read from TOML has a form in TOML";
    put("model", Some(Value::try_from(&workload.model).expect(known)));
    put("train", Some(Value::try_from(&workload.train).expect(known)));
    put("upload", workload.upload.as_ref().map(|upload| Value::try_from(upload).expect(known)));
    put("admit", workload.admit.as_ref().map(|admit| Value::try_from(admit).expect(known)));
    put("merge", strategy.merge.clone().map(Value::Table));
    if strategy.grouping == Grouping::Replicas {
        let members = i64::try_from(workload.agent_count()).unwrap_or(i64::MAX);
        let keys = [("kind", Value::from(REPLICAS)), ("members", Value::from(members))];
        put("pod", Some(Value::Table(keys.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())));
    }
    overrides.iter().for_each(|one| one.apply(&mut table));
    table
}

/// What a race in virtual time reads of run.toml, whose seed is the race's.
#[derive(PartialEq)]
struct Read {
    spec: RunSpec,
    lease_ttl_s: f64,
    checkpoint_every_versions: u64,
    retention: Retention,
}

impl Read {
    fn of(config: &Config) -> Self {
        let mut spec = config.spec.clone();
        (spec.name, spec.seed) = (String::new(), 0);
        // No agent holds examples to evaluate on.
        spec.evaluate = EvaluateSpec { every_versions: 0, every_s: 0.0 };
        spec.target = TargetSpec { accuracy: None, loss: None, ..spec.target };
        Self {
            spec,
            lease_ttl_s: config.schedule.lease_ttl_s,
            checkpoint_every_versions: config.checkpoint.every_versions,
            retention: config.checkpoint.retention,
        }
    }
}

/// What a race with real processes reads of run.toml: everything but what the race decides itself.
fn read_by_processes(config: &Config) -> Config {
    let mut config = config.clone();
    config.spec.seed = 0;
    config.server = ServerConfig::default();
    config.checkpoint.retention = Retention::All;
    config
}

/// What replicas read of run.toml: nothing about updates.
fn read_by_replicas(config: &Config) -> (&ModelSpec, &TrainSpec) {
    (&config.spec.model, &config.spec.train)
}

/// Checks that every override reaches the race.
///
/// # Errors
/// The key of one of them is not read there.
pub(super) fn check_overrides(
    workload: &Workload,
    strategy: &Strategy,
    overrides: &[Override],
    clock: &Clock,
) -> anyhow::Result<()> {
    let is_read = |one: &Config, other: &Config| match clock {
        Clock::Virtual if strategy.grouping == Grouping::Replicas => read_by_replicas(one) != read_by_replicas(other),
        Clock::Virtual => Read::of(one) != Read::of(other),
        Clock::Real { .. } => read_by_processes(one) != read_by_processes(other),
    };
    let with = config(workload, strategy, overrides, 0)?;
    for (index, one) in overrides.iter().enumerate() {
        let others: Vec<Override> = [&overrides[..index], &overrides[index + 1..]].concat();
        // What is wrong without it, it has mended.
        let Ok(without) = config(workload, strategy, &others, 0) else { continue };
        if with != without && !is_read(&with, &without) {
            bail!("--set {}={}: a race does not read this key", one.key, one.value);
        }
    }
    Ok(())
}

/// Returns the sections that decide on updates, in one line; of replicas the one that forms them.
pub(super) fn in_words(spec: &RunSpec) -> String {
    let line = |section: Result<Value, toml::ser::Error>| section.map(|section| short(section).to_string());
    if let Some(pod) = &spec.pod {
        return format!("pod = {}", line(Value::try_from(pod)).unwrap_or_default());
    }
    let sections = [Value::try_from(&spec.merge), Value::try_from(&spec.upload), Value::try_from(&spec.admit)];
    let [merge, upload, admit] = sections.map(|section| line(section).unwrap_or_default());
    format!("merge = {merge}, upload = {upload}, admit = {admit}")
}

/// Writes numbers that are stored as f32 as briefly as f32 can be written: TOML has f64 alone.
fn short(value: Value) -> Value {
    match value {
        Value::Float(number) => {
            #[expect(clippy::cast_possible_truncation, reason = "only where nothing is lost")]
            let single = number as f32;
            let brief = single.to_string().parse().ok().filter(|_| f64::from(single) == number);
            Value::Float(brief.unwrap_or(number))
        }
        Value::Table(table) => Value::Table(table.into_iter().map(|(key, value)| (key, short(value))).collect()),
        other => other,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::race::Entrant;

    /// A complete configuration.
    fn spec() -> RunSpec {
        Config::parse(Path::new("run.toml"), crate::process::DIGITS).expect("a run").spec
    }

    pub(in crate::race) fn entrant() -> Entrant {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/w1.toml");
        let workload = Workload::read(&file).expect("it ships");
        Entrant::new(&workload, &Strategy::init(), &[], 1).expect("it is sound")
    }

    #[test]
    fn one_machine_with_all_data_has_a_sound_configuration() {
        let (strategy, overrides) = Strategy::pooled();
        let workload = entrant().workload;
        let config = config(&workload.pooled(), &strategy, &overrides, 1).expect("sound");
        assert!(config.spec.train.keep_optimizer_state && config.spec.upload.feedback_decay == 0.0);
        let rounds: f64 = workload.each_agent().map(|group| workload.seconds / group.round_s).sum();
        let pooled = workload.pooled();
        assert_eq!((pooled.agent_count(), pooled.overlap), (1, false));
        assert!((pooled.seconds / pooled.agents[0].round_s - rounds).abs() < 1e-6);
    }

    #[test]
    fn strategies_have_names_or_are_a_section() {
        let merge = |text: &str| Strategy::parse(text).map(|strategy| strategy.merge);
        assert_eq!(merge("init").expect("a name"), None);
        let named = merge("fedasync").expect("a name");
        assert_eq!(merge("strategy = \"fedasync\"\nalpha = 0.6").expect("a section"), named);
        assert_eq!(merge("{ strategy = \"fedasync\", alpha = 0.6 }").expect("an inline table"), named);
        for (name, _) in NAMED {
            assert_eq!(merge(name).expect(name).and_then(|merge| merge.get("strategy").cloned()), Some(name.into()));
        }
        let error = merge("fedsync").expect_err("no such name").to_string();
        assert!(error.contains("fedsync") && error.contains("fedasync, fedbuff, recall"), "{error}");
        assert!(merge("strategy = ").is_err() && merge("{ strategy = \"fedasync\" ").is_err());
    }

    #[test]
    fn a_configuration_reads_as_it_was_written() {
        let words = in_words(&spec());
        assert!(words.contains("fraction = 0.05,") || words.contains("fraction = 0.05 "), "{words}");
        assert!(words.contains("a = 0.5") && words.contains("buffer_size = 2"), "{words}");
    }

    #[test]
    fn an_override_reaches_its_key_and_makes_tables_on_the_way() {
        let mut table: Table = "[upload]\nfeedback_decay = 1.0".parse().expect("TOML");
        let set = |text: &str| Override::parse(text).expect("an override");
        set("upload.codec={ kind = \"f32\" }").apply(&mut table);
        set("train.optimizer.lr = 0.5").apply(&mut table);
        let expected: Table = "[upload]\nfeedback_decay = 1.0\ncodec = { kind = \"f32\" }\n[train.optimizer]\nlr = 0.5"
            .parse()
            .expect("TOML");
        assert_eq!(table, expected);
        assert!(Override::parse("upload.codec").is_err() && Override::parse("a=b=c").is_err());
    }
}
