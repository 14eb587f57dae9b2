//! Going back to an earlier version: the same bits, a run that goes on, and nothing half done.

use anabranch_common::codec::euclidean_norm;
use anabranch_common::ids::{AgentId, BranchId, ModelVersion, Position, UpdateSeq};
use anabranch_common::journal::{FinishReason, RecordBody};
use anabranch_common::update::{RefusalReason, UpdateMeta, Verdict};
use anabranch_common::wire::message::RunPhase;
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::admit::{Decision, admit};
use anabranch_coordinator::core::event::Now;
use anabranch_coordinator::core::{Core, Options};
use anabranch_coordinator::recovery::{self, RecoveryError, checkpoint};
use anabranch_coordinator::rest::{RestError, RolledBack};
use anabranch_coordinator::store::Store;
use anabranch_testkit_store::MemoryStore;
use anabranch_testkit_store::memory::{Fault, FaultKind, FaultSite, Survivors};

use crate::history::{
    ALL, History, PACE, assert_same_bits, bits, delayed_nesterov, ef21, fadas, fedadam, fedasync, fedbuff, recall,
    stored, time_of, vector,
};
use crate::rest;

const BRANCH: BranchId = BranchId([9; 16]);

fn rollback(store: &dyn Store, history: &History, version: u64) -> Result<RolledBack, RestError> {
    rest::rollback(store, ModelVersion(version), BRANCH, time_of(history.last().next()))
}

fn updates(history: &History) -> Vec<UpdateMeta> {
    let meta = |body: &RecordBody| match body {
        RecordBody::Contribution(update) => Some(update.meta.clone()),
        _ => None,
    };
    history.records.iter().filter_map(|record| meta(&record.body)).collect()
}

/// The fold, the chain and the model after a rollback are those of a run that never crashed, and the run that goes on
/// from there, checkpoints and prunes included, has the bits of one that is computed beside it.
#[test]
fn a_run_that_had_ended_goes_on_from_the_bits_of_an_earlier_version() {
    let asynchronous = [(fedasync(), 8), (fedbuff(3), 4), (delayed_nesterov(3), 8), (fadas(3), 4), (recall(), 8)];
    let others = [(ef21(), 8), (fedadam(), 4), (fadas(3).averaged(), 4), (fedadam().averaged(), 4)];
    for (merge, version) in asynchronous.into_iter().chain(others) {
        let mut history = History::scripted(&merge, 42);
        history.lease(AgentId([1; 16]), 42);
        let result = history.points.last().expect("records").state.version;
        history.push(RecordBody::Finished { reason: FinishReason::Stopped, result }, vec![]);
        let store = stored(&history, ALL);

        let done = rollback(&store, &history, version).expect("all are kept");
        assert_eq!((done.before, done.position, done.branch), (result, history.last().next(), BRANCH));
        history.branch_off(BRANCH, done.from, done.version);
        assert_eq!(assert_same_bits(&store, &history, "rolled back"), history.last());
        let recovered = recovery::recover(&store).expect("replays");
        assert_eq!(bits(recovered.model.model()), bits(history.model_of(done.version)));
        assert_eq!((recovered.replayed, recovered.checkpoint_version), (0, Some(done.version)), "a cheap restart");
        assert_eq!(recovered.state.active_leases().count(), 0, "leases of the old branch ended with it");
        assert!(recovered.state.finished.is_none());

        for round in 50..56 {
            let agent = AgentId([u8::try_from(round % 3).expect("small"); 16]);
            let lease = history.lease(agent, round);
            history.update(agent, lease, round);
        }
        let further = history.records.iter().skip_while(|record| record.position <= done.position);
        let further: Vec<_> = further.map(|record| (record.position, record.to_bytes().expect("small"))).collect();
        store.journal().append(&further).expect("in order");
        store.journal().sync().expect("memory");
        let store = store.crash(Survivors::None).expect("open");
        assert_eq!(assert_same_bits(&store, &history, "went on"), history.last());
        let report = recovery::verify(&store).expect("memory");
        assert!(report.holds, "{report:?}");
        assert_eq!(report.records, history.last().0 + 1, "the old branch's records are verified too");

        let recovered = recovery::recover(&store).expect("replays");
        checkpoint::write(&store, &recovered.state, recovered.chain, &recovered.model, 1).expect("memory");
        for keep in [3, 2, 1] {
            let pruned = checkpoint::prune(&store, keep, Retention::SinceSnapshot).expect("memory");
            assert!(
                pruned.oldest <= recovered.state.version,
                "a version of the old branch is not the oldest: {pruned:?}"
            );
            assert_same_bits(&store, &history, "pruned");
            assert!(recovery::verify(&store).expect("memory").holds);
        }
    }
}

/// P1: what was acknowledged before is answered as it was, and what was trained for the old branch is not merged.
#[test]
fn agents_of_the_old_branch_are_answered_and_not_merged() {
    let history = History::scripted(&fedasync(), 42);
    let store = stored(&history, ALL);
    rollback(&store, &history, 8).expect("all are kept");
    let state = recovery::recover(&store).expect("replays").state;
    assert_eq!(state.reference_norm, euclidean_norm(history.model_of(ModelVersion(8))), "the measure from here on");
    let accepted = updates(&history).pop().expect("updates");
    let again = admit(&state, &accepted, None);
    assert!(matches!(again, Decision::Repeat(Verdict::Accepted { .. })), "{again:?}");
    let mut late = accepted;
    late.key.seq = UpdateSeq(1000);
    assert_eq!(admit(&state, &late, None), Decision::Refuse(RefusalReason::WrongBranch));
}

/// Versions after the one that is gone back to are made again, as other models: what was measured of the old ones must
/// neither end the run nor keep the new ones from being measured.
#[test]
fn evaluations_of_versions_that_no_longer_count_are_dropped() {
    let history = History::scripted(&fedasync(), 42);
    let evaluated = |state: &anabranch_coordinator::core::state::RunState| -> Vec<u64> {
        state.evaluations.iter().map(|(_, evaluation)| evaluation.version.0).collect()
    };
    let before = evaluated(&history.points.last().expect("records").state);
    let [version] = before[..] else { panic!("the script evaluates once, not {before:?}") };
    for (to, left) in [(version - 1, vec![]), (version, before.clone())] {
        let store = stored(&history, ALL);
        rollback(&store, &history, to).expect("all are kept");
        assert_eq!(evaluated(&recovery::recover(&store).expect("replays").state), left, "rolled back to {to}");
    }
}

#[test]
fn a_core_goes_on_after_a_rollback_and_gives_leases_again() {
    let mut history = History::scripted(&fedasync(), 14);
    let result = history.points.last().expect("records").state.version;
    history.push(RecordBody::Finished { reason: FinishReason::Stopped, result }, vec![]);
    let store = stored(&history, ALL);
    rollback(&store, &history, 3).expect("all are kept");
    let recovered = recovery::recover(&store).expect("replays");
    let (spec, run) = (recovered.state.spec.clone(), recovered.state.run);
    let options = Options {
        run,
        first_branch: BranchId([2; 16]),
        starts: 0,
        lease_ttl_ms: 1,
        checkpoint_every_versions: 1,
        checkpoint_every_ms: 0,
    };
    let rebuildable = (recovered.oldest, recovered.checkpoint_version);
    let now = Now { unix_ms: 1, mono_ms: 0 };
    let (core, _) = Core::resume(options, spec, (recovered.state, recovered.chain), rebuildable, now).expect("fits");
    assert_eq!(core.phase(), RunPhase::Running);
    let status = core.status();
    assert_eq!((status.branch, status.version, status.chain), (BRANCH, ModelVersion(3), recovered.chain.0));
}

#[test]
fn a_version_out_of_retention_and_a_store_without_a_run_are_refused_and_nothing_changes() {
    let history = History::scripted(&fedbuff(2), 42);
    let store = stored(&history, PACE);
    let recovered = recovery::recover(&store).expect("memory");
    let (oldest, newest) = (recovered.oldest, recovered.state.version);
    assert!(oldest > ModelVersion(0));
    store.set_fault(None);
    for version in [oldest.0 - 1, newest.0 + 1] {
        let refused = rollback(&store, &history, version).expect_err("not available");
        assert!(refused.to_string().contains(&format!("versions {oldest} to {newest} are")), "{refused}");
    }
    assert_eq!(store.operations(), (0, 0), "nothing was written");
    let empty = rest::rollback(&MemoryStore::new(), ModelVersion(0), BRANCH, 1);
    assert!(matches!(empty, Err(RestError::Recovery(RecoveryError::Empty))), "{empty:?}");
    let done = rollback(&store, &history, oldest.0).expect("the oldest is available");
    let recovered = recovery::recover(&store).expect("replays");
    assert_eq!(bits(recovered.model.model()), bits(history.model_of(done.version)));
    assert!(recovery::verify(&store).expect("memory").holds);
}

/// Killed between a contribution and its close: the contribution is in a version, and a rollback may go back to it.
#[test]
fn a_contribution_that_waits_for_its_close_is_closed_before_an_import_or_a_rollback() {
    for merge in [fedasync(), fedbuff(2), delayed_nesterov(2), fadas(2), recall(), ef21(), fedbuff(2).averaged()] {
        let mut history = History::scripted(&merge, 14);
        while !matches!(history.records.last().expect("records").body, RecordBody::Closed(_)) {
            history.records.pop();
            history.points.pop();
        }
        let (closed, version) = (history.last(), history.state().version);
        let mut killed = history.clone();
        killed.records.pop();
        killed.points.pop();
        assert!(killed.state().close_due().is_some());
        let model = vector(history.manifest.params(), 5);

        let store = stored(&killed, ALL);
        let imported = rest::import(&store, &history.manifest, &model, time_of(closed)).expect("it fits");
        assert_eq!((imported.position, imported.version), (closed.next(), version.next()));
        let exported = recovery::export(&store, Some(version)).expect("it is made");
        assert_eq!(bits(&exported.model), bits(&history.served_of(version)), "the contribution is in it");
        assert!(recovery::verify(&store).expect("memory").holds);

        let store = stored(&killed, ALL);
        let done = rest::rollback(&store, version, BRANCH, time_of(closed)).expect("it is made");
        assert_eq!((done.from, done.position, done.before), (closed, closed.next(), version));
        history.branch_off(BRANCH, done.from, version);
        let recovered = recovery::recover(&store).expect("replays");
        assert_eq!(bits(recovered.model.model()), bits(&history.points.last().expect("records").model));
        assert!(recovery::verify(&store).expect("memory").holds);
    }
}

/// A rollback that is cut off at any commit has happened or has not, and can be asked for again.
#[test]
fn a_crash_at_any_commit_of_a_rollback_leaves_one_branch_or_the_other() {
    let history = History::scripted(&fedbuff(2), 28);
    let mut branched = history.clone();
    let whole = rollback(&stored(&history, ALL), &history, 5).expect("all are kept");
    branched.branch_off(BRANCH, whole.from, whole.version);
    let mut commits = 0;
    loop {
        let store = stored(&history, ALL);
        store.set_fault(Some(Fault { site: FaultSite::Commit(commits), kind: FaultKind::Io }));
        if rollback(&store, &history, 5).is_ok() {
            break;
        }
        for survivors in [Survivors::None, Survivors::All, Survivors::Some { seed: commits }] {
            let context = format!("commit {commits}, {survivors:?}");
            let after = store.crash(survivors).expect("open");
            let position: Position = recovery::recover(&after).expect("recovers").position;
            let expected = if position == history.last() { &history } else { &branched };
            assert_eq!(assert_same_bits(&after, expected, &context), expected.last());
            recovery::release(&after).expect("memory");
            rest::rollback(&after, ModelVersion(5), BranchId([10; 16]), 1).expect("once more");
            let recovered = recovery::recover(&after).expect("replays");
            assert_eq!(bits(recovered.model.model()), bits(history.model_of(ModelVersion(5))), "{context}");
            assert!(recovery::verify(&after).expect("memory").holds, "{context}");
        }
        commits += 1;
    }
    assert!(commits >= 4, "model, record and checkpoint are committed one after another, not in {commits}");
}
