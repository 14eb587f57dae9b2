//! A store in a map, for unit tests. They cannot use the store of `anabranch-testkit-store`, whose traits are those of
//! another instance of this crate.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use parking_lot::Mutex;

use super::{Area, Engine, Medium, StorageError, Visit};

/// A store in a map.
pub(crate) type MapStore = Engine<MapMedium>;

type Key = (Area, Vec<u8>);

/// Values by area and key. Nothing fails, and nothing is lost.
#[derive(Debug, Default)]
pub(crate) struct MapMedium(Mutex<BTreeMap<Key, Vec<u8>>>);

impl Engine<MapMedium> {
    pub(crate) fn new() -> Self {
        Self::open(MapMedium::default()).expect("an empty map opens")
    }
}

impl Medium for MapMedium {
    fn get(&self, area: Area, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.0.lock().get(&(area, key.to_vec())).cloned())
    }

    fn insert(&self, area: Area, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        self.0.lock().insert((area, key.to_vec()), value);
        Ok(())
    }

    fn remove(&self, area: Area, key: &[u8]) -> Result<(), StorageError> {
        self.0.lock().remove(&(area, key.to_vec()));
        Ok(())
    }

    fn scan(&self, area: Area, range: RangeInclusive<Vec<u8>>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        // Copied, so that `visit` may use the store.
        let entries = self.0.lock().clone();
        let within = entries.iter().filter(|((of, key), _)| *of == area && range.contains(key));
        within.map(|((_, key), value)| (key, value)).try_for_each(|(key, value)| visit(key, value))
    }

    fn commit(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, StorageError> {
        Ok(self.0.lock().values().map(|value| value.len() as u64).sum())
    }

    fn path(&self) -> &Path {
        Path::new("(map)")
    }
}
