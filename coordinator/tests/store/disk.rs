//! The store on disk: the same bits after a restart, and a disk that does not grow (P5).

use anabranch_common::ids::Position;
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::manifest::{ModelManifest, TensorSpec};
use anabranch_common::rng::SplitMix64;
use anabranch_coordinator::config::Retention;
use anabranch_coordinator::core::state::RunState;
use anabranch_coordinator::merger::ModelState;
use anabranch_coordinator::recovery::{self, checkpoint};
use anabranch_coordinator::store::{SledStore, Store};
use anabranch_testkit_store::suite;

use crate::history::{History, PACE, assert_same_bits, drive, fedasync, fedbuff, manifest as small_manifest};

#[test]
fn the_store_on_disk_conforms() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let mut stores = 0;
    let mut dir = root.path().to_path_buf();
    suite::conformance(|old: Option<SledStore>| {
        match old {
            Some(store) => drop(store),
            None => {
                stores += 1;
                dir = root.path().join(format!("store-{stores}"));
            }
        }
        SledStore::open_dir(&dir).expect("opens")
    });
}

#[test]
fn a_run_on_disk_recovers_with_the_same_bits_and_verifies() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let history = History::scripted(&fedbuff(2), 21);
    let store = SledStore::open_dir(dir.path()).expect("opens");
    let (acknowledged, error) = drive(&store, &history, PACE);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(acknowledged, Some(history.last()));
    drop(store);
    let store = SledStore::open_dir(dir.path()).expect("opens again");
    assert_eq!(assert_same_bits(&store, &history, "reopened"), history.last());
    assert!(recovery::verify(&store).expect("readable").holds);
}

/// Finite values whose bytes do not compress.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix64::new(seed);
    (0..len).map(|_| f32::from_bits((rng.next_u64() >> 32) as u32 & 0xBFFF_FFFF)).collect()
}

/// 20 checkpoints of 20 MB that do not compress, the newest two kept: the disk stays below five times the live bytes (P5).
#[test]
fn twenty_checkpoints_of_20_mb_keep_the_disk_flat() {
    const PARAMS: usize = 5_000_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = SledStore::open_dir(dir.path()).expect("opens");
    let tensors = vec![TensorSpec { name: "w".into(), shape: vec![PARAMS as u64] }];
    let manifest = ModelManifest::new(tensors).expect("valid");
    let genesis = History::begin(fedasync(), small_manifest(1));
    store.journal().append(&[(Position(0), genesis.records[0].to_bytes().expect("small"))]).expect("append");
    for round in 1..=20u64 {
        let position = Position(round);
        let record = Record::new(position, round, RecordBody::Paused, vec![7; 200_000].into());
        store.journal().append(&[(position, record.to_bytes().expect("small"))]).expect("append");
        store.journal().sync().expect("commit");
        let state = RunState { manifest: manifest.clone(), position, ..genesis.points[0].state.clone() };
        let model = ModelState::new(manifest.clone(), fedasync(), noise(PARAMS, round), state.version).expect("fits");
        checkpoint::write(&store, &state, genesis.points[0].chain, &model, round).expect("write");
        checkpoint::prune(&store, 2, Retention::SinceSnapshot).expect("prune");
        let usage = store.usage().expect("usage");
        let ratio = usage.disk_bytes as f64 / usage.live_bytes as f64;
        let mb = |bytes: u64| bytes as f64 / 1e6;
        println!(
            "checkpoint {round:2}: {:6.1} MB on disk, {:5.1} MB live, {ratio:.2}x",
            mb(usage.disk_bytes),
            mb(usage.live_bytes)
        );
        assert!(usage.live_bytes < 50_000_000, "at most two checkpoints are live, not {} bytes", usage.live_bytes);
        let bound_bytes = 5 * usage.live_bytes;
        assert!(usage.disk_bytes <= bound_bytes, "{} bytes on disk, more than {bound_bytes}", usage.disk_bytes);
    }
}
