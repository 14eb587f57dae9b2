//! A run, and what is estimated of it.

use std::time::Duration;

use anabranch_common::spec::{AgentSpec, ModelKind, ModelSpec};
use anabranch_common::wire::message::RunPhase;

use super::*;

/// A run of an MLP with batches of so many examples.
pub(in crate::doctor) fn facts(batch_size: u32) -> RunFacts {
    let mut spec = AgentSpec::from_toml(crate::session::SPEC_FOR_TESTS).expect("the specification of the tests");
    spec.model =
        ModelSpec { kind: ModelKind::Mlp, input: vec![784], classes: 10, hidden: vec![128], ..ModelSpec::default() };
    spec.train.batch_size = batch_size;
    RunFacts { spec, params: None, state: RunPhase::Running }
}

#[test]
fn an_estimate_names_its_parts() {
    let run = facts(16);
    let params = params(&run).expect("a native model");
    let known = Known {
        ahead_ms: Some(0),
        round_trip: Some(Duration::from_millis(50)),
        bits_per_s: Some(params as f64 * MODEL_BITS),
        run: Some(run),
    };
    let cpu = Device::Cpu { name: "A".into(), cores: 1, instead_of: None };
    let finding = first_update(&known, 1_000_000_000, &cpu);
    assert!(finding.measured.contains("connect 200 ms, model 1.0 s, round at least"), "{}", finding.measured);
    let gpu = first_update(&known, 1_000_000_000, &Device::Gpu { name: "G".into() });
    assert!(gpu.measured.contains("the round itself not counted"), "{}", gpu.measured);
    let unknown = first_update(&Known::default(), 1, &cpu);
    assert!(unknown.measured.contains("join first"), "{}", unknown.measured);
}
