//! `store check` and `store copy`, and a directory whose run is in a bucket.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anabranch_common::ids::{Digest, Position};
use anabranch_coordinator::store::copy::compare;
use anabranch_coordinator::store::object::remote::{RemoteBucket, writer};
use anabranch_coordinator::store::{ObjectStore, SledStore, Store};

use super::servers::Kind;

/// Calls the binary. Returns its exit code, and all that it has printed.
pub(crate) fn call(args: &[&str], environment: &BTreeMap<String, String>) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anabranch-coordinator"));
    command.args(args).env_remove("ANABRANCH_LOG").env_remove("ANABRANCH_COORDINATOR_DIR").stdin(Stdio::null());
    let output = command.envs(environment).output().expect("the binary starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().expect("it ends by itself"), String::from_utf8_lossy(&text).into_owned())
}

/// A store with records of which some were pruned, blobs, items and checkpoints.
fn fill(store: &dyn Store) {
    let records: Vec<_> = (0..40).map(|position| (Position(position), vec![7; 1000])).collect();
    store.journal().append(&records).expect("appended");
    store.journal().sync().expect("synced");
    for number in 0..5u64 {
        let bytes = vec![number.to_le_bytes()[0]; 200_000];
        store.blobs().put(Digest::of(&bytes), &bytes).expect("put");
    }
    store.blobs().sync().expect("synced");
    store.catalogue().put("run", &[1; 32]).expect("put");
    store.catalogue().put_checkpoint(Position(20), b"manifest").expect("put");
    store.catalogue().sync().expect("synced");
    store.journal().prune(Position(20)).expect("pruned");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

#[test]
fn a_run_is_copied_into_a_bucket_and_back() {
    for kind in Kind::ALL {
        let Some(server) = kind.start() else { continue };
        let (url, environment) = (server.url("run"), server.environment());
        let root = tempfile::tempdir().expect("a temporary folder");
        let (one, other) = (root.path().join("one"), root.path().join("other"));
        let open = |dir: &Path| SledStore::open_dir(&dir.join("store")).expect("opens");
        std::fs::create_dir_all(&other).expect("created");
        fill(&open(&one));
        let (code, said) = call(&["store", "copy", text(&one), &url], &environment);
        assert_eq!(code, 0, "{kind:?}: {said}");
        assert!(said.contains("21 records, 5 blobs, 1 items and 1 checkpoints"), "{kind:?}: {said}");
        let (code, said) = call(&["store", "copy", text(&one), &url], &environment);
        assert_eq!(code, 4, "{kind:?}: {said}");
        assert!(said.contains("not empty"), "{kind:?}: {said}");
        let (code, said) = call(&["store", "copy", &url, text(&other), "--json"], &environment);
        assert_eq!(code, 0, "{kind:?}: {said}");
        let copied = compare(&open(&one), &open(&other)).expect("the same");
        assert_eq!((copied.records, copied.blobs), (21, 5));
        // The copy goes on as the original would have.
        let bucket = Arc::new(RemoteBucket::connect_with(&url, &environment).expect("an address"));
        let store = ObjectStore::open(bucket, &writer().expect("drawn")).expect("opens");
        store.journal().append(&[(Position(40), vec![8])]).expect("the next one");
        store.journal().sync().expect("synced");
        assert_eq!(store.journal().first_position().expect("read"), Some(Position(20)));
        assert_eq!(store.journal().record(Position(19)).expect("read"), None);
    }
}

#[test]
fn what_is_no_copy_is_refused() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let (dir, bucket) = (root.path().join("run"), format!("file://{}/bucket", root.path().display()));
    let none = BTreeMap::new();
    fill(&SledStore::open_dir(&dir.join("store")).expect("opens"));
    assert_eq!(call(&["store", "copy", text(&dir), text(&dir)], &none).0, 2);
    let (code, said) = call(&["store", "copy", &format!("{bucket}-empty"), text(&root.path().join("x"))], &none);
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("no run to copy"), "{said}");
    let (code, said) = call(&["store", "copy", text(&dir), "ftp://somewhere"], &none);
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("ftp"), "{said}");
}

/// A directory that holds a run, and whose run.toml names a bucket: neither is used, until it is clear which one counts.
#[test]
fn two_stores_of_one_run_are_refused() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let dir = root.path().join("trainer");
    let none = BTreeMap::new();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    assert_eq!(call(&["init", "--dir", text(&dir), "--listen", &format!("127.0.0.1:{port}")], &none).0, 0);
    assert_eq!(call(&["token", "create", "--dir", text(&dir)], &none).0, 0);
    let file = dir.join("run.toml");
    let template = std::fs::read_to_string(&file).expect("read");
    let url = format!("file://{}/bucket", root.path().display());
    assert!(template.contains("#url = "));
    std::fs::write(&file, template.replacen("#url = \"s3://training/wards\"", &format!("url = \"{url}\""), 1))
        .expect("written");
    let (code, said) = call(&["run", "--dir", text(&dir)], &none);
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("store copy"), "{said}");
    let (code, said) = call(&["store", "copy", text(&dir), &url], &none);
    assert_eq!(code, 0, "{said}");
    std::fs::remove_dir_all(dir.join("store")).expect("removed");
    let (code, said) = call(&["token", "list", "--dir", text(&dir)], &none);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("good"), "the token is in the bucket: {said}");
    let (code, said) = call(&["doctor", "--dir", text(&dir)], &none);
    assert!(said.contains("readable: schema"), "{code}: {said}");
}

#[test]
fn a_bucket_is_checked_in_numbers() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let url = format!("file://{}/bucket", root.path().display());
    let none = BTreeMap::new();
    let (code, said) = call(&["store", "check", &url, "--races", "20"], &none);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("20 races of 8 writers") && said.contains("a run may be stored here"), "{said}");
    let (code, said) = call(&["store", "check", &url, "--races", "3", "--json"], &none);
    assert_eq!(code, 0, "{said}");
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((report["races"].as_u64(), report["several_winners"].as_u64()), (Some(3), Some(0)));
    assert_eq!(call(&["store", "check", &url, "--writers", "1"], &none).0, 2);
}
