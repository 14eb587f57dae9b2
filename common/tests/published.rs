//! Published rules against values that `tests/reference/published.py` computed: dense, in f64, from the papers' forms.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::AgentId;
use anabranch_common::merge::shares::Shares;
use anabranch_common::merge::staleness::Staleness;
use anabranch_common::merge::{Arrival, MergeSpec, WeightInputs};
use serde::Deserialize;

/// Largest difference, in the model's largest entry.
const CLOSE: f64 = 1e-5;

#[derive(Deserialize)]
struct Reference {
    start: Vec<f32>,
    arrivals: Vec<Update>,
    /// The model after each arrival, by the name of the rule.
    #[serde(flatten)]
    models: BTreeMap<String, Vec<Vec<f64>>>,
}

#[derive(Deserialize)]
struct Update {
    agent: u8,
    staleness: u64,
    delta: Vec<f32>,
    rescaled_weight: f64,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("reference/published.json")).expect("the file is whole")
}

fn agent(number: u8) -> AgentId {
    AgentId([number; 16])
}

/// Merges every update with the weight that `weigh` gives it, and compares the model after each.
fn assert_reference(name: &str, spec: &MergeSpec, mut weigh: impl FnMut(&Update) -> f32) {
    let Reference { start, arrivals, models } = reference();
    let expected = &models[name];
    assert_eq!(expected.len(), arrivals.len());
    let (mut rule, mut model, mut waiting) = (spec.rule(start.len()), start, 0);
    for (after, (update, expected)) in arrivals.iter().zip(expected).enumerate() {
        let (agent, weight, staleness) = (agent(update.agent), weigh(update), update.staleness);
        let arrival = Arrival { agent, weight, mean_weight: 0, staleness, base_dot: None, recall: None, memory: None };
        rule.contribute(&model, &Arc::new(Delta::Dense(update.delta.clone())), &arrival);
        waiting += 1;
        if spec.is_full(waiting) {
            rule.close(&mut model);
            waiting = 0;
        }
        let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        for (at, (found, expected)) in model.iter().zip(expected).enumerate() {
            let off = (f64::from(*found) - expected).abs();
            assert!(off <= CLOSE * largest, "{name}: x[{at}] after {after} is {found}, expected {expected}");
        }
    }
}

#[test]
fn delayed_nesterov_gives_the_reference_values() {
    let (staleness, participation) = (Staleness::Constant, false);
    let spec = MergeSpec::DelayedNesterov { buffer_size: 4, server_lr: 0.7, momentum: 0.9, staleness, participation };
    let inputs = |update: &Update| WeightInputs { staleness: update.staleness, participation: 1.0 };
    assert_reference("delayed-nesterov", &spec, |update| spec.weight(inputs(update)));
}

#[test]
fn fadas_gives_the_reference_values() {
    let (beta_1, beta_2, epsilon) = (0.9, 0.99, 1e-8);
    let spec = MergeSpec::Fadas { buffer_size: 4, server_lr: 0.4, beta_1, beta_2, epsilon, tau_c: 1 };
    let inputs = |update: &Update| WeightInputs { staleness: update.staleness, participation: 1.0 };
    assert_reference("fadas", &spec, |update| spec.weight(inputs(update)));
}

#[test]
fn the_rescaled_rule_gives_the_reference_values() {
    let spec = MergeSpec::Rescaled { alpha: 0.6, staleness: Staleness::Constant };
    let mut shares = Shares::of((0..4).map(|number| (agent(number), 100)));
    let mut weights = Vec::new();
    assert_reference("rescaled", &spec, |update| {
        let participation = shares.rescale(agent(update.agent), 100);
        shares.arrive(agent(update.agent), 100);
        let weight = spec.weight(WeightInputs { staleness: update.staleness, participation });
        let off = f64::from(weight) / update.rescaled_weight - 1.0;
        assert!(off.abs() < 1e-6, "weight {weight}, expected {}", update.rescaled_weight);
        weights.push(weight);
        weight
    });
    assert!(weights.contains(&(0.6 * 8.0)), "the reference has an agent that is slow enough: {weights:?}");
}
