//! A run whose processes start at one moment, and from then on are watched: for benchmarks and races.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anabranch_common::status::Traffic;
use anyhow::bail;
use nix::sys::signal::Signal;

use super::{Cluster, PATIENCE, Role, Seen, Tail, What};
use crate::clock::Stopwatch;
use crate::invariants::{on_a_copy, told};

/// How often logs and processes are looked at.
pub const LOOK: Duration = Duration::from_millis(20);

/// How an agent is started.
#[derive(Debug, Clone)]
pub struct AgentStart {
    /// What it trains on.
    pub shard: PathBuf,
    /// What it evaluates on, if it does.
    pub eval_shard: Option<PathBuf>,
    /// The least time of a local round, in milliseconds.
    pub min_round_ms: u64,
    /// Further options of `run`.
    pub options: Vec<&'static str>,
}

/// What a coordinator has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes of updates, as received. They are in the journal.
    pub updates: u64,
    /// Bytes of models, as sent.
    pub models: u64,
    /// Datagrams received.
    pub received: Traffic,
    /// Datagrams sent.
    pub sent: Traffic,
}

/// Counts of one life after another. What a coordinator has sent since it was last asked is lost when it is killed.
#[derive(Debug, Default)]
struct Counts {
    /// All of it.
    total: Counted,
    /// What the present coordinator said last; nothing until it has said anything.
    last: Option<Counted>,
}

impl Counts {
    /// `said` begins where the checkpoint before this life ended (models), at record 0 (updates), or at 0 (datagrams).
    fn add(&mut self, said: Counted) {
        // The first life begins at 0; a later one says first what it has found.
        let last = self.last.unwrap_or(Counted { models: said.models, ..Counted::default() });
        self.total.updates = said.updates;
        self.total.models += said.models.saturating_sub(last.models);
        self.total.received += minus(said.received, last.received);
        self.total.sent += minus(said.sent, last.sent);
        self.last = Some(said);
    }
}

fn minus(now: Traffic, before: Traffic) -> Traffic {
    let Traffic { datagrams, bytes } = before;
    Traffic { datagrams: now.datagrams.saturating_sub(datagrams), bytes: now.bytes.saturating_sub(bytes) }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct TimedRun {
    /// The processes.
    pub cluster: Cluster,
    agents: Vec<AgentStart>,
    tails: Vec<Tail>,
    /// What agents have said, in the order in which it was read.
    pub seen: Vec<Seen>,
    counts: Counts,
}

/// Returns the name of an agent, counted from 0.
#[must_use]
pub fn agent_name(agent: usize) -> String {
    format!("agent-{agent}")
}

impl TimedRun {
    /// Enrols every agent that `agents` prepares in the directory it is given. Nothing runs afterwards. `run_toml` has no
    /// `[server]`.
    ///
    /// # Errors
    /// A process fails, or `agents` does.
    pub fn new(
        lab: &Path,
        run_toml: &str,
        agents: impl FnOnce(&Path) -> anyhow::Result<Vec<AgentStart>>,
    ) -> anyhow::Result<Self> {
        let mut cluster = Cluster::new(lab, run_toml)?;
        let agents = agents(cluster.path())?;
        cluster.start_coordinator()?;
        (0..agents.len()).try_for_each(|agent| cluster.join(&agent_name(agent)))?;
        cluster.park_coordinator()?;
        let tails = (0..agents.len()).map(agent_name).map(|name| Tail::new(&name, cluster.log_path(&name))).collect();
        let counts = Counts { last: Some(Counted::default()), ..Counts::default() };
        Ok(Self { cluster, agents, tails, seen: Vec::new(), counts })
    }

    /// Returns how many agents there are.
    #[must_use]
    pub fn agents(&self) -> usize {
        self.agents.len()
    }

    /// Starts an agent, counted from 0.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_agent(&mut self, agent: usize) -> anyhow::Result<()> {
        let AgentStart { shard, eval_shard, min_round_ms, options } = self.agents[agent].clone();
        let mut args: Vec<OsString> = ["--threads", "1", "--log-format", "json", "--shard"].map(OsString::from).into();
        args.push(shard.into_os_string());
        args.extend(["--min-round".into(), min_round_ms.to_string().into()]);
        args.extend(options.into_iter().map(OsString::from));
        if let Some(eval_shard) = eval_shard {
            args.extend(["--eval-shard".into(), eval_shard.into_os_string()]);
        }
        let args: Vec<_> = args.iter().map(OsString::as_os_str).collect();
        self.cluster.start_agent(Role::Agent, &agent_name(agent), &args, &[])?;
        Ok(())
    }

    /// Starts everything at once.
    ///
    /// # Errors
    /// A process cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.cluster.spawn_coordinator(&[])?;
        (0..self.agents.len()).try_for_each(|agent| self.start_agent(agent))
    }

    /// Waits for the first lease.
    ///
    /// # Errors
    /// No agent is granted one in time.
    pub fn wait_for_work(&mut self) -> anyhow::Result<()> {
        let watch = Stopwatch::start();
        while !self.has_leased() {
            if watch.elapsed() > PATIENCE {
                bail!("no agent was granted a lease within {PATIENCE:?}\n{}", self.cluster.logs());
            }
            std::thread::sleep(LOOK);
            self.listen()?;
        }
        Ok(())
    }

    /// Whether an agent was heard to have a lease.
    #[must_use]
    pub fn has_leased(&self) -> bool {
        self.seen.iter().any(|seen| seen.what == What::Leased)
    }

    /// Reads what agents have said. When they said it is not kept.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn listen(&mut self) -> anyhow::Result<()> {
        self.tails.iter_mut().try_for_each(|tail| tail.read(0, &mut self.seen))
    }

    /// Asks the coordinator what it has counted, and returns the sum over its lives. A coordinator that does not answer is
    /// dead, or has just ended.
    pub fn count(&mut self) -> Counted {
        if let Ok(status) = self.cluster.status()
            && status.serving
        {
            let network = status.network.unwrap_or_default();
            let (updates, models) = (status.uplink_bytes, status.downlink_bytes);
            self.counts.add(Counted { updates, models, received: network.received, sent: network.sent });
        }
        self.counts.total
    }

    /// Kills the process of a machine (SIGKILL): 0 is the coordinator's, that of agent n is n + 1.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self, machine: usize) -> anyhow::Result<()> {
        match machine.checked_sub(1) {
            Some(agent) => self.cluster.agent(&agent_name(agent))?.kill(),
            None => {
                self.count();
                self.counts.last = None;
                self.cluster.coordinator()?.kill()
            }
        }
    }

    /// Starts the process of a machine again.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn revive(&mut self, machine: usize) -> anyhow::Result<()> {
        match machine.checked_sub(1) {
            Some(agent) => self.start_agent(agent),
            None => self.cluster.spawn_coordinator(&[]).map(|_| ()),
        }
    }

    /// Sends a signal to the process of a machine.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&mut self, machine: usize, signal: Signal) -> anyhow::Result<()> {
        match machine.checked_sub(1) {
            Some(agent) => self.cluster.agent(&agent_name(agent))?.signal(signal),
            None => self.cluster.coordinator()?.signal(signal),
        }
    }

    /// Compares what agents were told with the journal, which is whole (`retention = "all"`) and at rest.
    ///
    /// # Errors
    /// The journal cannot be read, or a record in it breaks a promise.
    pub fn audit(&self) -> anyhow::Result<told::Told> {
        let told = told::keys(&self.cluster, &self.seen)?;
        let found = on_a_copy(&self.cluster.coordinator_dir(), |store| {
            told::audit(anabranch_coordinator::store::Store::journal(store), &told)
        })?;
        match found.problem {
            Some(violation) => Err(violation.into()),
            None => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_coordinator_had_counted_is_counted_once() {
        let said = |models| Counted { updates: 7, models, ..Counted::default() };
        let mut counts = Counts { last: Some(Counted::default()), ..Counts::default() };
        counts.add(said(100));
        counts.add(said(250));
        counts.last = None;
        // Its checkpoint was at 80.
        counts.add(said(80));
        counts.add(said(90));
        assert_eq!(counts.total, said(260));
    }
}
