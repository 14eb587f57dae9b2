//! How good the served model is, looked at from outside: nobody in the world knows of it, and it takes no virtual time.

use anabranch_agent::shard::Shard as _;
use anabranch_agent::train::{Trainer, native_with};
use anabranch_common::ids::Digest;
use anabranch_common::spec::ModelSpec;
use anyhow::Context as _;
use serde::Serialize;

use crate::sim::Traffic;

use super::course::ms;
use super::data::Rows;
use super::learner::OPTIONS;
use super::workload::{Target, Workload};

/// How good a model is on the test examples.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Score {
    /// Share of all examples that are classified correctly.
    pub accuracy: f64,
    /// The same of each class; of text there is one.
    pub by_class: Vec<f64>,
    /// Mean cross-entropy of all examples, in nats.
    pub loss: f64,
}

impl Score {
    /// Whether the model has reached a target.
    #[must_use]
    pub(super) fn meets(&self, target: Target) -> bool {
        match target {
            Target::Accuracy(accuracy) => self.accuracy >= accuracy,
            Target::Loss(loss) => self.loss <= loss,
        }
    }
}

/// Scores models.
#[derive(Debug)]
pub(super) struct Judge {
    trainer: Box<dyn Trainer>,
    /// Of each class.
    test: Vec<Rows>,
}

impl Judge {
    pub(super) fn new(model: &ModelSpec, test: &[Rows]) -> anyhow::Result<Self> {
        let trainer = native_with(model, OPTIONS).context("cannot build the model")?;
        Ok(Self { trainer, test: test.to_vec() })
    }

    /// A model that cannot be evaluated has learned nothing.
    pub(super) fn score(&mut self, model: &[f32]) -> Score {
        let (mut right, mut all, mut loss_sum, mut by_class) = (0.0, 0.0, 0.0, Vec::new());
        for test in &self.test {
            let found = self.trainer.evaluate(model, test);
            let (share, loss) = found.map_or((0.0, f64::INFINITY), |metrics| (metrics.accuracy, metrics.loss));
            let examples = test.len() as f64;
            by_class.push(share);
            // A count: rounding must not miss a target that is met exactly. Of text it is no whole number.
            right += if test.text().is_some() { share * examples } else { (share * examples).round() };
            loss_sum += loss * examples;
            all += examples;
        }
        let all = f64::max(all, 1.0);
        Score { accuracy: right / all, by_class, loss: loss_sum / all }
    }
}

/// What was seen at one time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Look {
    /// When, in milliseconds of virtual time.
    pub at_ms: u64,
    /// How good the served model was.
    pub score: Score,
    /// Updates that were merged until then.
    pub updates: u64,
    /// Bytes of updates that were sent until then.
    pub uplink_bytes: u64,
    /// Bytes of models that were sent until then.
    pub downlink_bytes: u64,
}

/// Everything that was seen in a race.
#[derive(Debug)]
pub(super) struct Scoreboard {
    judge: Judge,
    /// The first target.
    target: Option<Target>,
    /// Time between two looks until that is reached, and afterwards.
    every_ms: [u64; 2],
    end_ms: u64,
    next_ms: Option<u64>,
    looks: Vec<Look>,
    /// The model of the last look.
    last: Option<Digest>,
}

impl Scoreboard {
    pub(super) fn new(judge: Judge, workload: &Workload) -> Self {
        let (every_ms, end_ms) = (workload.look_s.map(ms), ms(workload.seconds));
        let target = workload.all_targets().next();
        let next_ms = Some(every_ms[0].min(end_ms));
        Self { judge, target, every_ms, end_ms, next_ms, looks: Vec::new(), last: None }
    }

    /// When to look next; the last look is at the end.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.next_ms
    }

    /// Looks at the served model. While none is served, as between a kill and a start, there is nothing to be seen.
    pub(super) fn look(&mut self, at_ms: u64, model: Option<&[f32]>, updates: u64, traffic: Traffic) {
        if let Some(model) = model {
            let (uplink_bytes, downlink_bytes) = (traffic.up_bytes, traffic.down_bytes);
            let score = self.score(model);
            self.looks.push(Look { at_ms, score, updates, uplink_bytes, downlink_bytes });
        }
        let [close_ms, wide_ms] = self.every_ms;
        let is_reached = self.target.is_some_and(|target| reached(&self.looks, target).is_some());
        let next_ms = if is_reached { at_ms + wide_ms - at_ms % wide_ms } else { at_ms + close_ms };
        self.next_ms = (at_ms < self.end_ms).then_some(next_ms.min(self.end_ms));
    }

    /// A model that has not changed since the last look is as good as it was.
    fn score(&mut self, model: &[f32]) -> Score {
        let digest = Digest::of_f32(model);
        match self.looks.last() {
            Some(look) if self.last == Some(digest) => look.score.clone(),
            _ => {
                self.last = Some(digest);
                self.judge.score(model)
            }
        }
    }

    pub(super) fn into_looks(self) -> Vec<Look> {
        self.looks
    }
}

/// Returns the first look at which the served model had reached a target.
#[must_use]
pub(super) fn reached(looks: &[Look], target: Target) -> Option<&Look> {
    looks.iter().find(|look| look.score.meets(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_reached_at_the_first_look_that_shows_it() {
        let look = |at_ms, accuracy| Look {
            at_ms,
            score: Score { accuracy, by_class: vec![], loss: 1.0 - accuracy },
            updates: at_ms,
            uplink_bytes: 10 * at_ms,
            downlink_bytes: 100 * at_ms,
        };
        let looks = [look(250, 0.5), look(500, 0.91), look(750, 0.89), look(1_000, 0.95)];
        let at = |target| reached(&looks, target).map(|look| (look.at_ms, look.uplink_bytes));
        assert_eq!(at(Target::Accuracy(0.9)), Some((500, 5_000)));
        assert_eq!(at(Target::Accuracy(0.95)), Some((1_000, 10_000)));
        assert_eq!(at(Target::Accuracy(0.96)), None);
        assert_eq!(
            [0.5, 0.25, 0.01].map(|loss| at(Target::Loss(loss)).map(|found| found.0)),
            [Some(250), Some(500), None]
        );
    }
}
