//! The nodes of a scenario: real daemons, a bad line for each agent, switches for disks and clocks.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;

use super::fault::{Fault, Poison, Ways};
use super::link::Conditions;
use super::proxy::{Proxy, Shape};
use super::scenario::{COORDINATOR, Scenario, Task};
use super::settings::run_toml;
use super::shim::{NO_COMPILER, Setting, Shim, Switches};
use crate::process::{Cluster, PATIENCE, Process, Role};

const TRAIN: &[u8] = include_bytes!("../../../examples/data/digits-train.csv.gz");
const TEST: &[u8] = include_bytes!("../../../examples/data/digits-test.csv.gz");
/// The period of a slow process, in milliseconds.
const SLOW_PERIOD_MS: u64 = 100;

/// Processes and lines of one run.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) cluster: Cluster,
    scenario: Scenario,
    proxies: BTreeMap<String, Proxy>,
    /// Where each helper listens for members of its pod, and the line in front of it.
    pod_lines: BTreeMap<String, (u16, Proxy)>,
    switches: BTreeMap<String, Switches>,
    /// Bad lines by the node that they belong to.
    lines: BTreeMap<String, Fault>,
    base: Conditions,
    /// Slow processes, and whether each is stopped at the moment.
    slow: BTreeMap<String, (f64, bool)>,
    // After the proxies, which live on it.
    runtime: Runtime,
}

impl Fleet {
    /// Everything is enrolled, and nothing runs.
    pub(super) fn new(lab: &Path, scenario: &Scenario, seed: u64, needs_shim: bool) -> anyhow::Result<Self> {
        let cluster = Cluster::new(lab, &run_toml(scenario, seed)?)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut fleet = Self {
            cluster,
            scenario: scenario.clone(),
            proxies: BTreeMap::new(),
            pod_lines: BTreeMap::new(),
            switches: BTreeMap::new(),
            lines: BTreeMap::new(),
            base: scenario.link.clone(),
            slow: BTreeMap::new(),
            runtime,
        };
        fleet.cluster.start_coordinator()?;
        for (name, number) in scenario.node_names().into_iter().skip(1).zip(1..) {
            fleet.cluster.join(&name)?;
            let handle = fleet.runtime.handle();
            let shape = Shape { up: fleet.base.clone(), down: fleet.base.clone(), rebind_ms: 0 };
            let proxy = Proxy::start(handle, fleet.cluster.port(), seed ^ (number << 40), shape)?;
            fleet.cluster.reroute(&name, proxy.port())?;
            fleet.proxies.insert(name, proxy);
        }
        fleet.cluster.park_coordinator()?;
        fleet.draw_pod_lines(seed)?;
        if scenario.task == Task::Digits {
            fleet.write_shards(seed)?;
        }
        if needs_shim {
            let shim = Shim::new(fleet.cluster.path())?.context(NO_COMPILER)?;
            for name in fleet.nodes() {
                let dir = fleet.dir(&name);
                fleet.switches.insert(name.clone(), shim.switches(&name, &dir)?);
            }
        }
        Ok(fleet)
    }

    /// Every node: the coordinator first.
    pub(super) fn nodes(&self) -> Vec<String> {
        self.scenario.node_names()
    }

    /// How many agents send updates.
    pub(super) fn contributors(&self) -> usize {
        self.scenario.agent_names().len()
    }

    /// A line in front of each helper, which members of its pod are told to use.
    fn draw_pod_lines(&mut self, seed: u64) -> anyhow::Result<()> {
        for (name, number) in self.scenario.helper_names().into_iter().zip(1..) {
            let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
            let shape = self.pod_shape(&name);
            let proxy = Proxy::start(self.runtime.handle(), port, !seed ^ (number << 40), shape)?;
            self.pod_lines.insert(name, (port, proxy));
        }
        Ok(())
    }

    /// What the line in front of a helper is to be like.
    fn pod_shape(&self, helper: &str) -> Shape {
        let always = self.scenario.pod.as_ref().map(|pod| pod.link.clone()).unwrap_or_default();
        let line = match self.lines.get(helper) {
            Some(Fault::PodLink { line }) => line.clone(),
            _ => always,
        };
        Shape { up: line.clone(), down: line, rebind_ms: 0 }
    }

    fn dir(&self, node: &str) -> PathBuf {
        if node == COORDINATOR { self.cluster.coordinator_dir() } else { self.cluster.agent_dir(node) }
    }

    fn write_shards(&self, seed: u64) -> anyhow::Result<()> {
        let data = self.cluster.path().join("digits-train.csv.gz");
        std::fs::write(&data, TRAIN)?;
        std::fs::write(self.cluster.path().join("digits-test.csv.gz"), TEST)?;
        let out = self.cluster.path().join("shards");
        let (agents, seed) = (self.scenario.agents.to_string(), seed.to_string());
        let args: [&OsStr; 10] = [
            "shard".as_ref(),
            "split".as_ref(),
            data.as_os_str(),
            "--agents".as_ref(),
            agents.as_ref(),
            "--iid".as_ref(),
            "--seed".as_ref(),
            seed.as_ref(),
            "--out".as_ref(),
            out.as_os_str(),
        ];
        self.cluster.call(Role::Agent, &args)?.code(0)?;
        Ok(())
    }

    fn shard(&self, name: &str) -> PathBuf {
        self.cluster.path().join("shards").join(name).join("digits-train.csv.gz")
    }

    /// Starts a node as it should be.
    pub(super) fn start(&mut self, node: &str) -> anyhow::Result<()> {
        self.start_as(node, None, None)
    }

    fn start_as(&mut self, node: &str, poison: Option<Poison>, shard: Option<&Path>) -> anyhow::Result<()> {
        let environment = self.switches.get(node).map(Switches::environment).unwrap_or_default();
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        if node == COORDINATOR {
            self.cluster.spawn_coordinator(&environment)?;
            return Ok(());
        }
        let round = format!("--min-round={}", self.scenario.round_ms);
        if self.scenario.task == Task::Ledger {
            self.cluster.start_agent(Role::LedgerAgent, node, &[round.as_ref()], &environment)?;
            return Ok(());
        }
        if let Some((port, proxy)) = self.pod_lines.get(node) {
            let words = [
                format!("--pod-listen=127.0.0.1:{port}"),
                format!("--pod-advertise=127.0.0.1:{}", proxy.port()),
                "--threads=1".to_owned(),
                "--log-format=json".to_owned(),
            ];
            let args: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
            self.cluster.start_agent(Role::Agent, node, &args, &environment)?;
            return Ok(());
        }
        let shard = shard.map_or_else(|| self.shard(node), Path::to_owned);
        let eval = self.cluster.path().join("digits-test.csv.gz");
        let with = poison.map(|with| format!("--with={}", format!("{with:?}").to_lowercase()));
        let mut args: Vec<&OsStr> = vec!["--shard".as_ref(), shard.as_os_str(), round.as_ref()];
        let role = match &with {
            Some(with) => {
                args.push(with.as_ref());
                Role::PoisonedAgent
            }
            None => {
                args.extend(["--eval-shard".as_ref(), eval.as_os_str(), "--threads=1".as_ref()]);
                args.push("--log-format=json".as_ref());
                if self.scenario.owner_names().iter().any(|name| name == node) {
                    args.push("--pod-listen=127.0.0.1:0".as_ref());
                }
                Role::Agent
            }
        };
        self.cluster.start_agent(role, node, &args, &environment)?;
        Ok(())
    }

    pub(super) fn process(&mut self, node: &str) -> anyhow::Result<&mut Process> {
        if node == COORDINATOR { self.cluster.coordinator() } else { self.cluster.agent(node) }
    }

    /// How a node ended, if it has: its exit code, or -1 for a signal.
    pub(super) fn ended(&mut self, node: &str) -> anyhow::Result<Option<i32>> {
        Ok(self.process(node)?.exited()?.map(|status| status.code().unwrap_or(-1)))
    }

    /// Begins a fault.
    pub(super) fn hurt(&mut self, node: &str, fault: &Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Kill => self.process(node)?.kill(),
            Fault::Park => self.process(node)?.signal(Signal::SIGTERM),
            Fault::Hang => self.process(node)?.signal(Signal::SIGSTOP),
            Fault::Slow { share } => {
                self.slow.insert(node.to_owned(), (*share, false));
                Ok(())
            }
            Fault::Link { .. } | Fault::PodLink { .. } => {
                self.lines.insert(node.to_owned(), fault.clone());
                self.reshape();
                Ok(())
            }
            Fault::DiskFull | Fault::DiskError | Fault::DiskSlow { .. } | Fault::Clock { .. } => {
                self.switch(node, Some(fault))
            }
            Fault::CorruptShard => {
                self.process(node)?.kill()?;
                let damaged = self.cluster.path().join(format!("{node}-damaged.csv"));
                std::fs::write(&damaged, "p0,p1,label\n1,2,three\n,,\n\u{0}")?;
                self.start_as(node, None, Some(&damaged))
            }
            Fault::Poison { with } => {
                self.process(node)?.kill()?;
                self.start_as(node, Some(*with), None)
            }
        }
    }

    /// Ends a fault: the node is as it was, and runs.
    pub(super) fn heal(&mut self, node: &str, fault: &Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Kill => {}
            Fault::Park => {
                let code = self.process(node)?.wait(PATIENCE)?;
                if code != 0 {
                    bail!("{node} was parked and ended with {code}:\n{}", self.cluster.logs());
                }
            }
            Fault::Hang => self.process(node)?.signal(Signal::SIGCONT)?,
            Fault::Slow { .. } => {
                self.slow.remove(node);
                if self.ended(node)?.is_none() {
                    self.process(node)?.signal(Signal::SIGCONT)?;
                }
            }
            Fault::Link { .. } | Fault::PodLink { .. } => {
                self.lines.remove(node);
                self.reshape();
                return Ok(());
            }
            Fault::DiskFull | Fault::DiskError | Fault::DiskSlow { .. } | Fault::Clock { .. } => {
                self.switch(node, None)?
            }
            Fault::CorruptShard | Fault::Poison { .. } => {
                if self.ended(node)?.is_none() {
                    self.process(node)?.kill()?;
                }
            }
        }
        if self.ended(node)?.is_some() { self.start(node) } else { Ok(()) }
    }

    fn switch(&self, node: &str, fault: Option<&Fault>) -> anyhow::Result<()> {
        let setting = match fault {
            Some(Fault::DiskFull) => Setting { full: true, ..Setting::default() },
            Some(Fault::DiskError) => Setting { error: true, ..Setting::default() },
            Some(Fault::DiskSlow { delay_ms }) => Setting { sync_ms: *delay_ms, ..Setting::default() },
            Some(Fault::Clock { offset_s }) => Setting { offset_s: *offset_s, ..Setting::default() },
            _ => Setting::default(),
        };
        self.switches.get(node).context("the daemons were started without the library")?.set(setting)
    }

    /// From now on lines are good where no fault says otherwise.
    pub(super) fn good_lines(&mut self) {
        self.base = Conditions::default();
        self.reshape();
    }

    /// Gives every line the shape that faults and scenario say: the agent's own fault first, then the coordinator's.
    fn reshape(&self) {
        for (name, proxy) in &self.proxies {
            let mut shape = Shape { up: self.base.clone(), down: self.base.clone(), rebind_ms: 0 };
            let own = self.lines.get(name).filter(|fault| matches!(fault, Fault::Link { .. }));
            let fault = own.or_else(|| self.lines.get(COORDINATOR));
            if let Some(Fault::Link { way, rebind_ms, line }) = fault {
                if *way != Ways::Down {
                    shape.up = line.clone();
                }
                if *way != Ways::Up {
                    shape.down = line.clone();
                }
                shape.rebind_ms = *rebind_ms;
            }
            proxy.shape(shape);
        }
        for (name, (_, proxy)) in &self.pod_lines {
            proxy.shape(self.pod_shape(name));
        }
    }

    /// Stops and continues what is slow. To be called often.
    pub(super) fn tick(&mut self, now_ms: u64) -> anyhow::Result<()> {
        let wanted: Vec<(String, bool)> = self
            .slow
            .iter()
            .map(|(node, (share, _))| (node.clone(), (now_ms % SLOW_PERIOD_MS) as f64 >= share * SLOW_PERIOD_MS as f64))
            .collect();
        for (node, stop) in wanted {
            let Some((_, stopped)) = self.slow.get_mut(&node) else { continue };
            if std::mem::replace(stopped, stop) != stop && self.ended(&node)?.is_none() {
                self.process(&node)?.signal(if stop { Signal::SIGSTOP } else { Signal::SIGCONT })?;
            }
        }
        Ok(())
    }

    /// Datagrams that passed, that were dropped, and new addresses, of all lines.
    pub(super) fn datagrams(&self) -> [u64; 3] {
        let pod_lines = self.pod_lines.values().map(|(_, proxy)| proxy);
        self.proxies
            .values()
            .chain(pod_lines)
            .map(Proxy::counts)
            .fold([0; 3], |sum, (passed, dropped, rebound)| [sum[0] + passed, sum[1] + dropped, sum[2] + rebound])
    }
}
