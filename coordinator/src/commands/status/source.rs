//! Where `status --watch` takes its reports from, across the start and the end of a coordinator.

use std::time::Duration;

use anabranch_common::wire::operator::RunRequest;
use anabranch_io::exit::{ExitCode, Fail};

use crate::cli::RunTargetArgs;
use crate::commands::reach::Coordinator;

/// Time between two reports.
pub(in crate::commands) const INTERVAL: Duration = Duration::from_secs(1);

/// The reports of one run. A coordinator that was started or stopped in the meantime is found again.
pub(in crate::commands) struct Source {
    /// The running coordinator that answered last. The store of a stopped one is let go after each
    /// report: a coordinator may want to start on it.
    running: Option<Coordinator>,
    target: RunTargetArgs,
}

impl Source {
    pub(in crate::commands) fn new(target: &RunTargetArgs) -> Self {
        Self { running: None, target: target.clone() }
    }

    /// Returns the next report as JSON.
    ///
    /// A coordinator closes its connections within moments of the run's end. So when the one that
    /// answered last fails to answer, the target is looked up once more: the store of a directory
    /// tells how the run ended.
    pub(in crate::commands) fn next(&mut self) -> anyhow::Result<String> {
        if let Some(mut running) = self.running.take() {
            match running.ask_json(self.target.which.ask(RunRequest::Status)) {
                Ok(report) => {
                    self.running = Some(running);
                    return Ok(report);
                }
                Err(ended) => {
                    drop(running);
                    return self.look().map_err(|error| self.lost(&ended, error));
                }
            }
        }
        self.look()
    }

    fn look(&mut self) -> anyhow::Result<String> {
        let mut coordinator = Coordinator::look(&self.target.target)?;
        let report = coordinator.ask_json(self.target.which.ask(RunRequest::Status))?;
        if matches!(coordinator, Coordinator::Running(_)) {
            self.running = Some(coordinator);
        }
        Ok(report)
    }

    /// With `--connect`, only the coordinator's own machine can tell how the run ended.
    fn lost(&self, ended: &anyhow::Error, error: anyhow::Error) -> anyhow::Error {
        match &self.target.target.connect {
            Some(address) if anabranch_io::exit::code_of(&error) == ExitCode::Unavailable => {
                let what = format!("the coordinator at {address} has ended or is out of reach: {ended:#}");
                let help =
                    "whether the run has finished, `anabranch-coordinator status --dir DIR` tells on its machine";
                Fail::new(ExitCode::Unavailable, what).help(help).into()
            }
            _ => error,
        }
    }
}
