//! P2 and P4: what a bad disk changes is got round where that is possible, and refused by position where it is not.

use anabranch_common::codec::CodecSpec;
use anabranch_common::ids::{AgentId, Digest, ModelVersion, Position};
use anabranch_common::journal::{Contribution, Publication, PublicationForm, RecordBody};
use anabranch_common::merge::MergeSpec;
use anabranch_coordinator::core::state::RunState;
use anabranch_coordinator::recovery::{self, Checkpoint, Recovered, RecoveryError, checkpoint};
use anabranch_coordinator::store::layout::{HEAD_BYTES, Name};
use anabranch_coordinator::store::{Area, Store};
use anabranch_testkit_store::MemoryStore;
use anabranch_testkit_store::memory::Survivors;

use crate::history::{
    ALL, History, PACE, assert_same_bits, delayed_nesterov, ef21, fadas, fedadam, fedasync, fedbuff, manifest, recall,
    stored,
};

/// A contribution waits at the newest checkpoint and none at the one before: they share no vector.
fn finished() -> (MemoryStore, History) {
    finished_by(&fedbuff(2))
}

fn finished_by(merge: &MergeSpec) -> (MemoryStore, History) {
    let history = History::scripted(merge, 33);
    (stored(&history, PACE), history)
}

fn newest(store: &MemoryStore) -> Checkpoint {
    let (_, bytes) = store.catalogue().checkpoints().expect("memory").pop().expect("there are checkpoints");
    Checkpoint::from_bytes(&bytes).expect("whole")
}

/// Changes one bit of an entry's content, wherever it lies.
fn flip(store: &MemoryStore, name: &Name) {
    let in_bulk = store.damage(Area::Bulk, &name.chunk_key(0), |bytes| bytes[0] ^= 1);
    assert!(in_bulk || store.damage(Area::Catalogue, &name.key(), |bytes| bytes[HEAD_BYTES] ^= 1), "{name} is stored");
}

#[test]
fn a_damaged_newest_checkpoint_falls_back_to_an_older_one() {
    for merge in [fedbuff(2), delayed_nesterov(5), fadas(5), recall(), ef21(), fedadam(), fedadam().averaged()] {
        let (store, history) = finished_by(&merge);
        assert_falls_back(&store, &history);
    }
}

fn assert_falls_back(store: &MemoryStore, history: &History) {
    let checkpoint = newest(store);
    let blobs = checkpoint::needed_blobs(store.blobs(), &checkpoint).expect("memory");
    assert!(blobs.len() > checkpoint.blobs().count(), "the pages of the fold are among them");
    let older = store.catalogue().checkpoints().expect("memory").into_iter().rev().nth(1).expect("there are two").1;
    let older = Checkpoint::from_bytes(&older).expect("whole");
    let shared = checkpoint::needed_blobs(store.blobs(), &older).expect("memory");
    for damaged in blobs.into_iter().map(Name::Blob).chain([Name::Checkpoint(checkpoint.position)]) {
        let store = store.crash(Survivors::All).expect("open");
        flip(&store, &damaged);
        if matches!(&damaged, Name::Blob(blob) if shared.contains(blob)) {
            // The same content in both, such as the sum of a round: none is left to fall back to.
            let error = recovery::recover(&store).expect_err("both are damaged").to_string();
            assert!(error.contains("no checkpoint is usable") && error.contains(&damaged.to_string()[5..]), "{error}");
            continue;
        }
        assert_eq!(assert_same_bits(&store, history, &damaged.to_string()), history.last());
        let recovered = recovery::recover(&store).expect("checked above");
        assert!(recovered.from_checkpoint.expect("an older one") < checkpoint.position);
        assert_eq!(recovered.warnings.len(), 1, "{:?}", recovered.warnings);
        let report = recovery::verify(&store).expect("memory");
        assert!(!report.holds, "verify must notice the damaged {damaged}");
    }
}

#[test]
fn a_lost_blob_of_the_newest_checkpoint_falls_back_too() {
    let (store, history) = finished();
    store.blobs().delete(newest(&store).model).expect("memory");
    assert_eq!(assert_same_bits(&store, &history, "lost model"), history.last());
}

/// The digest says what a blob holds: a blob that is whole but another one is not accepted.
#[test]
fn a_blob_with_another_content_is_noticed() {
    let (store, history) = finished();
    let checkpoint = newest(&store);
    let other = store.blobs().get(checkpoint.merge_state[0]).expect("memory").expect("stored");
    store.blobs().delete(checkpoint.model).expect("memory");
    store.blobs().put(checkpoint.model, &other).expect("memory");
    assert_eq!(assert_same_bits(&store, &history, "exchanged"), history.last());
    assert_eq!(recovery::recover(&store).expect("falls back").warnings.len(), 1);
}

#[test]
fn without_a_usable_checkpoint_a_pruned_journal_is_refused() {
    let (store, _) = finished();
    let first = store.journal().first_position().expect("memory").expect("pruned");
    assert!(first > Position(0));
    for (position, _) in store.catalogue().checkpoints().expect("memory") {
        flip(&store, &Name::Checkpoint(position));
    }
    match recovery::recover(&store) {
        Err(error @ RecoveryError::NoCheckpoint { .. }) => {
            assert!(error.to_string().contains(&format!("begins at record {first}")), "{error}");
            assert!(error.help().expect("an answer").contains("backup"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_damaged_record_in_the_middle_is_refused_by_its_position() {
    let (store, history) = finished();
    let position = Position(history.last().0 - 2);
    assert!(position > newest(&store).position, "it is replayed");
    for lose in [false, true] {
        let store = store.crash(Survivors::All).expect("open");
        if lose {
            assert!(store.lose(Area::Catalogue, &Name::Record(position).key()));
        } else {
            flip(&store, &Name::Record(position));
        }
        let error = recovery::recover(&store).expect_err("the record is damaged");
        assert!(error.to_string().contains(&format!("record {position} ")), "{error}");
        let report = recovery::verify(&store).expect("memory");
        assert!(!report.holds);
        assert_eq!(report.to.next(), position, "it holds up to the record before");
        assert_eq!(report.chain, history.points[usize::try_from(report.to.0).expect("short")].chain.0);
    }
}

/// A record that was replaced by a whole one with other figures is what the chain is there for. One with another weight
/// makes another model than the published one, too.
#[test]
fn verify_notices_a_forged_record() {
    let double_weight = |update: &mut Contribution| update.weight *= 2.0;
    let double_norm = |update: &mut Contribution| update.norm *= 2.0;
    assert!(problem_of_forged(double_weight).contains("was published as another model"));
    assert!(problem_of_forged(double_norm).contains("another chain"));
}

/// What `verify` says of a journal in which a contribution after the oldest checkpoint is changed like this.
fn problem_of_forged(forge: fn(&mut Contribution)) -> String {
    let (store, history) = finished();
    let anchor = store.catalogue().checkpoints().expect("memory")[0].0;
    let forged = history.records.iter().find(|record| record.position > anchor && record.body.kind() == "contribution");
    let mut forged = forged.expect("updates follow the anchor").clone();
    if let RecordBody::Contribution(update) = &mut forged.body {
        forge(update);
    }
    let bytes = forged.to_bytes().expect("small");
    let name = Name::Record(forged.position);
    let head = anabranch_coordinator::store::layout::EntryHead::of(&bytes, usize::MAX, Position(0));
    assert!(store.damage(Area::Catalogue, &name.key(), |value| *value = head.to_value(&bytes)));
    let report = recovery::verify(&store).expect("memory");
    assert!(!report.holds);
    report.problem.expect("what")
}

/// A version may be published when later ones are made already: then the model at hand is another one.
#[test]
fn verify_compares_the_digest_of_a_version_that_is_published_late() {
    for said in [2, 3].map(ModelVersion) {
        let mut history = History::begin(fedasync(), manifest(3));
        let agents = [0, 1, 2].map(|number| AgentId([number; 16]));
        let leases = agents.map(|agent| {
            history.join(agent.0[0]);
            history.lease(agent, u64::from(agent.0[0]))
        });
        for (round, (agent, lease)) in (0..).zip(agents.into_iter().zip(leases)) {
            history.update(agent, lease, round);
        }
        assert_eq!(history.state().version, ModelVersion(3));
        let digest = Digest::of_f32(history.model_of(said));
        let publication = Publication { version: ModelVersion(2), form: PublicationForm::Snapshot, digest };
        history.push(RecordBody::Published(publication), vec![]);
        let report = recovery::verify(&stored(&history, ALL)).expect("memory");
        if said == publication.version {
            assert_eq!(report.problem, None);
        } else {
            let problem = report.problem.expect("it is the digest of another version");
            assert!(problem.contains("version 2 was published as another model"), "{problem}");
        }
    }
}

#[test]
fn verify_compares_what_a_checkpoint_has_saved_of_round_and_publication() {
    type Forge = fn(&mut RunState);
    let unpublished: Forge = |state| state.published = None;
    let miscounted: Forge = |state| state.round.contributions ^= 1;
    let left_behind: Forge = |state| state.base = ModelVersion(state.base.0 - 1);
    let as_it_was: Forge = |_| ();
    for (forge, found) in [
        (as_it_was, ""),
        (left_behind, "another version to train from"),
        (unpublished, "another published version"),
        (miscounted, "another number of waiting contributions"),
    ] {
        let (store, _) = finished();
        let Recovered { mut state, model, chain, .. } = recovery::recover(&store).expect("memory");
        assert!(state.published.is_some());
        forge(&mut state);
        checkpoint::write(&store, &state, chain, &model, 1).expect("memory");
        let problem = recovery::verify(&store).expect("memory").problem.unwrap_or_default();
        assert!(problem.contains(found) && problem.is_empty() == found.is_empty(), "{problem}");
    }
}

#[test]
fn verify_agrees_with_recovery_on_chain_and_model() {
    let (store, history) = finished();
    let report = recovery::verify(&store).expect("memory");
    let expected = history.points.last().expect("records");
    assert_eq!(report.problem, None);
    assert!(report.holds);
    assert_eq!(report.to, history.last());
    assert_eq!(report.from, checkpoint::list(&store).expect("memory")[0].position);
    assert_eq!(report.records, report.to.0 - report.from.0);
    assert_eq!((report.chain, report.model), (expected.chain.0, Digest::of_f32(&expected.model)));
    assert_eq!(report.version, expected.state.version);
}

/// P4: a run that stopped because finite updates added up to a model that is not is a sound journal. It is not broken,
/// and its model is the last finite one.
#[test]
fn a_run_that_overflowed_holds_with_its_last_finite_version() {
    for merge in [fedasync(), fedbuff(2), delayed_nesterov(3)] {
        let mut history = History::begin(merge, manifest(3));
        history.join(1);
        let agent = AgentId([1; 16]);
        let large = vec![f32::MAX * 0.9; history.manifest.params()];
        for round in 0..12 {
            let lease = history.lease(agent, round);
            history.update_by(agent, lease, round, CodecSpec::F32, &large);
        }
        let finite = |model: &[f32]| model.iter().all(|value| value.is_finite());
        let last = history.points.iter().rposition(|point| finite(&point.model)).expect("the first one is");
        let expected = history.points[last].clone();
        assert!(last + 3 < history.points.len(), "it overflows at {last}");
        let store = MemoryStore::new();
        recovery::put_model(&store, &history.manifest, &history.points[0].model).expect("memory");
        for record in &history.records {
            store.journal().append(&[(record.position, record.to_bytes().expect("small"))]).expect("memory");
        }
        store.journal().sync().expect("memory");
        let report = recovery::verify(&store).expect("memory");
        assert!(report.holds, "{report:?}");
        assert_eq!(report.to, history.last(), "the chain is checked to its end");
        assert_eq!(report.chain, history.points.last().expect("points").chain.0);
        assert_eq!((report.version, report.model), (expected.state.version, Digest::of_f32(&expected.model)));
        assert!(report.version > ModelVersion(0));
        // Damage after the overflow is noticed as before it.
        flip(&store, &Name::Record(history.last()));
        assert!(!recovery::verify(&store).expect("memory").holds);
    }
}
