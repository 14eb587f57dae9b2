//! Stages give the bits of one machine, or those of a model whose weights are put together from the stages' versions.

use std::ops::{ControlFlow, Range};

use anabranch_common::pod::Weights;
use anabranch_common::pod::order::{OrderError, OutOfTurn};
use anabranch_common::spec::{ModelKind, OptimizerSpec};

mod hostile;
pub(in crate::train::native) mod hub;
mod modules;
mod wired;

use super::*;
use crate::shard::draw::{Draw, Purpose};
use crate::shard::{Examples, Inputs, Text};
use crate::train::native::graph::{Input, here};
use crate::train::native::stage::Stage;
use crate::train::native::{add_share, native_with};
use crate::train::optimizer::Optimizer;
use crate::train::{MicroBatchBudget, NativeOptions};

const SCHEDULES: [Schedule; 6] = [
    Schedule::Sequential,
    Schedule::Flush,
    Schedule::Pipelined(Weights::Stale),
    Schedule::Pipelined(Weights::Stash),
    Schedule::Pipelined(Weights::TwoVersions),
    Schedule::Pipelined(Weights::Predict),
];

pub(in crate::train::native) const SGD: OptimizerSpec = OptimizerSpec::Sgd { lr: 0.05, momentum: 0.9 };
pub(in crate::train::native) const ADAMW: OptimizerSpec =
    OptimizerSpec::AdamW { lr: 1e-3, weight_decay: 0.01, beta_1: 0.9, beta_2: 0.999 };

pub(in crate::train::native) fn mlp(hidden: &[u64]) -> ModelSpec {
    let (kind, input, hidden, input_scale) = (ModelKind::Mlp, vec![1, 12, 12], hidden.to_vec(), 1.0 / 255.0);
    ModelSpec { kind, input, hidden, classes: 3, input_scale, ..ModelSpec::default() }
}

/// Two channels, which are brought last, and three convolutions.
pub(in crate::train::native) fn cnn() -> ModelSpec {
    let (kind, input, hidden, convs) = (ModelKind::Cnn, vec![2, 8, 8], vec![9, 8], vec![3, 4, 5]);
    ModelSpec { kind, input, hidden, convs, classes: 3, input_scale: 1.0 / 255.0, ..ModelSpec::default() }
}

pub(in crate::train::native) fn gpt() -> ModelSpec {
    let (context, layers, heads, width) = (16, 2, 2, 16);
    ModelSpec { kind: ModelKind::Gpt, context, layers, heads, width, ..ModelSpec::default() }
}

/// Noise of the shape that a model takes.
fn shard(spec: &ModelSpec) -> Box<dyn Shard> {
    let mut draw = Draw::new(3, Purpose::Split);
    let mut byte = || u8::try_from(draw.below(256)).expect("a byte");
    if spec.kind == ModelKind::Gpt {
        return Box::new(Text::new((0..1_000).map(|_| byte()).collect()).expect("long enough"));
    }
    let labels = (0..60).map(|_| u32::from(byte()) % 3).collect();
    let values = spec.input.iter().product::<u64>() * 60;
    let inputs = Inputs::Bytes((0..values).map(|_| byte()).collect());
    Box::new(Examples::new(inputs, labels, spec.input.clone()).expect("the lengths agree"))
}

pub(in crate::train::native) fn plan(local_steps: u32, batch_size: u32, optimizer: &OptimizerSpec) -> TrainSpec {
    TrainSpec {
        local_steps,
        batch_size,
        optimizer: optimizer.clone(),
        keep_optimizer_state: false,
        target_round_s: None,
        max_local_steps: None,
        schedule: None,
        proximal_mu: 0.01,
    }
}

fn trained(spec: &ModelSpec, ends: &[usize], plan: &TrainSpec, turns: (Schedule, u32)) -> Trained {
    let pipeline = Pipeline::new(spec, ends, 1).expect("valid");
    let base = pipeline.initial(1);
    pipeline.train(&base, plan, turns, 4, shard(spec).as_ref(), &mut |_| ControlFlow::Continue(())).expect("trains")
}

/// One machine that computes at most `most` examples at once: model and losses.
fn on_one_machine(spec: &ModelSpec, plan: &TrainSpec, most: u32) -> Trained {
    let mut trainer = native_with(spec, NativeOptions { threads: Some(2), ..NativeOptions::default() }).expect("valid");
    let base = trainer.initial(1).expect("made");
    let mut losses = Vec::new();
    let mut note = |report: StepReport| {
        losses.push(report.loss);
        ControlFlow::Continue(())
    };
    let budget = Some(MicroBatchBudget { most: Some(most), begins: &mut |_| {} });
    let shard = shard(spec);
    let round = crate::train::Round { budget, ..crate::train::Round::new(&base, plan, 4, shard.as_ref(), &mut note) };
    let end = trainer.train(round).expect("trains").end;
    Trained { end, losses, stopped: false }
}

/// Every cut of so many layers into so many stages.
fn cuts(layers: usize, stages: usize) -> Vec<Vec<usize>> {
    if stages == 1 {
        return vec![vec![layers]];
    }
    let shorter = (stages - 1..layers).flat_map(|end| cuts(end, stages - 1));
    shorter
        .map(|mut ends| {
            ends.push(layers);
            ends
        })
        .collect()
}

/// pods.md, "What is measured", 1: `flush` over any cut gives the bits of one agent, and so does `sequential`.
#[test]
fn stages_that_flush_have_the_bits_of_one_machine() {
    for spec in [mlp(&[20, 16, 12]), cnn(), gpt()] {
        let layers = Pipeline::layers(&spec).expect("valid");
        for optimizer in [&SGD, &ADAMW] {
            // Of 10 examples: one, two and four micro-batches, 3, 3, 3 and 1.
            for (micro_batches, most) in [(1, 10), (2, 5), (4, 3)] {
                let plan = plan(3, 10, optimizer);
                let expected = on_one_machine(&spec, &plan, most);
                for stages in 1..=layers.min(4) {
                    for ends in cuts(layers, stages) {
                        let found = trained(&spec, &ends, &plan, (Schedule::Flush, micro_batches));
                        assert!(found == expected, "{:?} {optimizer:?} x{micro_batches} cut at {ends:?}", spec.kind);
                    }
                }
                let every: Vec<usize> = (1..=layers).collect();
                let found = trained(&spec, &every, &plan, (Schedule::Sequential, micro_batches));
                assert!(found == expected, "{:?} {optimizer:?} x{micro_batches} layer by layer", spec.kind);
            }
        }
    }
}

/// One stage has nothing to wait for: whatever its weights are called, they are the newest.
#[test]
fn one_stage_is_one_machine_on_every_schedule_but_2bw() {
    for spec in [mlp(&[12]), gpt()] {
        let (plan, layers) = (plan(3, 8, &SGD), Pipeline::layers(&spec).expect("valid"));
        let expected = on_one_machine(&spec, &plan, 4);
        for weights in [Weights::Stale, Weights::Stash, Weights::Predict] {
            assert!(trained(&spec, &[layers], &plan, (Schedule::Pipelined(weights), 2)) == expected, "{weights:?}");
        }
        let behind = trained(&spec, &[layers], &plan, (Schedule::Pipelined(Weights::TwoVersions), 2));
        assert_eq!(behind.losses[..1], expected.losses[..1]);
        assert_ne!(behind.end, expected.end);
    }
}

/// The micro-batches of `stash` and `2bw` are computed, forward and backward, with weights that are put together from a version of
/// each stage. So a whole model with these weights has the same gradient.
fn put_together(
    spec: &ModelSpec,
    ends: &[usize],
    plan: &TrainSpec,
    micro_batches: u32,
    version: impl Fn(usize, u32, u32) -> u32,
) -> Vec<f32> {
    let pipeline = Pipeline::new(spec, ends, 1).expect("valid");
    let (whole, base, shard) = (&pipeline.architecture.whole, pipeline.initial(1), shard(spec));
    let mut feed = Feed::new(&pipeline.architecture, shard.as_ref(), plan, micro_batches, 4).expect("valid");
    let mut versions = vec![base.clone()];
    let optimizer = |stage: &Stage| Optimizer::new(&plan.optimizer, stage.params()).expect("valid");
    let mut optimizers: Vec<Optimizer> = pipeline.cut.stages.iter().map(optimizer).collect();
    for step in 0..plan.local_steps {
        let mut sums = Vec::new();
        for index in 0..micro_batches {
            let of_stage = |(stage, part): (usize, &Stage)| {
                versions[version(stage, step, index) as usize][part.own.clone()].to_vec()
            };
            let model: Vec<f32> = pipeline.cut.stages.iter().enumerate().flat_map(of_stage).collect();
            let Input::Examples { values, .. } = feed.next() else { unreachable!("the feed gives examples") };
            let (labels, mut gradient) = (feed.labels(), Vec::new());
            here(whole, |place| place.gradient(&model, values, &labels, &mut gradient));
            match feed.share(index) {
                Some(share) => add_share(&mut sums, &gradient, share),
                None => sums = gradient,
            }
        }
        whole.tie(&mut sums);
        let mut next = versions.last().expect("the base").clone();
        super::super::pull_back(plan.proximal_mu, &mut sums, &next, &base);
        for (part, optimizer) in pipeline.cut.stages.iter().zip(&mut optimizers) {
            optimizer.step(&mut next[part.own.clone()], &sums[part.own.clone()]);
        }
        versions.push(next);
    }
    versions.pop().expect("the end")
}

#[test]
fn stashed_weights_are_those_of_the_forward_pass_at_every_stage() {
    for (spec, ends) in [(mlp(&[20, 16, 12]), vec![1, 2, 4]), (cnn(), vec![1, 3, 6])] {
        for (micro_batches, optimizer) in [(1, &SGD), (2, &ADAMW), (3, &SGD)] {
            let plan = plan(5, 9, optimizer);
            let lag = |stage: usize, step: u32, index: u32| {
                let behind = (2 - u32::try_from(stage).expect("few")).saturating_sub(index);
                step.saturating_sub(behind.div_ceil(micro_batches))
            };
            let expected = put_together(&spec, &ends, &plan, micro_batches, lag);
            let found = trained(&spec, &ends, &plan, (Schedule::Pipelined(Weights::Stash), micro_batches)).end;
            assert!(found == expected, "{:?} x{micro_batches}", spec.kind);
        }
    }
}

/// pods.md: one step old, whatever the depth; with a tied embedding too.
#[test]
fn two_versions_are_one_step_old_at_every_stage() {
    for (spec, ends) in [(mlp(&[20, 16, 12]), vec![1, 2, 4]), (gpt(), vec![2, 3, 6])] {
        let plan = plan(4, 10, &SGD);
        let expected = put_together(&spec, &ends, &plan, 2, |_, step, _| step.saturating_sub(1));
        let found = trained(&spec, &ends, &plan, (Schedule::Pipelined(Weights::TwoVersions), 2)).end;
        assert!(found == expected, "{:?}", spec.kind);
    }
}

/// The delay grows with the depth, and prediction takes part of it back: on the same data the schedules differ, and each gives the
/// same bytes every time.
#[test]
fn schedules_that_do_not_flush_differ_and_each_gives_the_same_bytes_every_time() {
    for (spec, ends) in [(mlp(&[20, 16, 12]), vec![1, 2, 3, 4]), (gpt(), vec![1, 2, 4, 6])] {
        let plan = plan(6, 8, &SGD);
        let run = |weights| trained(&spec, &ends, &plan, (Schedule::Pipelined(weights), 4));
        let all: Vec<Trained> =
            [Weights::Stale, Weights::Stash, Weights::TwoVersions, Weights::Predict].map(run).into();
        for (index, weights) in
            [Weights::Stale, Weights::Stash, Weights::TwoVersions, Weights::Predict].iter().enumerate()
        {
            assert!(run(*weights) == all[index], "{weights:?}");
            assert!(all[..index].iter().all(|other| other.end != all[index].end), "{weights:?}");
        }
    }
}

/// Of micro-batches that are all alike the first one that is backward tells the whole update.
#[test]
fn of_equal_micro_batches_the_weights_are_predicted_exactly() {
    let spec = mlp(&[20, 16, 12]);
    let pipeline = Pipeline::new(&spec, &[1, 2, 3, 4], 1).expect("valid");
    let base = pipeline.initial(1);
    let shard = Examples::new(Inputs::Bytes((0..144).collect()), vec![1], spec.input.clone()).expect("one example");
    for optimizer in [SGD, ADAMW] {
        let end = |schedule| {
            let mut go_on = |_| ControlFlow::Continue(());
            let plan = plan(6, 8, &optimizer);
            pipeline.train(&base, &plan, (schedule, 4), 4, &shard, &mut go_on).expect("trains").end
        };
        let flush = end(Schedule::Flush);
        let [stale, predict] = [Weights::Stale, Weights::Predict].map(|weights| {
            let of = end(Schedule::Pipelined(weights));
            of.iter().zip(&flush).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        });
        assert!(stale > 0.001 && predict < 0.001 * stale, "{optimizer:?}: {predict} of {stale}");
    }
}

/// A backward pass with the weights of the forward pass is the backward pass, and with others the slope of the input follows them.
#[test]
fn a_backward_pass_uses_the_weights_that_it_is_given() {
    for spec in [mlp(&[6]), cnn(), gpt()] {
        let architecture = Architecture::new(&spec).expect("valid");
        let (model, shard) = (architecture.initial(1), shard(&spec));
        let other = architecture.initial(2);
        let mut feed = Feed::new(&architecture, shard.as_ref(), &plan(1, 4, &SGD), 1, 4).expect("valid");
        let (input, labels) = (feed.next(), feed.labels());
        here(&architecture.whole, |place| {
            let [params, others] = [&model, &other].map(|model| place.params(model, &[]));
            let gradient = |with: Option<&[_]>| {
                let trace = place.trace(&params, input.clone());
                let slope = place.score(&trace.output().values, &labels).gradient;
                let mut gradient = Vec::new();
                match with {
                    Some(with) => place.backward_with(with, trace, slope, &mut gradient),
                    None => place.backward(trace, slope, &mut gradient),
                };
                gradient
            };
            let plain = gradient(None);
            assert!(gradient(Some(&params)) == plain, "{:?}", spec.kind);
            let mixed = gradient(Some(&others));
            assert!(mixed != plain && mixed.len() == plain.len(), "{:?}", spec.kind);
            // The last layer's own gradient needs no weights on the way to it.
            let last = architecture.whole.layers.last().map_or(0, |layer| layer.params);
            let last = usize::try_from(last).expect("small");
            if architecture.gpt.is_none() {
                assert_eq!(mixed[plain.len() - last..], plain[plain.len() - last..]);
            }
        });
    }
}

#[test]
fn a_round_that_is_stopped_ends_after_that_step() {
    let spec = mlp(&[20, 16, 12]);
    let pipeline = Pipeline::new(&spec, &[1, 2, 4], 1).expect("valid");
    let (base, shard) = (pipeline.initial(1), shard(&spec));
    let mut stop = |report: StepReport| {
        if report.step == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let turns = (Schedule::Pipelined(Weights::Predict), 3);
    let stopped = pipeline.train(&base, &plan(9, 9, &SGD), turns, 4, shard.as_ref(), &mut stop).expect("trains");
    assert_eq!((stopped.losses.len(), stopped.stopped), (3, true));
    assert_eq!(stopped.losses, trained(&spec, &[1, 2, 4], &plan(9, 9, &SGD), turns).losses[..3]);
}

/// Runs a round whose stages follow orders of their own, which do not fit each other.
fn at_odds(spec: &ModelSpec, ends: &[usize], turns: &[Turns]) -> Result<Vec<f32>, PipelineError> {
    let pipeline = Pipeline::new(spec, ends, 1).expect("valid");
    let (base, shard, plan) = (pipeline.initial(1), shard(spec), plan(2, 8, &SGD));
    let feed = Feed::new(&pipeline.architecture, shard.as_ref(), &plan, 2, 4).expect("valid");
    let (batches, parts) = (feed.batches(), turns.iter().copied().enumerate().collect::<Vec<_>>());
    let mut stages = Stages::new(&pipeline, &parts, &plan, batches, Some(feed), None).expect("valid");
    for part in 0..parts.len() {
        stages.begin(&base, &mut |_| Vec::new(), part).expect("the lengths agree");
    }
    let control = &mut |_: StepReport| ControlFlow::Continue(());
    let mut steps = Steps { plan: &plan, batches, control, losses: Vec::new(), stopped: false };
    run(&mut stages, &mut steps)?;
    Ok(steps.losses)
}

#[test]
fn a_round_in_which_stages_wait_for_each_other_is_an_error() {
    let flush = |micro_batches, steps| Turns::new(Schedule::Flush, 2, micro_batches, steps).expect("valid");
    let told = |spec: &ModelSpec, ends: &[usize], turns: &[Turns]| at_odds(spec, ends, turns).expect_err("it stalls");
    assert_eq!(at_odds(&mlp(&[12]), &[1, 2], &[flush(2, 2); 2]).expect("the same order").len(), 2);

    let short = told(&mlp(&[12]), &[1, 2], &[flush(2, 1), flush(2, 2)]);
    assert!(matches!(&short, PipelineError::Stalled(waiting) if waiting.len() == 1), "{short:?}");
    let text = "no stage can go on: stage 1 waits for the activations of micro-batch 0 of step 1";
    assert_eq!(short.to_string(), text);
    let text = "no stage can go on: stage 0 waits for the tied tensor's gradient of step 0, \
                stage 1 waits for the activations of micro-batch 1 of step 0";
    assert_eq!(told(&gpt(), &[2, 6], &[flush(1, 1), flush(2, 1)]).to_string(), text);

    let error = told(&mlp(&[12]), &[1, 2], &[flush(2, 2), flush(2, 1)]);
    assert_eq!(error, PipelineError::OutOfTurn(OutOfTurn { what: "activations", micro_batch: 2 }));
}

#[test]
fn what_cannot_be_cut_or_shared_out_is_refused_with_the_numbers() {
    let spec = mlp(&[12]);
    let refused = |ends: &[usize]| Pipeline::new(&spec, ends, 1).expect_err("no cut").to_string();
    let told = "stages end at the layers [1, 1, 2], expected increasing figures, the last one 2";
    assert_eq!(refused(&[1, 1, 2]), told);
    assert!(refused(&[1]).contains("[1]") && refused(&[]).contains("[]") && refused(&[3]).contains("[3]"));
    let pipeline = Pipeline::new(&spec, &[1, 2], 1).expect("valid");
    let (base, shard) = (pipeline.initial(1), shard(&spec));
    let train =
        |turns| pipeline.train(&base, &plan(1, 9, &SGD), turns, 4, shard.as_ref(), &mut |_| ControlFlow::Continue(()));
    let told = train((Schedule::Flush, 4)).expect_err("3, 3 and 3").to_string();
    assert_eq!(told, "a batch of 9 examples cannot be cut into 4 micro-batches");
    assert_eq!(train((Schedule::Flush, 0)), Err(PipelineError::Order(OrderError::Nothing)));
    let exploded =
        pipeline.train(&base, &plan(9, 9, &SGD.with_lr(1e30)), (Schedule::Flush, 1), 4, shard.as_ref(), &mut |_| {
            ControlFlow::Continue(())
        });
    assert!(matches!(exploded, Err(PipelineError::Train(TrainError::Diverged { .. }))), "{exploded:?}");
}
