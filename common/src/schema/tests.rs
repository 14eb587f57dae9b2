use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::*;
use crate::spec::{AgentSpec, RunSpec};
use crate::wire::message::RunPhase;

const MAX: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq)]
struct Plan {
    steps: u32,
    codec: Option<u8>,
    name: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Event {
    Started { plan: Plan },
    Ended,
    Moved(u8),
}

layout! {
    struct Plan { steps, codec since 7 or Some(3), name }
    enum Event { 0 = Started { plan }, 1 = Ended, 2 = Moved(place) since 7 }
}

fn plan() -> Plan {
    Plan { steps: 9, codec: None, name: "ä".into() }
}

#[test]
fn an_older_version_lacks_what_came_later() {
    let new = encode_as(7, &plan(), MAX).expect("small");
    assert_eq!(new, [&[9, 0, 0, 0, 0, 2][..], &[0; 7], "ä".as_bytes()].concat());
    assert_eq!(decode_as(7, &new, MAX), Ok(plan()));

    let old = encode_as(6, &plan(), MAX).expect("small");
    assert_eq!(old.len() + 1, new.len(), "the byte of the option");
    assert_eq!(decode_as(6, &old, MAX), Ok(Plan { codec: Some(3), ..plan() }), "what older bytes mean");
    assert_eq!(decode_as::<Plan>(6, &new, MAX), Err(SchemaError::Truncated("a text")));
}

#[test]
fn a_variant_exists_since_its_version() {
    let moved = encode_as(7, &Event::Moved(5), MAX).expect("small");
    assert_eq!(decode_as(7, &moved, MAX), Ok(Event::Moved(5)));
    let unknown = SchemaError::UnknownVariant { kind: "Event", tag: 2 };
    assert_eq!(decode_as::<Event>(6, &moved, MAX), Err(unknown));
    let newer = SchemaError::Newer { kind: "Event", variant: "Moved", version: 6 };
    assert_eq!(encode_as(6, &Event::Moved(5), MAX), Err(newer));
    for event in [Event::Started { plan: plan() }, Event::Ended] {
        let bytes = encode_as(7, &event, MAX).expect("small");
        assert_eq!(decode_as(7, &bytes, MAX), Ok(event));
    }
}

#[test]
fn counts_are_not_believed() {
    let claims = [&u64::MAX.to_le_bytes()[..], &[0; 3]].concat();
    assert_eq!(decode::<Vec<u8>>(&claims, MAX), Err(SchemaError::Truncated("a list")));
    assert_eq!(decode::<Vec<[u8; 32]>>(&claims, MAX), Err(SchemaError::Truncated("a list")));
    assert_eq!(decode::<String>(&claims, MAX), Err(SchemaError::Truncated("a text")));
    assert_eq!(decode::<BTreeMap<u8, u8>>(&claims, MAX), Err(SchemaError::Truncated("a list")));
}

#[test]
fn one_value_has_one_form() {
    let set = BTreeSet::from([3u8, 1, 2]);
    let bytes = encode(&set, MAX).expect("small");
    assert_eq!(&bytes[8..], [1, 2, 3]);
    assert_eq!(decode(&bytes, MAX), Ok(set));
    for other in [[1, 3, 2], [1, 1, 2]] {
        let bytes = [&3u64.to_le_bytes()[..], &other].concat();
        assert!(decode::<BTreeSet<u8>>(&bytes, MAX).is_err(), "{other:?} was read");
    }
    for byte in [2, 255] {
        assert!(decode::<bool>(&[byte], MAX).is_err());
        assert!(decode::<Option<u8>>(&[byte, 0], MAX).is_err());
    }
    assert_eq!(decode::<RunPhase>(&[3, 0, 0, 0, 9], MAX), Err(SchemaError::Trailing(1)));
}

#[test]
fn what_is_stored_by_itself_says_its_version() {
    let bytes = encode_numbered(&7u8, MAX).expect("small");
    assert_eq!(bytes, [&VERSION.to_le_bytes()[..], &[7]].concat());
    assert_eq!(decode_numbered(&bytes, MAX), Ok(7u8));
    assert_eq!(decode_numbered::<u8>(&[1, 0, 7], MAX), Err(SchemaError::Version { found: 1 }));
    assert_eq!(decode_numbered::<u8>(&[5], MAX), Err(SchemaError::Truncated("its version")));
}

#[test]
fn a_configuration_longer_than_any_is_not_parsed() {
    let text = format!("x = [{}]", "1,".repeat(crate::limits::RUN_SPEC_BYTES));
    let bytes = encode(&text, MAX).expect("within a message");
    let error = decode::<AgentSpec>(&bytes, MAX).expect_err("too long");
    assert!(matches!(error, SchemaError::TooLarge { .. }), "{error}");
}

#[test]
fn what_is_too_long_is_neither_written_nor_read() {
    let long = vec![0u8; 93];
    assert_eq!(encode(&long, 100), Err(SchemaError::TooLarge { found: 101, max: 100 }));
    let bytes = encode(&long, MAX).expect("small");
    assert_eq!(decode::<Vec<u8>>(&bytes, 100), Err(SchemaError::TooLarge { found: 101, max: 100 }));
}

fn round_trip<T: Layout + PartialEq + Debug>(value: &T) {
    let bytes = encode(value, MAX).expect("small");
    assert_eq!(decode::<T>(&bytes, MAX).as_ref(), Ok(value));
}

#[test]
fn every_kind_of_value_round_trips() {
    round_trip(&(i64::MIN, u16::MAX, f64::MIN_POSITIVE));
    round_trip(&BTreeMap::from([("b".to_owned(), 1.5f32), (String::new(), -0.0)]));
    round_trip(&std::collections::VecDeque::from([Some(Box::new(true)), None]));
    round_trip(&std::sync::Arc::new([7u8; 5]));
}

const RUN: &str = r#"[run]
name = "clinics"
seed = 9223372036854775807

[model]
kind = "mlp"
input = [2]
classes = 2
hidden = []
input_scale = 0.1

[train]
local_steps = 5
batch_size = 8
keep_optimizer_state = false
target_round_s = 2.5

[train.optimizer]
kind = "sgd"
lr = 0.1
momentum = 0.0

[upload]
feedback_decay = 0.9

[upload.codec]
kind = "top-k"
fraction = 0.05

[merge]
strategy = "fedasync"
alpha = 0.6
participation = false

[merge.staleness]
fn = "polynomial"
a = 0.5

[admit]
max_staleness = 10
max_examples = 1000
max_norm_ratio = 10.0
clip_norm_ratio = 0.0
max_influence = 0.0

[evaluate]
every_versions = 10
every_s = 10.0

[target]
accuracy = 0.97
"#;

#[test]
fn a_configuration_is_its_canonical_text() {
    let spec = RunSpec::from_toml(RUN).expect("a configuration");
    assert_eq!(spec.to_toml().as_deref(), Ok(RUN), "the text is canonical, f32 included");
    let bytes = encode(&spec, MAX).expect("small");
    assert_eq!(&bytes[8..], RUN.as_bytes());
    assert_eq!(decode::<RunSpec>(&bytes, MAX).as_ref(), Ok(&spec));

    let told = spec.for_agents().to_toml().expect("a configuration");
    for table in ["[merge", "[admit]", "[evaluate]", "[target]", "target_round_s"] {
        assert!(RUN.contains(table) && !told.contains(table), "agents are told of {table}: {told}");
    }
    assert_eq!(AgentSpec::from_toml(&told), Ok(spec.for_agents()));
    let error = AgentSpec::from_toml(&told.replace("local_steps", "future_key = 1\nlocal_steps"));
    assert!(error.expect_err("a key of a newer version").to_string().contains("future_key"));
}

#[test]
fn the_largest_seed_has_a_text() {
    round_trip(&RunSpec { seed: u64::MAX, ..RunSpec::from_toml(RUN).expect("a configuration") });
}
