//! Several processes that believe the store to be theirs: the latest one has it, and the others stop before they have
//! told anybody anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anabranch_common::ids::{Digest, Position};
use anabranch_common::rng::SplitMix64;
use anabranch_coordinator::store::object::Bucket;
use anabranch_coordinator::store::{ObjectStore, StorageError, Store};
use anabranch_testkit_store::SimBucket;
use anabranch_testkit_store::bucket::{Pause, Weather};

use super::{open, open_over};

fn record(position: u64, by: u64) -> (Position, Vec<u8>) {
    (Position(position), [position.to_le_bytes(), by.to_le_bytes()].concat())
}

fn blob(number: u64) -> (Digest, Vec<u8>) {
    let bytes = number.to_le_bytes().to_vec();
    (Digest::of(&bytes), bytes)
}

/// What was acknowledged so far.
#[derive(Debug, Clone, Default, PartialEq)]
struct Acknowledged {
    records: Vec<Vec<u8>>,
    pruned_below: u64,
    items: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Acknowledged {
    /// Something that a writer does: the change is in `self` when it was acknowledged.
    fn act(&mut self, store: &ObjectStore, rng: &mut SplitMix64, by: u64) -> Result<(), StorageError> {
        let mut after = self.clone();
        match rng.next_u64() % 6 {
            0 | 1 => {
                let next = store.journal().last_position()?.map_or(0, |last| last.0 + 1);
                let count = 1 + rng.next_u64() % 3;
                let records: Vec<_> = (next..next + count).map(|position| record(position, by)).collect();
                store.journal().append(&records)?;
                store.journal().sync()?;
                after.records.extend(records.into_iter().map(|(_, bytes)| bytes));
            }
            2 => {
                let (key, value) = (format!("item/{}", rng.next_u64() % 4), rng.next_u64().to_le_bytes().to_vec());
                store.catalogue().put(&key, &value)?;
                store.catalogue().sync()?;
                after.items.insert(key, value);
            }
            3 => {
                let (id, bytes) = blob(rng.next_u64() % 5);
                store.blobs().put(id, &bytes)?;
                store.blobs().sync()?;
                after.blobs.insert(id, bytes);
            }
            4 => {
                let (id, _) = blob(rng.next_u64() % 5);
                store.blobs().delete(id)?;
                store.blobs().sync()?;
                after.blobs.remove(&id);
            }
            _ => {
                let last = store.journal().last_position()?.map_or(0, |last| last.0);
                let below = last.saturating_sub(rng.next_u64() % 4);
                store.journal().prune(Position(below))?;
                if below > 1 {
                    after.pruned_below = after.pruned_below.max(below);
                }
            }
        }
        *self = after;
        Ok(())
    }

    fn assert_in(&self, store: &ObjectStore, context: &str) {
        let run = || -> Result<(), StorageError> {
            let last = self.records.len().checked_sub(1).map(|last| Position(last as u64));
            assert_eq!(store.journal().last_position()?, last, "{context}");
            for (position, bytes) in (0..).zip(&self.records) {
                let pruned = position > 0 && position < self.pruned_below;
                let expected = (!pruned).then(|| bytes.clone());
                assert_eq!(store.journal().record(Position(position))?, expected, "{context}: record {position}");
            }
            let items: Vec<String> = self.items.keys().cloned().collect();
            assert_eq!(store.catalogue().list("")?, items, "{context}");
            for (key, value) in &self.items {
                assert_eq!(store.catalogue().get(key)?.as_ref(), Some(value), "{context}: {key}");
            }
            assert_eq!(store.blobs().list()?, self.blobs.keys().copied().collect::<Vec<_>>(), "{context}");
            for (id, bytes) in &self.blobs {
                assert_eq!(store.blobs().get(*id)?.as_ref(), Some(bytes), "{context}");
            }
            Ok(())
        };
        run().unwrap_or_else(|error| panic!("{context}: {error}"));
    }
}

#[test]
fn a_second_writer_fences_the_first_one() {
    let bucket = SimBucket::new(1, Weather::FAIR);
    let first = open(&bucket, 1, Weather::FAIR).expect("opens");
    first.journal().append(&[record(0, 1)]).expect("fair");
    first.journal().sync().expect("fair");
    first.catalogue().put("a", b"1").expect("fair");
    first.catalogue().sync().expect("fair");
    let second = open(&bucket, 2, Weather::FAIR).expect("opens");
    assert_eq!((first.term(), second.term()), (Some(1), Some(2)));
    first.journal().append(&[record(1, 1)]).expect("in memory");
    let error = first.journal().sync().expect_err("its next slot is taken");
    assert!(matches!(&error, StorageError::Superseded { by, .. } if by == "writer 2 (term 2)"), "{error}");
    for sync in [first.journal().sync(), first.catalogue().sync(), first.blobs().sync()] {
        assert!(matches!(sync, Err(StorageError::Superseded { .. })), "every later one fails: {sync:?}");
    }
    second.journal().append(&[record(1, 2)]).expect("fair");
    second.journal().sync().expect("the next slot is free for it");
    assert_eq!(second.catalogue().get("a").expect("fair"), Some(b"1".to_vec()));
}

/// The fences stay when everything around them has gone.
#[test]
fn a_writer_that_sleeps_for_long_is_fenced_after_everything_was_pruned() {
    for seed in 0..30 {
        let mut rng = SplitMix64::new(seed);
        let bucket = SimBucket::new(seed, Weather::FAIR);
        let mut said = Acknowledged::default();
        let sleeper = open(&bucket, 1, Weather::FAIR).expect("opens");
        for _ in 0..rng.next_u64() % 20 {
            said.act(&sleeper, &mut rng, 1).expect("it has the store");
        }
        for by in 2..6 {
            let store = open(&bucket, by, Weather::FAIR).expect("opens");
            said.assert_in(&store, &format!("seed {seed}, writer {by}"));
            for _ in 0..60 {
                said.act(&store, &mut rng, by).expect("it has the store");
            }
        }
        let mut wrong = said.clone();
        let mut refused = 0;
        for _ in 0..20 {
            refused += u64::from(wrong.act(&sleeper, &mut rng, 1).is_err());
        }
        let error = sleeper.catalogue().put("late", b"late").and_then(|()| sleeper.catalogue().sync());
        assert!(matches!(error, Err(StorageError::Superseded { .. })), "seed {seed}: {error:?}");
        assert!(refused > 0);
        said.assert_in(&open(&bucket, 9, Weather::FAIR).expect("opens"), &format!("seed {seed}, at the end"));
    }
}

/// In foul weather, many writers one after another; all earlier ones go on trying.
#[test]
fn nothing_that_any_writer_acknowledged_is_lost() {
    let (mut acted, mut refused) = (0, 0);
    for seed in 0..150 {
        let mut rng = SplitMix64::new(seed);
        let bucket = SimBucket::new(seed, Weather::FAIR);
        let mut said = Acknowledged::default();
        let mut writers: Vec<ObjectStore> = Vec::new();
        for by in 0..6 {
            let context = format!("seed {seed}, writer {by}");
            let store = open(&bucket, seed * 10 + by, Weather::FOUL).unwrap_or_else(|e| panic!("{context}: {e}"));
            said.assert_in(&store, &context);
            writers.push(store);
            for _ in 0..40 {
                let (sleepers, leader) = writers.split_at(writers.len() - 1);
                if !sleepers.is_empty() && rng.next_u64().is_multiple_of(3) {
                    let at = usize::try_from(rng.next_u64()).unwrap_or(0) % sleepers.len();
                    let before = said.clone();
                    // Reading, and changes that change nothing, may still succeed; nothing else may.
                    if before.clone().act(&sleepers[at], &mut rng, 99).is_err() {
                        refused += 1;
                    }
                } else {
                    said.act(&leader[0], &mut rng, by).unwrap_or_else(|error| panic!("{context}: {error}"));
                    acted += 1;
                }
            }
        }
    }
    assert!(acted > 10_000 && refused > 3000, "{acted} acts, {refused} refusals");
}

/// A process over a way that stands still right before one request of its own.
struct Stopped<T> {
    stands: Receiver<()>,
    go_on: SyncSender<()>,
    is_done: Arc<AtomicBool>,
    process: JoinHandle<T>,
}

impl<T: Send + 'static> Stopped<T> {
    /// Starts what `run` does over the way of writer `writer` to a bucket, and waits until it stands still or is done.
    fn start(
        (bucket, writer): (&SimBucket, u64),
        at_own_request: u64,
        run: impl FnOnce(SimBucket) -> T + Send + 'static,
    ) -> Self {
        let (stands_in, stands) = sync_channel(1);
        let (go_on, go_on_out) = sync_channel(1);
        let done = stands_in.clone();
        let pause = Pause { at_own_request, stands: stands_in, go_on: go_on_out };
        let way = bucket.connect(writer, Weather::FAIR).pausing(pause);
        let is_done = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&is_done);
        let process = std::thread::spawn(move || {
            let outcome = run(way);
            tell.store(true, Ordering::SeqCst);
            // Nobody listens where it has stood still before.
            done.send(()).ok();
            outcome
        });
        stands.recv().expect("it stands still, or is done");
        Self { stands, go_on, is_done, process }
    }

    /// Whether it has done everything without standing still.
    fn is_done(&self) -> bool {
        self.is_done.load(Ordering::SeqCst)
    }

    /// Lets it go on where it stands still. Returns what it has come to; that stands still no more.
    fn end(self) -> T {
        if !self.is_done() {
            self.go_on.send(()).expect("it waits");
        }
        drop(self.stands);
        self.process.join().expect("no panic")
    }
}

/// A writer stands still right before any of its requests. Another one takes over, and works. Then the first
/// one goes on: what it had decided before changes nothing for anyone.
#[test]
fn a_writer_that_is_stopped_at_any_request_and_goes_on_later_does_no_harm() {
    let mut stood = 0;
    for seed in 0..8 {
        // Its first two requests find the free term and announce it: held before that, it is the later one of the two.
        for at_own_request in 2.. {
            let bucket = SimBucket::new(seed, Weather::FAIR);
            let sleeper = Stopped::start((&bucket, 1), at_own_request, move |way| {
                let (mut rng, mut said) = (SplitMix64::new(seed), Acknowledged::default());
                let outcome = open_over(way, 1)
                    .and_then(|store| (0..25).try_for_each(|_| said.act(&store, &mut rng, 1)).map(|()| store));
                (said, outcome.map(drop))
            });
            if sleeper.is_done() {
                sleeper.end().1.expect("nobody has disturbed it");
                break;
            }
            stood += 1;
            let context = format!("seed {seed}, stopped at {at_own_request}");
            let second = open(&bucket, 2, Weather::FAIR).unwrap_or_else(|error| panic!("{context}: {error}"));
            let mut said = read(&second);
            let mut rng = SplitMix64::new(seed ^ at_own_request);
            for _ in 0..30 {
                said.act(&second, &mut rng, 2).unwrap_or_else(|error| panic!("{context}: {error}"));
            }
            let (acknowledged, outcome) = sleeper.end();
            if let Err(error) = &outcome {
                assert!(matches!(error, StorageError::Superseded { .. }), "{context}: {error}");
            }
            assert!(acknowledged.records.len() <= said.records.len(), "{context}");
            // A pruned one is read as empty.
            let mut common = said.records.iter().zip(&acknowledged.records);
            let common = common.all(|(now, then)| now == then || now.is_empty());
            assert!(common, "{context}: an acknowledged record is another one now");
            said.act(&second, &mut rng, 2).unwrap_or_else(|error| panic!("{context}: {error}"));
            said.assert_in(&second, &context);
            said.assert_in(&open(&bucket, 3, Weather::FAIR).expect("opens"), &context);
        }
    }
    assert!(stood > 200, "{stood} places");
}

/// A process that opens the store stands still between any two requests of its opening, while the writer that has the
/// store goes on. Where it takes over, it has everything that was acknowledged until then.
#[test]
fn an_opening_that_is_stopped_at_any_request_finds_what_was_acknowledged_meanwhile() {
    let (mut stood, mut went_on) = (0, 0);
    for seed in 0..8 {
        for at_own_request in 0.. {
            let bucket = SimBucket::new(seed, Weather::FAIR);
            let (mut rng, mut said) = (SplitMix64::new(seed), Acknowledged::default());
            let first = open(&bucket, 1, Weather::FAIR).expect("opens");
            for _ in 0..seed {
                said.act(&first, &mut rng, 1).expect("it has the store");
            }
            let opener = Stopped::start((&bucket, 2), at_own_request, |way| open_over(way, 2));
            if opener.is_done() {
                said.assert_in(&opener.end().expect("opens"), &format!("seed {seed}"));
                break;
            }
            stood += 1;
            let context = format!("seed {seed}, stopped at {at_own_request}");
            let (mut counted, mut recorded) = (0u64, said.records.len() as u64);
            let mut go = || -> Result<(), StorageError> {
                for number in 1..40u64 {
                    first.catalogue().put("count", &number.to_le_bytes())?;
                    first.catalogue().sync()?;
                    counted = number;
                    first.journal().append(&[record(recorded, 1)])?;
                    first.journal().sync()?;
                    recorded += 1;
                    first.journal().prune(Position(recorded - 1))?;
                }
                Ok(())
            };
            match go() {
                Ok(()) | Err(StorageError::Superseded { .. }) => {}
                Err(error) => panic!("{context}: {error}"),
            }
            went_on += counted;
            let second = opener.end().unwrap_or_else(|error| panic!("{context}: {error}"));
            // What the first one had written when it learned that it was superseded may count as well.
            let found = read(&second);
            let count = found.items.get("count").and_then(|value| value.as_slice().try_into().ok());
            assert!(count.map_or(0, u64::from_le_bytes) >= counted, "{context}: an item is lost");
            assert!(found.records.len() as u64 >= recorded, "{context}: a record is lost");
            said = found;
            said.act(&second, &mut rng, 2).unwrap_or_else(|error| panic!("{context}: {error}"));
            said.assert_in(&open(&bucket, 3, Weather::FAIR).expect("opens"), &context);
        }
    }
    assert!(stood >= 40 && went_on > 100, "{stood} places, {went_on} acts");
}

/// A process that opens the store stands still before any request of its opening. A later one takes over, replaces the
/// snapshots that the first was looking for, and prunes. Then the first goes on: it takes nothing away that counts, and
/// makes nothing durable that is lost.
#[test]
fn an_opening_that_a_later_one_overtakes_does_no_harm() {
    let (mut superseded, mut able) = (0, 0);
    for seed in 0..8 {
        for at_own_request in 0.. {
            let bucket = SimBucket::new(seed, Weather::FAIR);
            let (mut rng, mut said) = (SplitMix64::new(seed), Acknowledged::default());
            let first = open(&bucket, 1, Weather::FAIR).expect("opens");
            let (id, bytes) = blob(100);
            first.blobs().put(id, &bytes).and_then(|()| first.blobs().sync()).expect("fair");
            said.blobs.insert(id, bytes);
            for _ in 0..4 * seed {
                said.act(&first, &mut rng, 1).expect("it has the store");
            }
            let opener = Stopped::start((&bucket, 2), at_own_request, |way| open_over(way, 2));
            if opener.is_done() {
                said.assert_in(&opener.end().expect("opens"), &format!("seed {seed}"));
                break;
            }
            let context = format!("seed {seed}, stopped at {at_own_request}");
            let third = open(&bucket, 3, Weather::FAIR).unwrap_or_else(|error| panic!("{context}: {error}"));
            for _ in 0..30 {
                said.act(&third, &mut rng, 3).unwrap_or_else(|error| panic!("{context}: {error}"));
            }
            let outcome = opener.end().and_then(|second| {
                let next = second.journal().last_position()?.map_or(0, |last| last.0 + 1);
                second.journal().append(&[record(next, 2)])?;
                second.journal().sync()
            });
            match outcome {
                // It had not announced itself yet, and is the later one.
                Ok(()) => {
                    said.records.push(record(said.records.len() as u64, 2).1);
                    able += 1;
                }
                Err(StorageError::Superseded { .. }) => {
                    said.act(&third, &mut rng, 3).unwrap_or_else(|error| panic!("{context}: {error}"));
                    superseded += 1;
                }
                Err(error) => panic!("{context}: {error}"),
            }
            said.assert_in(&open(&bucket, 4, Weather::FAIR).expect("opens"), &context);
        }
    }
    assert!(superseded > 100 && able > 0, "{superseded} were superseded, {able} had the store");
}

/// A reader stands still before any request. Meanwhile a new writer takes over, and replaces and prunes what the reader was
/// looking for. The reader finds the run as it was, or as it is.
#[test]
fn a_reader_that_is_stopped_at_any_request_finds_the_run_before_or_after() {
    let (mut before, mut after) = (0, 0);
    for seed in 1..6 {
        for at_own_request in 0.. {
            let bucket = SimBucket::new(seed, Weather::FAIR);
            let (mut rng, mut said) = (SplitMix64::new(seed), Acknowledged::default());
            let first = open(&bucket, 1, Weather::FAIR).expect("opens");
            first.catalogue().put("first", b"1").and_then(|()| first.catalogue().sync()).expect("fair");
            said.items.insert("first".to_owned(), b"1".to_vec());
            for _ in 0..4 * seed {
                said.act(&first, &mut rng, 1).expect("it has the store");
            }
            let open_copy = |way| ObjectStore::open_copy(Arc::new(way));
            let reader = Stopped::start((&bucket, 2), at_own_request, open_copy);
            let extent = |said: &Acknowledged| (said.records.len() as u64, said.items.clone(), said.blobs.len());
            let was = extent(&said);
            let stood = !reader.is_done();
            let context = format!("seed {seed}, stopped at {at_own_request}");
            if stood {
                let second = open(&bucket, 3, Weather::FAIR).unwrap_or_else(|error| panic!("{context}: {error}"));
                second.catalogue().put("second", b"2").expect("fair");
                second.catalogue().sync().expect("it has the store");
                said.items.insert("second".to_owned(), b"2".to_vec());
                for _ in 0..30 {
                    said.act(&second, &mut rng, 3).unwrap_or_else(|error| panic!("{context}: {error}"));
                }
            }
            let copy = reader.end().unwrap_or_else(|error| panic!("{context}: {error}"));
            let last = copy.journal().last_position().expect("fair");
            let mut items = BTreeMap::new();
            for key in copy.catalogue().list("").expect("fair") {
                let value = copy.catalogue().get(&key).expect("fair").expect("it is listed");
                items.insert(key, value);
            }
            let found = (last.map_or(0, |last| last.0 + 1), items, copy.blobs().list().expect("fair").len());
            if !stood {
                assert_eq!(found, was, "{context}");
                break;
            }
            if found == was {
                before += 1;
            } else {
                assert_eq!(found, extent(&said), "{context}");
                after += 1;
            }
        }
    }
    assert!(before + after > 100, "{before} found it as it was, {after} as it is");
}

/// Everything in a store.
fn read(store: &ObjectStore) -> Acknowledged {
    let run = || -> Result<Acknowledged, StorageError> {
        let mut found = Acknowledged::default();
        let last = store.journal().last_position()?.map_or(0, |last| last.0 + 1);
        found.pruned_below = store.journal().first_position()?.map_or(0, |first| first.0);
        for position in 0..last {
            found.records.push(store.journal().record(Position(position))?.unwrap_or_default());
        }
        for key in store.catalogue().list("")? {
            let value = store.catalogue().get(&key)?.unwrap_or_default();
            found.items.insert(key, value);
        }
        for id in store.blobs().list()? {
            found.blobs.insert(id, store.blobs().get(id)?.unwrap_or_default());
        }
        Ok(found)
    };
    run().expect("it can be read")
}

/// Two processes that start at the same time: one of them has the store, or the later one.
#[test]
fn of_several_that_open_at_once_one_has_the_store() {
    for seed in 0..40 {
        let bucket = SimBucket::new(seed, Weather::FAIR);
        let mut said = Acknowledged::default();
        let mut rng = SplitMix64::new(seed);
        let first = open(&bucket, 1, Weather::FAIR).expect("opens");
        for _ in 0..10 {
            said.act(&first, &mut rng, 1).expect("it has the store");
        }
        let opened: Vec<_> = std::thread::scope(|scope| {
            let openers: Vec<_> = (2..6)
                .map(|by| {
                    let bucket = &bucket;
                    scope.spawn(move || open(bucket, by, Weather::FAIR))
                })
                .collect();
            openers.into_iter().map(|opener| opener.join().expect("no panic")).collect()
        });
        let mut able = 0;
        for outcome in opened {
            let store = match outcome {
                Ok(store) => store,
                Err(StorageError::Superseded { .. }) => continue,
                Err(error) => panic!("seed {seed}: {error}"),
            };
            let next = store.journal().last_position().expect("fair").map_or(0, |last| last.0 + 1);
            let outcome = store.journal().append(&[record(next, 7)]).and_then(|()| store.journal().sync());
            match outcome {
                Ok(()) => able += 1,
                Err(StorageError::Superseded { .. }) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        assert_eq!(able, 1, "seed {seed}");
        let last = open(&bucket, 8, Weather::FAIR).expect("opens");
        said.records.push(record(said.records.len() as u64, 7).1);
        said.assert_in(&last, &format!("seed {seed}"));
    }
}

/// A bucket that another program uses beside the store: its objects are left alone.
#[test]
fn objects_of_others_are_left_alone() {
    let bucket = SimBucket::new(1, Weather::FAIR);
    for key in ["notes.txt", "journal/readme", "blobs/x", "catalogue/1"] {
        Bucket::create(&bucket, key, b"somebody's").expect("fair");
    }
    for by in 1..4 {
        let store = ObjectStore::open(
            Arc::new(bucket.connect(by, Weather::FAIR)),
            &anabranch_coordinator::store::object::Writer {
                id: [u8::try_from(by).expect("small"); 16],
                name: String::new(),
            },
        );
        store.expect("opens").catalogue().sync().expect("fair");
    }
    for key in ["notes.txt", "journal/readme", "blobs/x", "catalogue/1"] {
        assert_eq!(Bucket::get(&bucket, key).expect("fair").as_deref(), Some(&b"somebody's"[..]));
    }
}
