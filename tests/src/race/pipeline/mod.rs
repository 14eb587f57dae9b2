//! The schedules of a pod beside each other: real training in stages, with the delays of a pipeline whose stages take equal time.
//!
//! ```text
//!  one machine ──► loss that it ends at, and its steps
//!  stages x micro-batches x weights ──► loss after as many steps; steps until they reach that loss ──► slow-down
//! ```
//!
//! Losses are means of the training loss over a window of steps, and batches are the same for all schedules.

mod workload;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anabranch_agent::train::native::pipeline::{Pipeline, PipelineError, Trained};
use anabranch_agent::train::{NativeOptions, StepReport, TrainError, Trainer, native_with};
use anabranch_common::pod::cut::{Load, Member, cut, table};
use anabranch_common::pod::{Schedule, Weights};
use anabranch_common::spec::{ModelSpec, OptimizerSpec};
use anyhow::Context as _;

use crate::report::{Report, quantile};

pub use workload::{Case, PipelineWorkload};

use workload::{Examples, kind};

/// Most that the synchronous steps of a prediction may grow by at 8 stages.
const PREDICT_AIM: f64 = 1.15;
/// Steps after which the bits of a model in stages are compared with those of one machine.
const COMPARED_STEPS: u32 = 4;
/// The number of stages that the aim is for.
const AIMED_STAGES: u32 = 8;
/// Vectors of the memory that a stage takes: here none is short of it.
const LOAD: Load = Load {
    schedule: Schedule::Flush,
    micro_batches: 1,
    micro_batch_examples: 1,
    fixed_bytes: 0,
    vectors: 1,
    payload_bits: 0,
};
const WEIGHTS: [(&str, Weights); 4] = [
    ("stale", Weights::Stale),
    ("stash", Weights::Stash),
    ("2bw", Weights::TwoVersions),
    ("predict", Weights::Predict),
];

/// What to compare.
#[derive(Debug, Clone)]
pub struct PipelineOptions {
    /// The command, as it can be typed again.
    pub command: String,
    /// The workload.
    pub workload: PipelineWorkload,
    /// The first seed.
    pub seed: u64,
    /// How many seeds.
    pub seeds: u64,
    /// Where data sets are.
    pub data: Option<PathBuf>,
    /// Comparisons at a time.
    pub jobs: usize,
}

/// One run: what it is called in figures, and how its stages take turns.
#[derive(Debug, Clone)]
struct Turn {
    name: String,
    stages: u32,
    micro_batches: u32,
    weights: Weights,
}

/// What a run came to.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    /// At the end of the steps of one machine; not finite where training diverged before.
    loss: f64,
    /// On the test examples, where the run ends: at the loss of one machine and no sooner than that machine, or after the most
    /// steps. Not finite where training diverged.
    accuracy: f64,
    slowdown: f64,
    /// Whether training diverged, be it after it had reached the loss of one machine.
    diverged: bool,
}

/// What a run gave until its end, which may be that it diverged.
#[derive(Debug)]
struct Ran {
    /// Losses of its steps, up to the last one that was finite.
    losses: Vec<f32>,
    /// The model, unless training diverged.
    end: Option<Vec<f32>>,
}

/// A model with an optimizer and a seed, whose schedules are compared with one machine.
#[derive(Debug)]
struct Comparison<'a> {
    name: String,
    case: &'a Case,
    optimizer: &'a OptimizerSpec,
    examples: &'a Examples,
    seed: u64,
}

/// Compares.
///
/// # Errors
/// Data are missing, or a model cannot be built.
pub fn run(options: &PipelineOptions) -> anyhow::Result<Report> {
    let workload = &options.workload;
    let examples = workload.models.iter().map(|case| workload.open(case, options.data.as_deref()));
    let examples: Vec<Examples> = examples.collect::<anyhow::Result<_>>()?;
    let mut comparisons = Vec::new();
    for (case, examples) in workload.models.iter().zip(&examples) {
        for optimizer in &case.optimizers {
            let name = format!("{}_{}", case.name, kind(optimizer));
            for seed in options.seed..options.seed + options.seeds {
                comparisons.push(Comparison { name: name.clone(), case, optimizer, examples, seed });
            }
        }
    }
    let turns = turns(workload);
    let outcomes =
        super::in_parallel(options.jobs, comparisons.len(), |index| comparisons[index].outcomes(workload, &turns));
    let mut by_name: BTreeMap<String, Vec<Outcome>> = BTreeMap::new();
    let mut is_equal = true;
    for (comparison, outcomes) in comparisons.iter().zip(outcomes) {
        for (turn, outcome) in outcomes? {
            by_name.entry(format!("{}_{turn}", comparison.name)).or_default().push(outcome);
        }
        is_equal &= comparison.flush_has_the_bits_of_one_machine(&turns)?;
    }
    let mut report = report(options, &turns, &by_name);
    report.metric("flush_bits_equal", if is_equal { 1.0 } else { 0.0 });
    Ok(report)
}

/// Every number of stages, each with one micro-batch a step and with as many as stages.
fn turns(workload: &PipelineWorkload) -> Vec<Turn> {
    let mut turns = Vec::new();
    for stages in workload.stages.iter().copied() {
        for micro_batches in [1, stages] {
            for (name, weights) in WEIGHTS {
                // Two versions take as many micro-batches as are in flight.
                if weights != Weights::TwoVersions || micro_batches + 1 >= stages {
                    let name = format!("{name}_{stages}_m{micro_batches}");
                    turns.push(Turn { name, stages, micro_batches, weights });
                }
            }
        }
    }
    turns
}

impl Comparison<'_> {
    fn outcomes(&self, workload: &PipelineWorkload, turns: &[Turn]) -> anyhow::Result<Vec<(String, Outcome)>> {
        let (window, steps) = (workload.window_steps, self.case.steps);
        let spec = &self.case.model;
        let mut judge = native_with(spec, NativeOptions { threads: Some(1), ..NativeOptions::default() })?;
        let one = self.train(1, Schedule::Flush, 1, steps, &mut |_| ControlFlow::Continue(()))?;
        let end = one.end.context("one machine diverges: its learning rate is too high")?;
        let target = mean_of_last(&one.losses, window);
        let own_steps = reaches(&one.losses, window, target).unwrap_or(self.case.steps as usize);
        let accuracy = self.accuracy(judge.as_mut(), &end);
        let synchronous = Outcome { loss: target, accuracy, slowdown: 1.0, diverged: false };
        let mut outcomes = vec![("synchronous".to_owned(), synchronous)];
        for turn in turns {
            let ran = self.until_reached(workload, turn, target)?;
            let most = f64::from(workload.most_times);
            let reached = reaches(&ran.losses, window, target);
            let slowdown = reached.map_or(most, |step| (step as f64 / own_steps as f64).min(most));
            let loss = ran.losses.get(..steps as usize).map_or(f64::NAN, |losses| mean_of_last(losses, window));
            let accuracy = ran.end.as_ref().map_or(f64::NAN, |end| self.accuracy(judge.as_mut(), end));
            let outcome = Outcome { loss, accuracy, slowdown, diverged: ran.end.is_none() };
            outcomes.push((turn.name.clone(), outcome));
        }
        Ok(outcomes)
    }

    /// Whether `flush` in as many stages and micro-batches as the deepest pipeline has the bits of one machine with the same
    /// micro-batches.
    fn flush_has_the_bits_of_one_machine(&self, turns: &[Turn]) -> anyhow::Result<bool> {
        let Some(deepest) = turns.iter().max_by_key(|turn| (turn.stages, turn.micro_batches)) else { return Ok(true) };
        let bits = |stages| -> anyhow::Result<Option<Vec<u32>>> {
            let mut on = |_| ControlFlow::Continue(());
            let ran = self.train(stages, Schedule::Flush, deepest.micro_batches, COMPARED_STEPS, &mut on)?;
            Ok(ran.end.map(|end| end.into_iter().map(f32::to_bits).collect()))
        };
        Ok(bits(1)? == bits(deepest.stages)?)
    }

    /// Trains in stages until the loss is `target`, for at most `most_times` the steps of one machine and no less than these.
    fn until_reached(&self, workload: &PipelineWorkload, turn: &Turn, target: f64) -> anyhow::Result<Ran> {
        let (window, own_steps) = (workload.window_steps, self.case.steps as usize);
        let (mut losses, mut is_there) = (Vec::new(), false);
        let mut until = |report: StepReport| {
            losses.push(report.loss);
            is_there = is_there || losses.len() >= window && mean_of_last(&losses, window) <= target;
            if is_there && losses.len() >= own_steps { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let steps = self.case.steps.saturating_mul(workload.most_times);
        self.train(turn.stages, Schedule::Pipelined(turn.weights), turn.micro_batches, steps, &mut until)
    }

    /// Trains in stages.
    fn train(
        &self,
        stages: u32,
        schedule: Schedule,
        micro_batches: u32,
        steps: u32,
        control: &mut dyn FnMut(StepReport) -> ControlFlow<()>,
    ) -> anyhow::Result<Ran> {
        let pipeline = Pipeline::new(&self.case.model, &ends(&self.case.model, stages)?, 1)?;
        let (mut base, plan) = (pipeline.initial(self.seed), self.case.plan(self.optimizer, steps));
        self.case.scale(&mut base)?;
        let (train, mut losses) = (self.examples.train.as_ref(), Vec::new());
        let mut note = |report: StepReport| {
            losses.push(report.loss);
            control(report)
        };
        let trained = pipeline.train(&base, &plan, (schedule, micro_batches), self.seed, train, &mut note);
        Ok(Ran { end: unless_diverged(trained)?, losses })
    }

    /// Accuracy on the test examples; 0 of a model that has gone astray, which may have no finite loss on them.
    fn accuracy(&self, judge: &mut dyn Trainer, model: &[f32]) -> f64 {
        judge.evaluate(model, self.examples.test.as_ref()).map_or(0.0, |metrics| metrics.accuracy)
    }
}

/// The model at the end of training, or none where it diverged. Whatever else ends training is no figure of a schedule.
fn unless_diverged(trained: Result<Trained, PipelineError>) -> anyhow::Result<Option<Vec<f32>>> {
    match trained {
        Ok(trained) => Ok(Some(trained.end)),
        Err(PipelineError::Train(TrainError::Diverged { .. })) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where a model is cut into stages of members that are alike.
fn ends(spec: &ModelSpec, stages: u32) -> anyhow::Result<Vec<usize>> {
    let layers = spec.layers()?.context("the model is not a native one")?;
    let speed = NonZeroU64::new(1_000_000_000).context("above 0")?;
    let members = vec![Member { flops_per_s: speed, memory_bytes: u64::MAX }; usize::try_from(stages)?];
    Ok(cut(&table(&layers), &members, &LOAD)?.into_iter().map(|stage| stage.layers.end).collect())
}

fn mean_of_last(losses: &[f32], window: usize) -> f64 {
    let last = &losses[losses.len().saturating_sub(window)..];
    last.iter().map(|loss| f64::from(*loss)).sum::<f64>() / last.len().max(1) as f64
}

/// The first step, counted from 1, after which the mean of the last losses is at most `target`.
fn reaches(losses: &[f32], window: usize, target: f64) -> Option<usize> {
    (window..=losses.len()).find(|end| mean_of_last(&losses[..*end], window) <= target)
}

fn report(options: &PipelineOptions, turns: &[Turn], by_name: &BTreeMap<String, Vec<Outcome>>) -> Report {
    let mut report = Report::new(&options.command, options.seed);
    println!(
        "{:<32} {:>9} {:>14} {:>9} {:>9} {:>9}   (medians of {} seeds, and how many diverged)",
        "", "slowdown", "least to most", "loss", "accuracy", "diverged", options.seeds
    );
    for (name, outcomes) in by_name {
        let at = |of: fn(&Outcome) -> f64, share| {
            let mut values: Vec<f64> = outcomes.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            quantile(&values, share)
        };
        let median = |of| at(of, 0.5);
        let [slowdown, loss, accuracy] =
            [|o: &Outcome| o.slowdown, |o: &Outcome| o.loss, |o: &Outcome| o.accuracy].map(median);
        let diverged = outcomes.iter().filter(|outcome| outcome.diverged).count();
        let [least, most] = [0.0, 1.0].map(|share| at(|o: &Outcome| o.slowdown, share));
        let range = format!("{least:.2} to {most:.2}");
        println!("{name:<32} {slowdown:>9.2} {range:>14} {loss:>9.4} {accuracy:>9.4} {diverged:>9}");
        report.metric(format!("diverged_{name}"), diverged as f64);
        for (figure, value) in [("slowdown", slowdown), ("final_loss", loss), ("final_accuracy", accuracy)] {
            // JSON has no number for what is not finite.
            if value.is_finite() {
                report.metric(format!("{figure}_{name}"), value);
            }
        }
    }
    for weights in ["stale", "stash", "2bw", "predict"] {
        let name = format!("{weights}_{AIMED_STAGES}_m{AIMED_STAGES}");
        let of_models = report.metrics.iter().filter(|(key, _)| key.starts_with("slowdown_") && key.ends_with(&name));
        let worst = of_models.map(|(_, slowdown)| *slowdown).max_by(f64::total_cmp);
        if let Some(worst) = worst {
            report.metric(format!("slowdown_{weights}_{AIMED_STAGES}"), worst);
        }
    }
    if turns.iter().any(|turn| turn.stages == AIMED_STAGES) {
        let predict = report.metrics.get("slowdown_predict_8").copied().unwrap_or(f64::INFINITY);
        report.aim(format!("predict at 8 stages takes at most {PREDICT_AIM} times the steps"), predict <= PREDICT_AIM);
        let of_predict =
            |key: &str| key.starts_with("diverged_") && key.ends_with(&format!("predict_{0}_m{0}", AIMED_STAGES));
        let diverged = report.metrics.iter().any(|(key, seeds)| of_predict(key) && *seeds > 0.0);
        report.aim("predict at 8 stages diverges with no seed".to_owned(), !diverged);
    }
    report
}

#[cfg(test)]
mod tests {
    use anabranch_agent::train::native::pipeline::{Missing, Waiting};
    use anabranch_common::pod::order::{OutOfTurn, Work};

    use super::*;

    #[test]
    fn nothing_but_a_loss_that_is_not_finite_counts_as_divergence() {
        let diverged = unless_diverged(Err(TrainError::Diverged { step: 3 }.into()));
        assert_eq!(diverged.expect("a figure"), None);
        let trained = Trained { end: vec![1.0], losses: vec![2.0], stopped: false };
        assert_eq!(unless_diverged(Ok(trained)).expect("a figure"), Some(vec![1.0]));
        let waiting = Waiting { stage: 1, work: Work::Update { step: 0 }, input: Missing::TiedSum };
        for error in [
            PipelineError::Stalled(vec![waiting]),
            OutOfTurn { what: "a gradient", micro_batch: 0 }.into(),
            TrainError::Failed("no".to_owned()).into(),
            TrainError::Lost("no".to_owned()).into(),
            PipelineError::MicroBatches { batch: 4, micro_batches: 3 },
        ] {
            let told = error.to_string();
            assert_eq!(unless_diverged(Err(error)).expect_err("no figure").to_string(), told);
        }
    }
}
