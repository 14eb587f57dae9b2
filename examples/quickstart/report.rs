//! What came out: for people on standard output, for programs as JSON.

use std::path::{Path, PathBuf};

use anabranch_common::status::StatusReport;
use anyhow::Context;
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
        let result = self.report.result_version;
        let measured = self.report.aggregates.iter();
        let of_result = measured.filter(|timed| Some(timed.aggregate.version) == result);
        of_result.map(|timed| timed.aggregate.accuracy).fold(0.0, f64::max)
    }

    fn smaller_up(&self) -> f64 {
        self.report.raw_f32_uplink_bytes as f64 / self.report.uplink_bytes.max(1) as f64
    }

    fn smaller_down(&self) -> f64 {
        self.report.raw_f32_downlink_bytes as f64 / self.report.downlink_bytes.max(1) as f64
    }

    /// Whether everything that the quickstart promises came true.
    pub(crate) fn pass(&self) -> bool {
        self.accuracy() >= ACCURACY && self.killed && self.smaller_up() >= SMALLER_UP
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

/// Prints the summary.
pub(crate) fn print(outcome: &Outcome) {
    let report = &outcome.report;
    let refused: u64 = report.updates_refused.values().sum();
    println!();
    println!(
        "  test accuracy   {:.2} %  (version {}, 360 digits nobody trained on)",
        100.0 * outcome.accuracy(),
        report.result_version.map_or(0, |version| version.0)
    );
    println!("  wall time       {:.1} s  (from the first process to the last)", outcome.wall_s);
    println!("  updates         {} merged, {refused} refused", report.updates_accepted);
    println!(
        "  sent up         {}  instead of {} raw f32: {:.1}x smaller",
        megabytes(report.uplink_bytes),
        megabytes(report.raw_f32_uplink_bytes),
        outcome.smaller_up()
    );
    println!(
        "  sent down       {}  instead of {} raw f32: {:.1}x smaller",
        megabytes(report.downlink_bytes),
        megabytes(report.raw_f32_downlink_bytes),
        outcome.smaller_down()
    );
    println!("  staleness of merged updates, in versions:");
    histogram(&report.staleness_histogram);
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

fn histogram(buckets: &[u64]) {
    let most = buckets.iter().copied().max().unwrap_or(0).max(1);
    let Some(last) = buckets.iter().rposition(|count| *count > 0) else { return };
    for (staleness, count) in buckets[..=last].iter().enumerate() {
        let above = if staleness + 1 == buckets.len() { "+" } else { " " };
        let bar = "█".repeat(usize::try_from(count * 40 / most).unwrap_or(0));
        println!("    {staleness:>3}{above} {count:>5} {bar}");
    }
}

/// Writes the figures under the names that every benchmark of this project uses.
pub(crate) fn write_json(outcome: &Outcome, path: &Path) -> anyhow::Result<()> {
    let report = &outcome.report;
    let refused: u64 = report.updates_refused.values().sum();
    let value = json!({
        "command": "quickstart",
        "version": env!("CARGO_PKG_VERSION"),
        "seed": outcome.seed,
        "clock": "real",
        "host": {
            "cores": std::thread::available_parallelism().map_or(1, usize::from),
            "memory_bytes": memory_bytes(),
            "device": "cpu",
        },
        "pass": outcome.pass(),
        "aims": { format!("wall time under {WALL_S} s"): outcome.wall_s < WALL_S },
        "metrics": {
            "test_accuracy": outcome.accuracy(),
            "wall_s": outcome.wall_s,
            "uplink_bytes": report.uplink_bytes,
            "downlink_bytes": report.downlink_bytes,
            "raw_f32_uplink_bytes": report.raw_f32_uplink_bytes,
            "raw_f32_downlink_bytes": report.raw_f32_downlink_bytes,
            "updates_accepted": report.updates_accepted,
            "updates_refused": refused,
            "compression_ratio": outcome.smaller_up(),
        },
        "staleness_histogram": report.staleness_histogram,
        "model": outcome.model,
        "plot": outcome.plot,
    });
    std::fs::write(path, serde_json::to_string_pretty(&value)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Memory of this machine in bytes, where the system says so.
fn memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
