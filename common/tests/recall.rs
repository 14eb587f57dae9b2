//! The recall rule against values that `tests/reference/recall.py` computed: dense, in f64, from the rule's description.

use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::AgentId;
use anabranch_common::merge::recall::{RecallInputs, read_parts};
use anabranch_common::merge::shares::{Recalling, Shares};
use anabranch_common::merge::{Arrival, MergeSpec, Served};
use serde::Deserialize;

/// Largest relative difference.
const CLOSE: f64 = 1e-5;

#[derive(Deserialize)]
struct Reference {
    examples: Vec<u64>,
    start: Vec<f32>,
    arrivals: Vec<Update>,
    looks: Vec<Look>,
}

#[derive(Deserialize)]
struct Update {
    agent: u8,
    places: Vec<u32>,
    values: Vec<f32>,
    base_dot: f64,
    scale: f32,
    staleness: u64,
    weight: f64,
    recalled: Vec<(u8, f64)>,
}

#[derive(Deserialize)]
struct Look {
    after: usize,
    x: Vec<f64>,
    average: Vec<f64>,
    sigma: f64,
    lag: f64,
}

fn agent(number: u8) -> AgentId {
    AgentId([number; 16])
}

fn is_close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= CLOSE * expected.abs()
}

/// Compares vectors: to the largest entry, since entries near 0 are differences.
fn assert_close(what: &str, after: usize, found: &[f32], expected: &[f64]) {
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - expected).abs();
        assert!(off <= CLOSE * largest, "{what}[{at}] after {after} is {found}, expected {expected}");
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn the_rule_gives_the_reference_values() {
    let text = include_str!("reference/recall.json");
    let Reference { examples, start, arrivals, looks } = serde_json::from_str(text).expect("the file is whole");
    let spec = MergeSpec::Recall { step: 14.0, recall: true, average: true };
    let (mut rule, mut model) = (spec.rule(start.len()), start);
    let mut shares = Shares::of((0..).map(agent).zip(examples.iter().copied()));
    let mut seen = 0;
    for (after, update) in (1..).zip(&arrivals) {
        let Update { agent: number, scale, staleness, .. } = *update;
        let held = examples[usize::from(number)];
        let admitted = shares.admit(agent(number), held, Recalling::On);
        assert!(is_close(admitted.weight, update.weight), "weight {} of arrival {after}", admitted.weight);
        let recalled = &admitted.inputs.recalled;
        assert_eq!(recalled.len(), update.recalled.len(), "arrival {after} recalls {recalled:?}");
        for (found, (expected, factor)) in recalled.iter().zip(&update.recalled) {
            assert!(
                found.agent == agent(*expected) && is_close(f64::from(found.factor), *factor),
                "{found:?}, {factor}"
            );
        }
        shares.arrive(agent(number), held);
        let (indices, values) = (update.places.clone(), update.values.clone());
        let delta = Arc::new(Delta::Sparse { len: model.len(), indices, values });
        let inputs = RecallInputs { scale, ..admitted.inputs };
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        let weight = admitted.weight as f32 * scale;
        let (base_dot, recall) = (Some(update.base_dot), Some(&inputs));
        let (agent, mean_weight) = (agent(number), 0);
        let arrival = Arrival { agent, weight, mean_weight, staleness, base_dot, recall, memory: None };
        rule.contribute(&model, &delta, &arrival);
        rule.close(&mut model);
        if let Some(look) = looks.iter().find(|look| look.after == after) {
            seen += 1;
            assert_close("x", after, &model, &look.x);
            let (served, average) = rule.served(&model);
            assert_eq!(served, Served::Average);
            assert_close("average", after, average, &look.average);
            let (figures, memories) = read_parts(&rule.save().parts, model.len()).expect("as it was saved");
            assert!(is_close(figures.sigma, look.sigma), "sigma after {after} is {}", figures.sigma);
            assert!((figures.lag - look.lag).abs() <= CLOSE, "lag after {after} is {}", figures.lag);
            assert!(memories.len() <= examples.len());
        }
    }
    assert_eq!(seen, looks.len());
    let faded = arrivals.last().and_then(|update| update.recalled.iter().find(|(number, _)| *number == 4));
    assert!(faded.is_some_and(|(_, factor)| *factor < 0.1), "the reference has an agent that has faded: {faded:?}");
}
