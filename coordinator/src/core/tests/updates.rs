//! Admission, exactly-once and refusals (promise P1).

use anabranch_common::codec::{CodecId, CodecSpec, DecodeError};
use anabranch_common::ids::{BranchId, Digest, Epoch, LeaseId, ModelVersion, UpdateSeq};
use anabranch_common::journal::{Close, CloseReason, Record, RecordBody};
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::barrier::Closing;
use anabranch_common::spec::{AdmitSpec, DownlinkSpec, RunSpec, TensorCodec, TensorPolicy, TrackSpec, UploadSpec};
use anabranch_common::update::{RefusalReason, UpdateMeta, Verdict};
use anabranch_common::wire::message::{AgentMessage, CoordinatorMessage, Rejection};

use super::world::{MAX_STALENESS, World, spec};
use crate::core::admit::{Decision, admit};
use crate::core::command::Command;
use crate::core::event::{Event, PeerId};

fn verdict(world: &World) -> Verdict {
    match world.last_sent() {
        Some((_, CoordinatorMessage::Verdict { verdict, .. })) => verdict,
        other => panic!("expected a verdict, got {other:?}"),
    }
}

/// A policy for tensors makes payloads of several codecs; what it does not name keeps the lease's.
#[test]
fn an_update_has_the_codec_of_its_lease_or_segments_by_the_policy() {
    let policy = TensorPolicy::new(vec![TensorCodec { tensors: "w".into(), codec: CodecSpec::Int8 }]);
    let with_policy = RunSpec { upload: UploadSpec { policy, ..spec().upload }, ..spec() };
    for (spec, allowed) in [(spec(), &[1][..]), (with_policy, &[1, 3, 7])] {
        let mut world = World::started_with(spec, 1);
        let lease = world.lease(1);
        for codec in 0..9 {
            let meta = UpdateMeta { codec: CodecId(codec), ..world.meta(1, 0, &lease) };
            let decision = admit(world.state(), &meta, None);
            let expected =
                if allowed.contains(&codec) { Decision::Fetch } else { Decision::Refuse(RefusalReason::Malformed) };
            assert_eq!(decision, expected, "codec {codec}");
        }
    }
}

#[test]
fn an_update_is_merged_and_acknowledged_only_when_its_record_is_durable() {
    let mut world = World::started(1);
    let lease = world.lease(1);
    let meta = world.meta(1, 0, &lease);
    assert!(matches!(world.offer(1, &meta)[..], [Command::ReceiveUpdate { .. }]));
    let commands = world.receive(1, &meta, [1.0; 4]);
    let [Command::Append { record }, Command::Append { record: close }] = &commands[..] else {
        panic!("expected only records, got {commands:?}")
    };
    let position = record.position;
    let closed = Close { version: ModelVersion(1), contributions: 1, why: CloseReason::Filled, is_base: true };
    assert_eq!((&close.body, close.position), (&RecordBody::Closed(closed), position.next()));
    assert_eq!(world.handle(Event::Journalled { upto: position }).len(), 1, "the verdict rests on the close as well");
    let commands = world.journal();
    assert!(
        matches!(
            &commands[..],
            [
                Command::Merge { .. },
                Command::Send {
                    message: CoordinatorMessage::Verdict {
                        verdict: Verdict::Accepted {
                            position: said,
                            version: ModelVersion(1),
                            weight: 0.5,
                            staleness: 0,
                        },
                        ..
                    },
                    ..
                }
            ] if *said == position
        ),
        "{commands:?}"
    );
}

/// Killed between the contribution that fills the buffer and its close: the next process closes the version first, even
/// where its configuration has another buffer.
#[test]
fn a_start_closes_a_version_whose_close_was_lost() {
    let buffered = |buffer_size| RunSpec {
        merge: MergeSpec::FedBuff { buffer_size, server_lr: 1.0, staleness: Default::default(), participation: false },
        ..spec()
    };
    for (before, after) in [(spec(), spec()), (buffered(2), buffered(2)), (buffered(2), buffered(9))] {
        let Closing::Full(size) = before.merge.closing() else { panic!("{:?}", before.merge) };
        let mut world = World::started_with(before.clone(), 1);
        let mut metas = Vec::new();
        for seq in 0..u64::from(size) {
            let lease = world.lease(1);
            metas.push(world.meta(1, seq, &lease));
            world.receive(1, &metas[metas.len() - 1], [1.0; 4]);
        }
        let told = world.state().clone();
        let mut world = world.restarted_without(1, after.clone());
        let closed = Close { version: ModelVersion(1), contributions: size, why: CloseReason::Filled, is_base: true };
        let kinds: Vec<_> = world
            .journal()
            .iter()
            .filter_map(|command| match command {
                Command::Merge { record, .. } => Some(record.body.clone()),
                _ => None,
            })
            .collect();
        let mut expected = vec![RecordBody::Closed(closed)];
        if before != after {
            expected.push(RecordBody::ConfigChanged { spec: Box::new(after) });
        }
        assert_eq!(kinds, expected);
        assert_eq!((world.state().version, world.state().round.contributions), (told.version, 0));
        world.connect(PeerId(1), 1);
        world.offer(1, metas.last().expect("at least one"));
        world.journal();
        let Verdict::Accepted { version, .. } = verdict(&world) else { panic!("{:?}", verdict(&world)) };
        assert_eq!(version, ModelVersion(1), "the verdict is that of the contribution that filled the buffer");
    }
}

/// With a published track agents train from some of the versions: the more agents report, the fewer.
#[test]
fn versions_to_train_from_are_as_far_apart_as_agents_report() {
    let bases = |every, agents: u8, versions: u64| {
        let track = TrackSpec { every, codec: CodecSpec::Int8 };
        let mut world = World::started_with(
            RunSpec { downlink: DownlinkSpec { track: Some(track), ..DownlinkSpec::default() }, ..spec() },
            agents,
        );
        let mut found = Vec::new();
        for version in 1..=versions {
            let n = u8::try_from((version - 1) % u64::from(agents)).expect("few agents") + 1;
            let lease = world.lease(n);
            let meta = world.meta(n, (version - 1) / u64::from(agents), &lease);
            world.receive(n, &meta, [1.0; 4]);
            world.journal();
            let state = world.state();
            assert!(lease.base_version <= state.base && state.base <= state.version);
            found.extend((state.base == ModelVersion(version)).then_some(version));
        }
        found
    };
    assert_eq!(bases(None, 1, 4), [1, 2, 3, 4], "one agent trains from each of its versions");
    assert_eq!(bases(None, 5, 15), [1, 2, 3, 5, 7, 9, 11, 13, 15], "five agents, once four of them have reported");
    assert_eq!(bases(Some(3), 1, 9), [3, 6, 9]);
}

/// Between two records of the track the base is older than the newest version. A configuration under which no update from
/// there is welcome would wait for ever.
#[test]
fn a_configuration_that_refuses_updates_from_the_base_begins_the_track_anew() {
    let barrier = Default::default();
    let rounds = RunSpec { merge: MergeSpec::FedAvg { server_lr: 1.0, barrier }, ..spec() };
    let fresh = RunSpec { admit: AdmitSpec { max_staleness: 0, ..spec().admit }, ..spec() };
    let kept = RunSpec { admit: AdmitSpec { max_staleness: 1, ..spec().admit }, ..spec() };
    for (changed, base) in [(rounds, 4), (fresh, 4), (kept, 3)] {
        let track =
            |every| DownlinkSpec { track: Some(TrackSpec { every, codec: CodecSpec::Int8 }), ..Default::default() };
        let mut world = World::started_with(RunSpec { downlink: track(Some(3)), ..spec() }, 1);
        for seq in 0..4 {
            let lease = world.lease(1);
            let meta = world.meta(1, seq, &lease);
            world.receive(1, &meta, [1.0; 4]);
            world.journal();
        }
        assert_eq!((world.state().base, world.state().version), (ModelVersion(3), ModelVersion(4)));
        let mut world = world.restarted_with(RunSpec { downlink: track(None), ..changed });
        world.connect(PeerId(1), 1);
        world.journal();
        assert_eq!(world.lease(1).base_version, ModelVersion(base));
    }
}

/// The slower an agent is, the more its update counts. Only the weight in the record says so.
#[test]
fn a_rescaled_update_counts_by_the_interval_of_its_agent() {
    let rescaled = |alpha| RunSpec { merge: MergeSpec::Rescaled { alpha, staleness: Default::default() }, ..spec() };
    let mut world = World::started_with(rescaled(0.5), 2);
    let mut next = [0, 0];
    let weights = [1, 2, 1, 1, 1, 2, 1].map(|n: u8| {
        let lease = world.lease(n);
        let seq = &mut next[usize::from(n) - 1];
        let meta = world.meta(n, *seq, &lease);
        *seq += 1;
        world.receive(n, &meta, [1.0; 4]);
        world.journal();
        let Verdict::Accepted { weight, .. } = verdict(&world) else { panic!("{:?}", verdict(&world)) };
        weight
    });
    assert_eq!(weights, [0.5, 0.5, 0.5, 0.25, 0.25, 1.0, 0.5], "intervals of 2, 1, 1, 4 and 2 arrivals by 2 agents");
    let told = world.state().shares.clone();
    assert_eq!(world.replayed().shares, told, "the fold over the records knows the intervals");
    let recall = MergeSpec::Recall { step: 23.0, recall: true, average: true };
    for (spec, arrivals) in [(rescaled(0.25), 7), (RunSpec { merge: recall, ..spec() }, 0)] {
        let mut state = world.state().clone();
        let body = RecordBody::ConfigChanged { spec: Box::new(spec) };
        state.apply(&Record::new(state.position.next(), 0, body, [].into())).expect("it follows");
        assert_eq!(state.shares.sums().1, arrivals, "another rule begins anew, another step does not");
    }
}

#[test]
fn a_retry_gets_the_same_verdict_and_is_never_merged_again() {
    let mut world = World::started(1);
    let lease = world.lease(1);
    let meta = world.meta(1, 0, &lease);
    world.receive(1, &meta, [1.0; 4]);
    world.journal();
    let first = verdict(&world);
    let position = world.position();
    // Before the upload, after it, and once more under another digest.
    world.offer(1, &meta);
    assert_eq!(verdict(&world), first);
    world.receive(1, &meta, [1.0; 4]);
    assert_eq!(verdict(&world), first);
    let mut lie = meta.clone();
    lie.payload_digest = Digest::of(b"another");
    world.offer(1, &lie);
    assert_eq!(verdict(&world), Verdict::Refused { reason: RefusalReason::KeyConflict });
    world.offer(1, &meta);
    assert_eq!(verdict(&world), first, "the lie changed nothing");
    assert_eq!(world.position(), position, "nothing was journalled");
}

#[test]
fn a_verdict_given_twice_in_a_row_waits_for_the_record_too() {
    let mut world = World::started(1);
    let lease = world.lease(1);
    let meta = world.meta(1, 0, &lease);
    world.receive(1, &meta, [1.0; 4]);
    assert_eq!(world.offer(1, &meta), [], "the first verdict is not durable, so its repetition is not told either");
    let verdicts =
        world.journal().into_iter().filter(|command| matches!(command, Command::Send { .. })).collect::<Vec<_>>();
    assert_eq!(verdicts.len(), 2);
    assert_eq!(verdicts[0], verdicts[1]);
}

#[test]
fn a_lease_is_good_for_one_update() {
    let mut world = World::started(1);
    let lease = world.lease(1);
    world.receive(1, &world.meta(1, 0, &lease), [1.0; 4]);
    let mut second = world.meta(1, 1, &lease);
    second.payload_digest = Digest::of(b"second");
    world.offer(1, &second);
    world.journal();
    assert_eq!(verdict(&world), Verdict::Refused { reason: RefusalReason::Stale });
}

/// What a run has behind it must not make its state larger, however old a base may be.
#[test]
fn a_used_lease_is_forgotten() {
    let mut world = World::started(1);
    let mut leases = Vec::new();
    for seq in 0..40 {
        let lease = world.lease(1);
        world.receive(1, &world.meta(1, seq, &lease), [1.0; 4]);
        world.journal();
        leases.push(world.state().leases().count());
    }
    assert!(leases.iter().all(|held| *held <= 1), "{leases:?}");
}

#[test]
fn every_reason_to_refuse_is_journalled_and_told() {
    let mut world = World::started(2);
    let mine = world.lease(1);
    let others = world.lease(2);
    let meta = world.meta(1, 0, &mine);
    let cases = [
        ("another agent's lease", RefusalReason::UnknownBase, {
            let mut meta = meta.clone();
            meta.lease = others.id;
            meta
        }),
        ("a lease that was never given", RefusalReason::UnknownBase, {
            let mut meta = meta.clone();
            meta.lease = LeaseId(99);
            meta
        }),
        ("another base digest", RefusalReason::UnknownBase, {
            let mut meta = meta.clone();
            meta.base_digest = Digest::default();
            meta
        }),
        ("another branch", RefusalReason::WrongBranch, {
            let mut meta = meta.clone();
            meta.branch = BranchId::default();
            meta
        }),
    ];
    for (seq, (what, reason, mut meta)) in (10u64..).zip(cases) {
        meta.key.seq = UpdateSeq(seq);
        let commands = world.offer(1, &meta);
        let records = World::appended(&commands);
        assert!(
            matches!(records[0].body, RecordBody::Refused { reason: said, .. } if said == reason),
            "{what}: {records:?}"
        );
        world.journal();
        assert_eq!(verdict(&world), Verdict::Refused { reason }, "{what}");
        world.offer(1, &meta);
        assert_eq!(verdict(&world), Verdict::Refused { reason }, "{what}, asked again");
    }
    let mut unknown_epoch = meta;
    unknown_epoch.key.epoch = Epoch(9);
    world.offer(1, &unknown_epoch);
    assert_eq!(verdict(&world), Verdict::Refused { reason: RefusalReason::UnknownBase });
}

#[test]
fn broken_and_non_finite_content_is_refused_and_its_lease_is_used_up() {
    for (content, reason) in [
        (Err(DecodeError::Truncated("values")), RefusalReason::Malformed),
        (Ok([1.0, f32::NAN, 0.0, 0.0]), RefusalReason::NonFinite),
        (Ok([f32::INFINITY, 0.0, 0.0, 0.0]), RefusalReason::NonFinite),
    ] {
        let mut world = World::started(1);
        let lease = world.lease(1);
        let meta = world.meta(1, 0, &lease);
        match content {
            Ok(values) => world.receive(1, &meta, values),
            Err(error) => world.handle(Event::UpdateReceived {
                peer: PeerId(1),
                meta: meta.clone(),
                payload: std::sync::Arc::from([]),
                content: Err(error),
                transfer_ms: None,
            }),
        };
        world.journal();
        assert_eq!(verdict(&world), Verdict::Refused { reason });
        assert_eq!(world.state().version.0, 0, "nothing was merged");
    }
}

#[test]
fn staleness_is_counted_in_versions_and_the_limit_is_inclusive() {
    let mut world = World::started(2);
    let slow = world.lease(1);
    for seq in 0..=MAX_STALENESS {
        let lease = world.lease(2);
        if seq < MAX_STALENESS {
            world.receive(2, &world.meta(2, seq, &lease), [1.0; 4]);
            world.journal();
        }
    }
    assert!(matches!(world.offer(1, &world.meta(1, 0, &slow))[..], [Command::ReceiveUpdate { .. }]));
    let lease = world.lease(2);
    world.receive(2, &world.meta(2, MAX_STALENESS, &lease), [1.0; 4]);
    world.journal();
    world.offer(1, &world.meta(1, 0, &slow));
    world.journal();
    assert_eq!(verdict(&world), Verdict::Refused { reason: RefusalReason::Stale });
}

#[test]
fn work_that_comes_after_its_lease_expired_is_still_merged() {
    let mut world = World::started(1);
    let lease = world.lease(1);
    world.advance_ms(super::world::LEASE_TTL_MS + 1);
    world.handle(Event::Tick);
    world.receive(1, &world.meta(1, 0, &lease), [1.0; 4]);
    world.journal();
    assert!(matches!(verdict(&world), Verdict::Accepted { .. }));
}

#[test]
fn an_update_in_another_agents_name_ends_the_connection() {
    let mut world = World::started(2);
    let lease = world.lease(2);
    let meta = world.meta(2, 0, &lease);
    let transfer = anabranch_common::wire::transfer::TransferManifest::of(&[0; 16]);
    world.message(1, AgentMessage::OfferUpdate { meta, transfer, sections: None });
    assert!(matches!(world.last_sent(), Some((PeerId(1), CoordinatorMessage::Rejected(Rejection::Protocol(_))))));
}

#[test]
fn replaying_the_records_gives_the_state_of_the_live_core() {
    let mut world = World::started(3);
    for round in 0..20u64 {
        let n = 1 + (round % 3) as u8;
        let lease = world.lease(n);
        let seq = round / 3;
        let values = if round % 5 == 4 { [f32::NAN; 4] } else { [round as f32; 4] };
        world.receive(n, &world.meta(n, seq, &lease), values);
        let evaluation = world.evaluation(n, lease.base_version, 0.5);
        world.message(n, AgentMessage::Evaluated { evaluation, cost_ms: 0 });
        world.journal();
    }
    assert_eq!(world.replayed(), *world.state());
    assert!(world.state().totals.accepted > 10 && !world.state().totals.refused.is_empty());
}
