//! A bucket in memory that behaves as object stores do at their worst: answers that are lost, puts that arrive twice or
//! late, listings that lag, and a process that dies at any request. Everything follows from a seed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use anabranch_common::rng::SplitMix64;
use anabranch_coordinator::store::object::{Bucket, BucketError, Created, Listed};
use parking_lot::Mutex;

/// How often a bucket misbehaves, each in thousandths of the requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Requests that are lost on the way to the store.
    pub lost_requests: u64,
    /// Requests that are carried out, and whose answer is lost.
    pub lost_answers: u64,
    /// Puts that the network carries out once more, up to [`LATE`] requests later.
    pub duplicated_puts: u64,
    /// Listings that show the bucket as it was up to [`BEHIND`] changes ago.
    pub lagging_lists: u64,
}

impl Weather {
    /// Nothing goes wrong.
    pub const FAIR: Self = Self { lost_requests: 0, lost_answers: 0, duplicated_puts: 0, lagging_lists: 0 };
    /// Everything goes wrong, often.
    pub const FOUL: Self = Self { lost_requests: 50, lost_answers: 50, duplicated_puts: 200, lagging_lists: 700 };
}

/// Requests that pass until a duplicated put arrives, at most.
pub const LATE: u64 = 200;
/// Changes that a listing may not show yet, at most.
pub const BEHIND: u64 = 60;

/// What a store does with the condition of a put.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conditions {
    /// It checks and writes at once.
    #[default]
    Kept,
    /// It accepts them and writes anyway.
    Ignored,
    /// It checks, and writes a moment later.
    CheckedBefore,
}

#[derive(Debug, Clone)]
enum Change {
    Put(String),
    Deleted(String, Arc<[u8]>),
}

#[derive(Debug, Default)]
struct Disk {
    objects: BTreeMap<String, Arc<[u8]>>,
    /// The latest changes, newest last.
    changes: VecDeque<Change>,
    /// Puts that arrive once more at a request of this number.
    late: Vec<(u64, String, Arc<[u8]>)>,
    requests: u64,
    /// Puts and deletions that were carried out or refused, since the bucket was made.
    writes: u64,
    rests: u64,
}

impl Disk {
    fn create(&mut self, key: &str, bytes: &Arc<[u8]>) -> Created {
        if self.objects.contains_key(key) {
            return Created::Exists;
        }
        self.put(key, bytes);
        Created::Created
    }

    fn put(&mut self, key: &str, bytes: &Arc<[u8]>) {
        self.objects.insert(key.to_owned(), Arc::clone(bytes));
        self.changed(Change::Put(key.to_owned()));
    }

    fn delete(&mut self, key: &str) {
        if let Some(bytes) = self.objects.remove(key) {
            self.changed(Change::Deleted(key.to_owned(), bytes));
        }
    }

    fn changed(&mut self, change: Change) {
        self.changes.push_back(change);
        if self.changes.len() as u64 > BEHIND {
            self.changes.pop_front();
        }
    }

    /// The objects as they were so many changes ago.
    fn before(&self, changes: u64) -> BTreeMap<String, Arc<[u8]>> {
        let mut objects = self.objects.clone();
        for change in self.changes.iter().rev().take(usize::try_from(changes).unwrap_or(usize::MAX)) {
            match change {
                Change::Put(key) => _ = objects.remove(key),
                Change::Deleted(key, bytes) => _ = objects.insert(key.clone(), Arc::clone(bytes)),
            }
        }
        objects
    }

    fn arrive_late(&mut self) {
        let now = self.requests;
        let late = std::mem::take(&mut self.late);
        let (due, late): (Vec<_>, Vec<_>) = late.into_iter().partition(|(at, ..)| *at <= now);
        self.late = late;
        for (_, key, bytes) in due {
            self.create(&key, &bytes);
        }
    }
}

/// When the process that uses a bucket dies: at a put or deletion, counted over the whole bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// Number of the request, from 0.
    pub at_write: u64,
    /// Whether the request is still carried out.
    pub carried_out: bool,
}

/// Where a process stands still, as SIGSTOP makes it: right before a request of its own is sent.
#[derive(Debug)]
pub struct Pause {
    /// Number of the request among those of this process, from 0.
    pub at_own_request: u64,
    /// Told when it stands still.
    pub stands: SyncSender<()>,
    /// It goes on when this is told, or closed.
    pub go_on: Receiver<()>,
}

/// One process's way to a bucket. [`connect`](Self::connect) makes another.
#[derive(Debug)]
pub struct SimBucket {
    disk: Arc<Mutex<Disk>>,
    luck: Mutex<SplitMix64>,
    weather: Weather,
    conditions: Conditions,
    death: Option<Death>,
    dead: Mutex<bool>,
    pause: Mutex<Option<Pause>>,
    own_requests: AtomicU64,
}

impl SimBucket {
    /// Makes an empty bucket.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self::with(Arc::default(), seed, weather)
    }

    fn with(disk: Arc<Mutex<Disk>>, seed: u64, weather: Weather) -> Self {
        let luck = Mutex::new(SplitMix64::new(seed));
        let (conditions, dead, pause) = (Conditions::Kept, Mutex::default(), Mutex::default());
        Self { disk, luck, weather, conditions, death: None, dead, pause, own_requests: AtomicU64::new(0) }
    }

    /// Makes another way to the same bucket, as another process has.
    #[must_use]
    pub fn connect(&self, seed: u64, weather: Weather) -> Self {
        Self::with(Arc::clone(&self.disk), seed, weather)
    }

    /// Lets the process that uses this way die.
    #[must_use]
    pub fn dying(mut self, death: Death) -> Self {
        self.death = Some(death);
        self
    }

    /// Lets the process that uses this way stand still once.
    #[must_use]
    pub fn pausing(self, pause: Pause) -> Self {
        *self.pause.lock() = Some(pause);
        self
    }

    /// Treats conditions otherwise.
    #[must_use]
    pub fn treating(mut self, conditions: Conditions) -> Self {
        self.conditions = conditions;
        self
    }

    /// Makes a bucket with the same objects, which goes its own way from here on.
    #[must_use]
    pub fn copy(&self) -> Self {
        let objects = self.disk.lock().objects.clone();
        Self::with(Arc::new(Mutex::new(Disk { objects, ..Disk::default() })), 0, Weather::FAIR)
    }

    /// Returns how many puts and deletions the bucket has seen.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.disk.lock().writes
    }

    /// Returns how many rests were taken between two attempts.
    #[must_use]
    pub fn rests(&self) -> u64 {
        self.disk.lock().rests
    }

    /// Returns the keys that start with `prefix`, as they are now.
    #[must_use]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.disk.lock().objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// Changes an object where it lies. Returns whether it was there.
    pub fn damage(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut disk = self.disk.lock();
        let Some(object) = disk.objects.get_mut(key) else { return false };
        let mut bytes = object.to_vec();
        change(&mut bytes);
        *object = bytes.into();
        true
    }

    /// Takes an object away, as nothing but an operator's mistake does. Returns whether it was there.
    pub fn lose(&self, key: &str) -> bool {
        self.disk.lock().objects.remove(key).is_some()
    }

    fn happens(&self, thousandths: u64) -> bool {
        thousandths > 0 && self.luck.lock().next_u64() % 1000 < thousandths
    }

    fn below(&self, bound: u64) -> u64 {
        self.luck.lock().next_u64() % bound
    }

    /// Stands still, if this is the place.
    fn stand(&self) {
        let number = self.own_requests.fetch_add(1, Ordering::SeqCst);
        let mut pause = self.pause.lock();
        let here = pause.take_if(|pause| pause.at_own_request == number);
        drop(pause);
        if let Some(pause) = here {
            // Whoever waits may have given up: then it goes on.
            if pause.stands.send(()).is_ok() {
                pause.go_on.recv().ok();
            }
        }
    }

    /// A request arrives, or is lost.
    fn arrive(&self) -> Result<(), BucketError> {
        if *self.dead.lock() {
            return Err(BucketError::Refused("this process is dead".to_owned()));
        }
        {
            let mut disk = self.disk.lock();
            disk.requests += 1;
            disk.arrive_late();
        }
        if self.happens(self.weather.lost_requests) { Err(lost()) } else { Ok(()) }
    }

    /// A put or deletion: whether it is carried out, and whether the process dies.
    fn write(&self, carry_out: impl FnOnce(&mut Disk)) -> Result<(), BucketError> {
        let mut disk = self.disk.lock();
        let number = disk.writes;
        disk.writes += 1;
        let death = self.death.filter(|death| death.at_write == number);
        if death.is_none_or(|death| death.carried_out) {
            carry_out(&mut disk);
        }
        if death.is_some() {
            *self.dead.lock() = true;
            return Err(BucketError::Refused("this process dies".to_owned()));
        }
        Ok(())
    }

    fn answer<T>(&self, answer: T) -> Result<T, BucketError> {
        if self.happens(self.weather.lost_answers) { Err(lost()) } else { Ok(answer) }
    }
}

fn lost() -> BucketError {
    BucketError::Transient("no answer".to_owned())
}

impl Bucket for SimBucket {
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, BucketError> {
        self.stand();
        self.arrive()?;
        let bytes: Arc<[u8]> = bytes.into();
        if self.conditions == Conditions::CheckedBefore {
            if self.disk.lock().objects.contains_key(key) {
                return self.answer(Created::Exists);
            }
            for _ in 0..100 {
                std::thread::yield_now();
            }
        }
        let mut created = Created::Exists;
        let late = self.happens(self.weather.duplicated_puts).then(|| self.below(LATE));
        self.write(|disk| {
            if self.conditions == Conditions::Kept {
                created = disk.create(key, &bytes);
            } else {
                disk.put(key, &bytes);
                created = Created::Created;
            }
            if let Some(later) = late {
                let at = disk.requests + later;
                disk.late.push((at, key.to_owned(), Arc::clone(&bytes)));
            }
        })?;
        self.answer(created)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, BucketError> {
        self.stand();
        self.arrive()?;
        let found = self.disk.lock().objects.get(key).map(|bytes| bytes.to_vec());
        self.answer(found)
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.stand();
        self.arrive()?;
        self.write(|disk| disk.delete(key))?;
        self.answer(())
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        self.stand();
        self.arrive()?;
        let behind = if self.happens(self.weather.lagging_lists) { self.below(BEHIND + 1) } else { 0 };
        let objects = self.disk.lock().before(behind);
        let listed = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        let listed = listed.map(|(key, bytes)| Listed { key: key.clone(), bytes: bytes.len() as u64 });
        self.answer(listed.collect())
    }

    fn rest(&self, _attempt: u32) {
        self.disk.lock().rests += 1;
    }

    fn address(&self) -> &str {
        "sim://bucket"
    }
}
