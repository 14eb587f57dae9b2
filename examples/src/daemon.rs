//! Child processes: the example's own binary again, as a coordinator or as an agent.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Returns the current time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a program for people to watch, not logic under test")]
pub fn now() -> Instant {
    Instant::now()
}

/// Runs an example, which says whether it did what it promises. A process that was started again as one of its daemons is that
/// daemon and nothing else.
pub fn or_daemon(example: impl FnOnce() -> anyhow::Result<bool>) -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(role) = args.get(1).and_then(|role| Role::from_arg(role)) {
        return role.main(args.into_iter().skip(2));
    }
    match example() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Which daemon a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `anabranch-coordinator`.
    Coordinator,
    /// `anabranch-agent`.
    Agent,
}

impl Role {
    fn arg(self) -> &'static str {
        match self {
            Self::Coordinator => "as-coordinator",
            Self::Agent => "as-agent",
        }
    }

    /// Returns the role that a first argument stands for.
    fn from_arg(arg: &OsStr) -> Option<Self> {
        [Self::Coordinator, Self::Agent].into_iter().find(|role| arg == role.arg())
    }

    /// Runs that daemon in this process: its own command line, with its own name in front.
    fn main(self, args: impl Iterator<Item = OsString>) -> ExitCode {
        match self {
            Self::Coordinator => {
                anabranch_coordinator::cli::main(std::iter::once("anabranch-coordinator".into()).chain(args))
            }
            Self::Agent => anabranch_agent::cli::main(std::iter::once("anabranch-agent".into()).chain(args)),
        }
    }

    /// Returns the command that starts this binary as the daemon.
    pub(crate) fn command(self, args: &[&OsStr]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
        command.arg(self.arg()).args(args).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command line to its end and returns what it printed.
    ///
    /// # Errors
    /// The process cannot be started, fails, or prints bytes that are no UTF-8.
    pub fn run(self, args: &[&OsStr]) -> anyhow::Result<String> {
        let output = self.command(args)?.output()?;
        if !output.status.success() {
            bail!("{self:?} {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A daemon with its log.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
    /// Length of the log before this process.
    log_start: u64,
    killed: bool,
}

impl Daemon {
    /// Starts a daemon whose log is appended to `log`.
    ///
    /// # Errors
    /// The log cannot be written, or the process cannot be started.
    pub fn start(role: Role, args: &[&OsStr], log: PathBuf) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        let log_start = file.metadata()?.len();
        let child = role.command(args)?.stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Self { child, log, log_start, killed: false })
    }

    /// Returns where the log is.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until the process has written `text` to its log.
    ///
    /// # Errors
    /// The process ends, or `patience` has passed before.
    pub fn wait_for_log(&mut self, text: &str, patience: Duration) -> anyhow::Result<()> {
        let from = usize::try_from(self.log_start)?;
        let until = now() + patience;
        loop {
            let ended = self.child.try_wait()?;
            let log = std::fs::read(&self.log)?;
            if String::from_utf8_lossy(log.get(from..).unwrap_or_default()).contains(text) {
                return Ok(());
            }
            if ended.is_some() || now() > until {
                bail!("no {text:?} in {}", self.log.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the process with SIGKILL: no goodbye, no flushing.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.killed = true;
        Ok(())
    }

    /// Whether [`Daemon::kill`] ended the process.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.killed
    }

    /// Returns how the process ended, if it has.
    ///
    /// # Errors
    /// The system refuses.
    pub fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the end of the process and returns its exit code; none after a signal.
    ///
    /// # Errors
    /// The system refuses.
    pub fn wait(&mut self) -> anyhow::Result<Option<i32>> {
        Ok(self.child.wait()?.code())
    }

    /// Waits for a daemon that has heard that the run is over. Sends SIGTERM after half of `patience`, SIGKILL at its end.
    ///
    /// # Errors
    /// The system refuses.
    pub fn end(&mut self, patience: Duration) -> anyhow::Result<()> {
        let until = now() + patience;
        let mut asked = false;
        while self.child.try_wait()?.is_none() {
            if now() > until {
                return self.kill();
            }
            if !asked && now() + patience / 2 > until {
                asked = true;
                self.ask_to_end()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// The system refuses.
    pub fn ask_to_end(&self) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // No daemon outlives the example, whatever went wrong. A child that has ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
