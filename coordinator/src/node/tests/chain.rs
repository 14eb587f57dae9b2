//! Which updates are kept for agents that replay them, and how many.

use anabranch_common::codec::CodecId;
use anabranch_common::ids::Position;
use anabranch_common::journal::{Close, CloseReason, RecordBody};
use anabranch_common::limits;
use anabranch_common::merge::MergeSpec;
use anabranch_common::merge::staleness::Staleness;

use super::traffic::contribution;
use super::*;

fn spec() -> RunSpec {
    let mut spec = run_spec();
    let (staleness, participation) = (Staleness::Constant, false);
    spec.merge = MergeSpec::FedBuff { buffer_size: 2, server_lr: 1.0, staleness, participation };
    (spec.downlink.track, spec.downlink.share_updates) = (None, true);
    spec
}

fn tell(chain: &mut Chain, body: RecordBody, payload: &Arc<[u8]>) {
    chain.merged(&Record::new(Position(0), 0, body, Arc::clone(payload)));
}

fn update(chain: &mut Chain, payload: &Arc<[u8]>) {
    tell(chain, RecordBody::Contribution(Box::new(contribution(CodecId(2)))), payload);
}

fn close(chain: &mut Chain, version: u64) {
    let close = Close { version: ModelVersion(version), contributions: 2, why: CloseReason::Filled, is_base: true };
    tell(chain, RecordBody::Closed(close), &Arc::default());
}

/// How many updates lead from one version to another, if they are here.
fn between(chain: &Chain, from: u64, to: u64) -> Option<usize> {
    let replay = chain.between(ModelVersion(from), ModelVersion(to), usize::MAX)?;
    Some(replay.steps.iter().map(|step| step.updates.len()).sum())
}

fn payload(bytes: usize) -> Arc<[u8]> {
    vec![7; bytes].into()
}

/// The buffer may hold updates that were merged before this process began.
#[test]
fn the_first_version_that_is_closed_after_a_start_is_not_known_as_a_whole() {
    let (mut chain, payload) = (Chain::of(&spec()), payload(10));
    update(&mut chain, &payload);
    close(&mut chain, 5);
    (0..2).for_each(|_| update(&mut chain, &payload));
    close(&mut chain, 6);
    update(&mut chain, &payload);
    assert_eq!(
        [(4, 5), (4, 6), (5, 6), (5, 7)].map(|(from, to)| between(&chain, from, to)),
        [None, None, Some(2), None]
    );
    let two = 1 + 1 + 2 * (10 + anabranch_common::downlink::chain::HEADER_BYTES);
    assert_eq!(
        chain.between(ModelVersion(5), ModelVersion(6), usize::MAX).map(|replay| replay.packed_bytes),
        Some(two)
    );
    assert!(chain.between(ModelVersion(5), ModelVersion(6), two).is_none(), "not shorter");
}

#[test]
fn another_model_or_configuration_begins_the_chain_anew() {
    let payload = payload(10);
    let whole = || {
        let mut chain = Chain::of(&spec());
        close(&mut chain, 5);
        update(&mut chain, &payload);
        close(&mut chain, 6);
        update(&mut chain, &payload);
        assert_eq!(between(&chain, 5, 6), Some(1));
        chain
    };
    let (branch, from, version) = (BranchId([3; 16]), Position(3), ModelVersion(5));
    let branched = RecordBody::Branched { branch, from, version, norm: 1.0, examples: 0 };
    let mut chain = whole();
    tell(&mut chain, branched, &Arc::default());
    update(&mut chain, &payload);
    close(&mut chain, 6);
    assert_eq!((between(&chain, 5, 6), chain.kept()), (Some(1), (1, 10)), "of the new branch");

    for share_updates in [true, false] {
        let (mut chain, mut spec) = (whole(), spec());
        spec.downlink.share_updates = share_updates;
        tell(&mut chain, RecordBody::ConfigChanged { spec: Box::new(spec) }, &Arc::default());
        update(&mut chain, &payload);
        close(&mut chain, 7);
        assert_eq!((between(&chain, 5, 7), chain.kept()), (None, (0, 0)));
        update(&mut chain, &payload);
        close(&mut chain, 8);
        assert_eq!(between(&chain, 7, 8), share_updates.then_some(1));
    }
}

#[test]
fn updates_are_kept_as_far_as_they_fit() {
    let mut chain = Chain::of(&spec());
    close(&mut chain, 0);
    let small = payload(1);
    let versions = limits::CHAIN_UPDATES as u64 + 3;
    for version in 1..=versions {
        update(&mut chain, &small);
        close(&mut chain, version);
    }
    assert_eq!(chain.kept(), (limits::CHAIN_UPDATES, limits::CHAIN_UPDATES));
    assert_eq!([2, 3].map(|from| between(&chain, from, from + 1)), [None, Some(1)]);
    assert_eq!(between(&chain, 3, versions), None, "more than an agent replays at once");

    // Updates of a third of what may be kept, then more than that before a close.
    let large = payload(limits::CHAIN_BYTES / 3);
    for version in versions + 1..=versions + 4 {
        update(&mut chain, &large);
        close(&mut chain, version);
    }
    assert_eq!(chain.kept(), (3, 3 * large.len()));
    assert_eq!(between(&chain, versions + 1, versions + 4), Some(3));
    (0..4).for_each(|_| update(&mut chain, &large));
    assert_eq!(chain.kept(), (0, 0));
    close(&mut chain, versions + 5);
    assert_eq!(between(&chain, versions + 4, versions + 5), None, "not all of it is here");
    update(&mut chain, &small);
    close(&mut chain, versions + 6);
    assert_eq!(between(&chain, versions + 5, versions + 6), Some(1));
}
