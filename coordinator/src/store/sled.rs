//! The store on disk: the catalogue in sled 0.34.7, opened, written and synced by `anabranch-io`'s `DurableDb`; chunks of
//! some length in files beside it (`bulk.rs`).
//!
//! sled's traps and what is done about them: small segments for small values, and a commit that syncs on a descriptor of
//! our own (`flush` alone is not power-loss durable).

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use anabranch_common::limits;
use anabranch_io::durable::{Access, DbOptions, DurableDb, Files, Tree};

use super::bulk::{BulkFiles, Emptied};
use super::{Area, Engine, Medium, StorageError, Visit};

/// The store on disk.
pub type SledStore = Engine<SledMedium>;

/// Directory of the chunks below the store's.
const BULK_DIR: &str = "bulk";
/// Chunks of this length and longer are written to files: for shorter ones a second sync costs more than sled's log does.
const FILE_BYTES: usize = 32 << 10;

/// Two keyspaces of one sled database, and files.
#[derive(Debug)]
pub struct SledMedium {
    // Before the database: it is closed, and its directory free, when the last of them is dropped.
    catalogue: Tree,
    bulk: Tree,
    files: BulkFiles,
    db: DurableDb,
}

impl Engine<SledMedium> {
    /// Opens the store in the directory `path`, which is created when it is not there.
    ///
    /// # Errors
    /// Another process has it open, or the storage fails.
    pub fn open_dir(path: &Path) -> Result<Self, StorageError> {
        let db = DurableDb::open_with_segments(
            path,
            DbOptions { cache_bytes: limits::STORE_CACHE_BYTES },
            limits::STORE_SEGMENT_BYTES,
        )?;
        let (catalogue, bulk, places) = (db.tree("catalogue")?, db.tree("bulk")?, db.tree("places")?);
        let files = BulkFiles::open(Files::open(path.join(BULK_DIR), Access::Write)?, places)?;
        Self::open(SledMedium { catalogue, bulk, files, db })
    }

    /// Opens the store in the directory `path` for reading: nothing in it is created or changed. One that is not there is
    /// empty.
    ///
    /// # Errors
    /// Another process has it open, or the storage fails.
    pub fn open_copy(path: &Path) -> Result<Self, StorageError> {
        let db = DurableDb::open_copy(
            path,
            DbOptions { cache_bytes: limits::STORE_CACHE_BYTES },
            limits::STORE_SEGMENT_BYTES,
        )?;
        let (catalogue, bulk, places) = (db.tree("catalogue")?, db.tree("bulk")?, db.tree("places")?);
        let files = BulkFiles::open(Files::open(path.join(BULK_DIR), Access::Read)?, places)?;
        Self::open(SledMedium { catalogue, bulk, files, db })
    }
}

impl Medium for SledMedium {
    fn get(&self, area: Area, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let tree = match area {
            Area::Catalogue => &self.catalogue,
            Area::Bulk => &self.bulk,
        };
        match tree.get(key)? {
            Some(value) => Ok(Some(value.to_vec())),
            None if area == Area::Bulk => self.files.get(key),
            None => Ok(None),
        }
    }

    fn insert(&self, area: Area, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        match area {
            Area::Catalogue => self.catalogue.insert(key, &value),
            Area::Bulk if value.len() >= FILE_BYTES => {
                self.bulk.remove(key)?;
                self.files.insert(key, &value)
            }
            Area::Bulk => {
                self.files.remove(key)?;
                self.bulk.insert(key, &value)
            }
        }
    }

    fn remove(&self, area: Area, key: &[u8]) -> Result<(), StorageError> {
        match area {
            Area::Catalogue => self.catalogue.remove(key),
            Area::Bulk => {
                self.bulk.remove(key)?;
                self.files.remove(key)
            }
        }
    }

    fn scan(&self, area: Area, range: RangeInclusive<Vec<u8>>, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        if area == Area::Bulk {
            for key in self.keys(area, range)? {
                if let Some(value) = self.get(area, &key)? {
                    visit(&key, &value)?;
                }
            }
            return Ok(());
        }
        for entry in self.catalogue.range(range) {
            let (key, value) = entry?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn keys(&self, area: Area, range: RangeInclusive<Vec<u8>>) -> Result<Vec<Vec<u8>>, StorageError> {
        let (tree, mut keys) = match area {
            Area::Catalogue => (&self.catalogue, BTreeSet::new()),
            Area::Bulk => (&self.bulk, self.files.keys(range.clone())?),
        };
        for entry in tree.range(range) {
            keys.insert(entry?.0.to_vec());
        }
        Ok(keys.into_iter().collect())
    }

    fn commit(&self) -> Result<(), StorageError> {
        let mut emptied = Emptied::default();
        self.db.commit_after(|| {
            emptied = self.files.sync()?;
            Ok(())
        })?;
        self.files.sweep(emptied)
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
    use anabranch_common::ids::{Digest, Position};

    use super::*;
    use crate::store::Store;

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir.join(BULK_DIR)).expect("lists").count()
    }

    /// What is deleted leaves no file behind, and neither does a crash.
    #[test]
    fn files_go_with_what_is_in_them() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let store = SledStore::open_dir(root.path()).expect("opens");
        let blob = vec![5; 300_000];
        let id = Digest::of(&blob);
        store.blobs().put(id, &blob).expect("put");
        let record = |position: u64| (Position(position), vec![1; 3_000_000]);
        store.journal().append(&(0..8).map(record).collect::<Vec<_>>()).expect("append");
        store.blobs().sync().expect("sync");
        store.journal().sync().expect("commit");
        let before = files(root.path());
        assert!(before >= 3, "a blob and 24 MB of records lie in {before} files");
        store.blobs().delete(id).expect("delete");
        store.blobs().sync().expect("commit");
        store.blobs().put(id, &blob).expect("put again");
        store.blobs().sync().expect("commit");
        assert_eq!(store.blobs().get(id).expect("reads").as_deref(), Some(&blob[..]));
        store.journal().prune(Position(7)).expect("prunes");
        assert!(files(root.path()) < before, "pruned records leave their files");
        drop(store);
        let stray = root.path().join(BULK_DIR).join("00000000000000ff");
        std::fs::write(&stray, b"what a crash left").expect("writes");
        let store = SledStore::open_dir(root.path()).expect("opens");
        assert!(!stray.exists());
        assert_eq!(store.journal().record(Position(7)).expect("reads"), Some(record(7).1));
        assert_eq!(store.blobs().get(id).expect("reads").as_deref(), Some(&blob[..]));
    }

    /// A bad disk under a file is damage, by name, and never another content.
    #[test]
    fn a_changed_or_lost_file_is_damage() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let blob = vec![5; 300_000];
        let id = Digest::of(&blob);
        let store = SledStore::open_dir(root.path()).expect("opens");
        store.blobs().put(id, &blob).expect("put");
        store.blobs().sync().expect("commit");
        let entry = std::fs::read_dir(root.path().join(BULK_DIR)).expect("lists").next().expect("a file");
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("reads");
        bytes[200_000] ^= 1;
        std::fs::write(&path, &bytes).expect("writes");
        let error = store.blobs().get(id).expect_err("a changed bit");
        assert!(error.to_string().contains("checksum"), "{error}");
        std::fs::write(&path, &bytes[..1000]).expect("writes");
        assert!(matches!(store.blobs().get(id), Err(StorageError::Corrupt { .. })));
        std::fs::remove_file(&path).expect("removes");
        assert!(matches!(store.blobs().get(id), Err(StorageError::Corrupt { .. })));
        store.blobs().put(id, &blob).expect("a damaged blob can be stored again");
        assert_eq!(store.blobs().get(id).expect("reads").as_deref(), Some(&blob[..]));
    }
}
