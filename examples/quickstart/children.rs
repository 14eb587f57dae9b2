//! Child processes: this binary again, as a coordinator or as an agent.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anabranch_common::status::StatusReport;
use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Which daemon a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Coordinator,
    Agent,
}

impl Role {
    fn arg(self) -> &'static str {
        match self {
            Self::Coordinator => "as-coordinator",
            Self::Agent => "as-agent",
        }
    }

    /// The role that a first argument stands for.
    pub(crate) fn from_arg(arg: &OsStr) -> Option<Self> {
        [Self::Coordinator, Self::Agent].into_iter().find(|role| arg == role.arg())
    }

    /// Be that daemon: its own command line, with its own name in front.
    pub(crate) fn main(self, args: impl Iterator<Item = OsString>) -> ExitCode {
        match self {
            Self::Coordinator => {
                anabranch_coordinator::cli::main(std::iter::once("anabranch-coordinator".into()).chain(args))
            }
            Self::Agent => anabranch_agent::cli::main(std::iter::once("anabranch-agent".into()).chain(args)),
        }
    }

    fn command(self, args: &[&OsStr]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
        command.arg(self.arg()).args(args).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command line to its end and returns what it printed.
    pub(crate) fn run(self, args: &[&OsStr]) -> anyhow::Result<String> {
        let output = self.command(args)?.output()?;
        if !output.status.success() {
            bail!("{self:?} {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A daemon with its log.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    killed: bool,
}

impl Daemon {
    /// Starts a daemon whose log is appended to `log`.
    pub(crate) fn start(role: Role, args: &[&OsStr], log: PathBuf) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        let child = role.command(args)?.stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Self { child, log, killed: false })
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// SIGKILL: no goodbye, no flushing.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.killed = true;
        Ok(())
    }

    pub(crate) fn was_killed(&self) -> bool {
        self.killed
    }

    pub(crate) fn try_wait(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub(crate) fn wait(&mut self) -> anyhow::Result<Option<i32>> {
        Ok(self.child.wait()?.code())
    }

    /// Waits for a daemon that has heard that the run is over; asks it to go (SIGTERM) when it takes its time.
    pub(crate) fn end(&mut self, patience: Duration) -> anyhow::Result<()> {
        let until = super::now() + patience;
        let mut asked = false;
        while self.child.try_wait()?.is_none() {
            if super::now() > until {
                return self.kill();
            }
            if !asked && super::now() + patience / 2 > until {
                asked = true;
                kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing outlives the quickstart, whatever went wrong. A child that has ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `status --watch --json`, read line by line.
#[derive(Debug)]
pub(crate) struct Watch {
    child: Child,
    reports: Receiver<StatusReport>,
}

impl Watch {
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Self> {
        let args: [&OsStr; 5] =
            ["status".as_ref(), "--watch".as_ref(), "--json".as_ref(), "--dir".as_ref(), dir.as_ref()];
        let mut command = Role::Coordinator.command(&args)?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
        let (send, reports) = sync_channel(16);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(report) = serde_json::from_str(&line) else { continue };
                if send.send(report).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, reports })
    }

    /// The next report, if one comes in time.
    pub(crate) fn next(&mut self, patience: Duration) -> Option<StatusReport> {
        match self.reports.recv_timeout(patience) {
            Ok(report) => Some(report),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                std::thread::sleep(patience);
                None
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
