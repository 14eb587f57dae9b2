//! Full runs of every configuration: what a search is held against. They take long, so that their results are kept in a file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// The results of all full runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Truth {
    /// The command that has made it.
    pub(super) command: String,
    /// Contributions of each run.
    pub(super) contributions: u64,
    /// By seed, then by trial.
    pub(super) seeds: BTreeMap<u64, Vec<FullRun>>,
}

/// One full run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FullRun {
    /// What its configuration changes in the base.
    pub(super) overrides: BTreeMap<String, String>,
    /// Virtual time that it took, in seconds.
    pub(super) seconds: f64,
    /// Bytes of updates and models.
    pub(super) bytes: u64,
    /// Share of the test examples that its model classifies correctly; none where the run broke.
    pub(super) accuracy: Option<f64>,
}

impl Truth {
    /// Reads the file.
    ///
    /// # Errors
    /// It is not there or damaged; the text says how to make it.
    pub(super) fn read(path: &Path, made_by: &str) -> anyhow::Result<Self> {
        let shown = path.display();
        let help = || format!("{shown} has the results of full runs; make it with `{made_by}`");
        let text = std::fs::read_to_string(path).with_context(help)?;
        serde_json::from_str(&text).with_context(help)
    }

    /// Returns the full runs with this seed, which must be of these configurations.
    ///
    /// # Errors
    /// They are not.
    pub(super) fn of(&self, seed: u64, configurations: &[BTreeMap<String, String>]) -> anyhow::Result<&[FullRun]> {
        let runs = self.seeds.get(&seed).with_context(|| format!("there are no full runs with seed {seed}"))?;
        let same = runs.iter().map(|run| &run.overrides).eq(configurations);
        ensure!(same, "the full runs are of other configurations; make them again with `{}`", self.command);
        Ok(runs)
    }
}

/// Returns the best accuracy that is to be expected of so many of the runs, picked at random: the mean over all choices.
pub(super) fn best_of(runs: &[FullRun], picks: usize) -> f64 {
    let mut accuracies: Vec<f64> = runs.iter().map(|run| run.accuracy.unwrap_or(0.0)).collect();
    accuracies.sort_by(f64::total_cmp);
    let picks = picks.clamp(1, accuracies.len().max(1));
    // The run in place i, from the worst, is the best of its choice in C(i, picks - 1) of C(n, picks) choices.
    let all = choices(accuracies.len(), picks);
    let best = accuracies.iter().enumerate().map(|(place, accuracy)| accuracy * choices(place, picks - 1));
    best.sum::<f64>() / all
}

/// Ways to choose so many of `from`.
fn choices(from: usize, picks: usize) -> f64 {
    if picks > from {
        return 0.0;
    }
    (0..picks).map(|pick| (from - pick) as f64 / (pick + 1) as f64).product()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(accuracy: f64) -> FullRun {
        FullRun { overrides: BTreeMap::new(), seconds: 1.0, bytes: 1, accuracy: Some(accuracy) }
    }

    #[test]
    fn the_best_of_some_runs_is_the_mean_over_all_choices() {
        let runs = [0.5, 0.1, 0.9, 0.3].map(run);
        let mut sum = 0.0;
        for first in 0..4 {
            for second in first + 1..4 {
                let accuracy = |index: usize| runs[index].accuracy.unwrap_or(0.0);
                sum += accuracy(first).max(accuracy(second));
            }
        }
        assert!((best_of(&runs, 2) - sum / 6.0).abs() < 1e-12);
        assert!((best_of(&runs, 1) - 0.45).abs() < 1e-12, "the mean of all");
        assert!((best_of(&runs, 4) - 0.9).abs() < 1e-12);
        assert!((best_of(&runs, 9) - 0.9).abs() < 1e-12, "no more than there are");
    }

    #[test]
    fn full_runs_of_other_configurations_are_refused() {
        let command = "make it".to_owned();
        let truth = Truth { command, contributions: 10, seeds: BTreeMap::from([(1, vec![run(0.5)])]) };
        let other = BTreeMap::from([("train.local_steps".to_owned(), "7".to_owned())]);
        assert_eq!(truth.of(1, &[BTreeMap::new()]).expect("the same").len(), 1);
        assert!(truth.of(1, &[other]).expect_err("others").to_string().contains("make it"));
        assert!(truth.of(2, &[BTreeMap::new()]).is_err());
    }
}
