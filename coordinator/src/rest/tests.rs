//! A stopped coordinator whose disk fails.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::config::{Config, TemplateOptions};
use crate::store::for_tests::MapMedium;
use crate::store::{Area, Engine, Medium, StorageError, Visit};

const RUN: RunId = RunId([1; 16]);
const BRANCH: BranchId = BranchId([9; 16]);

/// A map whose syncs fail after some.
#[derive(Debug)]
struct Failing {
    map: MapMedium,
    syncs_left: Arc<AtomicU64>,
}

impl Medium for Failing {
    fn get(&self, area: Area, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.map.get(area, key)
    }

    fn insert(&self, area: Area, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        self.map.insert(area, key, value)
    }

    fn remove(&self, area: Area, key: &[u8]) -> Result<(), StorageError> {
        self.map.remove(area, key)
    }

    fn scan(&self, area: Area, range: RangeInclusive<Vec<u8>>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        self.map.scan(area, range, visit)
    }

    fn commit(&self) -> Result<(), StorageError> {
        let left = self.syncs_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| StorageError::NoSpace { path: "(map)".into() })
    }

    fn disk_bytes(&self) -> Result<u64, StorageError> {
        self.map.disk_bytes()
    }

    fn path(&self) -> &Path {
        self.map.path()
    }
}

fn rest<'a>(store: &'a dyn Store, spec: &RunSpec, recovered: Option<Recovered>) -> Rest<'a> {
    let options = Options {
        run: RUN,
        first_branch: BranchId([2; 16]),
        starts: 0,
        lease_ttl_ms: 60_000,
        checkpoint_every_versions: 0,
        checkpoint_every_ms: 0,
    };
    Rest::start(store, options, spec.clone(), Registry::default(), recovered, 1_000).expect("nothing is due")
}

/// An operator who reads of a failure alone would roll back again, and get a second branch.
#[test]
fn a_rollback_that_fails_at_its_checkpoint_says_that_it_has_happened() {
    let template = TemplateOptions { name: "test".into(), seed: 1, listen: ([127, 0, 0, 1], 1).into(), names: vec![] };
    let spec = Config::parse(Path::new("run.toml"), &Config::template(&template)).expect("what `init` writes").spec;
    let manifest = spec.model.layers().expect("valid").expect("native").manifest;
    let mut without_checkpoint = 0;
    for syncs in 0.. {
        let syncs_left = Arc::new(AtomicU64::new(u64::MAX));
        let medium = Failing { map: MapMedium::default(), syncs_left: Arc::clone(&syncs_left) };
        let store = Engine::open(medium).expect("an empty map opens");
        let model = vec![0.5; manifest.params()];
        rest(&store, &spec, None).import(manifest.clone(), model).expect("a first model");
        let recovered = recovery::recover(&store).expect("as written");
        let mut rest = rest(&store, &spec, Some(recovered));
        syncs_left.store(syncs, Ordering::Relaxed);
        match rest.roll_back(ModelVersion(0), BRANCH) {
            Ok(_) => break,
            Err(RestError::NoCheckpoint { done, error: JobError::Storage(_) | JobError::Recovery(_) }) => {
                let recovered = recovery::recover(&store).expect("as written");
                assert_eq!((recovered.state.branch, recovered.position), (done.branch, done.position));
                without_checkpoint += 1;
            }
            Err(error) => assert_eq!(without_checkpoint, 0, "with {syncs} syncs: {error}"),
        }
    }
    assert!(without_checkpoint > 0);
}
