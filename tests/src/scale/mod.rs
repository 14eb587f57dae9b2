//! `anabranch-lab scale`: a fleet that is too large for one machine, by its statistics.
//!
//! ```text
//!  Options ─► Fleet, Regions ─► model ─► Found: rates, staleness, bytes    flat, and with regions
//!  100 of these agents       ─► model ┐
//!                            ─► real ─┴─ held against each other: both tell the same, or the report does not pass
//! ```
//! The model knows when things happen and nothing of what they hold. The product has no regions yet
//! (docs/adr/0043-hierarchy.md): their figures are what they would come to.

pub mod model;
mod real;

use anabranch_common::rng::SplitMix64;

use model::{Fleet, Found, Level, Line, Regions};

use crate::report::Report;

/// Agents whose figures are held against the simulation.
const CHECKED: usize = 100;
/// The median of their rounds, in milliseconds.
const CHECKED_ROUND_MS: f64 = 5_000.0;
/// How long they work, and how much of it is not counted, in milliseconds.
const CHECKED_MS: (u64, u64) = (60_000, 360_000);
/// Largest differences, as shares: in rate, and in mean staleness. Agents take bases a little earlier than the line needs.
const TOLERANCES: (f64, f64) = (0.02, 0.1);
/// Bytes that a model of the simulation takes on a line: the check is about moments, not about lengths.
const CHECKED_BYTES: u64 = 64;

/// What fleet.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Agents
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub agents: usize,
    /// Regional coordinators
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub regions: usize,
    /// A region contributes after so many merged updates; as many as it has agents when absent
    #[arg(long, value_name = "N")]
    pub contributions: Option<u64>,
    /// Or so many seconds after its last contribution, whichever comes first
    #[arg(long, value_name = "S", default_value_t = 600.0)]
    pub every_s: f64,
    /// Half of the agents take at most so long for a round, in seconds
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    pub round_s: f64,
    /// How different agents are: rounds are spread log-normally, with this deviation of the logarithm
    #[arg(long, value_name = "SIGMA", default_value_t = 0.7)]
    pub spread: f64,
    /// Bytes of an update
    #[arg(long, value_name = "BYTES", default_value_t = 200_000)]
    pub update_bytes: u64,
    /// Bytes of a model on its way down
    #[arg(long, value_name = "BYTES", default_value_t = 4_000_000)]
    pub model_bytes: u64,
    /// An agent's line, in kbit/s both ways
    #[arg(long, value_name = "KBIT/S", default_value_t = 10_000.0)]
    pub kbit_s: f64,
    /// A region's line to its parent, in kbit/s both ways
    #[arg(long, value_name = "KBIT/S", default_value_t = 100_000.0)]
    pub long_kbit_s: f64,
    /// One way on either line, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 40.0)]
    pub delay_ms: f64,
    /// How long the fleet works, in hours; the first tenth is not counted
    #[arg(long, value_name = "H", default_value_t = 1.0)]
    pub hours: f64,
}

impl Options {
    fn line(&self, kbit_s: f64) -> Line {
        // Bits in a millisecond, over 8.
        Line { delay_ms: self.delay_ms, bytes_per_ms: kbit_s / 8.0 }
    }

    fn fleet(&self, agents: usize, median_ms: f64, seed: u64) -> Fleet {
        let mut rng = SplitMix64::new(seed ^ 0x5EED_0301);
        let rounds_ms = (0..agents).map(|_| median_ms * (self.spread * normal(&mut rng)).exp()).collect();
        Fleet {
            rounds_ms,
            update_bytes: self.update_bytes,
            base_bytes: self.model_bytes,
            write_ms: 0.0,
            line: self.line(self.kbit_s),
        }
    }

    fn regions(&self) -> Regions {
        let regions = self.regions.clamp(1, self.agents.max(1));
        let contributions = self.contributions.unwrap_or((self.agents / regions) as u64).max(1);
        Regions { regions, contributions, every_ms: self.every_s * 1e3, line: self.line(self.long_kbit_s) }
    }
}

/// A standard normal deviate, by the polar form of Box and Muller.
fn normal(rng: &mut SplitMix64) -> f64 {
    loop {
        let (x, y) = (2.0 * rng.next_f64() - 1.0, 2.0 * rng.next_f64() - 1.0);
        let square = x * x + y * y;
        if square > 0.0 && square < 1.0 {
            return x * (-2.0 * square.ln() / square).sqrt();
        }
    }
}

/// Tells.
///
/// # Errors
/// The simulation breaks a promise.
pub fn run(options: &Options, seed: u64) -> anyhow::Result<Report> {
    let command = format!("anabranch-lab scale --agents {} --regions {}", options.agents, options.regions);
    let mut report = Report::new(&command, seed);
    check(options, seed, &mut report)?;
    let fleet = options.fleet(options.agents, options.round_s * 1e3, seed);
    let until_ms = options.hours * 3_600e3;
    let counted = (until_ms / 10.0, until_ms);
    let seconds = (counted.1 - counted.0) / 1e3;
    let flat = model::run(&fleet, None, counted, seed);
    let regions = options.regions();
    let found = model::run(&fleet, Some(&regions), counted, seed);
    level(&mut report, "flat", &flat.root, seconds);
    level(&mut report, "root", &found.root, seconds);
    level(&mut report, "regions", &found.regions, seconds);
    let ratio = long_line(&flat, &found);
    report.metric("long_line_ratio", ratio);
    let size = options.agents as f64 / regions.regions as f64;
    report.metric("region_agents", size);
    report.aim("the long lines carry a region's size less than without regions (95 % of it)", ratio >= 0.95 * size);
    Ok(report)
}

/// Bytes on the root's lines without regions, over those with them.
fn long_line(flat: &Found, with_regions: &Found) -> f64 {
    let bytes = |level: &Level| (level.up_bytes + level.down_bytes) as f64;
    bytes(&flat.root) / bytes(&with_regions.root).max(1.0)
}

fn level(report: &mut Report, name: &str, level: &Level, seconds: f64) {
    report.metric(format!("{name}_updates_per_s"), level.merged as f64 / seconds);
    report.metric(format!("{name}_staleness_mean"), level.mean_staleness());
    report.metric(format!("{name}_staleness_p50"), level.staleness_at(0.5) as f64);
    report.metric(format!("{name}_staleness_p99"), level.staleness_at(0.99) as f64);
    report.metric(format!("{name}_up_mbit_s"), level.up_bytes as f64 * 8e-6 / seconds);
    report.metric(format!("{name}_down_mbit_s"), level.down_bytes as f64 * 8e-6 / seconds);
}

/// Holds the model against the simulation, with agents of which there are as many as that takes.
fn check(options: &Options, seed: u64, report: &mut Report) -> anyhow::Result<()> {
    let fleet = Fleet {
        update_bytes: CHECKED_BYTES,
        base_bytes: CHECKED_BYTES,
        ..options.fleet(CHECKED, CHECKED_ROUND_MS, seed)
    };
    let (skip_ms, until_ms) = CHECKED_MS;
    let told = model::run(&fleet, None, (skip_ms as f64, until_ms as f64), seed).root;
    let real = real::run(&fleet, CHECKED_MS, seed)?;
    let seconds = (until_ms - skip_ms) as f64 / 1e3;
    level(report, "checked_model", &told, seconds);
    level(report, "checked_real", &real, seconds);
    let rate = told.merged as f64 / real.merged as f64;
    let staleness = told.mean_staleness() / real.mean_staleness();
    report.metric("checked_rate_ratio", rate);
    report.metric("checked_staleness_ratio", staleness);
    report.pass = (rate - 1.0).abs() <= TOLERANCES.0 && (staleness - 1.0).abs() <= TOLERANCES.1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn rounds_are_spread_about_their_median() {
        let options = Line::parse_from(["scale"]).options;
        let mut rounds = options.fleet(20_000, 1_000.0, 1).rounds_ms;
        rounds.sort_by(f64::total_cmp);
        assert!((rounds[10_000] - 1_000.0).abs() < 30.0, "{}", rounds[10_000]);
        // One deviation above.
        assert!((rounds[16_827] - 1_000.0 * 0.7_f64.exp()).abs() < 60.0, "{}", rounds[16_827]);
    }

    /// What the model rests on: the product's agents take their bases when it says, and merge when it says.
    #[test]
    fn the_simulation_of_the_product_tells_the_same() -> anyhow::Result<()> {
        let options = Line::parse_from(["scale", "--agents", "1000", "--regions", "10", "--hours", "0.5"]).options;
        let report = run(&options, 3)?;
        assert!(report.pass, "{:?}", report.metrics);
        assert!(report.aims.values().all(|reached| *reached), "{:?}", report.metrics);
        Ok(())
    }
}
