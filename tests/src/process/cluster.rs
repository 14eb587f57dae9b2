//! A coordinator and its agents, in a temporary directory and on a free port of the loopback interface.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anabranch_agent::config::{AgentConfig, AgentDir};
use anabranch_agent::report::AgentReport;
use anabranch_common::ids::AgentId;
use anabranch_common::status::{StatusReport, VerifyReport};
use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use super::{Ended, Process, Role, call, example};
use crate::clock::poll;

/// How long anything may take that is expected to happen: generous, because machines that test are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What both daemons log when a test has to read it.
const LOG_FILTER: &str = "warn,anabranch=info,anabranch_agent=debug";

/// A run with its processes. They are killed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    // Before the directory: whoever writes into it ends first.
    coordinator: Option<Process>,
    agents: BTreeMap<String, Process>,
    lab: PathBuf,
    port: u16,
    /// What the coordinator's `run` gets beside its directory.
    run_args: Vec<OsString>,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// `init`, with a `run.toml` of `settings` (everything but `[server]`). Nothing is started.
    ///
    /// # Errors
    /// `init` fails.
    pub fn new(lab: &Path, settings: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("anabranch-").tempdir()?;
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let cluster = Self::stopped(lab, port, folder);
        std::fs::create_dir(cluster.path().join("calls"))?;
        let listen = format!("127.0.0.1:{port}");
        let dir = cluster.coordinator_dir();
        let args = ["init".as_ref(), "--dir".as_ref(), dir.as_os_str(), "--listen".as_ref(), listen.as_ref()];
        cluster.call(Role::Coordinator, &args)?.code(0)?;
        std::fs::write(dir.join("run.toml"), format!("{settings}\n[server]\nlisten = \"{listen}\"\n"))?;
        Ok(cluster)
    }

    /// Takes directories that another build has written, from an archive (tar.gz) with the coordinator's in `c` and
    /// an agent's in `a`; both know the coordinator at `port`, and get a free one. Nothing is started.
    ///
    /// # Errors
    /// The archive is not there or holds something else.
    pub fn restore(lab: &Path, archive: &Path, port: u16, agent: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("anabranch-").tempdir()?;
        let unpacked = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(folder.path()).status();
        if !unpacked.context("tar")?.success() {
            bail!("{} cannot be unpacked", archive.display());
        }
        std::fs::rename(folder.path().join("c"), folder.path().join("coordinator"))?;
        std::fs::rename(folder.path().join("a"), folder.path().join(agent))?;
        let mut cluster = Self::stopped(lab, port, folder);
        std::fs::create_dir(cluster.path().join("calls"))?;
        let free = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        cluster.reroute(agent, free)?;
        cluster.edit(&format!(":{port}\""), &format!(":{free}\""))?;
        cluster.port = free;
        Ok(cluster)
    }

    fn stopped(lab: &Path, port: u16, folder: tempfile::TempDir) -> Self {
        let (coordinator, agents, run_args) = (None, BTreeMap::new(), Vec::new());
        Self { coordinator, agents, lab: lab.to_owned(), port, run_args, folder }
    }

    /// The directory of everything.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The coordinator's UDP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The coordinator's directory.
    #[must_use]
    pub fn coordinator_dir(&self) -> PathBuf {
        self.path().join("coordinator")
    }

    /// An agent's directory.
    #[must_use]
    pub fn agent_dir(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The log of the coordinator, or of an agent by name, of all its lives.
    #[must_use]
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.log"))
    }

    /// Replaces text in run.toml.
    ///
    /// # Errors
    /// The text is not there.
    pub fn edit(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let path = self.coordinator_dir().join("run.toml");
        let text = std::fs::read_to_string(&path)?;
        if !text.contains(from) {
            bail!("run.toml does not contain {from:?}");
        }
        Ok(std::fs::write(&path, text.replacen(from, to, 1))?)
    }

    /// Runs a command line to its end.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn call(&self, role: Role, args: &[&OsStr]) -> anyhow::Result<Ended> {
        call(&self.lab, role, args, &self.path().join("calls"))
    }

    /// `anabranch-coordinator VERB... --dir DIR REST...`.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn coordinate(&self, verb: &[&str], rest: &[&str]) -> anyhow::Result<Ended> {
        let dir = self.coordinator_dir();
        let verb = verb.iter().map(OsStr::new);
        let rest = rest.iter().map(OsStr::new);
        let args: Vec<&OsStr> = verb.chain(["--dir".as_ref(), dir.as_os_str()]).chain(rest).collect();
        self.call(Role::Coordinator, &args)
    }

    /// A token for one agent.
    ///
    /// # Errors
    /// It is refused.
    pub fn token(&self, options: &[&str]) -> anyhow::Result<String> {
        Ok(self.coordinate(&["token", "create"], options)?.code(0)?.stdout.trim().to_owned())
    }

    /// `anabranch-agent join` into the directory of `name`.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn join_with(&self, token: &str, name: &str) -> anyhow::Result<Ended> {
        let dir = self.agent_dir(name);
        self.call(
            Role::Agent,
            &["join".as_ref(), "--token".as_ref(), token.as_ref(), "--dir".as_ref(), dir.as_os_str()],
        )
    }

    /// Splits the digits to train on evenly into shards for so many agents. Returns the folder of the shards, and the digits to
    /// test on.
    ///
    /// # Errors
    /// The agent's verb fails.
    pub fn split_digits(&self, agents: usize) -> anyhow::Result<(PathBuf, PathBuf)> {
        let (train, test) = (example("data/digits-train.csv.gz"), example("data/digits-test.csv.gz"));
        let (shards, agents) = (self.path().join("shards"), agents.to_string());
        let mut split: Vec<&OsStr> = ["shard", "split"].map(OsStr::new).to_vec();
        split.extend([train.as_os_str(), "--agents".as_ref(), agents.as_ref(), "--iid".as_ref(), "--seed=1".as_ref()]);
        split.extend([OsStr::new("--out"), shards.as_os_str()]);
        self.call(Role::Agent, &split)?.code(0)?;
        Ok((shards, test))
    }

    /// Enrols an agent.
    ///
    /// # Errors
    /// It is refused.
    pub fn join(&self, name: &str) -> anyhow::Result<()> {
        let token = self.token(&["--name", name])?;
        self.join_with(&token, name)?.code(0)?;
        Ok(())
    }

    /// The identity of an agent that has joined.
    ///
    /// # Errors
    /// It has not.
    pub fn agent_id(&self, name: &str) -> anyhow::Result<AgentId> {
        Ok(AgentConfig::read(&AgentDir::new(self.agent_dir(name)).config())?.agent)
    }

    /// Makes an agent that has joined find its coordinator at another port of the loopback interface.
    ///
    /// # Errors
    /// Its configuration is not there, or names another port.
    pub fn reroute(&self, name: &str, port: u16) -> anyhow::Result<()> {
        let path = self.agent_dir(name).join("agent.toml");
        let text = std::fs::read_to_string(&path)?;
        let (direct, other) = (format!(":{}\"", self.port), format!(":{port}\""));
        if !text.contains(&direct) {
            bail!("{} does not name port {}:\n{text}", path.display(), self.port);
        }
        Ok(std::fs::write(&path, text.replacen(&direct, &other, 1))?)
    }

    /// Gives the coordinator's `run` these arguments as well, from its next start on.
    pub fn serve_with(&mut self, args: &[&str]) {
        self.run_args = args.iter().map(OsString::from).collect();
    }

    /// Starts the coordinator without waiting for anything.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_coordinator(&mut self, env: &[(&str, &str)]) -> anyhow::Result<&mut Process> {
        let dir = self.coordinator_dir();
        let own = ["run".as_ref(), "--dir".as_ref(), dir.as_os_str()];
        let args: Vec<&OsStr> = own.into_iter().chain(self.run_args.iter().map(OsString::as_os_str)).collect();
        let env = [env, &[(anabranch_io::logging::FILTER_ENV, LOG_FILTER)]].concat();
        let log = self.log_path("coordinator");
        // The one before must be gone: it holds the port and the store.
        self.coordinator = None;
        let process = Process::start(&self.lab, Role::Coordinator, &args, &env, log, "coordinator")?;
        Ok(self.coordinator.insert(process))
    }

    /// Starts the coordinator and waits until it serves.
    ///
    /// # Errors
    /// It does not.
    pub fn start_coordinator(&mut self) -> anyhow::Result<()> {
        // Not what serves figures or a page, which may come before.
        self.spawn_coordinator(&[])?.wait_for_log(" serving listen=", PATIENCE)
    }

    /// The coordinator.
    ///
    /// # Errors
    /// It was never started.
    pub fn coordinator(&mut self) -> anyhow::Result<&mut Process> {
        self.coordinator.as_mut().context("the coordinator was not started")
    }

    /// SIGTERM to the coordinator; its exit code.
    ///
    /// # Errors
    /// It does not end.
    pub fn park_coordinator(&mut self) -> anyhow::Result<i32> {
        self.coordinator()?.signal(Signal::SIGTERM)?;
        self.coordinator()?.wait(PATIENCE)
    }

    /// Starts an agent that has joined. `args` come after `run --dir DIR` (native), or after `--dir DIR` (ledger).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_agent(
        &mut self,
        role: Role,
        name: &str,
        args: &[&OsStr],
        env: &[(&str, &str)],
    ) -> anyhow::Result<&mut Process> {
        let dir = self.agent_dir(name);
        let mut words: Vec<OsString> = Vec::new();
        if role == Role::Agent {
            words.push("run".into());
        }
        words.extend(["--dir".into(), dir.into_os_string()]);
        words.extend(args.iter().map(|arg| (*arg).to_owned()));
        let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
        let env = [env, &[(anabranch_io::logging::FILTER_ENV, LOG_FILTER)]].concat();
        let log = self.log_path(name);
        self.agents.remove(name);
        let process = Process::start(&self.lab, role, &words, &env, log, name)?;
        Ok(self.agents.entry(name.to_owned()).or_insert(process))
    }

    /// Starts an agent with the ledger's trainer.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_ledger_agent(&mut self, name: &str, env: &[(&str, &str)]) -> anyhow::Result<&mut Process> {
        self.start_agent(Role::LedgerAgent, name, &[], env)
    }

    /// An agent.
    ///
    /// # Errors
    /// It was never started.
    pub fn agent(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        self.agents.get_mut(name).with_context(|| format!("{name} was not started"))
    }

    /// `anabranch-agent status --json`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn agent_status(&self, name: &str) -> anyhow::Result<AgentReport> {
        let dir = self.agent_dir(name);
        let args = ["status".as_ref(), "--dir".as_ref(), dir.as_os_str(), "--json".as_ref()];
        Ok(serde_json::from_str(&self.call(Role::Agent, &args)?.code(0)?.stdout)?)
    }

    /// SIGTERM to every agent that runs, and waits for their end.
    ///
    /// # Errors
    /// One does not end with 0.
    pub fn park_agents(&mut self) -> anyhow::Result<()> {
        for agent in self.agents.values_mut() {
            if agent.exited()?.is_none() {
                agent.signal(Signal::SIGTERM)?;
            }
        }
        for agent in self.agents.values_mut() {
            let code = agent.wait(PATIENCE)?;
            if code != 0 {
                bail!("{} ended with {code}:\n{}", agent.name(), agent.log_tail());
            }
        }
        self.agents.clear();
        Ok(())
    }

    /// `status --json`, from the running coordinator or from the store of a stopped one.
    ///
    /// # Errors
    /// Neither answers.
    pub fn status(&self) -> anyhow::Result<StatusReport> {
        let ended = self.coordinate(&["status"], &["--json"])?.code(0)?;
        Ok(serde_json::from_str(&ended.stdout)?)
    }

    /// Waits until the status of a running coordinator is as wanted.
    ///
    /// # Errors
    /// It does not come to that within `patience`; with the logs of everyone.
    pub fn wait_until(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&StatusReport) -> bool,
    ) -> anyhow::Result<StatusReport> {
        let mut last = String::new();
        let found = poll(patience, || {
            Ok(match self.status() {
                Ok(status) if wanted(&status) => Some(status),
                Ok(status) => {
                    last = serde_json::to_string_pretty(&status)?;
                    None
                }
                // It may be starting; a coordinator that has gone for good is noticed by the deadline.
                Err(error) => {
                    last = error.to_string();
                    None
                }
            })
        })?;
        found.with_context(|| format!("not within {patience:?}: {what}\nstatus: {last}\n{}", self.logs()))
    }

    /// Waits until that many updates were merged.
    ///
    /// # Errors
    /// As [`wait_until`](Self::wait_until).
    pub fn wait_for_updates(&mut self, updates: u64) -> anyhow::Result<StatusReport> {
        self.wait_until(&format!("{updates} updates"), PATIENCE, |status| status.updates_accepted >= updates)
    }

    /// `checkpoint verify --json`.
    ///
    /// # Errors
    /// It cannot be asked for, or does not hold.
    pub fn verify(&self) -> anyhow::Result<VerifyReport> {
        let ended = self.coordinate(&["checkpoint", "verify"], &["--json"])?.code(0)?;
        let report: VerifyReport = serde_json::from_str(&ended.stdout)?;
        if !report.holds {
            bail!("the journal does not hold: {:?}", report.problem);
        }
        Ok(report)
    }

    /// The end of every process's log.
    #[must_use]
    pub fn logs(&self) -> String {
        let processes = self.coordinator.iter().chain(self.agents.values());
        processes.map(|process| format!("--- {}\n{}\n", process.name(), process.log_tail())).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}
