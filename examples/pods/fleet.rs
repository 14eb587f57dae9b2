//! The run while it is under way: what is merged of whom, and what happens to its processes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anabranch_common::status::StatusReport;
use anabranch_examples::fleet;
use anabranch_examples::view::{Subject, View};

use crate::PATIENCE;
use crate::setup::{AGENTS, Part, Setup};

/// Accepted updates by agent.
pub(crate) type Merged = BTreeMap<String, u64>;

/// A process that was away: since when and until when in seconds of the run, and what happened to it.
#[derive(Debug, Clone)]
pub(crate) struct Outage {
    pub(crate) from_s: f64,
    pub(crate) to_s: f64,
    pub(crate) what: String,
}

/// Coordinator and agents.
#[derive(Debug)]
pub(crate) struct Fleet {
    setup: Setup,
    all: fleet::Fleet<Subject>,
}

impl Fleet {
    /// Starts all daemons.
    pub(crate) fn start(setup: Setup, view: View, started: Instant) -> anyhow::Result<Self> {
        let mut all = fleet::Fleet::start(setup.run(), view, started, PATIENCE)?;
        AGENTS.iter().try_for_each(|(name, _)| setup.run().join(name))?;
        all.agents = (0..AGENTS.len()).map(|index| setup.start_agent(index)).collect::<anyhow::Result<_>>()?;
        Ok(Self { setup, all })
    }

    /// Shows the run until a report fulfils `done`.
    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&StatusReport) -> bool) -> anyhow::Result<()> {
        self.all.until(what, done)
    }

    /// Returns the time on the clock of the run, whether or not its coordinator runs.
    fn run_s(&self) -> f64 {
        self.all.last().map_or(0.0, |(report, ago)| report.wall_s + ago.as_secs_f64())
    }

    /// Returns what was merged by agent, in the latest report.
    pub(crate) fn merged(&self) -> Merged {
        let agents = self.all.last().into_iter().flat_map(|(report, _)| &report.agents);
        agents.map(|agent| (agent.name.clone(), agent.updates_accepted)).collect()
    }

    /// Kills an agent and starts it again after `span`, while the others go on.
    pub(crate) fn kill_agent(&mut self, index: usize, span: Duration) -> anyhow::Result<Outage> {
        let (name, from_s) = (AGENTS[index].0, self.run_s());
        self.all.agents[index].kill()?;
        self.all.say(&format!("{name} killed with SIGKILL; its round begins again when a helper is free"));
        self.all.for_a_while(span)?;
        self.all.agents[index] = self.setup.start_agent(index)?;
        self.all.say(&format!("{name} started again"));
        Ok(Outage { from_s, to_s: self.run_s(), what: format!("{name} killed") })
    }

    /// Kills the coordinator and starts it again after `span`.
    pub(crate) fn kill_coordinator(&mut self, span: Duration) -> anyhow::Result<Outage> {
        let from_s = self.run_s();
        self.all.kill_coordinator(
            span,
            [
                "coordinator killed with SIGKILL; rounds that are under way go on",
                "coordinator started again; it goes on where its journal ends",
            ],
        )?;
        Ok(Outage { from_s, to_s: self.run_s(), what: "coordinator killed".to_owned() })
    }

    /// Shows the run to its end. Returns the setup with the last report.
    pub(crate) fn end(self) -> anyhow::Result<(Setup, StatusReport)> {
        Ok((self.setup, self.all.end()?))
    }
}

/// Whether every owner of a pod has had updates merged since `before`.
pub(crate) fn pods_contributed(report: &StatusReport, before: &Merged) -> bool {
    let owners = AGENTS.iter().filter(|(_, part)| *part == Part::Owner);
    let merged = |name: &str| report.agents.iter().find(|agent| agent.name == name).map_or(0, |a| a.updates_accepted);
    owners.into_iter().all(|(name, _)| merged(name) > before.get(*name).copied().unwrap_or(0))
}
