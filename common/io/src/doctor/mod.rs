//! What `doctor` finds: a list of findings, from which the table, the JSON and the exit code are made.
//!
//! ```text
//!  measure (sockets, disk) ──► figures ──► judge: a pure function ──► Finding ──► Report ─┬─► table, or JSON
//!                                                                                        └─► exit code
//! ```
//! A finding says what was measured in one line, and what to do in another one. `certificate` and `disk` measure and judge
//! what both daemons have; `udp` and `line` measure a coordinator from outside.

pub mod certificate;
pub mod disk;
pub mod line;
pub mod udp;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::cli;
use crate::exit::{ExitCode, Fail};

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// There is nothing to do.
    Ok,
    /// Work is possible; something should be seen to.
    Warning,
    /// Work is not possible, or its results are in danger.
    Failure,
    /// It was not checked.
    Skipped,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
            Self::Skipped => "skipped",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// What became of it.
    pub outcome: Outcome,
    /// What was measured; of a skipped check, why it was not.
    pub measured: String,
    /// What to do: with every warning and failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// With a failure: the exit code that stands for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// The same as numbers, for scripts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<&'static str, Value>,
}

impl Finding {
    fn new(check: &'static str, outcome: Outcome, measured: String, advice: Option<String>) -> Self {
        Self { check, outcome, measured, advice, exit_code: None, figures: BTreeMap::new() }
    }

    /// Returns the finding of a check with nothing to do.
    pub fn ok(check: &'static str, measured: impl Into<String>) -> Self {
        Self::new(check, Outcome::Ok, measured.into(), None)
    }

    /// Returns the finding of a check after which something should be seen to.
    pub fn warning(check: &'static str, measured: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Outcome::Warning, measured.into(), Some(advice.into()))
    }

    /// Returns the finding of a check that failed. `code` is the exit code of a command that fails for the same reason.
    pub fn failure(
        check: &'static str,
        code: ExitCode,
        measured: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let finding = Self::new(check, Outcome::Failure, measured.into(), Some(advice.into()));
        Self { exit_code: Some(code.as_u8()), ..finding }
    }

    /// Returns the finding of a check that was not made.
    pub fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self::new(check, Outcome::Skipped, why.into(), None)
    }

    /// Adds a number for scripts.
    #[must_use]
    pub fn figure(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.figures.insert(name, value.into());
        self
    }

    /// Returns whether the check failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.outcome == Outcome::Failure
    }
}

/// All findings, in the order of the checks.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of the software that has checked.
    pub software: &'static str,
    /// What was checked.
    pub target: String,
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Returns a report on `target` without findings.
    #[must_use]
    pub fn new(software: &'static str, target: String) -> Self {
        Self { software, target, findings: Vec::new() }
    }

    /// Adds a finding.
    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Returns the table for people: a line for each check, and below it what to do.
    #[must_use]
    pub fn to_text(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        let mut text = format!("checked {}\n", self.target);
        for Finding { check, outcome, measured, advice, .. } in &self.findings {
            text.push_str(&format!("{:<7}  {check:<width$}  {measured}\n", outcome.as_str()));
            if let Some(advice) = advice {
                text.push_str(&format!("{:<7}  {:<width$}  -> {advice}\n", "", ""));
            }
        }
        let count = |outcome| self.findings.iter().filter(|finding| finding.outcome == outcome).count();
        let [ok, warnings, failures, skipped] =
            [Outcome::Ok, Outcome::Warning, Outcome::Failure, Outcome::Skipped].map(count);
        text.push_str(&format!("{ok} ok, {warnings} to be seen to, {failures} failed, {skipped} not checked\n"));
        text
    }

    /// Prints the report, and returns how the command ends.
    ///
    /// # Errors
    /// A check has failed: with the code of the first one. Standard output cannot be written.
    pub fn finish(&self, as_json: bool) -> anyhow::Result<()> {
        match as_json {
            true => cli::print(&format!("{}\n", serde_json::to_string_pretty(self)?))?,
            false => cli::print(&self.to_text())?,
        }
        self.verdict().map_err(anyhow::Error::new)
    }

    fn verdict(&self) -> Result<(), Fail> {
        let failed: Vec<&Finding> = self.findings.iter().filter(|finding| finding.has_failed()).collect();
        let Some(first) = failed.first() else { return Ok(()) };
        let code = first.exit_code.and_then(ExitCode::from_u8).unwrap_or(ExitCode::Other);
        let names: Vec<&str> = failed.iter().map(|finding| finding.check).collect();
        Err(Fail::new(code, format!("failed: {}", names.join(", "))).help("the lines marked -> say what to do"))
    }
}

/// Returns milliseconds for people: `0.4 ms`, `250 ms`, `3.2 s`.
#[must_use]
pub fn millis_text(millis: f64) -> String {
    match millis {
        _ if millis < 10.0 => format!("{millis:.1} ms"),
        _ if millis < 1_000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", millis / 1e3),
    }
}

/// Returns a span of time for people, in one unit: `12 s`, `8 min`, `5 h`, `29 days`.
#[must_use]
pub fn span_text(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..120 => format!("{} s", millis as f64 / 1e3),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Returns a rate for people: `7.7 Mbit/s`, `250 kbit/s`.
#[must_use]
pub fn rate_text(bits_per_s: f64) -> String {
    if bits_per_s >= 1e6 {
        format!("{:.1} Mbit/s", bits_per_s / 1e6)
    } else {
        format!("{:.0} kbit/s", bits_per_s / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        Report { software: "1.2.3", target: "here".into(), findings }
    }

    #[test]
    fn people_read_what_was_measured_and_what_to_do() {
        let report = report(vec![
            Finding::ok("udp", "answered").figure("answer_ms", 0.5),
            Finding::warning("disk", "slow", "use another one"),
            Finding::skipped("nat", "not asked for"),
        ]);
        let expected = "checked here\n\
                        ok       udp   answered\n\
                        warning  disk  slow\n               -> use another one\n\
                        skipped  nat   not asked for\n\
                        1 ok, 1 to be seen to, 0 failed, 1 not checked\n";
        assert_eq!(report.to_text(), expected);
        assert!(report.verdict().is_ok(), "a warning is no failure");
        let json = serde_json::to_value(&report).expect("plain data");
        assert_eq!(json["findings"][0]["figures"]["answer_ms"], 0.5);
        assert_eq!(
            (&json["findings"][1]["outcome"], &json["findings"][2]["check"]),
            (&"warning".into(), &"nat".into())
        );
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_failure() {
        let failed = |code| Finding::failure("clock", code, "ahead", "set it");
        let ended = report(vec![Finding::ok("udp", ""), failed(ExitCode::Clock), failed(ExitCode::Storage)]).verdict();
        let fail = ended.expect_err("two checks have failed");
        assert_eq!((fail.code(), fail.to_string()), (ExitCode::Clock, "failed: clock, clock".to_owned()));
    }

    #[test]
    fn figures_have_the_unit_that_fits() {
        assert_eq!([0.42, 42.0, 4_200.0].map(millis_text), ["0.4 ms", "42 ms", "4.2 s"]);
        assert_eq!([1_500, 600_000, 7_200_000, 86_400_000 * 3].map(span_text), ["1.5 s", "10 min", "2 h", "3 days"]);
        assert_eq!([250e3, 7.68e6].map(rate_text), ["250 kbit/s", "7.7 Mbit/s"]);
    }
}
