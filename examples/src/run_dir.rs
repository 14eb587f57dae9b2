//! The directory of an example's run: what a person would type to set up a run, in order.

use std::ffi::OsStr;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anabranch_common::status::StatusReport;
use anyhow::{Context, bail};

use crate::daemon::{Daemon, Role};

/// A directory with the coordinator, the agents, their logs and what comes out.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    /// Of `anabranch-coordinator run`.
    options: Vec<&'static str>,
}

impl RunDir {
    /// Makes the directory of the example `name`, in place of an earlier one of the same example.
    ///
    /// # Errors
    /// The directory exists and another program made it, or it cannot be written.
    pub fn replace(path: &Path, name: &str) -> anyhow::Result<Self> {
        let marker = format!(".anabranch-{name}");
        if path.exists() {
            if !path.join(&marker).exists() {
                bail!("{} exists and is not a {name}'s; choose another with --dir", path.display());
            }
            std::fs::remove_dir_all(path)?;
        }
        std::fs::create_dir_all(path.join("logs")).with_context(|| format!("cannot make {}", path.display()))?;
        let this = Self { path: path.canonicalize()?, options: Vec::new() };
        std::fs::write(this.path.join(marker), [])?;
        Ok(this)
    }

    /// Has the coordinator stay when every run has ended.
    #[must_use]
    pub fn staying(self) -> Self {
        Self { options: vec!["--stay"], ..self }
    }

    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the coordinator's directory.
    #[must_use]
    pub fn coordinator(&self) -> PathBuf {
        self.path.join("coordinator")
    }

    /// Returns where the logs are.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Makes the coordinator's directory. `run_toml` returns its configuration for a free address on loopback.
    ///
    /// # Errors
    /// There is no free port, or the directory cannot be written.
    pub fn init(&self, run_toml: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let dir = self.coordinator();
        let args: [&OsStr; 5] = ["init".as_ref(), "--dir".as_ref(), dir.as_ref(), "--listen".as_ref(), listen.as_ref()];
        Role::Coordinator.run(&args)?;
        std::fs::write(dir.join("run.toml"), run_toml(&listen))?;
        Ok(())
    }

    /// Starts the coordinator.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    pub fn start_coordinator(&self) -> anyhow::Result<Daemon> {
        let dir = self.coordinator();
        let mut args: Vec<&OsStr> = vec!["run".as_ref(), "--dir".as_ref(), dir.as_ref()];
        args.extend(self.options.iter().map(OsStr::new));
        Daemon::start(Role::Coordinator, &args, self.logs().join("coordinator.log"))
    }

    /// Enrols an agent. `join` tries again while the coordinator is still starting.
    ///
    /// # Errors
    /// See [`Role::run`].
    pub fn join(&self, name: &str) -> anyhow::Result<()> {
        let agent = self.path.join(name);
        let token = self.coordinate(&["token", "create"], &["--name".as_ref(), name.as_ref()])?;
        let join: [&OsStr; 5] =
            ["join".as_ref(), "--token".as_ref(), token.trim().as_ref(), "--dir".as_ref(), agent.as_ref()];
        Role::Agent.run(&join)?;
        Ok(())
    }

    /// Starts an agent that has joined; `options` follow `run --dir DIR`.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    pub fn start_agent(&self, name: &str, options: &[&OsStr]) -> anyhow::Result<Daemon> {
        let dir = self.path.join(name);
        let run: [&OsStr; 3] = ["run".as_ref(), "--dir".as_ref(), dir.as_ref()];
        Daemon::start(Role::Agent, &[&run, options].concat(), self.logs().join(format!("{name}.log")))
    }

    /// Runs `anabranch-coordinator VERB --dir DIR ARGS`, and returns what it printed.
    ///
    /// # Errors
    /// See [`Role::run`].
    pub fn coordinate(&self, verb: &[&str], args: &[&OsStr]) -> anyhow::Result<String> {
        let dir = self.coordinator();
        let mut all: Vec<&OsStr> = verb.iter().map(OsStr::new).collect();
        all.extend::<[&OsStr; 2]>(["--dir".as_ref(), dir.as_ref()]);
        all.extend(args);
        Role::Coordinator.run(&all)
    }

    /// Exports the model of a run that has ended, and returns where it is.
    ///
    /// # Errors
    /// See [`Role::run`].
    pub fn export(&self) -> anyhow::Result<PathBuf> {
        let model = self.path.join("model.safetensors");
        self.coordinate(&["checkpoint", "export"], &["--out".as_ref(), model.as_ref()])?;
        Ok(model)
    }

    /// Returns the status of a run that has ended. `live` is the last report of its coordinator.
    ///
    /// # Errors
    /// See [`Role::run`].
    pub fn last_status(&self, live: &StatusReport) -> anyhow::Result<StatusReport> {
        let mut last: StatusReport = serde_json::from_str(&self.coordinate(&["status"], &["--json".as_ref()])?)?;
        // What was sent is known to the process that sent it, and to its last words.
        last.downlink_bytes = live.downlink_bytes;
        last.raw_f32_downlink_bytes = live.raw_f32_downlink_bytes;
        Ok(last)
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(UdpSocket::bind("127.0.0.1:0").context("no free UDP port on loopback")?.local_addr()?.port())
}
