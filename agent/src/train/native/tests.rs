//! The trainer as a whole, on small made-up data.

#![expect(clippy::cast_possible_truncation, reason = "made-up data are small")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::AgentId;
use anabranch_common::journal::Plan;
use anabranch_common::merge::barrier::Barrier;
use anabranch_common::merge::{Arrival, MergeSpec, WeightInputs};
use anabranch_common::spec::{ModelKind, OptimizerSpec};
use anabranch_testkit::lease::PLAN;

use super::*;
use crate::shard::{self, Examples, Inputs, ShardOptions, Text};
use crate::train::{MicroBatchBudget, RoundFile};

fn model(kind: ModelKind) -> ModelSpec {
    ModelSpec {
        kind,
        input: vec![1, 12, 12],
        classes: 3,
        hidden: vec![],
        input_scale: 1.0 / 255.0,
        ..ModelSpec::default()
    }
}

fn plan(local_steps: u32, optimizer: OptimizerSpec) -> TrainSpec {
    TrainSpec {
        local_steps,
        batch_size: 32,
        optimizer,
        keep_optimizer_state: false,
        target_round_s: None,
        max_local_steps: None,
        schedule: None,
        proximal_mu: 0.0,
    }
}

fn sgd(lr: f32, momentum: f32) -> OptimizerSpec {
    OptimizerSpec::Sgd { lr, momentum }
}

fn gpt(context: u32, width: u32) -> ModelSpec {
    ModelSpec { kind: ModelKind::Gpt, context, layers: 2, heads: 2, width, ..ModelSpec::default() }
}

/// A sentence again and again: after its first bytes every byte can be told.
fn refrain(length: usize) -> Text {
    let sentence = b"The quick brown fox jumps over the lazy dog. ";
    Text::new(sentence.iter().copied().cycle().take(length).collect()).expect("long enough")
}

fn adamw(lr: f32) -> OptimizerSpec {
    OptimizerSpec::AdamW { lr, weight_decay: 0.0, beta_1: 0.9, beta_2: 0.999 }
}

/// Class c has its bright third of rows at the top, in the middle or at the bottom.
fn stripes(examples: usize) -> Examples {
    let mut draw = Draw::new(3, Purpose::Split);
    let labels: Vec<u32> = (0..examples).map(|index| (index % 3) as u32).collect();
    let pixel = |label: u32, row: usize, noise: usize| {
        if row / 4 == label as usize { 120 + noise as u8 } else { noise as u8 }
    };
    let rows = labels.iter().flat_map(|label| (0..12 * 12).map(move |position| (*label, position / 12)));
    let inputs = rows.map(|(label, row)| pixel(label, row, draw.below(100))).collect();
    Examples::new(Inputs::Bytes(inputs), labels, vec![12, 12]).expect("the lengths agree")
}

fn go_on(_: StepReport) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn both_models_learn_and_report_every_step() {
    let shard = stripes(300);
    for kind in [ModelKind::Mlp, ModelKind::Cnn] {
        let mut trainer = native(&model(kind)).expect("valid");
        let base = trainer.initial(1).expect("made");
        let before = trainer.evaluate(&base, &shard).expect("fits");
        let mut reports = Vec::new();
        let mut control = |report: StepReport| {
            reports.push(report);
            ControlFlow::Continue(())
        };
        let outcome =
            trainer.train(Round::new(&base, &plan(40, sgd(0.1, 0.9)), 9, &shard, &mut control)).expect("trains");
        let after = trainer.evaluate(&outcome.end, &shard).expect("fits");
        assert!(after.loss < 0.2 * before.loss && after.accuracy > 0.98, "{kind:?}: {before:?} then {after:?}");
        assert_eq!(reports.iter().map(|r| r.step).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
        assert_eq!((outcome.steps, outcome.num_examples, outcome.stopped), (40, 40 * 32, false));
        let mean = reports.iter().map(|r| r.loss).sum::<f32>() / 40.0;
        assert!(
            (outcome.mean_loss - mean).abs() < 1e-4,
            "{} is not the mean of the reports, {mean}",
            outcome.mean_loss
        );
    }
}

#[test]
fn the_same_work_gives_the_same_bytes_with_any_number_of_threads() {
    let shard = stripes(90);
    // Wide enough that matrix products are shared out among threads.
    let hidden = [(ModelKind::Mlp, vec![1024, 512]), (ModelKind::Cnn, vec![16, 64, 128])];
    for (kind, hidden) in hidden {
        let spec = ModelSpec { hidden, ..model(kind) };
        let run = |threads| {
            let mut trainer = native_with(&spec, NativeOptions { threads: Some(threads), ..NativeOptions::default() })
                .expect("valid");
            let base = trainer.initial(1).expect("made");
            let end =
                trainer.train(Round::new(&base, &plan(5, sgd(0.05, 0.9)), 4, &shard, &mut go_on)).expect("trains").end;
            let metrics = trainer.evaluate(&end, &shard).expect("fits");
            (end.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), metrics)
        };
        let one = run(1);
        assert!(one == run(1), "{kind:?}: a second run differs");
        for threads in [2, 3, 4] {
            assert!(one == run(threads), "{kind:?}: {threads} threads give other bytes than one");
        }
    }
}

#[test]
fn the_gpt_starts_at_chance_and_learns_a_text_by_heart() {
    let text = refrain(2_000);
    let mut trainer = native(&gpt(32, 32)).expect("valid");
    let base = trainer.initial(1).expect("made");
    let before = trainer.evaluate(&base, &text).expect("fits");
    assert!((before.loss - 256.0f64.ln()).abs() < 0.2, "{before:?} is not chance among 256 bytes");
    assert_eq!(before.num_examples, 1_999 / 32, "windows are examples");
    let plan = TrainSpec { batch_size: 8, ..plan(150, adamw(3e-3)) };
    let mut reports = Vec::new();
    let mut control = |report: StepReport| {
        reports.push(report);
        ControlFlow::Continue(())
    };
    let outcome = trainer.train(Round::new(&base, &plan, 9, &text, &mut control)).expect("trains");
    let after = trainer.evaluate(&outcome.end, &text).expect("fits");
    assert!(after.loss < 0.3 && after.accuracy > 0.9, "{before:?} then {after:?}");
    assert_eq!((outcome.num_examples, reports[0].examples), (150 * 8, 8));
    assert!((f64::from(reports[0].loss) - before.loss).abs() < 0.2, "{} is not a mean over bytes", reports[0].loss);
}

#[test]
fn the_gpt_gives_the_same_bytes_with_any_number_of_threads() {
    let text = refrain(3_000);
    let plan = TrainSpec { batch_size: 8, ..plan(3, adamw(1e-3)) };
    let run = |threads| {
        let mut trainer =
            native_with(&gpt(64, 128), NativeOptions { threads: Some(threads), ..NativeOptions::default() })
                .expect("valid");
        let base = trainer.initial(1).expect("made");
        let end = trainer.train(Round::new(&base, &plan, 4, &text, &mut go_on)).expect("trains").end;
        let metrics = trainer.evaluate(&end, &text).expect("fits");
        (end.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), metrics)
    };
    let one = run(1);
    assert!(one == run(1), "a second run differs");
    for threads in [2, 3] {
        assert!(one == run(threads), "{threads} threads give other bytes than one");
    }
}

/// Synchronous SGD: one step of each agent on its own batch, merged, is one step of one machine on the joined batch.
#[test]
fn one_step_of_each_agent_merged_is_a_step_on_the_joined_batch() {
    const LR: f32 = 0.1;
    let batches = [5_u32, 8, 11];
    let (shard, spec) = (stripes(90), model(ModelKind::Mlp));
    let merge = MergeSpec::SyncSgd { barrier: Barrier::default() };
    let mut trainer =
        Native::new(&spec, NativeOptions { threads: Some(1), ..NativeOptions::default() }).expect("valid");
    let mut one_machine = trainer.initial(1).expect("made");
    let mut model = one_machine.clone();
    let mut rule = merge.rule(model.len());
    for version in 0..5 {
        let mut joined = Vec::new();
        for (agent, batch_size) in (0..).zip(batches) {
            let seed = 10 * version + u64::from(agent);
            let plan = TrainSpec { batch_size, ..plan(1, sgd(LR, 0.0)) };
            let end = trainer.train(Round::new(&model, &plan, seed, &shard, &mut go_on)).expect("trains").end;
            let delta: Vec<f32> = end.iter().zip(&model).map(|(end, base)| end - base).collect();
            let weight = merge.weight(WeightInputs { staleness: 0, participation: 1.0 });
            let (agent, mean_weight) = (AgentId([agent; 16]), merge.mean_weight(90, batch_size.into()));
            let arrival =
                Arrival { agent, weight, mean_weight, staleness: 0, base_dot: None, recall: None, memory: None };
            rule.contribute(&model, &Arc::new(Delta::Dense(delta)), &arrival);
            let mut draw = Draw::new(seed, Purpose::Batches);
            joined.extend((0..batch_size).map(|_| draw.below(90)));
        }
        rule.close(&mut model);
        let mut sums = Sums::default();
        trainer.backward(&one_machine, &shard, &joined, joined.len(), &mut sums);
        one_machine.iter_mut().zip(&sums.gradient).for_each(|(value, slope)| *value -= LR * slope);
        let off = model.iter().zip(&one_machine).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(off <= 1e-6, "version {version} is {off} away from one machine");
    }
    let moved = model.iter().zip(trainer.initial(1).expect("made")).map(|(end, start)| (end - start).abs());
    assert!(moved.fold(0.0, f32::max) > 1e-3, "it has trained");
}

/// FedProx: the gradient of mu / 2 |w - w_base|^2 is added at each step. The first step starts at the base and has none.
#[test]
fn the_proximal_term_pulls_each_step_back_to_the_base() {
    let (shard, spec) = (stripes(60), model(ModelKind::Mlp));
    let trained = |steps, mu| {
        let mut trainer = native(&spec).expect("valid");
        let base = trainer.initial(1).expect("made");
        let plan = TrainSpec { proximal_mu: mu, ..plan(steps, sgd(0.05, 0.0)) };
        let end = trainer.train(Round::new(&base, &plan, 4, &shard, &mut go_on)).expect("trains").end;
        (base, end)
    };
    assert_eq!(trained(1, 0.5), trained(1, 0.0), "at the base the term is 0");
    let ((base, first), (_, free), (_, held)) = (trained(1, 0.0), trained(2, 0.0), trained(2, 0.5));
    for at in 0..base.len() {
        let pull = 0.05 * 0.5 * (first[at] - base[at]);
        assert!((held[at] - (free[at] - pull)).abs() < 1e-6, "parameter {at}: {} and {}", held[at], free[at] - pull);
    }
    let away = |end: &[f32]| end.iter().zip(&base).map(|(end, base)| (end - base) * (end - base)).sum::<f32>();
    assert!(away(&trained(40, 5.0).1) < 0.5 * away(&trained(40, 0.0).1), "a strong term keeps the model near its base");
    let mut trainer = native(&spec).expect("valid");
    for mu in [-1.0, f32::NAN, f32::INFINITY] {
        let plan = TrainSpec { proximal_mu: mu, ..plan(1, sgd(0.05, 0.0)) };
        let error = trainer.train(Round::new(&base, &plan, 4, &shard, &mut go_on)).expect_err("makes no sense");
        assert!(matches!(error, TrainError::Spec { key: "train.proximal_mu", .. }), "{error}");
    }
}

/// Trains with at most that many examples at once.
fn trained_in_parts(spec: &ModelSpec, plan: &TrainSpec, shard: &dyn Shard, most: Option<u32>) -> (u32, RoundResult) {
    let mut trainer = native_with(spec, NativeOptions { threads: Some(2), ..NativeOptions::default() }).expect("valid");
    let base = trainer.initial(1).expect("made");
    let (mut micro, mut go_on) = (None, go_on);
    let mut begins = |examples| assert_eq!(micro.replace(examples), None, "it is told once");
    let budget = Some(MicroBatchBudget { most, begins: &mut begins });
    let result = trainer.train(Round { budget, ..Round::new(&base, plan, 4, shard, &mut go_on) }).expect("trains");
    (micro.expect("the native trainer cuts batches"), result)
}

/// Guards bits: a batch that fits is computed as one, and parts are the same batch to within rounding, in the same way
/// every time.
#[test]
fn micro_batches_give_the_same_step_as_the_batch_and_the_same_bytes_every_time() {
    let (stripes, refrain) = (stripes(90), refrain(1_000));
    let plan = TrainSpec { batch_size: 30, ..plan(3, sgd(0.05, 0.9)) };
    for (spec, shard) in
        [(model(ModelKind::Mlp), &stripes as &dyn Shard), (model(ModelKind::Cnn), &stripes), (gpt(16, 16), &refrain)]
    {
        let kind = spec.kind;
        let (micro, whole) = trained_in_parts(&spec, &plan, shard, None);
        assert_eq!((micro, &whole), (30, &trained_in_parts(&spec, &plan, shard, Some(30)).1), "{kind:?}");
        // 8, 8, 8 and 6: the last one has another share.
        let (micro, parts) = trained_in_parts(&spec, &plan, shard, Some(9));
        assert_eq!((micro, &parts), (8, &trained_in_parts(&spec, &plan, shard, Some(8)).1), "{kind:?}");
        assert_eq!((parts.num_examples, parts.steps), (whole.num_examples, whole.steps));
        let mut trainer = native(&spec).expect("valid");
        let base = trainer.initial(1).expect("made");
        let moved = base.iter().zip(&whole.end).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        let apart = parts.end.iter().zip(&whole.end).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(moved > 1e-4 && apart < 1e-3 * moved, "{kind:?}: moved by {moved}, apart by {apart}");
        assert!((parts.mean_loss - whole.mean_loss).abs() < 1e-5, "{kind:?}");
    }
}

#[test]
fn a_model_for_which_there_is_no_memory_is_a_round_given_back_and_not_an_end() {
    let options = NativeOptions { threads: Some(1), max_memory_bytes: Some(1 << 20), ..NativeOptions::default() };
    let mut trainer = native_with(&model(ModelKind::Mlp), options).expect("valid");
    let base = trainer.initial(1).expect("made");
    let refused =
        trainer.train(Round::new(&base, &plan(1, sgd(0.1, 0.0)), 1, &stripes(3), &mut go_on)).expect_err("1 MiB");
    assert!(matches!(refused, TrainError::Memory { .. }) && refused.is_passing(), "{refused:?}");
    assert!(trainer.evaluate(&base, &stripes(3)).is_ok(), "what fits goes on");
}

/// Issue 6: a long round that was cut off goes on where it was, and nobody can tell from what it gives.
#[test]
fn a_round_that_was_cut_off_and_taken_up_gives_the_same_bytes() {
    let (stripes, refrain) = (stripes(90), refrain(1_000));
    let cases = [
        (model(ModelKind::Mlp), &stripes as &dyn Shard, sgd(0.05, 0.0), None),
        (model(ModelKind::Cnn), &stripes, sgd(0.05, 0.9), Some(8)),
        (gpt(16, 16), &refrain, adamw(1e-3), None),
    ];
    for (spec, shard, optimizer, most) in cases {
        let kind = spec.kind;
        let plan = plan(20, optimizer);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("round");
        let begin = || {
            let mut trainer = native(&spec).expect("valid");
            let base = trainer.initial(1).expect("made");
            let keep = Some(RoundFile::every_step(&path, &base));
            (trainer, base, keep)
        };
        let straight = trained_in_parts(&spec, &plan, shard, most).1;
        let (mut killed, base, keep) = begin();
        let mut kill = |report: StepReport| {
            if report.step == 11 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let budget = Some(MicroBatchBudget { most, begins: &mut |_| {} });
        killed.train(Round { budget, keep, ..Round::new(&base, &plan, 4, shard, &mut kill) }).expect("cut off");
        assert!(path.exists());
        let mut steps = Vec::new();
        let mut note = |report: StepReport| {
            steps.push(report.step);
            ControlFlow::Continue(())
        };
        let (mut resumed, base, keep) = begin();
        let budget = Some(MicroBatchBudget { most, begins: &mut |_| {} });
        let round = Round { budget, keep, ..Round::new(&base, &plan, 4, shard, &mut note) };
        let outcome = resumed.train(round).expect("trains");
        assert_eq!(steps, (11..=20).collect::<Vec<_>>(), "{kind:?}: step 10 was the last on disk");
        assert_eq!(outcome, straight, "{kind:?}");
        // What is on disk now is of that round alone.
        let (mut other, base, keep) = begin();
        steps.clear();
        let mut note = |report: StepReport| {
            steps.push(report.step);
            ControlFlow::Continue(())
        };
        other.train(Round { keep, ..Round::new(&base, &plan, 5, shard, &mut note) }).expect("trains");
        assert_eq!(steps.len(), 20, "{kind:?}: another seed is another round");
    }
}

/// A round that starts ahead of its lease's base, which is in flight, goes on from where it started, and from nowhere else.
#[test]
fn a_kept_round_goes_on_only_from_its_own_start() {
    let (spec, plan, stripes) = (model(ModelKind::Mlp), plan(4, sgd(0.05, 0.0)), stripes(30));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("round");
    let steps_from = |ahead: f32, cut_after: u32| {
        let mut trainer = native(&spec).expect("valid");
        let base = trainer.initial(1).expect("made");
        let start: Vec<f32> = base.iter().map(|value| value + ahead).collect();
        let keep = Some(RoundFile::every_step(&path, &base));
        let mut steps = 0;
        let mut note = |report: StepReport| {
            steps += 1;
            if report.step == cut_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        trainer.train(Round { keep, ..Round::new(&start, &plan, 4, &stripes, &mut note) }).expect("trains");
        steps
    };
    assert_eq!(steps_from(0.01, 3), 3);
    assert_eq!(steps_from(0.01, 4), 2, "the second step was the last on disk");
    assert_eq!(steps_from(0.02, 4), 4, "another start is another round");
}

/// The lease of a kept round has its learning rate: under another one nothing is taken up.
#[test]
fn a_kept_round_goes_on_at_its_own_learning_rate_and_at_0_the_model_stays() {
    let (spec, stripes) = (model(ModelKind::Mlp), stripes(30));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("round");
    let at_rate = |lr_factor: f32, cut_after: u32| {
        let given = Plan { local_steps: 4, lr_factor, round: 7, ..PLAN };
        let plan = given.of(&plan(1, sgd(0.05, 0.9)));
        let mut trainer = native(&spec).expect("valid");
        let base = trainer.initial(1).expect("made");
        let keep = Some(RoundFile::every_step(&path, &base));
        let mut steps = 0;
        let mut note = |report: StepReport| {
            steps += 1;
            if report.step == cut_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let round = Round { keep, ..Round::new(&base, &plan, 4, &stripes, &mut note) };
        let end = trainer.train(round).expect("trains").end;
        (steps, end == base)
    };
    assert_eq!(at_rate(0.5, 3), (3, false));
    assert_eq!(at_rate(0.5, 4), (2, false), "the second step was the last on disk");
    assert_eq!(at_rate(0.25, 4), (4, false), "another rate is another round");
    assert_eq!(at_rate(0.0, 4), (4, true), "a rate of 0 changes nothing");
}

#[test]
fn text_is_for_the_gpt_and_nothing_else_is() {
    let mut reader = native(&gpt(32, 8)).expect("valid");
    let base = reader.initial(1).expect("made");
    assert_eq!(reader.evaluate(&base, &stripes(3)), Err(TrainError::NotText));
    let short = reader.evaluate(&base, &refrain(32));
    assert_eq!(short, Err(TrainError::TooShort { context: 32, found: 32 }));
    assert_eq!(reader.evaluate(&base, &refrain(33)).expect("one window").num_examples, 1);
    // Of the shape and with the classes that text is counted in.
    let spec = ModelSpec { kind: ModelKind::Mlp, input: vec![256], classes: 256, ..ModelSpec::default() };
    let mut other = native(&spec).expect("valid");
    let base = other.initial(1).expect("made");
    assert_eq!(other.evaluate(&base, &refrain(1_000)), Err(TrainError::Text));
}

#[test]
fn another_seed_draws_other_batches() {
    let shard = stripes(90);
    let mut trainer = native(&model(ModelKind::Mlp)).expect("valid");
    let base = trainer.initial(1).expect("made");
    let mut end =
        |seed| trainer.train(Round::new(&base, &plan(2, sgd(0.1, 0.0)), seed, &shard, &mut go_on)).expect("trains").end;
    assert_ne!(end(1), end(2));
}

#[test]
fn stopping_gives_what_was_reached_so_far() {
    let shard = stripes(90);
    let mut trainer = native(&model(ModelKind::Mlp)).expect("valid");
    let base = trainer.initial(1).expect("made");
    let mut stop = |report: StepReport| {
        if report.step == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = trainer.train(Round::new(&base, &plan(50, sgd(0.1, 0.9)), 8, &shard, &mut stop)).expect("trains");
    let short = trainer.train(Round::new(&base, &plan(3, sgd(0.1, 0.9)), 8, &shard, &mut go_on)).expect("trains");
    assert!(stopped.stopped && !short.stopped);
    assert_eq!((stopped.steps, stopped.num_examples), (3, 96));
    assert_eq!(stopped.end, short.end);
}

#[test]
fn optimizer_state_is_kept_only_where_the_plan_says_so() {
    let shard = stripes(90);
    let adamw = OptimizerSpec::AdamW { lr: 0.01, weight_decay: 0.1, beta_1: 0.9, beta_2: 0.999 };
    for optimizer in [sgd(0.05, 0.9), adamw] {
        let second_lease = |keep_optimizer_state| {
            let plan = TrainSpec { keep_optimizer_state, ..plan(3, optimizer.clone()) };
            let mut trainer = native(&model(ModelKind::Mlp)).expect("valid");
            let base = trainer.initial(1).expect("made");
            trainer.train(Round::new(&base, &plan, 1, &shard, &mut go_on)).expect("trains");
            trainer.train(Round::new(&base, &plan, 2, &shard, &mut go_on)).expect("trains").end
        };
        let mut fresh = native(&model(ModelKind::Mlp)).expect("valid");
        let base = fresh.initial(1).expect("made");
        let fresh =
            fresh.train(Round::new(&base, &plan(3, optimizer.clone()), 2, &shard, &mut go_on)).expect("trains").end;
        assert_eq!(second_lease(false), fresh, "{optimizer:?}: a reset optimizer is a new one");
        assert_ne!(second_lease(true), fresh, "{optimizer:?}: a kept optimizer remembers");
    }
}

#[test]
fn divergence_is_an_error_and_not_a_model() {
    let shard = stripes(90);
    for kind in [ModelKind::Mlp, ModelKind::Cnn] {
        let mut trainer = native(&model(kind)).expect("valid");
        let base = trainer.initial(1).expect("made");
        let exploded = trainer.train(Round::new(&base, &plan(50, sgd(1e30, 0.0)), 1, &shard, &mut go_on));
        assert!(matches!(exploded, Err(TrainError::Diverged { .. })), "{kind:?}: {exploded:?}");
        let poisoned = vec![f32::NAN; base.len()];
        assert_eq!(trainer.evaluate(&poisoned, &shard), Err(TrainError::Diverged { step: 0 }), "{kind:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_before_any_work() {
    let mut trainer = native(&model(ModelKind::Mlp)).expect("valid");
    let base = trainer.initial(1).expect("made");
    let params = base.len();
    let short = trainer.evaluate(&base[1..], &stripes(3));
    assert_eq!(short, Err(TrainError::Length { expected: params, found: params - 1 }));
    let other_shape = Examples::new(Inputs::Bytes(vec![0; 4]), vec![0], vec![4]).expect("fits");
    assert!(matches!(trainer.evaluate(&base, &other_shape), Err(TrainError::Shape { .. })));
    let other_labels = Examples::new(Inputs::Bytes(vec![0; 144]), vec![3], vec![144]).expect("fits");
    let classes = trainer.evaluate(&base, &other_labels);
    assert_eq!(classes, Err(TrainError::Classes { classes: 3, largest: 3 }));
    let empty = Examples::new(Inputs::Bytes(vec![]), vec![], vec![144]).expect("fits");
    assert_eq!(trainer.evaluate(&base, &empty), Err(TrainError::EmptyShard));
    let idle = trainer.train(Round::new(&base, &plan(0, sgd(0.1, 0.0)), 1, &stripes(3), &mut go_on));
    assert!(matches!(idle, Err(TrainError::Spec { key: "train.local_steps", .. })), "{idle:?}");
}

#[test]
fn the_mlp_learns_handwritten_digits() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data");
    let spec = ModelSpec {
        kind: ModelKind::Mlp,
        input: vec![64],
        classes: 10,
        hidden: vec![64],
        input_scale: 0.0625,
        ..ModelSpec::default()
    };
    let open =
        |name| shard::open(&data.join(name), &ShardOptions::for_model(&spec)).expect("a file of this repository");
    let (train, test) = (open("digits-train.csv.gz"), open("digits-test.csv.gz"));
    assert_eq!((train.len(), test.len()), (1437, 360));
    let mut trainer = native(&spec).expect("valid");
    let base = trainer.initial(1).expect("made");
    let outcome =
        trainer.train(Round::new(&base, &plan(600, sgd(0.1, 0.9)), 1, train.as_ref(), &mut go_on)).expect("trains");
    let metrics = trainer.evaluate(&outcome.end, test.as_ref()).expect("fits");
    assert!(metrics.accuracy >= 0.95, "{metrics:?}");
}

/// MNIST, from `ANABRANCH_DATA` or from `shared/data` beside the repository; it is not part of it.
fn mnist() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let data = std::env::var_os("ANABRANCH_DATA").map_or_else(beside, PathBuf::from).join("mnist");
    data.is_dir().then_some(data)
}

#[test]
fn the_cnn_learns_mnist_where_it_is_at_hand() {
    let Some(data) = mnist() else {
        println!("skipped: set ANABRANCH_DATA to a directory with mnist/ in it");
        return;
    };
    let spec = ModelSpec { input: vec![1, 28, 28], classes: 10, ..model(ModelKind::Cnn) };
    let options = ShardOptions::for_model(&spec);
    let train = shard::open(&data, &options).expect("MNIST is sound");
    let test = shard::open(&data.join("t10k-images-idx3-ubyte.gz"), &options).expect("MNIST is sound");
    assert_eq!((train.len(), test.len()), (60_000, 10_000));
    let mut trainer = native(&spec).expect("valid");
    let base = trainer.initial(1).expect("made");
    let outcome =
        trainer.train(Round::new(&base, &plan(600, sgd(0.2, 0.0)), 1, train.as_ref(), &mut go_on)).expect("trains");
    let metrics = trainer.evaluate(&outcome.end, test.as_ref()).expect("fits");
    assert!(metrics.accuracy >= 0.95, "{metrics:?}");
}
