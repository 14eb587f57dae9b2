//! The rules behind a barrier against values that `tests/reference/rounds.py` computed: dense, in f64, from the papers'
//! forms. Synchronous SGD is compared with one machine that steps on the joined batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::AgentId;
use anabranch_common::merge::barrier::Barrier;
use anabranch_common::merge::{Arrival, MergeRule, MergeSpec, WeightInputs};
use serde::Deserialize;

/// Largest difference, in the model's largest entry.
const CLOSE: f64 = 1e-6;

#[derive(Deserialize)]
struct Reference {
    start: Vec<f32>,
    rounds: Vec<Round>,
    sync_sgd: Vec<Step>,
}

/// A round, and the model after it by the name of the rule.
#[derive(Deserialize)]
struct Round {
    updates: Vec<Update>,
    models: BTreeMap<String, Vec<f64>>,
}

/// A round of synchronous SGD.
#[derive(Deserialize)]
struct Step {
    updates: Vec<Update>,
    model: Vec<f64>,
}

#[derive(Deserialize)]
struct Update {
    examples: u64,
    delta: Vec<f32>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("reference/rounds.json")).expect("the file is whole")
}

/// Merges one round, whose agents hold and have trained on as many examples as it says.
fn merge(spec: &MergeSpec, rule: &mut dyn MergeRule, model: &mut [f32], updates: &[Update]) {
    for (number, Update { examples, delta }) in (0..).zip(updates) {
        let weight = spec.weight(WeightInputs { staleness: 0, participation: 1.0 });
        let (agent, mean_weight) = (AgentId([number; 16]), spec.mean_weight(*examples, *examples));
        let arrival = Arrival { agent, weight, mean_weight, staleness: 0, base_dot: None, recall: None, memory: None };
        rule.contribute(model, &Arc::new(Delta::Dense(delta.clone())), &arrival);
    }
    rule.close(model);
}

fn assert_close(what: &str, model: &[f32], expected: &[f64]) {
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    for (at, (found, expected)) in model.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - expected).abs();
        assert!(off <= CLOSE * largest, "{what}: x[{at}] is {found}, expected {expected}");
    }
}

fn assert_reference(name: &str, spec: &MergeSpec) {
    let Reference { start, rounds, .. } = reference();
    let (mut rule, mut model) = (spec.rule(start.len()), start);
    for (number, round) in rounds.iter().enumerate() {
        merge(spec, rule.as_mut(), &mut model, &round.updates);
        assert_close(&format!("{name} after round {number}"), &model, &round.models[name]);
    }
}

#[test]
fn fedavg_gives_the_reference_values() {
    let barrier = Barrier::default();
    assert_reference("fedavg", &MergeSpec::FedAvg { server_lr: 0.7, barrier });
    assert_reference("fedavg", &MergeSpec::FedProx { mu: 0.1, server_lr: 0.7, barrier });
}

#[test]
fn fedavgm_gives_the_reference_values() {
    let barrier = Barrier::default();
    assert_reference("fedavgm", &MergeSpec::FedAvgM { server_lr: 0.7, momentum: 0.9, barrier });
}

#[test]
fn fedadam_gives_the_reference_values() {
    let (beta_1, beta_2, tau, barrier) = (0.9, 0.99, 1e-3, Barrier::default());
    assert_reference("fedadam", &MergeSpec::FedAdam { server_lr: 0.1, beta_1, beta_2, tau, barrier });
}

#[test]
fn synchronous_sgd_is_one_machine_with_the_joined_batch() {
    let Reference { start, sync_sgd, .. } = reference();
    let spec = MergeSpec::SyncSgd { barrier: Barrier::default() };
    let (mut rule, mut model) = (spec.rule(start.len()), start);
    for (number, step) in sync_sgd.iter().enumerate() {
        merge(&spec, rule.as_mut(), &mut model, &step.updates);
        assert_close(&format!("step {number}"), &model, &step.model);
    }
}
