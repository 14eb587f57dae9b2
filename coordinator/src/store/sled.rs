//! The store on disk: sled 0.34.7, opened, written and synced by `anabranch-io`'s `DurableDb`.
//!
//! sled's traps and what is done about them: segments of 16 MiB and values of at most 128 KiB (larger values make its
//! file grow without end), no overwriting of bulk in place, and a commit that syncs on a descriptor of our own
//! (`flush` alone is not power-loss durable).

use std::ops::RangeInclusive;
use std::path::Path;

use anabranch_io::durable::{DbOptions, DurableDb, Tree};

use super::{Area, Engine, Medium, StorageError, Visit};

/// The store on disk.
pub type SledStore = Engine<SledMedium>;

/// Two keyspaces of one sled database.
#[derive(Debug)]
pub struct SledMedium {
    // Before the database: it is closed, and its directory free, when the last of the three is dropped.
    catalogue: Tree,
    bulk: Tree,
    db: DurableDb,
}

impl Engine<SledMedium> {
    /// Opens the store in the directory `path`, which is created when it is not there.
    ///
    /// # Errors
    /// Another process has it open, or the storage fails.
    pub fn open_dir(path: &Path) -> Result<Self, StorageError> {
        let db = DurableDb::open(path, DbOptions::default())?;
        let (catalogue, bulk) = (db.tree("catalogue")?, db.tree("bulk")?);
        Self::open(SledMedium { db, catalogue, bulk })
    }
}

impl SledMedium {
    fn tree(&self, area: Area) -> &Tree {
        match area {
            Area::Catalogue => &self.catalogue,
            Area::Bulk => &self.bulk,
        }
    }
}

impl Medium for SledMedium {
    fn get(&self, area: Area, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.tree(area).get(key)?.map(|value| value.to_vec()))
    }

    fn insert(&self, area: Area, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        self.tree(area).insert(key, &value)
    }

    fn remove(&self, area: Area, key: &[u8]) -> Result<(), StorageError> {
        self.tree(area).remove(key)
    }

    fn scan(&self, area: Area, range: RangeInclusive<Vec<u8>>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        for entry in self.tree(area).range(range) {
            let (key, value) = entry?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn commit(&self) -> Result<(), StorageError> {
        self.db.commit()
    }

    fn disk_bytes(&self) -> Result<u64, StorageError> {
        self.db.disk_bytes()
    }

    fn path(&self) -> &Path {
        self.db.dir()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite;

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
}
