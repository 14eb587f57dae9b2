//! Scenarios: nodes, a timeline, random rates, and what must hold, as TOML (docs/faults.md, "Scenario files").

use std::path::Path;

use anabranch_common::limits;
use anabranch_common::rng::SplitMix64;
use anabranch_common::spec::PodSpec;
use anabranch_io::text_file;
use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::link::Conditions;
pub use super::must::Must;

/// The coordinator, as a node of a scenario.
pub const COORDINATOR: &str = "coordinator";
/// Every agent, as the node of an event.
pub const ALL_AGENTS: &str = "agents";
/// Every helper of pods, as the node of an event.
pub const ALL_HELPERS: &str = "helpers";

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
    /// The run ends with this version, and so does the run without faults.
    #[serde(default)]
    pub versions: Option<u64>,
    /// Agents compute their rounds in pods; digits only.
    #[serde(default)]
    pub pod: Option<PodTable>,
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

/// `[pod]` of a scenario. Every agent owns a pod, except for the last `alone` ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodTable {
    /// How many agents without a shard there are, named `helper-0` and so on.
    pub helpers: u32,
    /// How many agents join no pods.
    #[serde(default)]
    pub alone: u32,
    /// What the link to every helper from other members of its pod is like all the time, in both directions.
    #[serde(default)]
    pub link: Conditions,
    /// `[pod]` of run.toml.
    pub run: PodSpec,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Seconds since the first update.
    pub at_s: f64,
    /// `coordinator`, `agent-N`, `helper-N`, or `agents` or `helpers` for each of them.
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

    /// The names of helpers of pods.
    #[must_use]
    pub fn helper_names(&self) -> Vec<String> {
        let helpers = self.pod.as_ref().map_or(0, |pod| pod.helpers);
        (0..helpers).map(|number| format!("helper-{number}")).collect()
    }

    /// The names of agents whose rounds are computed in pods.
    #[must_use]
    pub fn owner_names(&self) -> Vec<String> {
        let owners = self.pod.as_ref().map_or(0, |pod| self.agents.saturating_sub(pod.alone));
        self.agent_names().into_iter().take(owners as usize).collect()
    }

    /// Every node: the coordinator first, then agents, then helpers.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        let agents = self.agent_names().into_iter().chain(self.helper_names());
        std::iter::once(COORDINATOR.to_owned()).chain(agents).collect()
    }

    /// The nodes that the node of an event stands for.
    fn nodes_of(&self, node: &str) -> Vec<String> {
        match node {
            ALL_AGENTS => self.agent_names(),
            ALL_HELPERS => self.helper_names(),
            _ => vec![node.to_owned()],
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=64).contains(&self.agents), "agents must be 1 to 64, not {}", self.agents);
        ensure!(self.seconds > 0.0 && self.seconds.is_finite(), "seconds must be above 0");
        ensure!(self.clean_seconds > 0.0 && self.clean_seconds.is_finite(), "clean_seconds must be above 0");
        self.link.check().context("link")?;
        self.check_pods().context("pod")?;
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

    fn check_pods(&self) -> anyhow::Result<()> {
        if let Some(pod) = &self.pod {
            ensure!(self.task == Task::Digits, "pods need task = \"digits\"");
            ensure!(pod.helpers <= 64 && pod.alone < self.agents, "at most 64 helpers, and one agent that owns a pod");
            pod.link.check().context("link")?;
        }
        let comparable = self.owner_names().len() == 1 && self.agents == 1 && self.versions.is_some();
        ensure!(!self.must.same_bits || comparable, "same_bits needs `versions` and one agent, the owner of a pod");
        Ok(())
    }

    fn check_fault(&self, node: &str, fault: &Fault) -> anyhow::Result<()> {
        let (names, helpers) = (self.agent_names(), self.helper_names());
        let is_helper = node == ALL_HELPERS || helpers.iter().any(|name| name == node);
        if node != COORDINATOR && node != ALL_AGENTS && !is_helper && !names.iter().any(|name| name == node) {
            bail!("there is no node {node:?}: it is {COORDINATOR:?}, {ALL_AGENTS:?} or one of {names:?} {helpers:?}");
        }
        if fault.helpers_only() && !is_helper {
            bail!("`{}` can only happen to a helper of pods", fault.name());
        }
        if (node == COORDINATOR || is_helper) && fault.agents_only() {
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
            let nodes = self.nodes_of(&event.node);
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
        let nodes: Vec<String> = rate.nodes.iter().flat_map(|node| self.nodes_of(node)).collect();
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
    use std::collections::BTreeSet;

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
    fn helpers_are_nodes_and_same_bits_need_one_owner() {
        let pod = "[pod]\nhelpers = 2\nrun = { kind = \"stages\", stages = 2 }\n";
        let small =
            SMALL.replace("ledger", "digits").replace("seconds = 20.0", "seconds = 20.0\nversions = 9\nagents = 1");
        let text = format!("{small}{pod}[must]\nsame_bits = true\n").replace("\"agents\"]", "\"agents\", \"helpers\"]");
        let scenario = parse(&text).expect("a scenario");
        assert_eq!(scenario.node_names(), ["coordinator", "agent-0", "helper-0", "helper-1"]);
        let hit: BTreeSet<String> = scenario.timeline(2).into_iter().map(|event| event.node).collect();
        assert!(hit.iter().any(|node| node.starts_with("helper-")), "{hit:?}");
        let problem = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            format!("{:#}", parse(&text.replacen(from, to, 1)).expect_err("not a scenario"))
        };
        assert!(problem("versions = 9", "").contains("same_bits needs"));
        assert!(problem("agents = 1", "agents = 2").contains("same_bits needs"));
        assert!(problem("task = \"digits\"", "task = \"ledger\"").contains("pods need task"));
        assert!(problem("{ kind = \"kill\" }", "{ kind = \"pod-link\" }").contains("only happen to a helper"));
        assert!(problem("helpers = 2\n", "helpers = 2\nalone = 1\n").contains("one agent that owns a pod"));
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
