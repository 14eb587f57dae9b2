//! What the recall rule is told at admission.

use anabranch_common::codec::{CodecSpec, Delta};
use anabranch_common::ids::{BranchId, Digest, Epoch, Incarnation, ModelVersion, Position};
use anabranch_common::journal::{Aggregate, Contribution, Record, RecordBody};
use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::{AdmitSpec, RunSpec, UploadSpec};
use anabranch_common::update::{RefusalReason, UpdateMeta};

use super::world::{World, agent, content, spec};
use crate::core::admit::{Decision, admit};
use crate::core::state::RunState;

fn recalling() -> RunSpec {
    RunSpec { merge: MergeSpec::Recall { step: 23.0, recall: true, average: true }, ..spec() }
}

/// What an update of agent `n` with such values would be journalled as.
fn admitted(world: &mut World, n: u8, seq: u64, values: [f32; 4]) -> Contribution {
    let lease = world.lease(n);
    assert!(lease.plan.base_dot, "the plan asks for the product with the base");
    let meta = UpdateMeta { base_dot: Some(0.5), ..world.meta(n, seq, &lease) };
    let received = content(Delta::Dense(values.to_vec()));
    let Decision::Accept(contribution) = admit(world.state(), &meta, Some(&Ok(&received))) else {
        panic!("an honest update is accepted")
    };
    world.receive(n, &meta, values);
    world.journal();
    *contribution
}

#[test]
fn a_contribution_says_who_is_active_and_whom_to_recall() {
    let mut world = World::started_with(recalling(), 2);
    let first = admitted(&mut world, 2, 0, [1.0; 4]);
    let recall = first.recall.expect("the rule is recall");
    assert_eq!((recall.active, recall.scale, recall.recalled.len()), (2, 1.0, 0), "its share is above its part");
    let later: Vec<Contribution> = (0..12).map(|seq| admitted(&mut world, 1, seq, [1.0; 4])).collect();
    let weights: Vec<f32> = later.iter().map(|update| update.weight).collect();
    assert!(weights.is_sorted_by(|earlier, later| earlier > later) && weights[0] < 1.0, "{weights:?}");
    let last = later.last().and_then(|update| update.recall.clone()).expect("the rule is recall");
    assert_eq!(last.recalled.len(), 1, "{last:?}");
    assert!(last.recalled[0].agent == agent(2) && last.recalled[0].factor > 0.0, "{last:?}");
    assert_eq!(world.replayed(), *world.state(), "the fold over the records knows it all");
    let before = world.state().shares.clone();
    world = world.restarted();
    assert_eq!(world.state().shares, before, "and a checkpoint does");
}

#[test]
fn a_clipped_update_becomes_a_clipped_memory() {
    let admit = AdmitSpec { clip_norm_ratio: 2.0, ..spec().admit };
    let mut world = World::started_with(RunSpec { admit, ..recalling() }, 3);
    (1..=3).for_each(|n| drop(admitted(&mut world, n, 0, [1.0; 4])));
    let large = admitted(&mut world, 3, 1, [8.0; 4]);
    let recall = large.recall.expect("the rule is recall");
    assert_eq!(recall.scale, 0.25, "16 is clipped to twice the usual 2");
    assert!(large.weight <= 0.25 && large.weight > 0.0, "{}", large.weight);
}

/// An agent that reports rarely has more to say at a time.
#[test]
fn the_usual_norm_knows_how_often_an_agent_reports() {
    let limits =
        |rare_norm_ratio| AdmitSpec { max_norm_ratio: 4.0, clip_norm_ratio: 1.0, rare_norm_ratio, ..spec().admit };
    let scale_of_the_slow = |rare_norm_ratio| {
        let mut world = World::started_with(RunSpec { admit: limits(rare_norm_ratio), ..recalling() }, 3);
        (1..=3).for_each(|n| drop(admitted(&mut world, n, 0, [1.0; 4])));
        (1..30).for_each(|seq| (1..=2).for_each(|n| drop(admitted(&mut world, n, seq, [1.0; 4]))));
        let lease = world.lease(3);
        let decide = |value: f32| {
            let received = content(Delta::Dense(vec![value; 4]));
            match admit(world.state(), &world.meta(3, 1, &lease), Some(&Ok(&received))) {
                Decision::Accept(contribution) => contribution.recall.map(|inputs| inputs.scale),
                _ => None,
            }
        };
        (decide(1.0), decide(2.0), decide(3.0), decide(6.0))
    };
    assert_eq!(scale_of_the_slow(0.0), (Some(1.0), Some(0.5), Some(1.0 / 3.0), None));
    let (one, two, three, six) = scale_of_the_slow(2.0);
    assert_eq!((one, two), (Some(1.0), Some(1.0)), "it reports less than half as often as the mean");
    assert_eq!((three, six.map(|scale| scale < 0.34)), (Some(2.0 / 3.0), Some(true)), "and no more than that");
}

#[test]
fn a_product_that_is_not_finite_is_malformed() {
    let mut world = World::started_with(recalling(), 1);
    let lease = world.lease(1);
    for product in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let meta = UpdateMeta { base_dot: Some(product), ..world.meta(1, 0, &lease) };
        assert_eq!(admit(world.state(), &meta, None), Decision::Refuse(RefusalReason::Malformed), "{product}");
    }
    let meta = UpdateMeta { base_dot: None, ..world.meta(1, 0, &lease) };
    assert_eq!(admit(world.state(), &meta, None), Decision::Fetch, "an older plan did not ask for it");
}

/// Applies one more record.
fn after(state: &RunState, body: RecordBody) -> RunState {
    let mut state = state.clone();
    state.apply(&Record::new(state.position.next(), 0, body, [].into())).expect("it follows");
    state
}

#[test]
fn shares_follow_the_fleet_and_the_rule() {
    let mut world = World::started_with(recalling(), 3);
    (0..4).for_each(|seq| drop(admitted(&mut world, 1, seq, [1.0; 4])));
    let state = world.state();
    assert_eq!(state.shares.active(), 3);
    let revoked = after(state, RecordBody::AgentRevoked { agent: agent(3) });
    assert_eq!((revoked.shares.active(), revoked.shares.part(agent(3))), (2, None));
    let epoch = |examples_held| RecordBody::EpochStarted {
        agent: agent(3),
        epoch: Epoch(2),
        incarnation: Incarnation([3; 16]),
        examples_held,
        eval_examples: 10,
    };
    let judging = after(state, epoch(0));
    assert_eq!((judging.shares.active(), judging.shares.part(agent(3))), (2, None), "it only evaluates");
    assert_eq!(after(&judging, epoch(10)).shares.active(), 3);
    let without = after(&judging, RecordBody::ConfigChanged { spec: Box::new(spec()) });
    let anew = after(&without, RecordBody::ConfigChanged { spec: Box::new(recalling()) });
    assert_eq!(anew.shares.active(), 2, "another rule's end does not count it either");
    let model = Digest::default();
    let imported = after(state, RecordBody::Imported { model, version: state.version.next(), norm: 1.0, copied: None });
    assert_eq!(imported.shares.part(agent(1)).map(|(.., interval)| interval), Some(0), "memories are of another model");
    let other = Box::new(RunSpec { merge: spec().merge, ..recalling() });
    let other = after(state, RecordBody::ConfigChanged { spec: other });
    assert_eq!(other.shares.active(), 0, "the other rules keep no shares");
    let back = after(&other, RecordBody::ConfigChanged { spec: Box::new(recalling()) });
    assert_eq!((back.shares.active(), back.shares.sums().1), (3, 0), "all that are there, and no update");
    let upload = UploadSpec { codec: CodecSpec::F32, ..recalling().upload };
    let same = after(state, RecordBody::ConfigChanged { spec: Box::new(RunSpec { upload, ..recalling() }) });
    assert_eq!(same.shares, state.shares, "another setting changes nothing");
}

fn aggregate(version: ModelVersion) -> Aggregate {
    let (num_examples, covered_examples, known_examples) = (10, 10, 10);
    let (accuracy, loss, evaluators) = (0.5, 0.5, 1);
    Aggregate { version, accuracy, loss, evaluators, num_examples, covered_examples, known_examples }
}

/// What was evaluated of the version was its average, and the average begins anew at its model.
#[test]
fn after_a_rollback_evaluations_of_that_version_count_where_the_model_itself_is_served() {
    for (spec, left) in [(recalling(), 1), (spec(), 2)] {
        let mut state = World::started_with(spec, 1).state().clone();
        for version in (0..3).map(ModelVersion) {
            state = after(&state, RecordBody::Aggregated(aggregate(version)));
        }
        let (branch, version) = (BranchId([9; 16]), ModelVersion(1));
        let body = RecordBody::Branched { branch, from: Position(0), version, norm: 1.0, examples: 0 };
        assert_eq!(after(&state, body).aggregates.len(), left);
    }
}

/// A target must not be reached by another vector than the one that is exported.
#[test]
fn what_was_evaluated_of_the_newest_version_does_not_count_for_another_vector_of_it() {
    let averaged = RunSpec { merge: spec().merge.averaged(), ..spec() };
    for (before, then, left) in
        [(spec(), &averaged, 1), (averaged.clone(), &spec(), 1), (averaged.clone(), &averaged, 2)]
    {
        let mut world = World::started_with(before, 1);
        world.make_version(1, 0);
        let mut state = world.state().clone();
        for version in [ModelVersion(0), state.version] {
            state = after(&state, RecordBody::Aggregated(aggregate(version)));
        }
        let state = after(&state, RecordBody::ConfigChanged { spec: Box::new(then.clone()) });
        assert_eq!(state.aggregates.len(), left);
    }
}
