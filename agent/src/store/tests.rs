//! The outbox and the residual, on a real store.

use std::collections::BTreeSet;

use anabranch_common::codec::{CodecSpec, EncodeError};
use anabranch_common::ids::{AgentId, Epoch, LeaseId, RunId, UpdateSeq};
use anabranch_common::manifest::TensorSpec;
use anabranch_common::spec::{TensorCodec, TensorPolicy};
use anabranch_testkit::lease::lease;

use super::*;
use crate::encode::{self, BankError};
use crate::session::command::{Lead, StartedFrom};
use crate::session::event::Outcome;

pub(super) const RUN: RunId = RunId([1; 16]);
pub(super) const AGENT: AgentId = AgentId([2; 16]);
pub(super) const BRANCH: BranchId = BranchId([3; 16]);
pub(super) const PARAMS: usize = 40_000;

pub(super) fn manifest() -> ModelManifest {
    let shape = vec![PARAMS as u64];
    ModelManifest::new(vec![TensorSpec { name: "w".into(), shape }]).expect("valid")
}

pub(super) fn delta() -> Vec<f32> {
    (0..PARAMS).map(|i| if i % 3 == 0 { 1.0 } else { 0.001 * (i % 7) as f32 }).collect()
}

pub(super) fn bank(seq: u64, delta: Vec<f32>) -> Bank {
    Bank {
        lease: lease(LeaseId(seq), AGENT, BRANCH),
        epoch: Epoch(1),
        seq: UpdateSeq(seq),
        codec: CodecSpec::top_k(0.1),
        policy: TensorPolicy::default(),
        feedback_decay: 1.0,
        outcome: Outcome {
            lease: LeaseId(seq),
            delta: delta.into(),
            num_examples: 1,
            local_steps: 1,
            train_loss: 0.0,
            compute_ms: 1,
            encoded: None,
            pod: None,
        },
        started_from: None,
    }
}

pub(super) fn key(seq: u64) -> UpdateKey {
    UpdateKey { run: RUN, agent: AGENT, epoch: Epoch(1), seq: UpdateSeq(seq) }
}

/// What is left out and what is sent, together: it must never get lost, whatever happens.
pub(super) fn sum(ledger: &Ledger) -> f64 {
    let residual: f64 = ledger.residual().unwrap_or_default().iter().map(|value| f64::from(*value)).sum();
    let sent = |update: &StoredUpdate| {
        let delta = ledger.decode(update).expect("decodes");
        delta.values().iter().map(|value| f64::from(*value)).sum::<f64>()
    };
    residual + ledger.head.outbox.iter().map(sent).sum::<f64>()
}

pub(super) fn close_to(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-3 * expected.abs(), "found {found}, expected {expected}");
}

pub(super) fn total(delta: &[f32]) -> f64 {
    delta.iter().map(|value| f64::from(*value)).sum()
}

/// Issue of durability: outbox and residual change together, and survive a restart with the counter.
#[test]
fn an_update_and_its_residual_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let entry = {
        let mut ledger = Ledger::open(dir.path()).expect("opens");
        ledger.adopt(BRANCH).expect("adopts");
        encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(0, delta())).expect("banks")
    };
    let ledger = Ledger::open(dir.path()).expect("opens again");
    let kept = ledger.kept().expect("reads");
    assert_eq!(kept.outbox, [entry]);
    assert_eq!((kept.branch, kept.counter), (Some(BRANCH), Some((Epoch(1), UpdateSeq(1)))));
    close_to(sum(&ledger), total(&delta()));
    let payload = ledger.payload(key(0)).expect("reads").expect("is there");
    assert_eq!(Digest::of(&payload), kept.outbox[0].meta.payload_digest);
}

#[test]
fn refused_content_returns_to_the_residual_and_accepted_content_goes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = Ledger::open(dir.path()).expect("opens");
    ledger.adopt(BRANCH).expect("adopts");
    encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
    ledger.settle(key(0), Settlement::Return).expect("settles");
    close_to(sum(&ledger), total(&delta()));
    assert_eq!(ledger.outbox().count(), 0);
    ledger.settle(key(0), Settlement::Return).expect("a second time changes nothing");
    close_to(sum(&ledger), total(&delta()));

    encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(1, vec![0.0; PARAMS])).expect("banks");
    let sent = sum(&ledger) - total(ledger.residual().expect("top 10 % leaves something out"));
    assert!(sent > 0.2 * total(&delta()), "what was refused is sent again, found {sent}");
    ledger.settle(key(1), Settlement::Drop).expect("settles");
    close_to(sum(&ledger), total(&delta()) - sent);
    drop(ledger);
    let ledger = Ledger::open(dir.path()).expect("opens again");
    close_to(sum(&ledger), total(&delta()) - sent);
}

/// A crash between any two steps of a change: blobs without a head, or old blobs that were not deleted.
#[test]
fn what_a_crash_leaves_over_is_swept_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    {
        let mut ledger = Ledger::open(dir.path()).expect("opens");
        ledger.adopt(BRANCH).expect("adopts");
        encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
        let number = ledger.head.next_blob;
        ledger.shelf.put(&blob_key(number), Content::Bytes(&[7; 300_000])).expect("written");
        ledger.shelf.put(&blob_key(number + 5), Content::Bytes(b"older")).expect("written");
    }
    let mut ledger = Ledger::open(dir.path()).expect("opens again");
    close_to(sum(&ledger), total(&delta()));
    let keys = ledger.shelf.keys(b"b").expect("reads");
    let numbers = keys.iter().map(|key| u64::from_be_bytes(key[1..9].try_into().expect("eight bytes")));
    assert_eq!(numbers.collect::<BTreeSet<_>>(), ledger.head.blobs());
    encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(1, delta())).expect("goes on");
    close_to(sum(&ledger), 2.0 * total(&delta()));
}

#[test]
fn another_branch_drops_the_residual_and_keeps_the_outbox() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = Ledger::open(dir.path()).expect("opens");
    ledger.adopt(BRANCH).expect("adopts");
    encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(0, delta())).expect("banks");
    ledger.adopt(BranchId([9; 16])).expect("adopts");
    assert_eq!((ledger.residual(), ledger.outbox().count()), (None, 1));
    ledger.settle(key(0), Settlement::Return).expect("settles");
    assert_eq!((ledger.residual(), ledger.outbox().count()), (None, 0), "content of another branch does not return");
}

#[test]
fn a_delta_that_is_not_finite_changes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = Ledger::open(dir.path()).expect("opens");
    ledger.adopt(BRANCH).expect("adopts");
    let error = encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(0, vec![f32::NAN; PARAMS]));
    assert!(matches!(error, Err(BankError::Encode(EncodeError::NonFinite(0)))), "{error:?}");
    assert_eq!((ledger.residual(), ledger.outbox().count()), (None, 0));
}

#[test]
fn a_damaged_head_is_refused() {
    let good = head::encode(&Head { next_blob: 5, ..Head::default() }).expect("encodes");
    assert_eq!(head::decode(&good).expect("decodes").next_blob, 5);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(head::decode(&bad).is_err(), "flipping bit {bit} went unnoticed");
    }
    assert!((0..good.len()).all(|len| head::decode(&good[..len]).is_err()), "a cut head went unnoticed");
}

/// The product is with what was sent, not with what was computed, and with what the round started from.
/// Error feedback is over the whole vector, whatever codecs its tensors have.
#[test]
fn tensors_with_codecs_of_their_own_are_sent_with_them() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = Ledger::open(dir.path()).expect("opens");
    ledger.adopt(BRANCH).expect("adopts");
    let tensor = |name: &str, elements| TensorSpec { name: name.into(), shape: vec![elements] };
    let tensors = vec![tensor("fc1.weight", 30_000), tensor("fc1.bias", 100), tensor("fc2.weight", 9_900)];
    let manifest = ModelManifest::new(tensors).expect("valid");
    let policy = TensorPolicy::new(vec![TensorCodec { tensors: "*bias".into(), codec: CodecSpec::F32 }]);
    let with_policy = Bank { policy, ..bank(0, delta()) };
    let entry = encode::bank(&mut ledger, RUN, AGENT, &manifest, with_policy).expect("banks");
    assert_eq!(entry.meta.codec, codec::segments::ID);
    let payload = ledger.payload(key(0)).expect("reads").expect("is there");
    let sent = codec::decode(entry.meta.codec, &manifest, &payload).expect("decodes").into_dense();
    assert_eq!(sent[30_000..30_100], delta()[30_000..30_100], "exactly");
    assert!(sent[..30_000].contains(&0.0) && sent[30_100..].contains(&0.0), "not all of them");
    let Origin::Residual { left_out, .. } = ledger.take_origin(BRANCH, &manifest, None) else { panic!("no memory") };
    let left = delta().iter().zip(&sent).map(|(delta, sent)| delta - sent).collect::<Vec<_>>();
    assert_eq!(left_out, left);
    ledger.restore_residual().expect("restores");

    let plain = encode::bank(&mut ledger, RUN, AGENT, &manifest, bank(1, delta())).expect("banks");
    assert_eq!(plain.meta.codec, CodecSpec::top_k(0.1).id());
}

#[test]
fn an_update_says_its_product_with_its_base_where_that_is_asked_for() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = Ledger::open(dir.path()).expect("opens");
    ledger.adopt(BRANCH).expect("adopts");
    let base: Arc<[f32]> = (0..PARAMS).map(|at| (at % 5) as f32 - 1.5).collect();
    let lead = Lead { delta: delta().into(), weight: 0.25 };
    let mut products = Vec::new();
    for (seq, codec) in [(0, CodecSpec::top_k(0.1)), (1, CodecSpec::Bf16), (2, CodecSpec::F32)] {
        for lead in [None, Some(lead.clone())] {
            let started_from = Some(StartedFrom { base: Arc::clone(&base), lead });
            let start = started_from.as_ref().map(|from| match &from.lead {
                Some(lead) => lead.from(&base),
                None => base.to_vec(),
            });
            let bank = Bank { codec, started_from, ..bank(2 * seq + products.len() as u64, delta()) };
            let key = key(bank.seq.0);
            let entry = encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank).expect("banks");
            let payload = ledger.payload(key).expect("reads").expect("is there");
            let sent = codec::decode(entry.meta.codec, &manifest(), &payload).expect("decodes").into_dense();
            let pairs = start.iter().flatten().zip(&sent);
            let expected: f64 = pairs.map(|(start, sent)| f64::from(*start) * f64::from(*sent)).sum();
            let product = entry.meta.base_dot.expect("it was asked for");
            assert!((product - expected).abs() <= 1e-9 * expected.abs(), "{codec:?}: {product}, expected {expected}");
            products.push(product);
            ledger.settle(key, Settlement::Drop).expect("settles");
        }
    }
    assert!(products.windows(2).all(|pair| pair[0] != pair[1]), "each is another product: {products:?}");
    let unasked = encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank(90, delta())).expect("banks");
    assert_eq!(unasked.meta.base_dot, None);
    let huge: Arc<[f32]> = vec![f32::INFINITY; PARAMS].into();
    let bank = Bank { started_from: Some(StartedFrom { base: huge, lead: None }), ..bank(91, delta()) };
    let entry = encode::bank(&mut ledger, RUN, AGENT, &manifest(), bank).expect("banks");
    assert_eq!(entry.meta.base_dot, None, "a product that is not finite would have the update refused");
}
