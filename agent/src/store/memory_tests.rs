//! The memory that stands in the place of the residual: it moves with what the coordinator accepts and with nothing else.

use anabranch_common::codec::CodecSpec;
use anabranch_common::journal::Plan;
use anabranch_testkit::lease::PLAN;

use super::tests::{AGENT, BRANCH, PARAMS, RUN, bank, delta, key, manifest};
use super::*;
use crate::encode;

/// A round under a lease that says this memory.
fn bank_against(ledger: &mut Ledger, seq: u64, memory: Option<MemoryMark>, delta: Vec<f32>) -> OutboxEntry {
    let mut bank = bank(seq, delta);
    bank.lease.plan = Plan { memory, ..PLAN };
    encode::bank(ledger, RUN, AGENT, &manifest(), bank).expect("banks")
}

/// The coordinator's side: the memory after what was accepted with this weight.
fn accept(values: &mut [f32], ledger: &Ledger, entry: &OutboxEntry, weight: f32) -> MemoryMark {
    let payload = ledger.payload(entry.meta.key).expect("reads").expect("is there");
    let content = codec::decode(entry.meta.codec, &manifest(), &payload).expect("decodes");
    content.add_scaled_to(values, weight);
    entry.meta.memory.expect("a difference").with(entry.meta.payload_digest, weight)
}

fn opened(dir: &Path) -> Ledger {
    let mut ledger = Ledger::open(dir).expect("opens");
    ledger.adopt(BRANCH).expect("adopts");
    ledger
}

#[test]
fn a_memory_has_the_bits_of_what_was_accepted_and_survives_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = opened(dir.path());
    let (mut mark, mut values) = (MemoryMark::EMPTY, vec![0.0; PARAMS]);
    for (seq, weight) in (0..).zip([1.0, 0.3, 1.0, 0.7, 1.0, 1.0]) {
        let entry = bank_against(&mut ledger, seq, Some(mark), delta());
        assert_eq!(entry.meta.memory, Some(mark));
        if seq == 3 {
            drop(ledger);
            ledger = Ledger::open(dir.path()).expect("opens again");
        }
        if seq == 2 {
            ledger.settle(key(seq), Settlement::Drop).expect("settles");
        } else {
            mark = accept(&mut values, &ledger, &entry, weight);
            ledger.settle(key(seq), Settlement::Remember(weight)).expect("settles");
        }
        let expected = (seq != 0 || mark != MemoryMark::EMPTY).then_some(&values[..]);
        assert_eq!(ledger.memory(), Some((mark, expected)), "after update {seq}");
        assert_eq!(ledger.residual(), None, "what is left out is in the next difference");
    }
    let off =
        |values: &[f32]| values.iter().zip(delta()).map(|(value, delta)| f64::from(value - delta).powi(2)).sum::<f64>();
    assert!(off(&values) < 0.2 * off(&[0.0; PARAMS]), "the differences come to the delta");
    drop(ledger);
    let mut ledger = Ledger::open(dir.path()).expect("opens again");
    assert_eq!(ledger.memory(), Some((mark, Some(&values[..]))));
    ledger.settle(key(5), Settlement::Remember(1.0)).expect("a second time changes nothing");
    assert_eq!(ledger.memory(), Some((mark, Some(&values[..]))));
}

#[test]
fn a_lease_of_another_memory_has_the_agent_begin_at_0() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = opened(dir.path());
    bank_against(&mut ledger, 0, Some(MemoryMark::EMPTY), delta());
    ledger.settle(key(0), Settlement::Remember(1.0)).expect("settles");
    let (mark, _) = ledger.memory().expect("there is one");
    for lease in [MemoryMark::EMPTY, MemoryMark(Digest([7; 32]))] {
        let entry = bank_against(&mut ledger, 1, Some(lease), delta());
        assert_eq!(entry.meta.memory, Some(MemoryMark::EMPTY), "lease of {lease:?}, memory {mark:?}");
        assert_eq!(ledger.memory(), Some((MemoryMark::EMPTY, None)));
        ledger.settle(key(1), Settlement::Drop).expect("settles");
    }
    let entry = bank_against(&mut ledger, 2, Some(MemoryMark::EMPTY), delta());
    assert_eq!(entry.transfer, bank_against(&mut ledger, 3, Some(MemoryMark::EMPTY), delta()).transfer);
}

/// The run is merged by another rule now, and then by this one again.
#[test]
fn a_residual_is_no_memory_and_a_memory_no_residual() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = opened(dir.path());
    bank_against(&mut ledger, 0, None, delta());
    assert!(ledger.residual().is_some() && ledger.memory().is_none());
    let entry = bank_against(&mut ledger, 1, Some(MemoryMark::EMPTY), delta());
    assert_eq!((entry.meta.memory, ledger.residual()), (Some(MemoryMark::EMPTY), None));
    ledger.settle(key(0), Settlement::Return).expect("settles");
    assert_eq!(ledger.memory(), Some((MemoryMark::EMPTY, None)), "content of the residual is no part of a memory");
    ledger.settle(key(1), Settlement::Remember(1.0)).expect("settles");
    let before = ledger.states().current();
    bank_against(&mut ledger, 2, None, delta());
    let fresh = {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = opened(dir.path());
        bank_against(&mut ledger, 2, None, delta());
        ledger.residual().map(<[f32]>::to_vec)
    };
    assert_eq!((ledger.memory(), ledger.residual().map(<[f32]>::to_vec)), (None, fresh), "as if it had been empty");
    assert_ne!(ledger.states().current(), before, "an encoder elsewhere does not take one for the other");
}

#[test]
fn another_branch_drops_the_memory() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = opened(dir.path());
    bank_against(&mut ledger, 0, Some(MemoryMark::EMPTY), delta());
    ledger.adopt(BranchId([9; 16])).expect("adopts");
    ledger.settle(key(0), Settlement::Remember(1.0)).expect("settles");
    assert_eq!((ledger.memory(), ledger.outbox().count()), (None, 0));
}

#[test]
fn a_lossless_codec_brings_the_memory_to_the_delta_at_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = opened(dir.path());
    let mut lossless = bank(0, delta());
    (lossless.codec, lossless.lease.plan.memory) = (CodecSpec::F32, Some(MemoryMark::EMPTY));
    encode::bank(&mut ledger, RUN, AGENT, &manifest(), lossless).expect("banks");
    ledger.settle(key(0), Settlement::Remember(1.0)).expect("settles");
    assert_eq!(ledger.memory().and_then(|(_, values)| values), Some(&delta()[..]));
}
