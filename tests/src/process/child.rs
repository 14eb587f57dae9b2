//! A child process and its log.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Role;
use crate::clock::poll;

/// How long a command that does one thing may take.
const CALL: Duration = Duration::from_secs(60);

pub(super) fn command(lab: &Path, role: Role, args: &[&OsStr]) -> Command {
    let mut command = Command::new(lab);
    command.arg(role.arg()).args(args).stdin(Stdio::null());
    // Nothing of the surroundings may change what a test sees.
    for name in ["ANABRANCH_LOG", "ANABRANCH_COORDINATOR_DIR", "ANABRANCH_AGENT_DIR", "ANABRANCH_TOKEN"] {
        command.env_remove(name);
    }
    command.env_remove(anabranch_io::faults::KILL_ENV);
    command
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Checks the exit code.
    ///
    /// # Errors
    /// It is another; with everything that was printed.
    pub fn code(self, code: i32) -> anyhow::Result<Self> {
        if self.code == Some(code) {
            return Ok(self);
        }
        bail!("exit code {:?} instead of {code}; standard error:\n{}{}", self.code, self.stderr, self.stdout)
    }

    /// Checks that standard error contains each of `words`.
    ///
    /// # Errors
    /// One is missing.
    pub fn says(self, words: &[&str]) -> anyhow::Result<Self> {
        match words.iter().find(|word| !self.stderr.contains(**word)) {
            Some(word) => bail!("{word:?} is not in standard error:\n{}", self.stderr),
            None => Ok(self),
        }
    }
}

/// Runs a command line to its end.
///
/// # Errors
/// It cannot be started, or does not end within a minute.
pub fn call(lab: &Path, role: Role, args: &[&OsStr], folder: &Path) -> anyhow::Result<Ended> {
    // Files rather than pipes: nothing has to be read while it runs.
    let mut stdout = tempfile::NamedTempFile::new_in(folder)?;
    let mut stderr = tempfile::NamedTempFile::new_in(folder)?;
    let child = command(lab, role, args).stdout(stdout.reopen()?).stderr(stderr.reopen()?).spawn()?;
    let mut child = KillOnDrop(child);
    let Some(status) = poll(CALL, || Ok(child.0.try_wait()?))? else {
        bail!("{} {args:?} did not end within {CALL:?}", role.arg());
    };
    let text = |file: &mut tempfile::NamedTempFile| -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(file.path())?).into_owned())
    };
    Ok(Ended { code: status.code(), stdout: text(&mut stdout)?, stderr: text(&mut stderr)? })
}

#[derive(Debug)]
pub(super) struct KillOnDrop(pub(super) Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: KillOnDrop,
    log: PathBuf,
    log_from: usize,
}

impl Process {
    /// Starts a daemon whose log is appended to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        lab: &Path,
        role: Role,
        args: &[&OsStr],
        env: &[(&str, &str)],
        log: PathBuf,
        name: &str,
    ) -> anyhow::Result<Self> {
        let mut command = command(lab, role, args);
        command.envs(env.iter().copied());
        Self::spawn(command, log, name)
    }

    /// Starts any command as a daemon whose log is appended to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(mut command: Command, log: PathBuf, name: &str) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        let log_from = usize::try_from(file.metadata()?.len())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = KillOnDrop(command.spawn().with_context(|| format!("{name} cannot be started"))?);
        Ok(Self { name: name.to_owned(), child, log, log_from })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("{} cannot be sent {signal}", self.name))
    }

    /// SIGKILL: no goodbye, no flushing. Returns when the process is gone.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.0.kill()?;
        self.child.0.wait()?;
        Ok(())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system refuses.
    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.0.try_wait()?)
    }

    /// Whether SIGKILL ended it.
    ///
    /// # Errors
    /// It ended in another way, or the system refuses.
    pub fn was_killed(&mut self) -> anyhow::Result<bool> {
        match self.exited()? {
            None => Ok(false),
            Some(status) if status.signal() == Some(Signal::SIGKILL as i32) => Ok(true),
            Some(status) => bail!("{} ended by itself ({status}):\n{}", self.name, self.log_tail()),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It goes on for longer than `patience`, or a signal ended it.
    pub fn wait(&mut self, patience: Duration) -> anyhow::Result<i32> {
        let ended = poll(patience, || self.exited())?;
        let Some(status) = ended else {
            bail!("{} did not end within {patience:?}:\n{}", self.name, self.log_tail());
        };
        status.code().with_context(|| format!("{} was ended by a signal: {status}", self.name))
    }

    /// Waits until it has logged a line that contains `text`, since it was started.
    ///
    /// # Errors
    /// It ends instead, or does not say it within `patience`.
    pub fn wait_for_log(&mut self, text: &str, patience: Duration) -> anyhow::Result<()> {
        let said = poll(patience, || {
            // Before the log: what it said last is read after its end.
            let ended = self.exited()?;
            if self.log()?.contains(text) {
                return Ok(Some(()));
            }
            match ended {
                Some(status) => {
                    bail!("{} ended instead of saying {text:?} ({status}):\n{}", self.name, self.log_tail())
                }
                None => Ok(None),
            }
        })?;
        said.with_context(|| format!("{} did not say {text:?} within {patience:?}:\n{}", self.name, self.log_tail()))
    }

    /// What it has logged since it was started.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> anyhow::Result<String> {
        let bytes = std::fs::read(&self.log)?;
        Ok(String::from_utf8_lossy(bytes.get(self.log_from..).unwrap_or_default()).into_owned())
    }

    /// The end of its log, for people.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}
