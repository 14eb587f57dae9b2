//! P1 to P3 and P7: power loss and storage errors at every write and every commit.

use anabranch_coordinator::recovery::RecoveryError;
use anabranch_coordinator::store::StorageError;
use anabranch_testkit_store::MemoryStore;
use anabranch_testkit_store::memory::{Fault, FaultKind, FaultSite, Survivors};

use crate::history::{
    History, PACE, assert_goes_on, assert_same_bits, delayed_nesterov, drive, ef21, fadas, fedadam, fedasync, fedavg,
    fedavgm, fedbuff, recall, rescaled, run_through, stored,
};

const ROUNDS: u64 = 21;

/// Every way in which the disk may treat what was not synced.
fn survivors(site: u64) -> [Survivors; 4] {
    [Survivors::None, Survivors::All, Survivors::Some { seed: site }, Survivors::Some { seed: !site }]
}

/// The run stops at `site` with `kind`; whatever the disk kept, the restarted run has everything that was acknowledged,
/// has the bits of the uninterrupted run, and goes on to the same end.
fn stop_at(history: &History, site: FaultSite, kind: FaultKind, number: u64) {
    let store = MemoryStore::new();
    store.set_fault(Some(Fault { site, kind }));
    let (acknowledged, error) = drive(&store, history, PACE);
    match (kind, error) {
        (FaultKind::NoSpace, Some(RecoveryError::Storage(StorageError::NoSpace { .. }))) => {}
        (FaultKind::Io, Some(RecoveryError::Storage(StorageError::Io { .. }))) => {}
        (_, other) => panic!("{site:?}: the storage error must come out as such, not as {other:?}"),
    }
    for survivors in survivors(number) {
        let context = format!("{site:?}, {survivors:?}");
        let after = store.crash(survivors).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_goes_on(&after, history, acknowledged, &context);
    }
}

fn operations(history: &History) -> (u64, u64) {
    let store = MemoryStore::new();
    store.set_fault(None);
    run_through(&store, history, PACE);
    assert_eq!(assert_same_bits(&store, history, "uninterrupted"), history.last());
    store.operations()
}

#[test]
fn a_crash_at_any_commit_loses_nothing_acknowledged_and_no_bit() {
    let rules =
        [fedasync(), fedbuff(3), delayed_nesterov(3), fadas(3), rescaled(), recall(), fedavg(), fedavgm(), fedadam()];
    let others = [ef21(), ef21().averaged(), fedasync().averaged(), fedbuff(3).averaged(), fedavgm().averaged()];
    for merge in rules.into_iter().chain(others) {
        let history = History::scripted(&merge, ROUNDS);
        let (_, commits) = operations(&history);
        assert!(commits > 40, "the script has many boundaries, not {commits}");
        for commit in 0..commits {
            stop_at(&history, FaultSite::Commit(commit), FaultKind::Io, commit);
        }
    }
}

#[test]
fn no_space_at_any_write_is_an_error_and_loses_nothing_acknowledged() {
    let history = History::scripted(&fedbuff(2), ROUNDS);
    let (writes, _) = operations(&history);
    assert!(writes > 150, "the script has many write sites, not {writes}");
    for write in 0..writes {
        stop_at(&history, FaultSite::Write(write), FaultKind::NoSpace, write);
    }
}

/// Fault 11: recovery only reads, so any number of crashes in it leaves what was there.
#[test]
fn recovery_changes_nothing() {
    let history = History::scripted(&fedasync(), ROUNDS);
    let store = stored(&history, PACE);
    store.set_fault(None);
    for _ in 0..20 {
        assert_same_bits(&store, &history, "again");
    }
    assert_eq!(store.operations(), (0, 0));
}
