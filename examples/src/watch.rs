//! The reports of a run or a search, as its coordinator's command line prints them.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::Context;

use crate::daemon::Role;
use crate::view::Picture;

/// The reports that a picture is made from, read line by line.
#[derive(Debug)]
pub struct Watch<P: Picture> {
    child: Child,
    reports: Receiver<P::Report>,
}

impl<P: Picture> Watch<P> {
    /// Starts to watch a coordinator's directory.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let mut args: Vec<&OsStr> = P::COMMAND.iter().map(OsStr::new).collect();
        args.extend::<[&OsStr; 4]>(["--watch".as_ref(), "--json".as_ref(), "--dir".as_ref(), dir.as_ref()]);
        let mut command = Role::Coordinator.command(&args)?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
        let (send, reports) = sync_channel(16);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Some(report) = P::parse(&line) else { continue };
                if send.send(report).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, reports })
    }

    /// Returns the next report, or `None` when `patience` has passed without one.
    pub fn next(&mut self, patience: Duration) -> Option<P::Report> {
        match self.reports.recv_timeout(patience) {
            Ok(report) => Some(report),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                std::thread::sleep(patience);
                None
            }
        }
    }

    /// Returns whether the command has ended: there was nothing to be watched, or it is over.
    ///
    /// # Errors
    /// The system refuses.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl<P: Picture> Drop for Watch<P> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
