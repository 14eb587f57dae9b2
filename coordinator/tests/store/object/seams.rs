//! What every store must do, in every weather, and what one in a bucket does with damage.

use anabranch_common::ids::{Digest, Position};
use anabranch_common::limits;
use anabranch_coordinator::recovery;
use anabranch_coordinator::store::object::{Bucket, BucketError, Created, Listed, Writer};
use anabranch_coordinator::store::{ObjectStore, StorageError, Store};
use anabranch_testkit_store::bucket::Weather;
use anabranch_testkit_store::{SimBucket, suite};
use std::sync::{Arc, Mutex};

use super::{Opened, open};
use crate::history::{History, PACE, assert_same_bits, drive, fedbuff};

fn conforms(seed: u64, weather: Weather) -> u64 {
    let (mut seeds, mut rests) = (seed << 32, 0);
    suite::conformance(|old: Option<Opened>| {
        seeds += 1;
        let bucket = old.map_or_else(|| SimBucket::new(seeds, Weather::FAIR), |old| old.bucket);
        rests += bucket.rests();
        Opened::new(bucket, seeds, weather)
    });
    rests
}

#[test]
fn a_store_in_a_bucket_conforms() {
    assert_eq!(conforms(0, Weather::FAIR), 0, "nothing was tried twice");
}

#[test]
fn a_store_in_a_bucket_conforms_in_foul_weather() {
    for seed in 1..12 {
        assert!(conforms(seed, Weather::FOUL) > 0, "seed {seed}: nothing went wrong");
    }
}

fn records(positions: std::ops::Range<u64>) -> Vec<(Position, Vec<u8>)> {
    positions.map(|p| (Position(p), vec![p.to_le_bytes()[0]; 3000])).collect()
}

#[test]
fn a_run_in_a_bucket_recovers_with_the_same_bits_and_verifies() {
    let history = History::scripted(&fedbuff(2), 21);
    for seed in 0..6 {
        let opened = Opened::new(SimBucket::new(seed, Weather::FAIR), seed, Weather::FOUL);
        let (acknowledged, error) = drive(&opened, &history, PACE);
        assert!(error.is_none(), "seed {seed}: {error:?}");
        assert_eq!(acknowledged, Some(history.last()));
        let again = Opened::new(opened.bucket, seed + 100, Weather::FOUL);
        assert_eq!(assert_same_bits(&again, &history, "reopened"), history.last());
        assert!(recovery::verify(&again).expect("readable").holds);
    }
}

/// A listing that shows nothing of the last changes loses nothing: the end is found without one.
#[test]
fn a_listing_that_lags_hides_nothing() {
    let lagging = Weather { lagging_lists: 1000, ..Weather::FAIR };
    for seed in 0..20 {
        let bucket = SimBucket::new(seed, Weather::FAIR);
        let mut position = 0;
        for opening in 0..12 {
            let store = open(&bucket, seed * 100 + opening, lagging).expect("opens");
            assert_eq!(store.journal().last_position().expect("fair").map_or(0, |last| last.0 + 1), position);
            let blob = position.to_le_bytes();
            for _ in 0..3 {
                store.journal().append(&records(position..position + 3)).expect("fair");
                store.journal().sync().expect("fair");
                position += 3;
            }
            for value in 0..=opening {
                store.catalogue().put("opening", &[opening.to_le_bytes()[0], value.to_le_bytes()[0]]).expect("fair");
                store.blobs().put(Digest::of(&blob), &blob).expect("fair");
                store.catalogue().sync().expect("fair");
            }
            store.journal().prune(Position(position - 5)).expect("fair");
            let again = open(&bucket, seed * 100 + 50 + opening, lagging).expect("opens");
            let last = opening.to_le_bytes()[0];
            assert_eq!(again.catalogue().get("opening").expect("fair"), Some(vec![last, last]));
            assert_eq!(again.blobs().get(Digest::of(&blob)).expect("fair").as_deref(), Some(&blob[..]));
            assert_eq!(again.journal().first_position().expect("fair"), Some(Position(position - 5)));
            for (at, bytes) in records(position - 5..position) {
                assert_eq!(again.journal().record(at).expect("fair"), Some(bytes), "record {at}");
            }
            assert_eq!(again.journal().record(Position(0)).expect("fair"), Some(records(0..1).remove(0).1));
        }
    }
}

/// However long a run lasts, the bucket holds what counts, and little more: fences and seals of each start.
#[test]
fn what_nothing_needs_goes() {
    let bucket = SimBucket::new(1, Weather::FAIR);
    for opening in 0..8u64 {
        let store = open(&bucket, opening, Weather::FAIR).expect("opens");
        for round in 0..50u64 {
            let position = opening * 50 + round;
            store.journal().append(&records(position..position + 1)).expect("fair");
            store.journal().sync().expect("fair");
            let blob = position.to_le_bytes();
            store.blobs().put(Digest::of(&blob), &blob).expect("fair");
            store.blobs().sync().expect("fair");
            let others = store.blobs().list().expect("fair").into_iter().filter(|id| *id != Digest::of(&blob));
            others.for_each(|id| store.blobs().delete(id).expect("fair"));
            store.journal().prune(Position(position)).expect("fair");
        }
        let usage = store.usage().expect("fair");
        assert!(usage.disk_bytes < 40_000, "opening {opening}: {usage:?}");
    }
    assert_eq!(bucket.keys("blobs/").len(), 1);
    assert_eq!(bucket.keys("terms/").len(), 8);
    // Eight fences, record 0 and the newest record.
    assert_eq!(bucket.keys("journal/").len(), 10);
    // Seven seals, and the newest snapshots.
    assert!(bucket.keys("catalogue/").len() <= 7 + 8, "{:?}", bucket.keys("catalogue/"));
}

#[test]
fn damage_is_refused_by_name_and_a_damaged_blob_can_be_stored_again() {
    let bucket = SimBucket::new(1, Weather::FAIR);
    let store = open(&bucket, 1, Weather::FAIR).expect("opens");
    let blob = vec![5; 5000];
    let id = Digest::of(&blob);
    for positions in [0..2, 2..4, 4..6] {
        store.journal().append(&records(positions)).expect("fair");
        store.journal().sync().expect("fair");
    }
    store.blobs().put(id, &blob).expect("fair");
    store.blobs().sync().expect("fair");
    drop(store);
    let key = bucket.keys("blobs/").remove(0);
    assert!(bucket.damage(&key, |bytes| bytes[2000] ^= 1));
    let groups = bucket.keys("journal/");
    assert!(bucket.damage(&groups[1], |bytes| bytes[200] ^= 1) && bucket.lose(&groups[2]));
    let store = open(&bucket, 2, Weather::FAIR).expect("a snapshot was made behind them");
    let error = store.journal().record(Position(1)).expect_err("a changed bit");
    assert!(error.to_string().contains(&groups[1]) && error.to_string().contains("checksum"), "{error}");
    assert!(store.journal().record(Position(3)).is_err(), "it is gone");
    assert_eq!(store.journal().record(Position(5)).expect("whole"), Some(records(5..6).remove(0).1));
    assert!(matches!(store.blobs().get(id), Err(StorageError::Corrupt { .. })));
    assert!(!store.blobs().holds(id).expect("fair"));
    store.blobs().put(id, &blob).expect("fair");
    store.blobs().sync().expect("fair");
    assert_eq!(store.blobs().get(id).expect("whole").as_ref(), Some(&blob));
    assert_eq!(bucket.keys("blobs/").len(), 1, "the damaged one is gone");
}

#[test]
fn a_copy_changes_nothing_in_the_bucket() {
    let history = History::scripted(&fedbuff(2), 14);
    let opened = Opened::new(SimBucket::new(1, Weather::FAIR), 1, Weather::FAIR);
    assert!(drive(&opened, &history, PACE).1.is_none());
    let before = opened.bucket.writes();
    let copy = ObjectStore::open_copy(Arc::new(opened.bucket.connect(2, Weather::FAIR))).expect("opens");
    assert_eq!(assert_same_bits(&copy, &history, "a copy"), history.last());
    let blob = vec![1; 100];
    copy.blobs().put(Digest::of(&blob), &blob).expect("in memory");
    copy.catalogue().put("a", b"b").expect("in memory");
    copy.journal().append(&[(history.last().next(), vec![1])]).expect("in memory");
    copy.journal().sync().expect("nothing to do");
    copy.catalogue().sync().expect("nothing to do");
    assert_eq!(copy.blobs().get(Digest::of(&blob)).expect("there"), Some(blob));
    assert_eq!(copy.journal().record(history.last().next()).expect("there"), Some(vec![1]));
    assert_eq!(opened.bucket.writes(), before);
    opened.store.journal().append(&[(history.last().next(), vec![2])]).expect("its writer goes on");
    opened.store.journal().sync().expect("and was not superseded");
}

#[test]
fn a_copy_of_an_empty_bucket_is_empty() {
    let copy = ObjectStore::open_copy(Arc::new(SimBucket::new(1, Weather::FAIR))).expect("opens");
    assert_eq!(copy.journal().last_position().expect("empty"), None);
    assert_eq!(copy.term(), None);
}

/// A way to a bucket on which some requests are not answered as they should be.
#[derive(Debug)]
struct Odd {
    bucket: SimBucket,
    /// Puts are never answered.
    silent: bool,
    /// Objects that are there, and are gone when they are read.
    fleeting: &'static str,
    asked: Mutex<u32>,
}

impl Bucket for Odd {
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, BucketError> {
        if self.silent {
            *self.asked.lock().expect("no panic") += 1;
            return Err(BucketError::Transient("silence".to_owned()));
        }
        self.bucket.create(key, bytes)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, BucketError> {
        if !self.fleeting.is_empty() && key.starts_with(self.fleeting) {
            *self.asked.lock().expect("no panic") += 1;
            return Ok(None);
        }
        self.bucket.get(key)
    }

    fn exists(&self, key: &str) -> Result<bool, BucketError> {
        self.bucket.exists(key)
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.bucket.delete(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        self.bucket.list(prefix)
    }

    fn rest(&self, attempt: u32) {
        self.bucket.rest(attempt);
    }

    fn address(&self) -> &str {
        self.bucket.address()
    }
}

fn odd(bucket: &SimBucket, silent: bool, fleeting: &'static str) -> Arc<Odd> {
    Arc::new(Odd { bucket: bucket.connect(9, Weather::FAIR), silent, fleeting, asked: Mutex::new(0) })
}

#[test]
fn a_request_is_tried_so_often_and_no_more() {
    let bucket = SimBucket::new(1, Weather::FAIR);
    let way = odd(&bucket, true, "");
    let writer = Writer { id: [1; 16], name: "one".to_owned() };
    let error = ObjectStore::open(Arc::clone(&way) as Arc<dyn Bucket>, &writer).expect_err("nobody answers");
    assert!(error.to_string().contains("10 attempts: silence"), "{error}");
    assert_eq!(*way.asked.lock().expect("no panic"), limits::OBJECT_ATTEMPTS);
    assert_eq!(bucket.rests(), u64::from(limits::OBJECT_ATTEMPTS) - 1);
}

#[test]
fn a_bucket_that_changes_under_a_reader_is_looked_at_so_often_and_no_more() {
    let bucket = SimBucket::new(1, Weather::FAIR);
    open(&bucket, 1, Weather::FAIR).expect("opens").catalogue().sync().expect("fair");
    let way = odd(&bucket, false, "catalogue/");
    let error = ObjectStore::open_copy(Arc::clone(&way) as Arc<dyn Bucket>).expect_err("it is always gone");
    assert!(error.to_string().contains("changes it"), "{error}");
    assert_eq!(*way.asked.lock().expect("no panic"), limits::OBJECT_LOOKS);
}
