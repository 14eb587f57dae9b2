//! What leases plan follows from the records before them, whichever process grants them.

use anabranch_common::codec::{CodecSpec, Delta};
use anabranch_common::ids::{BranchId, ModelVersion, Position};
use anabranch_common::journal::{Plan, Record, RecordBody};
use anabranch_common::merge::MergeSpec;
use anabranch_common::spec::{
    AdaptiveSpec, AdmitSpec, LrSchedule, RunSpec, ScheduleUnit, TargetSpec, TrainSpec, UploadSpec,
};
use anabranch_common::update::{RefusalReason, UpdateMeta, Verdict};
use anabranch_common::wire::message::CoordinatorMessage;

use anabranch_testkit::lease::PLAN;

use super::world::{World, content, spec};
use crate::core::event::{Event, PeerId};

fn scheduled(schedule: LrSchedule) -> RunSpec {
    let train = TrainSpec { schedule: Some(schedule), batch_size: 32, ..spec().train };
    RunSpec { train, target: TargetSpec { versions: Some(8), ..TargetSpec::default() }, ..spec() }
}

/// Halves the rate after every two units.
fn halving(over: ScheduleUnit, every: u64) -> LrSchedule {
    LrSchedule::Step { over, warmup: 0, every, factor: 0.5 }
}

/// Agent `n` takes a lease and contributes under it. The lease's plan.
fn round(world: &mut World, n: u8, seq: u64) -> Plan {
    let lease = world.lease(n);
    let meta = world.meta(n, seq, &lease);
    world.receive(n, &meta, [lease.plan.lr_factor; 4]);
    world.journal();
    lease.plan
}

#[test]
fn a_lease_has_the_factor_of_its_base_and_a_new_process_plans_the_same() {
    let mut world = World::started_with(scheduled(halving(ScheduleUnit::Versions, 2)), 1);
    let mut plans: Vec<Plan> = (0..3).map(|seq| round(&mut world, 1, seq)).collect();
    assert_eq!(world.replayed(), *world.state(), "the fold over the records knows it all");
    world = world.restarted();
    world.connect(PeerId(1), 1);
    world.journal();
    plans.extend((3..5).map(|seq| round(&mut world, 1, seq)));
    assert_eq!(plans.iter().map(|plan| plan.lr_factor).collect::<Vec<_>>(), [1.0, 1.0, 0.5, 0.5, 0.25]);
    assert_eq!(plans.iter().map(|plan| plan.round).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(plans[4].progress, Some(0.5), "version 4 of 8");
    assert_eq!(plans[0].local_steps, spec().train.local_steps);
}

/// A round's number counts the leases of its agent: those of others, and those that came to
/// nothing too.
#[test]
fn rounds_are_counted_for_each_agent_and_without_a_target_there_is_no_progress() {
    let mut world = World::started(2);
    assert_eq!(round(&mut world, 1, 0), Plan { weight: 0.5, codec: CodecSpec::Bf16, ..PLAN });
    assert_eq!(round(&mut world, 2, 0).round, 0);
    assert_eq!(world.lease(1).plan.round, 1, "this one is asked for again, and superseded");
    assert_eq!(world.lease(1).plan.round, 2);
}

#[test]
fn examples_are_those_of_merged_updates_and_a_rollback_takes_them_back() {
    let mut world = World::started_with(scheduled(halving(ScheduleUnit::Examples, 64)), 1);
    // 32 examples each.
    let factors: Vec<f32> = (0..4).map(|seq| round(&mut world, 1, seq).lr_factor).collect();
    assert_eq!(factors, [1.0, 1.0, 0.5, 0.5]);
    let mut state = world.state().clone();
    assert_eq!(state.examples, 128);
    let (branch, version) = (BranchId([9; 16]), ModelVersion(1));
    let body = RecordBody::Branched { branch, from: Position(0), version, norm: 1.0, examples: 32 };
    let record = Record::new(state.position.next(), 0, body, [].into());
    state.apply(&record).expect("follows");
    assert_eq!(state.plan(super::agent(1), version).lr_factor.to_bits(), 1.0f32.to_bits());
}

/// Whoever says that it used more examples than its lease asked for moves no schedule.
#[test]
fn a_claim_of_many_examples_does_not_end_the_schedule() {
    let mut spec = scheduled(halving(ScheduleUnit::Examples, 64));
    spec.admit.max_examples = u64::MAX;
    let mut world = World::started_with(spec, 1);
    for seq in 0..3 {
        let lease = world.lease(1);
        let meta = UpdateMeta { num_examples: u64::MAX, ..world.meta(1, seq, &lease) };
        world.receive(1, &meta, [lease.plan.lr_factor; 4]);
        world.journal();
    }
    assert_eq!(world.state().examples, 3 * 32, "a batch of 32 for each lease of one step");
}

/// What waits in the merge buffer is in no version, and a rollback drops it: it is no progress yet.
#[test]
fn examples_that_wait_in_the_buffer_count_with_their_version() {
    let merge =
        MergeSpec::FedBuff { buffer_size: 2, server_lr: 1.0, staleness: Default::default(), participation: false };
    let mut world = World::started_with(RunSpec { merge, ..scheduled(halving(ScheduleUnit::Examples, 64)) }, 1);
    let factors: Vec<f32> = (0..4).map(|seq| round(&mut world, 1, seq).lr_factor).collect();
    assert_eq!(factors, [1.0, 1.0, 0.5, 0.5]);
    round(&mut world, 1, 4);
    assert_eq!((world.state().examples, world.state().round.examples), (128, 32));
}

/// Late in a schedule updates are small. One that was begun earlier is larger by as much as its
/// rate was, and no outlier.
#[test]
fn an_update_from_before_the_rate_fell_is_no_outlier() {
    let schedule = LrSchedule::Step { over: ScheduleUnit::Versions, warmup: 0, every: 3, factor: 0.01 };
    let admit = AdmitSpec { max_staleness: 100, max_norm_ratio: 10.0, clip_norm_ratio: 1.0, ..spec().admit };
    let mut world = World::started_with(RunSpec { admit, target: TargetSpec::default(), ..scheduled(schedule) }, 3);
    for n in 1..=3 {
        round(&mut world, n, 0);
    }
    // Agent 3 begins its round at a rate of 0.01, and the others go on to 0.0001.
    let slow = world.lease(3);
    for seq in 1..3 {
        round(&mut world, 1, seq);
        round(&mut world, 2, seq);
    }
    let median = world.state().recent.median_norm(0).expect("three agents");
    assert!((median - 2.0).abs() < 1e-6, "the norm at the full rate, found {median}");
    let mut offer = |seq, value: f32| {
        let meta = world.meta(3, seq, &slow);
        world.receive(3, &meta, [value; 4]);
        world.journal();
        match world.last_sent() {
            Some((_, CoordinatorMessage::Verdict { verdict, .. })) => verdict,
            other => panic!("expected a verdict, got {other:?}"),
        }
    };
    let found = offer(1, slow.plan.lr_factor);
    assert!(matches!(found, Verdict::Accepted { weight, .. } if (weight - 0.5).abs() < 1e-6), "{found:?}");
    assert_eq!(slow.plan.lr_factor.to_bits(), 0.01f32.to_bits());
    let late = world.lease(3);
    let meta = world.meta(3, 2, &late);
    world.receive(3, &meta, [0.01; 4]);
    world.journal();
    let refused = Verdict::Refused { reason: RefusalReason::NormOutlier };
    assert!(matches!(world.last_sent(), Some((_, CoordinatorMessage::Verdict { verdict, .. })) if verdict == refused));
}

fn adaptive() -> RunSpec {
    let harder = vec![CodecSpec::Int8, CodecSpec::Int4];
    let adaptive = Some(AdaptiveSpec { harder, transfer_share: 0.25 });
    RunSpec { upload: UploadSpec { adaptive, ..spec().upload }, ..spec() }
}

/// Agent 1 contributes under a new lease, and its line takes so long. The lease's codec.
fn transferred_in(world: &mut World, seq: u64, transfer_ms: Option<u64>) -> CodecSpec {
    let lease = world.lease(1);
    world.advance_ms(1_000 + transfer_ms.unwrap_or_default());
    let meta = UpdateMeta { compute_ms: 1_000, ..world.meta(1, seq, &lease) };
    let (peer, content) = (PeerId(1), Ok(content(Delta::Dense(vec![1.0; 4]))));
    world.handle(Event::UpdateReceived { peer, meta, payload: [0; 16].into(), content, transfer_ms });
    world.journal();
    lease.plan.codec
}

/// What it was told to use, it uses: also in the next process of the coordinator, whatever came between.
#[test]
fn a_lease_names_the_codec_that_the_line_of_its_agent_has_room_for() {
    let mut world = World::started_with(adaptive(), 2);
    assert_eq!(transferred_in(&mut world, 0, None), CodecSpec::Bf16, "the mildest, while nothing is known");
    assert_eq!(transferred_in(&mut world, 1, Some(400)), CodecSpec::Bf16);
    assert!(world.lease(1).plan.residual_ratio, "what guards the level");
    assert_eq!(transferred_in(&mut world, 2, None), CodecSpec::Int8);
    assert_eq!(world.lease(2).plan.codec, CodecSpec::Bf16, "another line");
    let before = world.state().agents[&super::agent(1)].compression.clone();
    assert!(before.is_some());
    let mut world = world.checkpointed();
    assert_eq!(world.state().agents[&super::agent(1)].compression, before);
    assert_eq!(world.replayed(), *world.state());
    world.connect(PeerId(1), 1);
    assert_eq!(world.lease(1).plan.codec, CodecSpec::Int8);
    // One codec for all again, and other levels: what was known is of the old ones.
    let world = world.restarted_with(spec());
    let plan = world.state().plan(super::agent(1), ModelVersion(0));
    assert_eq!((plan.codec, plan.residual_ratio), (CodecSpec::Bf16, false));
    assert_eq!(world.state().agents[&super::agent(1)].compression, None);
}

#[test]
fn an_update_in_another_codec_than_its_leases_is_refused() {
    let mut world = World::started_with(adaptive(), 1);
    let lease = world.lease(1);
    let meta = UpdateMeta { codec: CodecSpec::Int8.id(), ..world.meta(1, 0, &lease) };
    world.offer(1, &meta);
    world.journal();
    let refused = Verdict::Refused { reason: RefusalReason::Malformed };
    assert!(matches!(world.last_sent(), Some((_, CoordinatorMessage::Verdict { verdict, .. })) if verdict == refused));
}
