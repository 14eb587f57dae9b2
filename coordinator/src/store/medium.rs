//! What the engine needs of a storage: two areas of ordered keys, and a commit.

use std::ops::RangeInclusive;
use std::path::Path;

use super::StorageError;

/// Small entries and bulk are kept apart, so that a walk over the catalogue never reads a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// One entry head for each record, blob, manifest and item, with its content if that is small.
    Catalogue,
    /// Chunks of larger contents.
    Bulk,
}

/// What [`Medium::scan`] calls with each key and its value.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StorageError> + 'a;

/// Ordered keys and values. Each single insertion and removal is atomic; they become durable with
/// [`commit`](Self::commit), and before it in no particular order. What is found at opening is durable: what a process
/// that was killed had written and not synced is synced before anything else happens, so that what it no longer names
/// can go.
pub trait Medium: Send + Sync + std::fmt::Debug {
    /// The value of a key.
    ///
    /// # Errors
    /// The storage fails.
    fn get(&self, area: Area, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Sets the value of a key.
    ///
    /// # Errors
    /// The storage fails.
    fn insert(&self, area: Area, key: &[u8], value: Vec<u8>) -> Result<(), StorageError>;

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// The storage fails.
    fn remove(&self, area: Area, key: &[u8]) -> Result<(), StorageError>;

    /// Calls `visit` for every key in `range` with its value, in ascending order, until it returns an error.
    ///
    /// # Errors
    /// The storage fails, or what `visit` returned.
    fn scan(&self, area: Area, range: RangeInclusive<Vec<u8>>, visit: &mut Visit<'_>) -> Result<(), StorageError>;

    /// The keys in `range`, in ascending order.
    ///
    /// # Errors
    /// The storage fails.
    fn keys(&self, area: Area, range: RangeInclusive<Vec<u8>>) -> Result<Vec<Vec<u8>>, StorageError> {
        let mut keys = Vec::new();
        self.scan(area, range, &mut |key, _| {
            keys.push(key.to_vec());
            Ok(())
        })?;
        Ok(keys)
    }

    /// Makes everything before this call durable.
    ///
    /// # Errors
    /// The storage fails.
    fn commit(&self) -> Result<(), StorageError>;

    /// Bytes on the disk.
    ///
    /// # Errors
    /// The storage fails.
    fn disk_bytes(&self) -> Result<u64, StorageError>;

    /// Where it lies, for messages.
    fn path(&self) -> &Path;
}
