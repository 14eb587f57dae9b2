//! What the ledger needs of a storage: keys, values of any length, and a commit.

use std::path::Path;

use anabranch_io::durable::{DbOptions, DurableDb, StorageError, Tree};

const CACHE_BYTES: u64 = 16 << 20;

/// Keys and values. Each single insertion and removal is atomic; they become durable with [`commit`](Self::commit), and
/// before it in no particular order. What is found at opening is durable: what a process that was killed had written and
/// not synced is synced before anything else happens, so that what it no longer names can go.
pub trait Shelf: Send + std::fmt::Debug {
    /// The value of a key.
    ///
    /// # Errors
    /// The storage fails.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Sets the value of a key, at most `limits::STORE_VALUE_BYTES` long.
    ///
    /// # Errors
    /// The storage fails.
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError>;

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// The storage fails.
    fn remove(&self, key: &[u8]) -> Result<(), StorageError>;

    /// Stores bytes of any length in entries whose keys start with `prefix`, of which no other begins with the same
    /// bytes. Not atomic.
    ///
    /// # Errors
    /// The storage fails.
    fn put(&self, prefix: &[u8], bytes: &[u8]) -> Result<(), StorageError>;

    /// What [`put`](Self::put) stored, or nothing if it was never stored completely.
    ///
    /// # Errors
    /// The storage fails, or a part is missing.
    fn read(&self, prefix: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Removes what [`put`](Self::put) stored, or what is left of it.
    ///
    /// # Errors
    /// The storage fails.
    fn delete(&self, prefix: &[u8]) -> Result<(), StorageError>;

    /// The keys that start with `prefix`, in ascending order.
    ///
    /// # Errors
    /// The storage fails.
    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StorageError>;

    /// Makes everything before this call durable.
    ///
    /// # Errors
    /// The storage fails; it must not be used any more.
    fn commit(&self) -> Result<(), StorageError>;

    /// Where it lies, for messages.
    fn path(&self) -> &Path;
}

/// A sled store in a directory of its own.
#[derive(Debug)]
pub(super) struct SledShelf {
    db: DurableDb,
    tree: Tree,
}

impl SledShelf {
    pub(super) fn open(dir: &Path) -> Result<Self, StorageError> {
        let db = DurableDb::open(dir, DbOptions { cache_bytes: CACHE_BYTES })?;
        let tree = db.tree("ledger")?;
        Ok(Self { db, tree })
    }
}

impl Shelf for SledShelf {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.tree.get(key)?.map(|value| value.to_vec()))
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.tree.insert(key, value)
    }

    fn remove(&self, key: &[u8]) -> Result<(), StorageError> {
        self.tree.remove(key)
    }

    fn put(&self, prefix: &[u8], bytes: &[u8]) -> Result<(), StorageError> {
        self.tree.put_chunked(prefix, bytes)
    }

    fn read(&self, prefix: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.tree.get_chunked(prefix)
    }

    fn delete(&self, prefix: &[u8]) -> Result<(), StorageError> {
        self.tree.delete_chunked(prefix)
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StorageError> {
        self.tree.scan_prefix(prefix).map(|entry| entry.map(|(key, _)| key.to_vec())).collect()
    }

    fn commit(&self) -> Result<(), StorageError> {
        self.db.commit()
    }

    fn path(&self) -> &Path {
        self.db.dir()
    }
}
