//! What pruning keeps, and what can be taken out of a run and brought into one.

use anabranch_common::codec::euclidean_norm;
use anabranch_common::ids::{BranchId, Digest, ModelVersion, Position};
use anabranch_common::journal::{FinishReason, Record, RecordBody};
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::replacement::ReplaceError;
use anabranch_coordinator::recovery::{self, BranchPoint, RecoveryError, checkpoint};
use anabranch_coordinator::rest::RestError;
use anabranch_coordinator::store::Store;
use anabranch_testkit_store::MemoryStore;
use anabranch_testkit_store::memory::Survivors;

use crate::history::{
    History, PACE, Pace, assert_same_bits, bits, delayed_nesterov, drive, ef21, fadas, fedasync, fedavgm, fedbuff,
    manifest, recall, stored, vector,
};
use crate::rest::import;

#[test]
fn pruning_keeps_the_newest_checkpoints_and_what_they_need() {
    let history = History::scripted(&fedbuff(2), 42);
    let store = stored(&history, PACE);
    let checkpoints = checkpoint::list(&store).expect("memory");
    assert_eq!(checkpoints.len(), 2);
    assert_eq!(store.journal().first_position().expect("memory"), Some(checkpoints[0].position));
    assert!(store.journal().record(Position(0)).expect("memory").is_some(), "record 0 is always kept");
    let manifests = store.catalogue().checkpoints().expect("memory");
    let named: std::collections::BTreeSet<Digest> = manifests
        .iter()
        .map(|(_, bytes)| checkpoint::Checkpoint::from_bytes(bytes).expect("whole"))
        .flat_map(|checkpoint| checkpoint::needed_blobs(store.blobs(), &checkpoint).expect("memory"))
        .collect();
    assert_eq!(store.blobs().list().expect("memory"), named.into_iter().collect::<Vec<_>>(), "no blob is left over");
    assert!(checkpoints.iter().all(|checkpoint| checkpoint.bytes > 4000));
    assert_eq!(assert_same_bits(&store, &history, "pruned"), history.last());
}

#[test]
fn retention_of_all_keeps_every_record_and_every_imported_model() {
    let history = History::scripted(&fedasync(), 42);
    let store = stored(&history, Pace { retention: Retention::All, ..PACE });
    assert_eq!(store.journal().first_position().expect("memory"), Some(Position(0)));
    let report = recovery::verify(&store).expect("memory");
    assert!(report.holds, "{report:?}");
    assert_eq!((report.from, report.records), (Position(0), history.last().0 + 1), "verified from record 0");
    for (position, _) in store.catalogue().checkpoints().expect("memory") {
        store.catalogue().delete_checkpoint(position).expect("memory");
    }
    let recovered = recovery::recover(&store).expect("record 0 is enough");
    assert_eq!((recovered.from_checkpoint, recovered.replayed), (None, history.last().0));
    assert_eq!(assert_same_bits(&store, &history, "from record 0"), history.last());
}

#[test]
fn a_model_that_waits_for_its_record_is_not_pruned() {
    let history = History::scripted(&fedasync(), 14);
    let store = stored(&history, PACE);
    let model = vector(history.manifest.params(), 77);
    let digest = recovery::put_model(&store, &history.manifest, &model).expect("memory");
    checkpoint::prune(&store, 1, Retention::SinceSnapshot).expect("memory");
    assert!(store.blobs().get(digest).expect("memory").is_some());
    recovery::release(&store).expect("memory");
    checkpoint::prune(&store, 1, Retention::SinceSnapshot).expect("memory");
    assert_eq!(store.blobs().get(digest).expect("memory"), None, "after a start nothing waits any more");
}

#[test]
fn every_version_within_retention_is_exported_as_it_was_and_others_are_refused_by_name() {
    let others = [ef21(), fedasync().averaged(), delayed_nesterov(2).averaged()];
    for merge in [fedasync(), fedbuff(2), delayed_nesterov(2), fadas(2), recall(), fedavgm()].into_iter().chain(others)
    {
        let history = History::scripted(&merge, 42);
        let newest = history.points.last().expect("records").state.version;
        for retention in [Retention::SinceSnapshot, Retention::All] {
            let store = stored(&history, Pace { retention, ..PACE });
            let oldest = recovery::recover(&store).expect("memory").oldest;
            assert_eq!(oldest == ModelVersion(0), retention == Retention::All);
            for version in (oldest.0..=newest.0).map(ModelVersion) {
                let exported = recovery::export(&store, Some(version)).expect("within retention");
                let served = history.served_of(version);
                assert_eq!(bits(&exported.model), bits(&served), "version {version}");
                assert_eq!(exported.digest, Digest::of_f32(&served));
            }
            let beyond = recovery::export(&store, Some(newest.next())).expect_err("not made yet");
            assert!(beyond.to_string().contains(&format!("versions {oldest} to {newest} are")), "{beyond}");
            if retention == Retention::SinceSnapshot {
                let pruned = recovery::export(&store, Some(ModelVersion(oldest.0 - 1)));
                assert!(matches!(pruned, Err(RecoveryError::Version { .. })), "{pruned:?}");
            }
        }
    }
}

#[test]
fn a_finished_run_exports_its_result() {
    let mut history = History::scripted(&fedasync(), 14);
    let result = ModelVersion(history.points.last().expect("records").state.version.0 - 2);
    history.push(RecordBody::Finished { reason: FinishReason::Stopped, result }, vec![]);
    let store = stored(&history, Pace { retention: Retention::All, ..PACE });
    let exported = recovery::export(&store, None).expect("memory");
    assert_eq!(exported.version, result);
    assert_eq!(bits(&exported.model), bits(history.model_of(result)));
    let import = import(&store, &history.manifest, &exported.model, 0);
    assert!(
        matches!(import, Err(RestError::Refused(ReplaceError::Finished(version))) if version == result),
        "{import:?}"
    );
}

#[test]
fn an_imported_model_is_the_next_version_and_survives_power_loss() {
    let history = History::scripted(&fedbuff(3), 14);
    let store = stored(&history, PACE);
    let model = vector(history.manifest.params(), 5);
    let version = history.points.last().expect("records").state.version.next();
    let imported = import(&store, &history.manifest, &model, 9).expect("fits");
    assert_eq!((imported.position, imported.version), (history.last().next(), version));
    let after = store.crash(Survivors::None).expect("open");
    let recovered = recovery::recover(&after).expect("durable");
    assert_eq!((recovered.state.version, bits(recovered.model.model())), (version, bits(&model)));
    assert_eq!(recovered.state.round.contributions, 0);
    assert_eq!(recovered.state.reference_norm, euclidean_norm(&model), "the measure from here on");
    assert!(recovery::verify(&after).expect("memory").holds);
    let mut bad = model.clone();
    bad[3] = f32::NAN;
    let refused = import(&after, &history.manifest, &bad, 9);
    assert!(matches!(refused, Err(RestError::Refused(ReplaceError::NotFinite))), "P4: {refused:?}");
    let other = import(&after, &manifest(31), &vector(manifest(31).params(), 1), 9);
    assert!(matches!(other, Err(RestError::Refused(ReplaceError::OtherManifest))), "{other:?}");
}

#[test]
fn a_record_that_lies_about_the_norm_of_its_model_does_not_hold() {
    let history = History::scripted(&fedasync(), 14);
    let store = stored(&history, PACE);
    let model = vector(history.manifest.params(), 5);
    let digest = recovery::put_model(&store, &history.manifest, &model).expect("memory");
    let version = history.points.last().expect("records").state.version.next();
    let body = RecordBody::Imported { model: digest, version, norm: 2.0 * euclidean_norm(&model), copied: None };
    let position = history.last().next();
    let record = Record::new(position, 1, body, [].into());
    store.journal().append(&[(position, record.to_bytes().expect("small"))]).expect("memory");
    store.journal().sync().expect("memory");
    let report = recovery::verify(&store).expect("memory");
    let problem = report.problem.expect("it lies");
    assert!(!report.holds && problem.contains("another norm of its model"), "{problem}");
}

/// A branch replays from its point of departure, and an older version means that of the branch's own history.
#[test]
fn a_branch_goes_on_from_an_earlier_version() {
    let history = History::scripted(&fedasync(), 42);
    let store = stored(&history, Pace { retention: Retention::All, ..PACE });
    let (old, back) = (history.points.last().expect("records").state.version, ModelVersion(5));
    let (state, model) = recovery::model_at(&store, back).expect("all are kept");
    let branch = BranchId([9; 16]);
    let digest = recovery::put_model(&store, &history.manifest, model.model()).expect("memory");
    let point = BranchPoint { parent: state.branch, from: state.position, version: back, model: digest };
    recovery::put_branch(store.catalogue(), branch, &point).expect("memory");
    let mut position = history.last();
    let mut append = |body| {
        position = position.next();
        let record = Record::new(position, 1, body, [].into());
        store.journal().append(&[(position, record.to_bytes().expect("small"))]).expect("memory");
        store.journal().sync().expect("memory");
    };
    let norm = euclidean_norm(model.model());
    append(RecordBody::Branched { branch, from: point.from, version: back, norm, examples: state.examples });
    let imported = vector(history.manifest.params(), 6);
    let digest = recovery::put_model(&store, &history.manifest, &imported).expect("memory");
    append(RecordBody::Imported { model: digest, version: back.next(), norm: euclidean_norm(&imported), copied: None });

    let recovered = recovery::recover(&store).expect("replays");
    assert_eq!((recovered.state.branch, recovered.state.version), (branch, back.next()));
    let exported = |version| recovery::export(&store, Some(version)).map(|exported| bits(&exported.model));
    assert_eq!(exported(back.next()).expect("the branch's own"), bits(&imported));
    assert_eq!(exported(back).expect("where it left"), bits(history.model_of(back)));
    assert_eq!(exported(ModelVersion(3)).expect("its parent's"), bits(history.model_of(ModelVersion(3))));
    assert!(matches!(exported(old), Err(RecoveryError::Version { .. })), "the old branch's end is not its history");
    let report = recovery::verify(&store).expect("memory");
    assert!(report.holds, "{report:?}");
    checkpoint::write(&store, &recovered.state, recovered.chain, &recovered.model, 1).expect("memory");
    checkpoint::prune(&store, 2, Retention::SinceSnapshot).expect("memory");
    assert_eq!(recovery::recover(&store).expect("pruned").chain, recovered.chain);
}

/// `checkpoint verify` and `checkpoint export` read a store that a coordinator goes on writing to and pruning.
#[test]
fn verify_and_export_hold_while_a_coordinator_writes_and_prunes() {
    let history = History::scripted(&fedbuff(2), 140);
    let store = MemoryStore::new();
    let pace = Pace { group: 2, checkpoint_every: 2, ..PACE };
    std::thread::scope(|scope| {
        let driving = scope.spawn(|| drive(&store, &history, pace));
        while !driving.is_finished() {
            match recovery::verify(&store) {
                Ok(report) => assert!(report.holds, "{report:?}"),
                Err(RecoveryError::Empty) => {}
                Err(error) => panic!("{error}"),
            }
            match recovery::export(&store, None) {
                Ok(exported) => assert_eq!(bits(&exported.model), bits(history.model_of(exported.version))),
                Err(RecoveryError::Empty) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let (_, error) = driving.join().expect("the run does not panic");
        assert!(error.is_none(), "{error:?}");
    });
}
