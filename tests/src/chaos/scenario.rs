//! Scenarios: nodes, a timeline, random rates, and what must hold, as TOML (docs/faults.md, "Scenario files").

use std::collections::BTreeSet;
use std::path::Path;

use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;
use anabranch_io::text_file;
use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::link::Conditions;

/// The coordinator, as a node of a scenario.
pub const COORDINATOR: &str = "coordinator";
/// Every agent, as the node of an event.
pub const ALL_AGENTS: &str = "agents";

/// What the agents compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Each update adds 1 to a coordinate of its own: a lost or doubled one is seen in the model.
    Ledger,
    /// An MLP on the UCI digits, evaluated by every agent.
    Digits,
}

/// A scenario file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Rows of the catalogue in docs/faults.md.
    pub faults: Vec<u32>,
    /// What happens, in a sentence.
    pub about: String,
    /// What the agents compute.
    pub task: Task,
    /// How many agents there are, named `agent-0` and so on.
    #[serde(default = "three")]
    pub agents: u32,
    /// Every local round takes at least this long, in milliseconds.
    #[serde(default = "round")]
    pub round_ms: u64,
    /// How long faults go on, in seconds since the first update.
    pub seconds: f64,
    /// How long the same run without faults is measured, in seconds.
    #[serde(default = "clean")]
    pub clean_seconds: f64,
    /// What every link is like all the time, in both directions.
    #[serde(default)]
    pub link: Conditions,
    /// Seconds after which a lease no longer counts.
    #[serde(default = "lease_ttl")]
    pub lease_ttl_s: f64,
    /// Whether the whole journal is kept, so that every record of it can be audited.
    #[serde(default = "yes")]
    pub keep_journal: bool,
    /// Faults at times that are written down.
    #[serde(default)]
    pub event: Vec<Event>,
    /// Faults at times that the seed draws.
    #[serde(default)]
    pub random: Vec<Rate>,
    /// What must hold beyond the promises.
    #[serde(default)]
    pub must: Must,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Seconds since the first update.
    pub at_s: f64,
    /// `coordinator`, `agent-N`, or `agents` for each of them.
    pub node: String,
    /// How long it goes on, in seconds.
    pub for_s: f64,
    /// What it is.
    pub fault: Fault,
}

/// Faults that come at random.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Seconds from one to the next, on average (exponential).
    pub every_s: f64,
    /// Shortest and longest, in seconds (uniform).
    pub for_s: (f64, f64),
    /// Which nodes may be hit.
    pub nodes: Vec<String>,
    /// Which faults, each as likely.
    pub fault: Vec<Fault>,
}

/// What must hold beyond the promises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Must {
    /// After the last fault every agent has another update accepted within so many seconds (P6).
    pub resume_s: f64,
    /// Updates that are merged, at least.
    pub updates: u64,
    /// Test accuracy at the end (0..1), at least; digits only.
    pub accuracy: Option<f64>,
    /// Agents that no fault names keep this share of their updates a second (P8).
    pub others_keep: f64,
    /// Resident memory of the coordinator, at most, in MiB (P5).
    pub coordinator_mib: u64,
    /// The coordinator's directory, at most, in MiB (P5).
    pub disk_mib: u64,
    /// Exit codes with which a daemon may end by itself while its fault is on; it is started again when the fault is over.
    pub exits: BTreeSet<i32>,
}

impl Default for Must {
    fn default() -> Self {
        Self {
            resume_s: 20.0,
            updates: 1,
            accuracy: None,
            others_keep: 0.5,
            coordinator_mib: 256,
            disk_mib: 256,
            exits: BTreeSet::new(),
        }
    }
}

fn three() -> u32 {
    3
}

fn round() -> u64 {
    50
}

fn clean() -> f64 {
    5.0
}

fn lease_ttl() -> f64 {
    600.0
}

fn yes() -> bool {
    true
}

/// Reads and checks a scenario file.
///
/// # Errors
/// It cannot be read, or says something that is not possible; with file and place.
pub fn read(path: &Path) -> anyhow::Result<Scenario> {
    let text = text_file::read(path, limits::CONFIG_FILE_BYTES);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is not a scenario", path.display()))
}

/// Checks the text of a scenario file.
///
/// # Errors
/// It says something that is not possible.
pub fn parse(text: &str) -> anyhow::Result<Scenario> {
    let scenario: Scenario = toml::from_str(text)?;
    scenario.check()?;
    Ok(scenario)
}

impl Scenario {
    /// The agents' names.
    #[must_use]
    pub fn agent_names(&self) -> Vec<String> {
        (0..self.agents).map(|number| format!("agent-{number}")).collect()
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=64).contains(&self.agents), "agents must be 1 to 64, not {}", self.agents);
        ensure!(self.seconds > 0.0 && self.seconds.is_finite(), "seconds must be above 0");
        ensure!(self.clean_seconds > 0.0 && self.clean_seconds.is_finite(), "clean_seconds must be above 0");
        self.link.check().context("link")?;
        for event in &self.event {
            ensure!(
                event.at_s >= 0.0 && event.at_s <= self.seconds,
                "an event at {} s is not within the run",
                event.at_s
            );
            ensure!(event.for_s >= 0.0 && event.for_s.is_finite(), "for_s must be 0 or above");
            self.check_fault(&event.node, &event.fault)?;
        }
        for rate in &self.random {
            ensure!(rate.every_s >= 0.05, "every_s must be at least 0.05");
            ensure!(rate.for_s.0 >= 0.0 && rate.for_s.0 <= rate.for_s.1, "for_s must be [shortest, longest]");
            ensure!(!rate.nodes.is_empty() && !rate.fault.is_empty(), "a random rate needs nodes and faults");
            for node in &rate.nodes {
                rate.fault.iter().try_for_each(|fault| self.check_fault(node, fault))?;
            }
        }
        Ok(())
    }

    fn check_fault(&self, node: &str, fault: &Fault) -> anyhow::Result<()> {
        let names = self.agent_names();
        if node != COORDINATOR && node != ALL_AGENTS && !names.iter().any(|name| name == node) {
            bail!("there is no node {node:?}: it is {COORDINATOR:?}, {ALL_AGENTS:?} or one of {names:?}");
        }
        if node == COORDINATOR && fault.agents_only() {
            bail!("`{}` can only happen to an agent", fault.name());
        }
        if fault.needs_shard() && self.task != Task::Digits {
            bail!("`{}` needs task = \"digits\"", fault.name());
        }
        fault.check().with_context(|| format!("fault `{}`", fault.name()))
    }

    /// Every fault with its time, in order: what is written down, and what the seed draws.
    #[must_use]
    pub fn timeline(&self, seed: u64) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        for event in &self.event {
            let nodes = if event.node == ALL_AGENTS { self.agent_names() } else { vec![event.node.clone()] };
            events.extend(nodes.into_iter().map(|node| Event { node, ..event.clone() }));
        }
        for (number, rate) in self.random.iter().enumerate() {
            self.draw(rate, &mut SplitMix64::new(seed ^ (number as u64 + 1).rotate_left(32)), &mut events);
        }
        // Stable: what is written down first comes first.
        events.sort_by(|one, two| one.at_s.total_cmp(&two.at_s));
        events
    }

    fn draw(&self, rate: &Rate, rng: &mut SplitMix64, events: &mut Vec<Event>) {
        let nodes: Vec<String> = rate
            .nodes
            .iter()
            .flat_map(|node| if node == ALL_AGENTS { self.agent_names() } else { vec![node.clone()] })
            .collect();
        let mut at_s = 0.0;
        loop {
            at_s += -rate.every_s * (1.0 - rng.next_f64()).ln();
            if at_s >= self.seconds {
                return;
            }
            let node = pick(&nodes, rng).clone();
            let fault = pick(&rate.fault, rng).clone();
            let for_s = rate.for_s.0 + rng.next_f64() * (rate.for_s.1 - rate.for_s.0);
            events.push(Event { at_s, node, for_s, fault });
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an index below the length")]
fn pick<'a, T>(items: &'a [T], rng: &mut SplitMix64) -> &'a T {
    &items[rng.below(items.len() as u64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
faults = [1]
about = "a test"
task = "ledger"
seconds = 20.0
[[event]]
at_s = 3.0
node = "agents"
for_s = 1.0
fault = { kind = "kill" }
[[random]]
every_s = 2.0
for_s = [0.5, 1.0]
nodes = ["coordinator", "agents"]
fault = [{ kind = "kill" }, { kind = "hang" }]
"#;

    /// Reading a pipe waits for a writer that never comes.
    #[test]
    fn a_file_that_is_a_pipe_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("scenario.toml");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let error = format!("{:#}", read(&path).expect_err("no file"));
        assert!(error.contains("it is not a regular file"), "{error}");
        let error = format!("{:#}", crate::sim::scenario::read(&path).expect_err("no file"));
        assert!(error.contains("it is not a regular file"), "{error}");
    }

    #[test]
    fn a_seed_decides_every_time_and_another_one_decides_otherwise() {
        let scenario = parse(SMALL).expect("a scenario");
        assert_eq!(scenario.timeline(4), scenario.timeline(4));
        assert_ne!(scenario.timeline(4), scenario.timeline(5));
        let timeline = scenario.timeline(4);
        assert!(timeline.is_sorted_by(|one, two| one.at_s <= two.at_s));
        assert_eq!(timeline.iter().filter(|event| event.at_s == 3.0).count(), 3, "one for each agent");
        assert!(timeline.len() > 5 && timeline.iter().all(|event| event.at_s < 20.0 && event.for_s <= 1.0));
    }

    #[test]
    fn what_is_not_possible_is_refused_in_words() {
        let problem = |from: &str, to: &str| {
            assert!(SMALL.contains(from), "{from}");
            format!("{:#}", parse(&SMALL.replacen(from, to, 1)).expect_err("not a scenario"))
        };
        assert!(problem("node = \"agents\"", "node = \"agent-3\"").contains("there is no node \"agent-3\""));
        assert!(problem("at_s = 3.0", "at_s = 21.0").contains("not within the run"));
        assert!(problem("kind = \"kill\"", "kind = \"kil\"").contains("unknown variant `kil`"));
        assert!(problem("seconds = 20.0", "secs = 20.0").contains("unknown field `secs`"));
        assert!(problem("{ kind = \"kill\" }", "{ kind = \"corrupt-shard\" }").contains("needs task = \"digits\""));
        assert!(problem("{ kind = \"kill\" }", "{ kind = \"link\", line = { loss = 1.5 } }").contains("loss must be"));
    }
}
