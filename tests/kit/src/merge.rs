//! What every merge rule must do.

use std::borrow::Cow;
use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::AgentId;
use anabranch_common::merge::barrier::Closing;
use anabranch_common::merge::ef21::MemoryInputs;
use anabranch_common::merge::recall::RecallInputs;
use anabranch_common::merge::shares::Shares;
use anabranch_common::merge::{Arrival, MergeRule, MergeSpec, SavedRule, Served, WeightInputs};
use anabranch_common::rng::SplitMix64;

const PARAMS: usize = 1_000;
const POSITIONS: std::ops::Range<u32> = 0..1_000;
/// Steps for a rule that makes a version of each update.
const STEPS: usize = 24;
/// Agents whose updates come; the last one is slow.
const AGENTS: u8 = 4;

/// A contribution and, where it fills the buffer, the close after it; or a close alone.
#[derive(Clone)]
struct Step {
    delta: Option<Arc<Delta>>,
    agent: AgentId,
    weight: f32,
    mean_weight: u64,
    staleness: u64,
    base_dot: Option<f64>,
    recall: Option<RecallInputs>,
    memory: Option<MemoryInputs>,
    closes: bool,
}

impl Step {
    fn take(&self, rule: &mut dyn MergeRule, model: &mut [f32]) {
        if let Some(delta) = &self.delta {
            let Self { agent, weight, mean_weight, staleness, base_dot, recall, memory, .. } = self;
            let (agent, weight, mean_weight, staleness) = (*agent, *weight, *mean_weight, *staleness);
            let (base_dot, recall, memory) = (*base_dot, recall.as_ref(), memory.as_ref());
            rule.contribute(model, delta, &Arrival { agent, weight, mean_weight, staleness, base_dot, recall, memory });
        }
        if self.closes {
            rule.close(model);
        }
    }
}

/// Runs every check on the rule that `spec` makes.
///
/// # Panics
/// When one of them fails, saying which.
pub fn conformance(spec: &MergeSpec) {
    spec.validate().expect("the suite is for valid specs");
    let steps = steps(spec);
    equal_calls_give_equal_bits(spec, &steps);
    restored_state_goes_on_like_the_original(spec, &steps);
    only_closes_move_the_model(spec, &steps);
    sparse_and_dense_forms_of_a_delta_are_the_same(spec, &steps);
    weight_zero_changes_nothing(spec, &steps);
    foreign_state_is_refused(spec);
    an_average_begins_and_ends_while_the_rule_goes_on(spec, &steps);
    weights_are_finite_and_fall_with_staleness(spec);
    one_version_moves_the_model_by_its_mean_delta(spec);
}

fn steps(spec: &MergeSpec) -> Vec<Step> {
    let mut rng = SplitMix64::new(11);
    let all = match spec.closing() {
        Closing::Full(1) | Closing::Barrier(_) => STEPS,
        Closing::Full(size) => size as usize * 5 + size as usize / 2,
    };
    let mut shares = Shares::of((0..AGENTS).map(|number| (AgentId([number; 16]), 100)));
    (0..all)
        .map(|index| {
            let slow = index % 7 == 0;
            let number = if slow { AGENTS - 1 } else { u8::try_from(rng.below(u64::from(AGENTS) - 1)).expect("few") };
            let agent = AgentId([number; 16]);
            let values: Vec<f32> = (0..PARAMS).map(|_| rng.next_signed_f32()).collect();
            let delta = if index % 2 == 0 {
                Delta::Dense(values)
            } else {
                let indices: Vec<u32> = POSITIONS.filter(|_| rng.below(10) == 0).collect();
                let values = values[..indices.len()].to_vec();
                Delta::Sparse { len: PARAMS, indices, values }
            };
            let mut participation = 0.5 + rng.next_f64();
            let recall = spec.recalling().map(|recalling| {
                let admitted = shares.admit(agent, 100, recalling);
                shares.arrive(agent, 100);
                participation = admitted.weight;
                RecallInputs { scale: if index % 5 == 4 { 0.5 } else { 1.0 }, ..admitted.inputs }
            });
            let memory = spec.keeps_memories().then(|| {
                // Agents begin anew, and the slow one leaves between two of its updates.
                let left = if index % 7 == 4 { vec![AgentId([AGENTS - 1; 16])] } else { vec![] };
                let (begins, keeps) = (index % 9 == 8, index % 10 != 6);
                let step = if index % 5 == 4 { 0.5 } else { 1.0 };
                MemoryInputs { active: u32::from(AGENTS), step, begins, keeps, left }
            });
            if spec.rescales() {
                participation = shares.rescale(agent, 100);
                shares.arrive(agent, 100);
            }
            let staleness = rng.below(20);
            let weight = spec.weight(WeightInputs { staleness, participation });
            let base_dot = (index % 6 != 5).then(|| f64::from(rng.next_signed_f32()));
            let closes = match spec.closing() {
                Closing::Full(size) => (index + 1).is_multiple_of(size as usize),
                // Rounds of one, two and three updates.
                Closing::Barrier(_) => matches!(index % 6, 0 | 2 | 5),
            };
            let mean_weight = spec.mean_weight(100 + 50 * u64::from(number), 32);
            Step {
                delta: Some(Arc::new(delta)),
                agent,
                weight,
                mean_weight,
                staleness,
                base_dot,
                recall,
                memory,
                closes,
            }
        })
        .collect()
}

fn start() -> Vec<f32> {
    let mut rng = SplitMix64::new(12);
    (0..PARAMS).map(|_| rng.next_signed_f32()).collect()
}

fn run(rule: &mut dyn MergeRule, model: &mut [f32], steps: &[Step]) {
    for step in steps {
        step.take(rule, model);
    }
}

/// The same steps, cut between each contribution and the close after it.
fn cut_before_closes(steps: &[Step]) -> Vec<Step> {
    let close = |step: &Step| step.closes.then_some(Step { delta: None, ..step.clone() });
    steps.iter().flat_map(|step| [Step { closes: false, ..step.clone() }].into_iter().chain(close(step))).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn state_bits(rule: &dyn MergeRule) -> (Vec<Vec<u32>>, Vec<Vec<u8>>) {
    let SavedRule { vectors, parts } = rule.save();
    (vectors.iter().map(|vector| bits(vector)).collect(), parts)
}

fn equal_calls_give_equal_bits(spec: &MergeSpec, steps: &[Step]) {
    let outcome = || {
        let (mut rule, mut model) = (spec.rule(PARAMS), start());
        run(rule.as_mut(), &mut model, steps);
        (bits(&model), state_bits(rule.as_ref()))
    };
    assert_eq!(outcome(), outcome(), "the same calls gave other bits");
}

fn restored_state_goes_on_like_the_original(spec: &MergeSpec, steps: &[Step]) {
    let (mut whole, mut model) = (spec.rule(PARAMS), start());
    run(whole.as_mut(), &mut model, steps);
    let steps = cut_before_closes(steps);
    for cut in 0..=steps.len() {
        let (mut first, mut resumed) = (spec.rule(PARAMS), start());
        run(first.as_mut(), &mut resumed, &steps[..cut]);
        let mut second = spec.rule(PARAMS);
        second.restore(first.save().into_owned()).expect("a rule takes back what it saved");
        assert_eq!(
            state_bits(second.as_ref()),
            state_bits(first.as_ref()),
            "saved after {cut} records, read otherwise"
        );
        let (mut copy, mut copied) = (first.boxed(), resumed.clone());
        run(copy.as_mut(), &mut copied, &steps[cut..]);
        run(second.as_mut(), &mut resumed, &steps[cut..]);
        assert_eq!(bits(&copied), bits(&resumed), "a copy after {cut} records goes on otherwise");
        assert_eq!(
            second.served(&resumed),
            whole.served(&model),
            "saved after {cut} records, something else is served"
        );
        assert_eq!(bits(&resumed), bits(&model), "saved after {cut} records, the model came out different");
        assert_eq!(
            state_bits(second.as_ref()),
            state_bits(whole.as_ref()),
            "saved after {cut} records, so did the state"
        );
    }
}

fn only_closes_move_the_model(spec: &MergeSpec, steps: &[Step]) {
    let (mut rule, mut model) = (spec.rule(PARAMS), start());
    for (index, step) in cut_before_closes(steps).iter().enumerate() {
        let before = bits(&model);
        step.take(rule.as_mut(), &mut model);
        let moved = bits(&model) != before;
        assert_eq!(moved, step.closes, "record {index} closes a version: {}; moved the model: {moved}", step.closes);
    }
}

fn sparse_and_dense_forms_of_a_delta_are_the_same(spec: &MergeSpec, steps: &[Step]) {
    let (mut rule, mut model) = (spec.rule(PARAMS), start());
    run(rule.as_mut(), &mut model, steps);
    let (mut from_dense, mut dense_model) = (spec.rule(PARAMS), start());
    for step in steps {
        let dense = step.delta.iter().map(|delta| Arc::new(Delta::Dense(Delta::clone(delta).into_dense()))).next();
        Step { delta: dense, ..step.clone() }.take(from_dense.as_mut(), &mut dense_model);
    }
    assert_eq!(model, dense_model, "a sparse delta and its dense form moved the model differently");
}

fn weight_zero_changes_nothing(spec: &MergeSpec, steps: &[Step]) {
    let (mut rule, mut model) = (spec.rule(PARAMS), start());
    let before = model.clone();
    for step in steps {
        let recall = step.recall.clone().map(|inputs| RecallInputs { recalled: vec![], ..inputs });
        Step { weight: 0.0, recall, ..step.clone() }.take(rule.as_mut(), &mut model);
    }
    assert_eq!(model, before, "updates of weight 0 moved the model");
    assert_eq!(rule.served(&model).1, before, "or what is served");
    // FedAdam's second moment begins above 0, and falls everywhere by the same.
    let nothing = |vector: &[f32]| vector.iter().all(|value| *value == vector[0]) || vector == before;
    assert!(rule.save().vectors.iter().all(|vector| nothing(vector)), "or left something behind");
}

fn foreign_state_is_refused(spec: &MergeSpec) {
    let mut rule = spec.rule(PARAMS);
    let least = rule.save().vectors.len();
    Step { closes: false, ..steps(spec)[0].clone() }.take(rule.as_mut(), &mut start());
    let SavedRule { vectors, parts } = rule.save().into_owned();
    let most = vectors.len();
    let mut rule = spec.rule(PARAMS);
    let state = |vectors: usize, params: usize| SavedRule {
        vectors: vec![Cow::Owned(vec![1.0; params]); vectors],
        parts: parts.clone(),
    };
    let with_parts = |parts: Vec<Vec<u8>>| SavedRule { vectors: vectors.clone(), parts };
    assert!(
        rule.restore(with_parts([parts.clone(), vec![vec![1]]].concat())).is_err(),
        "one part too many was accepted"
    );
    if let Some((_, fewer)) = parts.split_last() {
        assert!(rule.restore(with_parts(fewer.to_vec())).is_err(), "one part too few was accepted");
    }
    assert!(rule.restore(state(most + 1, PARAMS)).is_err(), "one vector too many was accepted");
    assert!(rule.restore(state(most, PARAMS + 1)).is_err(), "the state of a longer model was accepted");
    assert!(rule.restore(state(most, PARAMS - 1)).is_err(), "the state of a shorter model was accepted");
    if least > 0 {
        assert!(rule.restore(state(least - 1, PARAMS)).is_err(), "one vector too few was accepted");
    }
    let empty = spec.rule(PARAMS);
    assert_eq!(state_bits(rule.as_ref()), state_bits(empty.as_ref()), "a refused state left something behind");
}

/// The rule with no average beside it.
fn without_average(spec: &MergeSpec) -> MergeSpec {
    match spec.unaveraged() {
        MergeSpec::Recall { step, recall, .. } => MergeSpec::Recall { step: *step, recall: *recall, average: false },
        rule => rule.clone(),
    }
}

fn an_average_begins_and_ends_while_the_rule_goes_on(spec: &MergeSpec, steps: &[Step]) {
    let (off, on) = (without_average(spec), spec.clone().averaged());
    assert_eq!(without_average(&on), off, "an average changes no other key");
    assert!(on.serves_average() && !off.serves_average());
    assert!(on.keeps_waiting(&off) && off.keeps_waiting(&on), "contributions go on waiting");
    let (mut plain, mut model) = (off.rule(PARAMS), start());
    let (mut switched, mut other) = (off.rule(PARAMS), start());
    let steps = cut_before_closes(steps);
    for (index, step) in steps.iter().enumerate() {
        // The average begins and ends between a contribution and its close, and elsewhere.
        let now = if index % 5 < 3 { &on } else { &off };
        switched.configure(now);
        step.take(plain.as_mut(), &mut model);
        step.take(switched.as_mut(), &mut other);
        assert_eq!(bits(&model), bits(&other), "record {index}: an average moved the model");
        let (vectors, parts) = state_bits(plain.as_ref());
        let (with_average, with_parts) = state_bits(switched.as_ref());
        assert_eq!(with_average[..vectors.len()], vectors, "record {index}: an average changed the rule");
        assert_eq!(with_parts[..parts.len()], parts, "record {index}: an average changed the rule");
        let mut resumed = now.rule(PARAMS);
        resumed.restore(switched.save().into_owned()).expect("a rule takes back what it saved");
        assert_eq!(resumed.served(&other), switched.served(&other), "record {index}: something else is served");
        if now == &off {
            assert_eq!(switched.served(&other), (Served::Model, &other[..]), "record {index}");
        } else if step.closes {
            assert_eq!(switched.served(&other).0, Served::Average, "record {index}");
        }
    }
}

fn weights_are_finite_and_fall_with_staleness(spec: &MergeSpec) {
    for participation in [0.125, 1.0, 8.0] {
        let mut last = f32::INFINITY;
        for staleness in [0, 1, 2, 4, 5, 100, 1 << 40, u64::MAX] {
            let weight = spec.weight(WeightInputs { staleness, participation });
            assert!(weight.is_finite() && weight >= 0.0, "weight {weight} at staleness {staleness}");
            assert!(weight <= last, "staler work weighs more: {weight} at {staleness} after {last}");
            last = weight;
        }
    }
}

fn one_version_moves_the_model_by_its_mean_delta(spec: &MergeSpec) {
    let step = match spec.unaveraged() {
        MergeSpec::FedAsync { alpha, .. } | MergeSpec::Rescaled { alpha, .. } => *alpha,
        MergeSpec::FedBuff { server_lr, .. } | MergeSpec::Ef21 { server_lr } => *server_lr,
        // Of a mean of one, the step along the momentum comes at once.
        MergeSpec::DelayedNesterov { buffer_size: 1, server_lr, momentum, .. } => server_lr * (1.0 + momentum),
        MergeSpec::DelayedNesterov { buffer_size, server_lr, .. } => server_lr / *buffer_size as f32,
        MergeSpec::Fadas { server_lr, beta_1, beta_2, .. } => {
            #[expect(clippy::cast_possible_truncation, reason = "models are f32")]
            let step = (f64::from(*server_lr) * (1.0 - beta_1) / (1.0 - beta_2).sqrt()) as f32;
            step
        }
        MergeSpec::FedAvg { server_lr, .. }
        | MergeSpec::FedProx { server_lr, .. }
        | MergeSpec::FedAvgM { server_lr, .. } => *server_lr,
        MergeSpec::SyncSgd { .. } => 1.0,
        MergeSpec::FedAdam { server_lr, beta_1, beta_2, tau, .. } => {
            let root = (beta_2 * tau * tau + 1.0 - beta_2).sqrt();
            #[expect(clippy::cast_possible_truncation, reason = "models are f32")]
            let step = (f64::from(*server_lr) * (1.0 - beta_1) / (root + tau)) as f32;
            step
        }
        MergeSpec::Averaged(_) => unreachable!("the average is beside the rule"),
        // The first step of one agent: both moments are 1, and so is sigma.
        MergeSpec::Recall { step, .. } => step / 10.0_f32.sqrt() / 1.15 / (1.0_f32 + 1.0 / 130.0).sqrt(),
    };
    let weight = spec.weight(WeightInputs { staleness: 0, participation: 1.0 });
    let (mut rule, mut model) = (spec.rule(PARAMS), vec![0.0; PARAMS]);
    let updates = match spec.closing() {
        Closing::Full(size) => size,
        Closing::Barrier(_) => 3,
    };
    for number in 0..updates {
        let recall = spec.recalling().map(|_| RecallInputs { active: 1, scale: 1.0, recalled: vec![] });
        let (agent, base_dot) = (AgentId([1; 16]), Some(0.0));
        let mean_weight = spec.mean_weight(1 + u64::from(number), 32);
        let memory = spec.keeps_memories().then(|| MemoryInputs {
            active: 1,
            step: 1.0,
            begins: false,
            keeps: true,
            left: vec![],
        });
        let (recall, memory) = (recall.as_ref(), memory.as_ref());
        let arrival = Arrival { agent, weight, mean_weight, staleness: 0, base_dot, recall, memory };
        rule.contribute(&model, &Arc::new(Delta::Dense(vec![1.0; PARAMS])), &arrival);
    }
    rule.close(&mut model);
    let off = model.iter().map(|value| (value - step).abs()).fold(0.0, f32::max);
    assert!(off <= step * 1e-5, "a version of fresh deltas of 1 moved the model by {} instead of {step}", model[0]);
}
