//! A keyspace of the store, and values that are larger than one entry may be.

use std::ops::RangeBounds;
use std::sync::Arc;

use anabranch_common::limits::{STORE_VALUE_BYTES, TRANSFER_BYTES};

use super::{Shared, StorageError};

/// A set of writes to one keyspace that are applied together or not at all.
pub type Batch = sled::Batch;
/// A key or a value: dereferences to `[u8]`, cheap to clone.
pub type Bytes = sled::IVec;

/// A keyspace with sorted byte keys. Writes become durable with `DurableDb::commit`
/// at the latest. Cheap to clone, but
/// the store stays open until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Tree {
    tree: sled::Tree,
    shared: Arc<Shared>,
}

impl Tree {
    pub(super) fn new(tree: sled::Tree, shared: Arc<Shared>) -> Self {
        Self { tree, shared }
    }

    fn error(&self, error: sled::Error) -> StorageError {
        self.shared.of_sled(error)
    }

    fn corrupt(&self, detail: String) -> StorageError {
        StorageError::Corrupt { path: self.shared.dir.to_path_buf(), detail }
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, StorageError> {
        self.tree.get(key).map_err(|error| self.error(error))
    }

    /// Sets the value of `key`, at most `STORE_VALUE_BYTES` long.
    ///
    /// # Errors
    /// The store cannot be written, or the value is too long (an `Io` error of kind `InvalidInput`).
    pub fn insert(&self, key: impl AsRef<[u8]>, value: &[u8]) -> Result<(), StorageError> {
        if value.len() > STORE_VALUE_BYTES {
            let text = format!("value of {} bytes, more than {STORE_VALUE_BYTES}", value.len());
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, text);
            return Err(StorageError::Io { path: self.shared.dir.to_path_buf(), source });
        }
        self.tree.insert(key, value).map_err(|error| self.error(error))?;
        self.shared.wrote(value.len())
    }

    /// Removes `key` if it is there.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<(), StorageError> {
        self.tree.remove(key).map(drop).map_err(|error| self.error(error))
    }

    /// Applies a set of writes together. Each value must be at most `STORE_VALUE_BYTES` long.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn apply(&self, batch: Batch) -> Result<(), StorageError> {
        self.tree.apply_batch(batch).map_err(|error| self.error(error))
    }

    /// The entry with the smallest key.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn first(&self) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        self.tree.first().map_err(|error| self.error(error))
    }

    /// The entry with the largest key.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn last(&self) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        self.tree.last().map_err(|error| self.error(error))
    }

    /// All entries in order. Reversible.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Result<(Bytes, Bytes), StorageError>> + use<> {
        self.wrap(self.tree.iter())
    }

    /// The entries whose keys start with `prefix`, in order. Reversible.
    pub fn scan_prefix(
        &self,
        prefix: &[u8],
    ) -> impl DoubleEndedIterator<Item = Result<(Bytes, Bytes), StorageError>> + use<> {
        self.wrap(self.tree.scan_prefix(prefix))
    }

    /// The entries whose keys lie in `range`, in order. Reversible.
    pub fn range<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
    ) -> impl DoubleEndedIterator<Item = Result<(Bytes, Bytes), StorageError>> {
        self.wrap(self.tree.range(range))
    }

    fn wrap(&self, iter: sled::Iter) -> impl DoubleEndedIterator<Item = Result<(Bytes, Bytes), StorageError>> + use<> {
        let path = Arc::clone(&self.shared.dir);
        iter.map(move |entry| entry.map_err(|error| StorageError::of_sled(&path, error)))
    }

    /// Number of entries. Reads all of them: for small keyspaces and tests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Stores `bytes` of any length under `key_prefix`, cut into values of `STORE_VALUE_BYTES`.
    ///
    /// ```text
    ///  key_prefix | 0u32 be   length of all, u64 be; written last, so that a torn write has none
    ///  key_prefix | 1u32 be   first chunk
    ///  key_prefix | 2u32 be   ...
    /// ```
    /// Prefixes must not be prefixes of each other's keys (fixed width), and are written once: the store grows when
    /// values are overwritten in place.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn put_chunked(&self, key_prefix: &[u8], bytes: &[u8]) -> Result<(), StorageError> {
        for (index, chunk) in (1u32..).zip(bytes.chunks(STORE_VALUE_BYTES)) {
            self.insert(chunk_key(key_prefix, index), chunk)?;
        }
        self.insert(chunk_key(key_prefix, 0), &(bytes.len() as u64).to_be_bytes())
    }

    /// What [`Self::put_chunked`] stored, or nothing if it was never stored completely.
    ///
    /// # Errors
    /// The store cannot be read, or a chunk is missing.
    pub fn get_chunked(&self, key_prefix: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let Some(head) = self.get(chunk_key(key_prefix, 0))? else {
            return Ok(None);
        };
        let bytes = <[u8; 8]>::try_from(&*head).map(u64::from_be_bytes).ok().filter(|bytes| *bytes <= TRANSFER_BYTES);
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| self.corrupt("length of a large value".to_owned()))?;
        let mut out = Vec::with_capacity(bytes);
        for index in 1..=bytes.div_ceil(STORE_VALUE_BYTES) {
            let chunk = match u32::try_from(index) {
                Ok(index) => self.get(chunk_key(key_prefix, index))?,
                Err(_) => None,
            };
            let expected = STORE_VALUE_BYTES.min(bytes - out.len());
            let chunk = chunk.filter(|chunk| chunk.len() == expected);
            let chunk = chunk.ok_or_else(|| self.corrupt(format!("chunk {index} of a large value is missing")))?;
            out.extend_from_slice(&chunk);
        }
        Ok(Some(out))
    }

    /// Removes what [`Self::put_chunked`] stored under `key_prefix`, or what is left of it.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn delete_chunked(&self, key_prefix: &[u8]) -> Result<(), StorageError> {
        // In order of keys the head goes first: from then on the value is gone, whatever else happens.
        for entry in self.scan_prefix(key_prefix) {
            let (key, _) = entry?;
            if key.len() == key_prefix.len() + 4 {
                self.remove(key)?;
            }
        }
        Ok(())
    }
}

fn chunk_key(prefix: &[u8], index: u32) -> Vec<u8> {
    [prefix, &index.to_be_bytes()].concat()
}
