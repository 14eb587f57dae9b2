//! The EF21 rule against values that `tests/reference/ef21.py` computed: dense, in f64, from the papers' forms.

use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::AgentId;
use anabranch_common::merge::ef21::{MemoryInputs, read_parts};
use anabranch_common::merge::{Arrival, MergeSpec};
use serde::Deserialize;

/// Largest difference, in the model's largest entry.
const CLOSE: f64 = 1e-5;

#[derive(Deserialize)]
struct Reference {
    start: Vec<f32>,
    arrivals: Vec<Update>,
    /// The model after each arrival.
    models: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Update {
    agent: u8,
    examples: u64,
    begins: bool,
    keeps: bool,
    step: f32,
    left: Vec<u8>,
    weight: f32,
    places: Vec<u32>,
    values: Vec<f32>,
    factor: f64,
}

fn agent(number: u8) -> AgentId {
    AgentId([number; 16])
}

#[test]
fn the_rule_gives_the_reference_values() {
    let text = include_str!("reference/ef21.json");
    let Reference { start, arrivals, models } = serde_json::from_str(text).expect("the file is whole");
    assert_eq!(arrivals.len(), models.len());
    let spec = MergeSpec::Ef21 { server_lr: 0.8 };
    let (mut rule, mut model) = (spec.rule(start.len()), start);
    for (after, (update, expected)) in arrivals.into_iter().zip(&models).enumerate() {
        let Update { agent: number, examples, begins, keeps, step, left, weight, places, values, factor } = update;
        let inputs = MemoryInputs { active: 5, step, begins, keeps, left: left.into_iter().map(agent).collect() };
        let arrival = Arrival {
            agent: agent(number),
            weight,
            mean_weight: examples,
            staleness: 0,
            base_dot: None,
            recall: None,
            memory: Some(&inputs),
        };
        let delta = Delta::Sparse { len: model.len(), indices: places, values };
        rule.contribute(&model, &Arc::new(delta), &arrival);
        let (_, memories) = read_parts(&rule.save().parts, model.len()).expect("as it was saved");
        rule.close(&mut model);
        let found = memories[&agent(number)].factor;
        assert!((found - factor).abs() <= CLOSE, "factor {found} after {after}, expected {factor}");
        let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        for (at, (found, expected)) in model.iter().zip(expected).enumerate() {
            let off = (f64::from(*found) - expected).abs();
            assert!(off <= CLOSE * largest, "x[{at}] after {after} is {found}, expected {expected}");
        }
    }
}
