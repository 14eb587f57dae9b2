//! `status --watch` without a terminal: one line a second.

use anabranch_common::status::StatusReport;
use anabranch_common::wire::message::RunPhase;

use super::parse;
use super::source::{INTERVAL, Source};
use crate::cli::RunTargetArgs;
use crate::commands::output;

/// Prints a line a second until the run has finished. Of a parked run it prints on: a coordinator may start again.
pub(super) fn watch(target: &RunTargetArgs, json: bool) -> anyhow::Result<()> {
    let mut source = Source::new(target);
    loop {
        let text = source.next()?;
        let report = parse(&text)?;
        output::print_line(&if json { text } else { line(&report) })?;
        if report.state == RunPhase::Finished {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
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
