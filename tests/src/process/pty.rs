//! A command on a pseudo-terminal: keys, what is on its screen, and the terminal's settings.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::child::{KillOnDrop, command};
use super::screen::Screen;
use super::{PATIENCE, Role};
use crate::clock::poll;

/// A command that has a terminal of its own. Killed when dropped.
#[derive(Debug)]
pub struct OnTerminal {
    child: KillOnDrop,
    keyboard: File,
    /// The command's side, which outlives it: its settings are looked up after its end.
    terminal: File,
    /// Its settings before the command.
    settings: String,
    screen: Arc<Mutex<Screen>>,
}

impl OnTerminal {
    /// Starts a command line on a terminal of so many columns and lines.
    ///
    /// # Errors
    /// There is no terminal, or the command cannot be started.
    pub fn start(
        lab: &Path,
        role: Role,
        args: &[&OsStr],
        env: &[(&str, &str)],
        (columns, lines): (u16, u16),
    ) -> anyhow::Result<Self> {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).context("a pseudo-terminal")?;
        let (keyboard, terminal) = (File::from(pair.master), File::from(pair.slave));
        let settings = stty(&terminal, &["-g"])?;
        let mut command = command(lab, role, args);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(env.iter().copied());
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal.try_clone()?);
        let child = KillOnDrop(command.spawn()?);
        let screen = Arc::new(Mutex::new(Screen::new(usize::from(columns), usize::from(lines))));
        let (mut shown, drawn) = (keyboard.try_clone()?, Arc::clone(&screen));
        // Ends with the last of the command's sides.
        std::thread::Builder::new().name("screen".into()).spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = shown.read(&mut bytes) {
                drawn.lock().take(&bytes[..read]);
            }
        })?;
        Ok(Self { child, keyboard, terminal, settings, screen })
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal has gone.
    pub fn press(&mut self, keys: &str) -> anyhow::Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// Returns what is on the screen.
    #[must_use]
    pub fn text(&self) -> String {
        self.screen.lock().text()
    }

    /// Waits until what is on the screen is as it is wanted, and returns it.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn wait_until(&self, what: &str, is: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let look = || {
            let text = self.text();
            Ok(is(&text).then_some(text))
        };
        poll(PATIENCE, look)?.with_context(|| format!("{what}; the screen has:\n{}", self.text()))
    }

    /// Waits until a text is on the screen, and returns all of it.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_for(&self, text: &str) -> anyhow::Result<String> {
        self.wait_until(&format!("{text:?} does not come"), |screen| screen.contains(text))
    }

    /// Gives the terminal another size, and tells the command.
    ///
    /// # Errors
    /// `stty` fails, or the command has ended.
    pub fn resize(&mut self, (columns, lines): (u16, u16)) -> anyhow::Result<()> {
        stty(&self.terminal, &["cols", &columns.to_string(), "rows", &lines.to_string()])?;
        *self.screen.lock() = Screen::new(usize::from(columns), usize::from(lines)).alternate();
        self.signal(Signal::SIGWINCH)
    }

    /// Sends the command a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.0.id())?), signal)?)
    }

    /// Waits for the end of the command and returns its exit code.
    ///
    /// # Errors
    /// It goes on for longer than `patience`, or a signal ended it.
    pub fn wait(&mut self, patience: Duration) -> anyhow::Result<i32> {
        let ended = poll(patience, || Ok(self.child.0.try_wait()?))?;
        let status = ended.with_context(|| format!("it does not end; the screen has:\n{}", self.text()))?;
        status.code().with_context(|| format!("it was ended by a signal: {status}"))
    }

    /// Whether the terminal is as it was before the command: keys are echoed, lines are edited, no full-screen program has
    /// the screen, and the cursor is shown.
    ///
    /// # Errors
    /// `stty` fails.
    pub fn is_restored(&self) -> anyhow::Result<bool> {
        Ok(self.screen.lock().is_plain() && stty(&self.terminal, &["-g"])? == self.settings)
    }

    /// Waits until the terminal is as it was before the command: what the command wrote last may not be read yet.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn wait_until_restored(&self) -> anyhow::Result<()> {
        let look = || Ok(self.is_restored()?.then_some(()));
        poll(PATIENCE, look)?.with_context(|| format!("the terminal is not as it was; it has:\n{}", self.text()))
    }

    /// Whether any colour was asked for.
    #[must_use]
    pub fn has_colours(&self) -> bool {
        self.screen.lock().has_colours()
    }
}

/// Runs `stty` on a terminal and returns what it prints.
fn stty(terminal: &File, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("stty").args(args).stdin(terminal.try_clone()?).stderr(Stdio::inherit()).output();
    let output = output.context("stty")?;
    if !output.status.success() {
        bail!("stty {args:?} fails");
    }
    Ok(String::from_utf8(output.stdout)?)
}
