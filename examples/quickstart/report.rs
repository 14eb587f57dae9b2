//! What came out: for people on standard output, for programs as JSON.

use std::path::{Path, PathBuf};

use anabranch_common::status::StatusReport;
use anabranch_examples::figures;
use serde_json::json;

/// The least accuracy, the longest time and the smallest saving that count as a success.
const ACCURACY: f64 = 0.95;
const WALL_S: f64 = 60.0;
const SMALLER_UP: f64 = 3.0;

/// A finished quickstart.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) report: StatusReport,
    pub(crate) wall_s: f64,
    pub(crate) killed: bool,
    pub(crate) seed: u64,
    pub(crate) model: PathBuf,
    pub(crate) plot: PathBuf,
}

impl Outcome {
    /// Accuracy of the version that is the result.
    fn accuracy(&self) -> f64 {
        figures::of_result(&self.report).map(|aggregate| aggregate.accuracy).fold(0.0, f64::max)
    }

    /// Whether everything that the quickstart promises came true.
    pub(crate) fn pass(&self) -> bool {
        self.accuracy() >= ACCURACY && self.killed && figures::smaller_up(&self.report) >= SMALLER_UP
    }
}

/// Prints the summary.
pub(crate) fn print(outcome: &Outcome) {
    let report = &outcome.report;
    let refused = figures::refused(report);
    println!();
    println!(
        "  test accuracy   {:.2} %  (version {}, 360 digits nobody trained on)",
        100.0 * outcome.accuracy(),
        report.result_version.map_or(0, |version| version.0)
    );
    println!("  wall time       {:.1} s  (from the first process to the last)", outcome.wall_s);
    println!("  updates         {} merged, {refused} refused", report.updates_accepted);
    figures::print_traffic(report);
    println!("  model           {}", outcome.model.display());
    println!("  plot            {}", outcome.plot.display());
    println!(
        "  look inside     python3 -c \"from safetensors.numpy import load_file; print({{k: v.shape for k, v in load_file('{}').items()}})\"",
        outcome.model.display()
    );
    if !outcome.pass() {
        println!("\n  NOT what this example promises: >= 95 % accuracy, a killed agent, >= 3x smaller uploads.");
    }
}

/// Writes the figures under the names that every benchmark of this project uses.
pub(crate) fn write_json(outcome: &Outcome, path: &Path) -> anyhow::Result<()> {
    let report = &outcome.report;
    let refused = figures::refused(report);
    let metrics = json!({
        "test_accuracy": outcome.accuracy(),
        "uplink_bytes": report.uplink_bytes,
        "downlink_bytes": report.downlink_bytes,
        "raw_f32_uplink_bytes": report.raw_f32_uplink_bytes,
        "raw_f32_downlink_bytes": report.raw_f32_downlink_bytes,
        "updates_accepted": report.updates_accepted,
        "updates_refused": refused,
        "compression_ratio": figures::smaller_up(report),
    });
    let rest = json!({
        "staleness_histogram": report.staleness_histogram,
        "model": outcome.model,
        "plot": outcome.plot,
    });
    let (seed, pass, wall_s) = (outcome.seed, outcome.pass(), outcome.wall_s);
    let run = figures::Run { command: "quickstart", seed, pass, wall_s, wall_aim_s: WALL_S };
    run.write_json(metrics, rest, path)
}
