//! `status --watch` without a terminal: one line a second.

use std::time::Duration;

use anabranch_common::status::StatusReport;
use anabranch_common::wire::message::RunPhase;
use anabranch_common::wire::operator::RunRequest;

use super::parse;
use crate::cli::TargetArgs;
use crate::commands::output;
use crate::commands::reach::Coordinator;

const INTERVAL: Duration = Duration::from_secs(1);

/// Prints a line a second until the run has finished or nobody answers any more.
pub(super) fn watch(mut coordinator: Coordinator, target: &TargetArgs, json: bool) -> anyhow::Result<()> {
    loop {
        let text = coordinator.ask_json(RunRequest::Status)?;
        let report = parse(&text)?;
        output::print_line(&if json { text } else { line(&report) })?;
        if report.state == RunPhase::Finished {
            return Ok(());
        }
        // The store of a stopped coordinator must not be held while we sleep: one may want to start.
        if matches!(coordinator, Coordinator::Stopped(_)) {
            drop(coordinator);
            std::thread::sleep(INTERVAL);
            coordinator = Coordinator::look(target)?;
        } else {
            std::thread::sleep(INTERVAL);
        }
    }
}

/// The report in a line.
pub(super) fn line(report: &StatusReport) -> String {
    let phase = match report.state {
        RunPhase::Pending => "pending",
        RunPhase::Running if !report.serving => "parked",
        RunPhase::Running => "running",
        RunPhase::Paused => "paused",
        RunPhase::Finished => "finished",
    };
    let connected = report.agents.iter().filter(|agent| agent.connected).count();
    let accuracy = report
        .aggregates
        .last()
        .map_or_else(|| "-".to_owned(), |timed| format!("{:.2} %", 100.0 * timed.aggregate.accuracy));
    format!(
        "{phase} {} version={} agents={connected}/{} accepted={} refused={} up={} down={} accuracy={accuracy}",
        output::span(report.wall_s).replace(' ', ""),
        report.version,
        report.agents.len(),
        report.updates_accepted,
        report.updates_refused.values().sum::<u64>(),
        output::bytes(report.uplink_bytes).replace(' ', ""),
        output::bytes(report.downlink_bytes).replace(' ', ""),
    )
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::report;
    use super::*;

    #[test]
    fn a_report_fits_a_line() {
        let expected =
            "running 3min20s version=308 agents=1/1 accepted=1234 refused=3 up=5.0MiB down=9.0MiB accuracy=91.20 %";
        assert_eq!(line(&report()), expected);
    }
}
