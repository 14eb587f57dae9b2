//! What `--json FILE` writes: one shape for every verb.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

/// The machine that a figure was measured on.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Cores this process may use.
    pub cores: usize,
    /// Memory of the machine in bytes; 0 where the system does not say.
    pub memory_bytes: u64,
    /// What computes.
    pub device: String,
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cores, memory_bytes: proc_kib("/proc/meminfo", "MemTotal:").unwrap_or(0) << 10, device: "cpu".into() }
    }
}

/// A figure in KiB from a file of `/proc`, such as `VmHWM:` of a process's `status`.
#[must_use]
pub fn proc_kib(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Everything that a verb found out.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The command, as it can be typed again.
    pub command: String,
    /// Version of the software.
    pub version: String,
    /// Seed of everything drawn at random.
    pub seed: u64,
    /// Where.
    pub host: Host,
    /// Whether everything that must hold does.
    pub pass: bool,
    /// What is aimed at, and whether it was reached.
    pub aims: BTreeMap<String, bool>,
    /// Figures; names end in their unit.
    pub metrics: BTreeMap<String, f64>,
    /// How often each named thing happened.
    pub counts: BTreeMap<String, u64>,
    /// Figures of each named run, where a verb has several that are alike.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub runs: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Report {
    /// An empty report that passes.
    #[must_use]
    pub fn new(command: &str, seed: u64) -> Self {
        Self {
            command: command.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed,
            host: Host::here(),
            pass: true,
            aims: BTreeMap::new(),
            metrics: BTreeMap::new(),
            counts: BTreeMap::new(),
            runs: BTreeMap::new(),
        }
    }

    /// Adds a figure.
    pub fn metric(&mut self, name: impl Into<String>, value: f64) {
        self.metrics.insert(name.into(), value);
    }

    /// Adds a figure of one of several runs, which [`Self::finish`] does not print.
    pub fn run(&mut self, run: &str, name: &str, value: f64) {
        self.runs.entry(run.to_owned()).or_default().insert(name.to_owned(), value);
    }

    /// Adds an aim.
    pub fn aim(&mut self, text: impl Into<String>, reached: bool) {
        self.aims.insert(text.into(), reached);
    }

    /// Prints the figures, and writes them to `file` if there is one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(&self, file: Option<&Path>) -> anyhow::Result<()> {
        for (name, value) in &self.metrics {
            println!("{name:<40} {value:.4}");
        }
        for (text, reached) in &self.aims {
            println!("{} {text}", if *reached { "reached:" } else { "missed: " });
        }
        println!("{}", if self.pass { "pass" } else { "FAIL" });
        let Some(file) = file else { return Ok(()) };
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// The value at a share (0..1) of sorted values; 0 of none.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "an index below the length")]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f64).round() as usize).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!((quantile(&values, 0.0), quantile(&values, 0.5), quantile(&values, 1.0)), (1.0, 3.0, 5.0));
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
