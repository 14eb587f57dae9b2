//! The reports of a run, as its coordinator's command line prints them.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anabranch_common::status::StatusReport;
use anyhow::Context;

use crate::daemon::Role;

/// `status --watch --json`, read line by line.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    reports: Receiver<StatusReport>,
}

impl Watch {
    /// Starts to watch the run of a coordinator's directory.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
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

    /// Returns the next report, or `None` when `patience` has passed without one.
    pub fn next(&mut self, patience: Duration) -> Option<StatusReport> {
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
