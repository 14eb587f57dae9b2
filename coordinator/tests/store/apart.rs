//! The three seams on three media that lose power on their own: whatever a caller needs durable,
//! it syncs in that seam, in that order.

use anabranch_common::ids::{BranchId, ModelVersion};
use anabranch_coordinator::recovery::{RecoveryError, recover, release, verify};
use anabranch_coordinator::rest::RestError;
use anabranch_coordinator::store::{Blobs, Catalogue, Journal, StorageError, Store, StoreUsage};
use anabranch_testkit_store::memory::{Fault, FaultKind, FaultSite, Survivors};
use anabranch_testkit_store::{MemoryStore, suite};

use crate::history::{
    ALL, History, PACE, assert_goes_on, assert_same_bits, bits, drive, fedasync, fedbuff, run_through, spec, time_of,
    vector,
};
use crate::rest::{import, rollback};

/// A store of each seam from another.
#[derive(Debug, Default)]
struct Apart {
    /// Journal, blobs, catalogue.
    parts: [MemoryStore; 3],
}

impl Apart {
    /// Takes the power of all three away; each keeps what `survivors` says for its number.
    fn crash(&self, survivors: impl Fn(usize) -> Survivors) -> Self {
        let crashed = |number: usize| self.parts[number].crash(survivors(number)).expect("what is torn is no damage");
        Self { parts: std::array::from_fn(crashed) }
    }
}

impl Store for Apart {
    fn journal(&self) -> &dyn Journal {
        self.parts[0].journal()
    }

    fn blobs(&self) -> &dyn Blobs {
        self.parts[1].blobs()
    }

    fn catalogue(&self) -> &dyn Catalogue {
        self.parts[2].catalogue()
    }

    fn usage(&self) -> Result<StoreUsage, StorageError> {
        self.parts.iter().try_fold(StoreUsage::default(), |sum, part| {
            let usage = part.usage()?;
            Ok(StoreUsage {
                disk_bytes: sum.disk_bytes + usage.disk_bytes,
                live_bytes: sum.live_bytes + usage.live_bytes,
            })
        })
    }
}

#[test]
fn three_media_are_a_store() {
    suite::conformance(|old: Option<Apart>| old.map_or_else(Apart::default, |old| old.crash(|_| Survivors::None)));
}

/// What the three media keep of what was not synced: one of them all and the others nothing, and
/// any mixture.
fn survivors(site: u64) -> Vec<[Survivors; 3]> {
    let all_but = |others: Survivors, one: Survivors, number: usize| {
        let mut survivors = [others; 3];
        survivors[number] = one;
        survivors
    };
    let mut ways = vec![[Survivors::None; 3], [0, 1, 2].map(|number| Survivors::Some { seed: site ^ (number << 32) })];
    for number in 0..3 {
        ways.push(all_but(Survivors::None, Survivors::All, number));
        ways.push(all_but(Survivors::All, Survivors::None, number));
    }
    ways
}

/// The run stops where `part` fails at `site`; what was acknowledged is there afterwards, and no
/// checkpoint names what is not.
fn stop_at(history: &History, part: usize, site: FaultSite, number: u64) {
    let store = Apart::default();
    store.parts[part].set_fault(Some(Fault { site, kind: FaultKind::Io }));
    let (acknowledged, error) = drive(&store, history, PACE);
    error.unwrap_or_else(|| panic!("{site:?} of part {part} fails"));
    for survivors in survivors(number) {
        let context = format!("{site:?} of part {part}, {survivors:?}");
        let after = store.crash(|number| survivors[number]);
        assert_goes_on(&after, history, acknowledged, &context);
    }
}

#[test]
fn a_crash_at_any_write_or_commit_of_any_seam_loses_nothing_acknowledged() {
    let history = History::scripted(&fedbuff(3), 14);
    let whole = Apart::default();
    whole.parts.iter().for_each(|part| part.set_fault(None));
    run_through(&whole, &history, PACE);
    for (part, (writes, commits)) in whole.parts.iter().map(MemoryStore::operations).enumerate() {
        assert!(writes > 3 && commits > 1, "part {part} is used: {writes} writes, {commits} commits");
        (0..writes).for_each(|write| stop_at(&history, part, FaultSite::Write(write), write));
        (0..commits).for_each(|commit| stop_at(&history, part, FaultSite::Commit(commit), commit));
    }
}

/// What a verb of a stopped coordinator does to the store of a run, in a history that it makes another one of.
struct Verb {
    history: History,
    call: fn(&dyn Store, &History) -> Result<(), RestError>,
    after: History,
}

const BRANCH: BranchId = BranchId([9; 16]);

fn roll_back(store: &dyn Store, history: &History) -> Result<(), RestError> {
    let fresh = if history.state().branch == BRANCH { BranchId([10; 16]) } else { BRANCH };
    rollback(store, ModelVersion(3), fresh, time_of(history.last().next())).map(|_| ())
}

fn bring_in(store: &dyn Store, history: &History) -> Result<(), RestError> {
    let model = vector(history.manifest.params(), 5);
    import(store, &history.manifest, &model, time_of(history.last().next())).map(|_| ())
}

fn verbs() -> [Verb; 2] {
    let history = History::scripted(&fedbuff(2), 14);
    let made = history.points.iter().find(|point| point.state.version == ModelVersion(3)).expect("it is made");
    let mut branched = history.clone();
    branched.branch_off(BRANCH, made.state.position, ModelVersion(3));
    let mut imported = history.clone();
    imported.import(vector(history.manifest.params(), 5));
    [
        Verb { history: history.clone(), call: roll_back, after: branched },
        Verb { history, call: bring_in, after: imported },
    ]
}

/// Calls `call` on media that `prepare` has filled, and cuts it off at every write and every commit of every medium. Checks
/// each way in which the media may look afterwards. Returns what came of the whole call, its store, and how many ways there were.
fn at_every_cut<T: std::fmt::Debug, E>(
    prepare: impl Fn(&Apart),
    call: impl Fn(&Apart) -> Result<T, E>,
    mut check: impl FnMut(&Apart, &str),
) -> (Result<T, E>, Apart, usize) {
    let called = |fault: Option<(usize, FaultSite)>| {
        let store = Apart::default();
        prepare(&store);
        store.parts.iter().for_each(|part| part.set_fault(None));
        if let Some((part, site)) = fault {
            store.parts[part].set_fault(Some(Fault { site, kind: FaultKind::Io }));
        }
        (call(&store), store)
    };
    let (whole, store) = called(None);
    let mut ways = 0;
    for (part, (writes, commits)) in store.parts.iter().map(MemoryStore::operations).enumerate() {
        let sites = (0..writes).map(FaultSite::Write).chain((0..commits).map(FaultSite::Commit));
        for (number, site) in (0..).zip(sites) {
            let (outcome, store) = called(Some((part, site)));
            assert!(outcome.is_err(), "{site:?} of part {part} fails");
            for survivors in survivors(number) {
                let after = store.crash(|number| survivors[number]);
                check(&after, &format!("{site:?} of part {part}, {survivors:?}"));
                ways += 1;
            }
        }
    }
    (whole, store, ways)
}

/// The verb has happened or has not, and can be asked for again.
fn crash_in(verb: &Verb) {
    let prepare = |store: &Apart| {
        run_through(store, &verb.history, ALL);
    };
    let check = |after: &Apart, context: &str| {
        let position = recover(after).expect("recovers").position;
        let expected = if position == verb.history.last() { &verb.history } else { &verb.after };
        assert_eq!(assert_same_bits(after, expected, context), expected.last());
        release(after).expect("memory");
        (verb.call)(after, expected).expect("once more");
        assert!(verify(after).expect("memory").holds, "{context}");
    };
    let (whole, store, ways) = at_every_cut(prepare, |store| (verb.call)(store, &verb.history), check);
    whole.expect("all are kept");
    assert_eq!(assert_same_bits(&store, &verb.after, "whole"), verb.after.last());
    assert!(ways > 50, "model, record and pin are written one after another, not in {ways}");
}

#[test]
fn a_crash_at_any_write_or_commit_of_a_rollback_leaves_one_branch_or_the_other() {
    let [rollback, _] = verbs();
    crash_in(&rollback);
}

#[test]
fn a_crash_at_any_write_or_commit_of_an_import_leaves_one_model_or_the_other() {
    let [_, import] = verbs();
    crash_in(&import);
}

#[test]
fn a_crash_at_any_write_or_commit_of_a_first_import_leaves_a_whole_run_or_none() {
    let manifest = spec(fedasync()).model.layers().expect("valid").expect("native").manifest;
    let model = vector(manifest.params(), 5);
    let mut begun = 0;
    let check = |after: &Apart, context: &str| {
        let before = match recover(after) {
            Ok(found) => {
                assert_eq!(bits(found.model.model()), bits(&model), "{context}");
                begun += 1;
                Some(ModelVersion(0))
            }
            Err(RecoveryError::Empty) => None,
            Err(error) => panic!("{context}: {error}"),
        };
        release(after).expect("memory");
        assert_eq!(import(after, &manifest, &model, 2).expect("once more").before, before, "{context}");
        assert!(verify(after).expect("memory").holds, "{context}");
    };
    let (whole, ..) = at_every_cut(|_| (), |store| import(store, &manifest, &model, 1), check);
    assert_eq!(whole.expect("there is no run").before, None);
    assert!(begun > 0, "in some, record 0 survives");
}
