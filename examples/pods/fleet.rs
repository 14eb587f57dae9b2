//! The run while it is under way: daemons, the view, and what happens to them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anabranch_common::status::StatusReport;
use anabranch_examples::daemon::{Daemon, now};
use anabranch_examples::view::View;
use anabranch_examples::watch::Watch;
use anyhow::{Context, bail};

use crate::PATIENCE;
use crate::setup::{AGENTS, Part, Setup};

/// Time between two looks at the daemons.
const LOOK: Duration = Duration::from_millis(200);
/// A coordinator that was started again serves after at most this long.
const RESTART: Duration = Duration::from_secs(30);

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
    view: View,
    started: Instant,
    coordinator: Daemon,
    agents: Vec<Daemon>,
    /// None while there is no coordinator: reading its directory would be in the way of its start.
    watch: Option<Watch>,
    last: Option<(Box<StatusReport>, Instant)>,
}

impl Fleet {
    /// Starts all daemons.
    pub(crate) fn start(setup: Setup, view: View, started: Instant) -> anyhow::Result<Self> {
        let coordinator = setup.run().start_coordinator()?;
        AGENTS.iter().try_for_each(|(name, _)| setup.run().join(name))?;
        let agents = (0..AGENTS.len()).map(|index| setup.start_agent(index)).collect::<anyhow::Result<_>>()?;
        let watch = Some(Watch::start(&setup.run().coordinator())?);
        Ok(Self { setup, view, started, coordinator, agents, watch, last: None })
    }

    pub(crate) fn say(&mut self, what: &str) {
        self.view.say(what);
    }

    /// Shows the run until a report fulfils `done`.
    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&StatusReport) -> bool) -> anyhow::Result<()> {
        while self.coordinator.try_wait()?.is_none() {
            if self.look(what)?.is_some_and(&done) {
                return Ok(());
            }
        }
        bail!("the run ended before {what}; logs are in {}", self.setup.run().logs().display());
    }

    /// Shows the run for `span`, or until it ends.
    pub(crate) fn for_a_while(&mut self, span: Duration) -> anyhow::Result<()> {
        let from = now();
        while from.elapsed() < span && self.coordinator.try_wait()?.is_none() {
            self.look("a killed process was started again")?;
        }
        Ok(())
    }

    /// Shows the next report, if one comes soon.
    fn look(&mut self, what: &str) -> anyhow::Result<Option<&StatusReport>> {
        if self.started.elapsed() > PATIENCE {
            let logs = self.setup.run().logs();
            bail!("{} s have passed before {what}; logs are in {}", PATIENCE.as_secs(), logs.display());
        }
        let watch = self.watch.as_mut().context("a coordinator is watched while it runs")?;
        let Some(report) = watch.next(LOOK) else { return Ok(None) };
        self.view.show(&report);
        self.last = Some((Box::new(report), now()));
        Ok(self.last.as_ref().map(|(report, _)| &**report))
    }

    /// Returns the time on the clock of the run, whether or not its coordinator runs.
    fn run_s(&self) -> f64 {
        self.last.as_ref().map_or(0.0, |(report, at)| report.wall_s + at.elapsed().as_secs_f64())
    }

    /// Returns what was merged by agent, in the latest report.
    pub(crate) fn merged(&self) -> Merged {
        let agents = self.last.iter().flat_map(|(report, _)| &report.agents);
        agents.map(|agent| (agent.name.clone(), agent.updates_accepted)).collect()
    }

    /// Kills an agent and starts it again after `span`, while the others go on.
    pub(crate) fn kill_agent(&mut self, index: usize, span: Duration) -> anyhow::Result<Outage> {
        let (name, from_s) = (AGENTS[index].0, self.run_s());
        self.agents[index].kill()?;
        self.say(&format!("{name} killed with SIGKILL; its round begins again when a helper is free"));
        self.for_a_while(span)?;
        self.agents[index] = self.setup.start_agent(index)?;
        self.say(&format!("{name} started again"));
        Ok(Outage { from_s, to_s: self.run_s(), what: format!("{name} killed") })
    }

    /// Kills the coordinator and starts it again after `span`.
    pub(crate) fn kill_coordinator(&mut self, span: Duration) -> anyhow::Result<Outage> {
        let from_s = self.run_s();
        self.watch = None;
        self.coordinator.kill()?;
        self.say("coordinator killed with SIGKILL; rounds that are under way go on");
        std::thread::sleep(span);
        self.coordinator = self.setup.run().start_coordinator()?;
        self.coordinator.wait_for_log(" serving", RESTART)?;
        self.watch = Some(Watch::start(&self.setup.run().coordinator())?);
        self.say("coordinator started again; it goes on where its journal ends");
        Ok(Outage { from_s, to_s: self.run_s(), what: "coordinator killed".to_owned() })
    }

    /// Shows the run to its end. Returns the setup with the last report.
    pub(crate) fn end(mut self) -> anyhow::Result<(Setup, StatusReport)> {
        while self.coordinator.try_wait()?.is_none() {
            self.look("the end of the run")?;
        }
        let code = self.coordinator.wait()?;
        if code != Some(0) {
            bail!("the coordinator ended with exit code {code:?}; its log is {}", self.coordinator.log().display());
        }
        self.view.close();
        self.agents.iter_mut().try_for_each(|agent| agent.end(Duration::from_secs(10)))?;
        let (report, _) = self.last.context("the run ended before its first status")?;
        Ok((self.setup, *report))
    }
}

/// Whether every owner of a pod has had updates merged since `before`.
pub(crate) fn pods_contributed(report: &StatusReport, before: &Merged) -> bool {
    let owners = AGENTS.iter().filter(|(_, part)| *part == Part::Owner);
    let merged = |name: &str| report.agents.iter().find(|agent| agent.name == name).map_or(0, |a| a.updates_accepted);
    owners.into_iter().all(|(name, _)| merged(name) > before.get(*name).copied().unwrap_or(0))
}
