//! Memories by name: which update can be merged, what the EF21 rule is told, and which memories are forgotten.

use anabranch_common::codec::Delta;
use anabranch_common::ids::{BranchId, Digest, Position};
use anabranch_common::journal::{Contribution, Record, RecordBody};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::RunSpec;
use anabranch_common::update::{MemoryMark, RefusalReason, UpdateMeta, Verdict};

use super::world::{World, agent, content, spec};
use crate::core::admit::{Decision, admit};
use crate::core::state::RunState;

fn remembering() -> RunSpec {
    RunSpec { merge: MergeSpec::Ef21 { server_lr: 1.0 }, ..spec() }
}

fn mark(state: &RunState, n: u8) -> MemoryMark {
    state.agents[&agent(n)].memory
}

/// Merges an update of agent `n` against what its lease says, or against `other`. Returns what it is journalled as.
fn merge(world: &mut World, n: u8, seq: u64, other: Option<MemoryMark>) -> Contribution {
    let lease = world.lease(n);
    assert_eq!(lease.plan.memory, Some(mark(world.state(), n)), "the lease says the memory that is there");
    let meta = UpdateMeta { memory: other.or(lease.plan.memory), ..world.meta(n, seq, &lease) };
    let values = [f32::from(n); 4];
    let Decision::Accept(contribution) = admit(world.state(), &meta, Some(&Ok(&content(Delta::Dense(values.into())))))
    else {
        panic!("an honest update is accepted")
    };
    let before = if contribution.memory.as_ref().is_some_and(|inputs| inputs.begins) {
        MemoryMark::EMPTY
    } else {
        mark(world.state(), n)
    };
    world.receive(n, &meta, values);
    world.journal();
    assert_eq!(mark(world.state(), n), before.with(meta.payload_digest, contribution.weight));
    *contribution
}

fn after(state: &RunState, body: RecordBody) -> RunState {
    let mut state = state.clone();
    let record = Record::new(state.position.next(), 0, body, [].into());
    state.apply(&record).expect("it may follow");
    state
}

#[test]
fn a_memory_is_named_by_what_was_accepted() {
    let mut world = World::started_with(remembering(), 2);
    assert!(world.lease(1).plan.memory == Some(MemoryMark::EMPTY));
    let inputs: Vec<_> = (0..3).map(|seq| merge(&mut world, 1, seq, None).memory.expect("the rule is EF21")).collect();
    assert_eq!(inputs.iter().map(|inputs| inputs.begins).collect::<Vec<_>>(), [true, false, false]);
    assert!(inputs.iter().all(|inputs| inputs.active == 2 && inputs.left.is_empty()), "{inputs:?}");
    let lost = merge(&mut world, 1, 3, Some(MemoryMark::EMPTY)).memory.expect("the rule is EF21");
    assert!(lost.begins, "the agent has lost it");
    assert_eq!(world.replayed(), *world.state(), "the fold over the records knows it all");
    let before = mark(world.state(), 1);
    world = world.restarted();
    assert_eq!(mark(world.state(), 1), before, "and a checkpoint does");
}

#[test]
fn a_difference_against_a_memory_that_is_not_there_is_refused() {
    let mut world = World::started_with(remembering(), 2);
    merge(&mut world, 1, 0, None);
    let lease = world.lease(1);
    let meta = UpdateMeta { memory: Some(MemoryMark(Digest([7; 32]))), ..world.meta(1, 1, &lease) };
    world.offer(1, &meta);
    world.journal();
    assert_eq!(world.last_verdict(), Some(Verdict::Refused { reason: RefusalReason::UnknownMemory }));
    assert!(!RefusalReason::UnknownMemory.content_returns());

    let mut other = World::started_with(spec(), 1);
    let lease = other.lease(1);
    assert_eq!(lease.plan.memory, None, "the rule keeps none");
    let meta = UpdateMeta { memory: Some(MemoryMark(Digest([7; 32]))), ..other.meta(1, 0, &lease) };
    other.offer(1, &meta);
    other.journal();
    assert_eq!(other.last_verdict(), Some(Verdict::Refused { reason: RefusalReason::UnknownMemory }));
}

#[test]
fn memories_of_agents_that_are_gone_are_forgotten_with_the_next_update() {
    let mut world = World::started_with(remembering(), 3);
    (1..=3).for_each(|n| drop(merge(&mut world, n, 0, None)));
    let state = after(world.state(), RecordBody::AgentRevoked { agent: agent(3) });
    let inputs = state.memory_inputs(agent(1), Some(mark(&state, 1))).expect("the rule is EF21");
    assert_eq!((inputs.active, inputs.left), (2, vec![agent(3)]));
    let own = state.memory_inputs(agent(3), None).expect("the rule is EF21");
    assert_eq!(own.left, [], "an agent does not leave with its own update");
}

#[test]
fn another_model_and_another_rule_begin_without_memories() {
    let mut world = World::started_with(remembering(), 2);
    merge(&mut world, 1, 0, None);
    let state = world.state();
    let (model, version) = (Digest::default(), state.version.next());
    let imported = after(state, RecordBody::Imported { model, version, norm: 1.0, copied: None });
    assert_eq!(mark(&imported, 1), MemoryMark::EMPTY);
    let branch = BranchId([9; 16]);
    let branched = RecordBody::Branched { branch, from: Position(0), version: state.version, norm: 1.0, examples: 0 };
    assert_eq!(mark(&after(state, branched), 1), MemoryMark::EMPTY);
    let other = after(state, RecordBody::ConfigChanged { spec: Box::new(spec()) });
    assert_eq!(mark(&other, 1), MemoryMark::EMPTY);
    let same = RunSpec { merge: MergeSpec::Ef21 { server_lr: 0.5 }.averaged(), ..remembering() };
    let same = after(state, RecordBody::ConfigChanged { spec: Box::new(same) });
    assert_eq!(mark(&same, 1), mark(state, 1), "another step changes nothing");
}

/// A model of so many parameters that two memories fit, and one that leaves room for one alone.
#[test]
fn agents_that_have_a_memory_keep_it_and_others_get_none_where_there_is_no_room() {
    let mut world = World::started_with(remembering(), 4);
    (1..=2).for_each(|n| drop(merge(&mut world, n, 0, None)));
    let mut state = world.state().clone();
    let large = |params: u64| {
        let tensor = TensorSpec { name: "w".into(), shape: vec![params] };
        ModelManifest::new(vec![tensor]).expect("valid")
    };
    let keeps = |state: &RunState| {
        [1, 2, 3].map(|n| {
            let inputs = state.memory_inputs(agent(n), None).expect("the rule is EF21");
            assert_eq!(inputs.left, [], "nobody makes room");
            inputs.keeps
        })
    };
    assert_eq!(keeps(&state), [true; 3]);
    state.manifest = large(32 << 20);
    assert_eq!(keeps(&state), [true, true, false]);
    let inputs = state.memory_inputs(agent(3), None);
    let mut contribution = merge(&mut world, 3, 0, None);
    contribution.memory = inputs;
    state.move_memories(&contribution);
    assert_eq!(mark(&state, 3), MemoryMark::EMPTY, "what it has sent is forgotten after its close");
}

/// Who comes often would else step as often along what the others have sent long ago.
#[test]
fn an_agent_that_reports_more_often_than_its_part_steps_less_far() {
    let mut world = World::started_with(remembering(), 3);
    let steps: Vec<f32> =
        (0..40).map(|seq| merge(&mut world, 1, seq, None).memory.expect("the rule is EF21").step).collect();
    assert!(steps.is_sorted_by(|one, next| one >= next) && steps[39] < 0.5 * steps[0], "{steps:?}");
    assert_eq!(merge(&mut world, 2, 0, None).memory.map(|inputs| inputs.step), Some(1.0));
}
