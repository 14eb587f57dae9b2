//! What came out: for people on standard output, for programs as JSON.

use std::path::Path;

use anabranch_coordinator::search::report::{MeasurementReport, SearchPhase, SearchReport, TrialReport};
use anabranch_examples::figures;
use serde_json::json;

use crate::setup::{Files, Setup, TRIALS};
use crate::trials::settings;

/// The least accuracy, the longest time and the highest price that count as a success.
const ACCURACY: f64 = 0.90;
const WALL_S: f64 = 120.0;
const FULL_RUNS: f64 = 8.0;

/// A finished search.
#[derive(Debug)]
pub(crate) struct Outcome {
    report: SearchReport,
    files: Files,
    wall_s: f64,
    seed: u64,
    /// Whether everything that was known before the coordinator was killed is in the report at the end.
    kept: bool,
}

impl Outcome {
    /// Reads what a search has found. `before` is the last report before the coordinator was killed.
    pub(crate) fn collect(setup: &Setup, before: Option<&SearchReport>, wall_s: f64) -> anyhow::Result<Self> {
        let (report, files) = setup.collect()?;
        let kept = before.is_some_and(|before| before.trials.iter().all(|trial| is_kept(trial, &report)));
        Ok(Self { report, files, wall_s, seed: setup.seed, kept })
    }

    /// The winner, and what was measured of it last.
    fn winner(&self) -> Option<(&TrialReport, &MeasurementReport)> {
        let winner = self.report.trials.iter().find(|trial| Some(trial.trial) == self.report.leader)?;
        Some((winner, winner.measured.last()?))
    }

    fn accuracy(&self) -> f64 {
        self.winner().map_or(0.0, |(_, newest)| newest.metric)
    }

    /// What was spent, in full runs.
    fn full_runs(&self) -> f64 {
        self.report.price.in_full_runs(self.report.spent as f64)
    }

    /// How many trials were measured at each rung.
    fn by_rung(&self) -> Vec<usize> {
        let at = |rung: usize| self.report.trials.iter().filter(|trial| trial.measured.len() > rung).count();
        (0..self.report.rungs.len()).map(at).collect()
    }

    /// Whether everything that the example promises came true.
    pub(crate) fn pass(&self) -> bool {
        let came_to_the_end = self.winner().is_some_and(|(winner, _)| winner.measured.len() == self.report.rungs.len());
        self.report.state == SearchPhase::Finished
            && self.report.trials.len() == TRIALS
            && came_to_the_end
            && self.accuracy() >= ACCURACY
            && self.full_runs() <= FULL_RUNS
            && self.kept
    }
}

/// Whether a trial's settings and measurements are in a later report.
fn is_kept(trial: &TrialReport, later: &SearchReport) -> bool {
    let of = later.trials.iter().find(|of| of.trial == trial.trial);
    of.is_some_and(|of| of.overrides == trial.overrides && of.measured.starts_with(&trial.measured))
}

/// Prints the summary.
pub(crate) fn print(outcome: &Outcome) {
    let report = &outcome.report;
    println!("\n{}", report.text());
    if let Some((winner, _)) = outcome.winner() {
        println!("  winner          trial {}: {}", winner.trial, settings(winner));
    }
    println!("  test accuracy   {:.2} %  (360 digits nobody trained on)", 100.0 * outcome.accuracy());
    println!(
        "  price           {:.1} full runs, where {TRIALS} would be needed to run all to the end",
        outcome.full_runs()
    );
    println!("  wall time       {:.1} s  (from the first process to the last)", outcome.wall_s);
    println!("  model           {}", outcome.files.model.display());
    println!("  run.toml        {}", outcome.files.config.display());
    println!("  plot            {}", outcome.files.plot.display());
    if !outcome.pass() {
        println!(
            "\n  NOT what this example promises: a winner that has run to the end with >= {:.0} % accuracy, for at most \
             {FULL_RUNS} full runs, through a kill of the coordinator that loses nothing.",
            100.0 * ACCURACY
        );
    }
}

/// Writes the figures under the names that every benchmark of this project uses.
pub(crate) fn write_json(outcome: &Outcome, path: &Path) -> anyhow::Result<()> {
    let winner = outcome.winner().map(|(winner, _)| winner);
    let metrics = json!({
        "test_accuracy": outcome.accuracy(),
        "trials": outcome.report.trials.len(),
        "trials_by_rung": outcome.by_rung(),
        "contributions": outcome.report.spent,
        "full_runs": outcome.full_runs(),
        "kept_through_the_kill": outcome.kept,
    });
    let rest = json!({
        "winner": winner.map(|winner| json!({ "trial": winner.trial, "settings": winner.overrides })),
        "model": outcome.files.model,
        "config": outcome.files.config,
        "plot": outcome.files.plot,
    });
    let (seed, pass, wall_s) = (outcome.seed, outcome.pass(), outcome.wall_s);
    let run = figures::Run { command: "search", seed, pass, wall_s, wall_aim_s: WALL_S };
    run.write_json(metrics, rest, path)
}
