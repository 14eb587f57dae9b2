//! What came out: for people on standard output, for programs as JSON.

use std::path::{Path, PathBuf};

use anabranch_common::status::StatusReport;
use anabranch_examples::figures;
use anabranch_examples::plot::Plot;
use serde_json::json;

use crate::LOSS;
use crate::fleet::Outage;
use crate::setup::{AGENTS, Part};

/// The longest time that counts as a success, in seconds.
const WALL_S: f64 = 180.0;
/// Loss of a model that has learned nothing: ln 256.
const CHANCE: f64 = 5.545;

/// A finished run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) report: StatusReport,
    pub(crate) wall_s: f64,
    pub(crate) outages: Vec<Outage>,
    /// Whether both pods contributed before, between and after the outages.
    pub(crate) pods_contributed: bool,
    pub(crate) seed: u64,
    pub(crate) model: PathBuf,
    pub(crate) plot: PathBuf,
}

impl Outcome {
    /// Loss of the version that is the result, in nats a byte.
    fn loss(&self) -> f64 {
        figures::of_result(&self.report).map(|aggregate| aggregate.loss).fold(f64::INFINITY, f64::min)
    }

    /// Updates merged of all agents of a kind.
    fn merged(&self, part: Part) -> u64 {
        let names: Vec<&str> = AGENTS.iter().filter(|agent| agent.1 == part).map(|(name, _)| *name).collect();
        let agents = self.report.agents.iter().filter(|agent| names.contains(&agent.name.as_str()));
        agents.map(|agent| agent.updates_accepted).sum()
    }

    /// Whether everything that the example promises came true.
    pub(crate) fn pass(&self) -> bool {
        self.loss() <= LOSS && self.outages.len() == 2 && self.pods_contributed && self.merged(Part::Alone) > 0
    }
}

/// Returns the curve of the loss, with the outages.
pub(crate) fn curve(report: &StatusReport, outages: &[Outage]) -> Plot {
    Plot {
        caption: "Two pods and a single agent, a helper and the coordinator killed: loss on unseen text",
        measure: "loss on unseen text, nats a byte",
        values: 0.0..6.0,
        labels: (7, 0),
        points: report.aggregates.iter().map(|timed| (timed.at_s, timed.aggregate.loss)).collect(),
        level: (CHANCE, "chance"),
        spans: outages.iter().map(|outage| (outage.from_s, outage.to_s, outage.what.clone())).collect(),
    }
}

/// Prints the summary.
pub(crate) fn print(outcome: &Outcome) {
    let report = &outcome.report;
    println!();
    println!(
        "  loss            {:.3} nats a byte  (version {}, text no agent trained on; chance is {CHANCE:.2})",
        outcome.loss(),
        report.result_version.map_or(0, |version| version.0)
    );
    println!("  wall time       {:.1} s  (from the first process to the last)", outcome.wall_s);
    println!(
        "  updates         {} merged ({} of pods, {} of the single agent), {} refused",
        report.updates_accepted,
        outcome.merged(Part::Owner),
        outcome.merged(Part::Alone),
        figures::refused(report)
    );
    for outage in &outcome.outages {
        println!("  outage          {} at {:.1} s, back at {:.1} s", outage.what, outage.from_s, outage.to_s);
    }
    figures::print_traffic(report);
    println!("  model           {}", outcome.model.display());
    println!("  plot            {}", outcome.plot.display());
    if !outcome.pass() {
        println!(
            "\n  NOT what this example promises: a loss of at most {LOSS}, a helper and the coordinator killed, and \
             updates of both pods before, between and after."
        );
    }
}

/// Writes the figures under the names that every benchmark of this project uses.
pub(crate) fn write_json(outcome: &Outcome, path: &Path) -> anyhow::Result<()> {
    let report = &outcome.report;
    let metrics = json!({
        "final_loss": outcome.loss(),
        "versions": report.version.0,
        "uplink_bytes": report.uplink_bytes,
        "downlink_bytes": report.downlink_bytes,
        "raw_f32_uplink_bytes": report.raw_f32_uplink_bytes,
        "raw_f32_downlink_bytes": report.raw_f32_downlink_bytes,
        "updates_accepted": report.updates_accepted,
        "updates_accepted_of_pods": outcome.merged(Part::Owner),
        "updates_refused": figures::refused(report),
        "compression_ratio": figures::smaller_up(report),
    });
    let rest = json!({
        "staleness_histogram": report.staleness_histogram,
        "model": outcome.model,
        "plot": outcome.plot,
    });
    let (seed, pass, wall_s) = (outcome.seed, outcome.pass(), outcome.wall_s);
    let run = figures::Run { command: "pods", seed, pass, wall_s, wall_aim_s: WALL_S };
    run.write_json(metrics, rest, path)
}
