//! Figures of a finished run: for people on standard output, for programs as JSON.

use std::path::Path;

use anabranch_common::journal::Aggregate;
use anabranch_common::status::StatusReport;
use anyhow::Context;
use serde_json::{Value, json};

/// How many times smaller uploads were than raw f32.
#[must_use]
pub fn smaller_up(report: &StatusReport) -> f64 {
    report.raw_f32_uplink_bytes as f64 / report.uplink_bytes.max(1) as f64
}

/// How many times smaller the models to train from were than raw f32.
#[must_use]
pub fn smaller_down(report: &StatusReport) -> f64 {
    report.raw_f32_downlink_bytes as f64 / report.downlink_bytes.max(1) as f64
}

/// Returns what was measured of the version that is the result.
pub fn of_result(report: &StatusReport) -> impl Iterator<Item = Aggregate> {
    let measured = report.aggregates.iter().map(|timed| timed.aggregate);
    measured.filter(|aggregate| Some(aggregate.version) == report.result_version)
}

/// Updates that were refused, for whatever reason.
#[must_use]
pub fn refused(report: &StatusReport) -> u64 {
    report.updates_refused.values().sum()
}

/// Prints what was sent, and the staleness of what was merged.
pub fn print_traffic(report: &StatusReport) {
    println!(
        "  sent up         {}  instead of {} raw f32: {:.1}x smaller",
        megabytes(report.uplink_bytes),
        megabytes(report.raw_f32_uplink_bytes),
        smaller_up(report)
    );
    println!(
        "  sent down       {}  instead of {} raw f32: {:.1}x smaller",
        megabytes(report.downlink_bytes),
        megabytes(report.raw_f32_downlink_bytes),
        smaller_down(report)
    );
    println!("  staleness of merged updates, in versions:");
    histogram(&report.staleness_histogram);
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
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

/// How an example went, under the names that every benchmark of this project uses.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The example.
    pub command: &'static str,
    /// Seed of everything that was drawn.
    pub seed: u64,
    /// Whether it came to what it is to show.
    pub pass: bool,
    /// Time from the first process to the last, in seconds.
    pub wall_s: f64,
    /// The most that it is to take.
    pub wall_aim_s: f64,
}

impl Run {
    /// Writes it to a file, with its metrics and what else there is to tell; both are JSON objects.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_json(self, mut metrics: Value, mut rest: Value, path: &Path) -> anyhow::Result<()> {
        let Self { command, seed, pass, wall_s, wall_aim_s } = self;
        metrics["wall_s"] = wall_s.into();
        rest["command"] = command.into();
        rest["version"] = env!("CARGO_PKG_VERSION").into();
        rest["seed"] = seed.into();
        rest["clock"] = "real".into();
        rest["host"] = host();
        rest["pass"] = pass.into();
        rest["aims"] = json!({ format!("wall time under {wall_aim_s} s"): wall_s < wall_aim_s });
        rest["metrics"] = metrics;
        std::fs::write(path, serde_json::to_string_pretty(&rest)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Describes this machine as benchmarks do.
fn host() -> Value {
    json!({
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory_bytes": memory_bytes(),
        "device": "cpu",
    })
}

/// Returns the memory of this machine in bytes, where the system says so.
fn memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
