//! The seams' suites on real servers, and whether these keep conditions.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::ids::Position;
use anabranch_coordinator::store::object::remote::{RemoteBucket, writer};
use anabranch_coordinator::store::object::{Bucket as _, CheckPlan, check};
use anabranch_coordinator::store::{Blobs, Catalogue, Journal, ObjectStore, StorageError, Store, StoreUsage};
use anabranch_testkit_store::suite;

use super::servers::Kind;

/// A store, and where it is.
#[derive(Debug)]
struct Opened {
    url: String,
    store: ObjectStore,
}

impl Opened {
    fn new(url: String, environment: &BTreeMap<String, String>) -> Self {
        let bucket = RemoteBucket::connect_with(&url, environment).expect("an address");
        let store = ObjectStore::open(Arc::new(bucket), &writer().expect("drawn"));
        Self { store: store.unwrap_or_else(|error| panic!("{url}: {error}")), url }
    }
}

impl Store for Opened {
    fn journal(&self) -> &dyn Journal {
        self.store.journal()
    }

    fn blobs(&self) -> &dyn Blobs {
        self.store.blobs()
    }

    fn catalogue(&self) -> &dyn Catalogue {
        self.store.catalogue()
    }

    fn usage(&self) -> Result<StoreUsage, StorageError> {
        self.store.usage()
    }
}

fn conforms(url: &dyn Fn(&str) -> String, environment: &BTreeMap<String, String>) {
    let mut stores = 0;
    suite::conformance(|old: Option<Opened>| {
        stores += 1;
        let url = old.map_or_else(|| url(&format!("store-{stores}")), |old| old.url);
        Opened::new(url, environment)
    });
}

#[test]
fn a_store_on_either_server_conforms() {
    for kind in Kind::ALL {
        let Some(server) = kind.start() else { continue };
        conforms(&|prefix| server.url(prefix), &server.environment());
    }
}

#[test]
fn a_store_in_a_directory_conforms() {
    let root = tempfile::tempdir().expect("a temporary folder");
    conforms(&|prefix| format!("file://{}/{prefix}", root.path().display()), &BTreeMap::new());
}

#[test]
fn a_second_writer_fences_the_first_one_on_either_server() {
    for kind in Kind::ALL {
        let Some(server) = kind.start() else { continue };
        let open = || Opened::new(server.url("run"), &server.environment());
        let first = open();
        first.journal().append(&[(Position(0), vec![1])]).expect("in memory");
        first.journal().sync().expect("it has the store");
        let second = open();
        first.journal().append(&[(Position(1), vec![1])]).expect("in memory");
        let error = first.journal().sync().expect_err("its next key is taken");
        assert!(matches!(error, StorageError::Superseded { .. }), "{kind:?}: {error}");
        assert!(first.catalogue().put("a", b"b").is_err(), "{kind:?}");
        second.journal().append(&[(Position(1), vec![2])]).expect("in memory");
        second.journal().sync().expect("it has the store");
        assert_eq!(open().journal().record(Position(1)).expect("read"), Some(vec![2]), "{kind:?}");
    }
}

/// Both check before they write: alone they are found out or not, as chance has it. One request at a time they may be used.
#[test]
fn either_server_may_be_used_one_request_at_a_time() {
    for kind in Kind::ALL {
        let Some(server) = kind.start() else { continue };
        let plan = CheckPlan { writers: 16, races: 20 };
        let checked = |environment: &BTreeMap<String, String>| {
            let bucket = RemoteBucket::connect_with(&server.url("check"), environment).expect("an address");
            let report = check(&bucket, plan, [7; 16]).expect("it answers");
            assert!(bucket.list("").expect("listed").is_empty(), "{kind:?}: nothing is left behind");
            report
        };
        let direct = checked(&server.direct_environment());
        println!("{kind:?}, direct: {direct:?}");
        assert_eq!(direct.created_again, 0, "{kind:?}: with one writer it keeps conditions");
        let report = checked(&server.environment());
        println!("{kind:?}, one request at a time: {report:?}");
        assert!(report.is_usable() && report.unanswered == 0, "{kind:?}: {report:?}");
    }
}

/// moto knows which buckets there are, s3s-fs which keys are right.
#[test]
fn a_bucket_that_is_not_there_and_wrong_keys_are_named() {
    let open = |url: &str, environment: &BTreeMap<String, String>| {
        let bucket = RemoteBucket::connect_with(url, environment).expect("an address");
        match ObjectStore::open(Arc::new(bucket), &writer().expect("drawn")) {
            Err(error @ StorageError::Remote { .. }) => error.to_string(),
            other => panic!("{url} cannot be used: {other:?}"),
        }
    };
    if let Some(server) = Kind::Moto.start() {
        let error = open("s3://nowhere/run", &server.environment());
        assert!(error.contains("s3://nowhere/run") && error.contains("NoSuchBucket"), "{error}");
    }
    if let Some(server) = Kind::S3s.start() {
        let mut wrong = server.environment();
        wrong.insert("AWS_SECRET_ACCESS_KEY".to_owned(), "guessed".to_owned());
        let error = open(&server.url("run"), &wrong);
        assert!(error.contains("403") && !error.contains("guessed"), "{error}");
    }
}
