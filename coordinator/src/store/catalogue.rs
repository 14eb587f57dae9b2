//! The seam of the catalogue: small values under names, and the manifests of checkpoints.

use anabranch_common::ids::Position;

use super::StorageError;

/// Small named values that are replaced as a whole: items (tokens, members, pins) and checkpoint
/// manifests.
///
/// After a crash a value is the old or the new one. Changes that were not synced survive a power
/// loss in no particular order.
pub trait Catalogue: Send + Sync + std::fmt::Debug {
    /// Stores an item, replacing one of the same key. It can be read at once. It is durable after
    /// [`sync`](Self::sync).
    ///
    /// # Errors
    /// The value is longer than [`SMALL_BYTES`](super::layout::SMALL_BYTES), or the storage fails.
    fn put(&self, key: &str, value: &[u8]) -> Result<(), StorageError>;

    /// Returns an item.
    ///
    /// # Errors
    /// The value is damaged, or the storage fails.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError>;

    /// Returns the keys of the items that start with `prefix`, in ascending order.
    ///
    /// # Errors
    /// The storage fails.
    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError>;

    /// Deletes an item, if it is there.
    ///
    /// # Errors
    /// The storage fails.
    fn delete(&self, key: &str) -> Result<(), StorageError>;

    /// Stores the manifest of a checkpoint. It is durable after [`sync`](Self::sync). Every blob
    /// that it names, and the record at its position, must be durable before this call.
    ///
    /// # Errors
    /// The manifest is longer than [`SMALL_BYTES`](super::layout::SMALL_BYTES), or the storage
    /// fails.
    fn put_checkpoint(&self, position: Position, manifest: &[u8]) -> Result<(), StorageError>;

    /// Returns all checkpoint manifests, by position in ascending order. One that is damaged comes
    /// as empty bytes, so that its reader can refuse it and fall back to another.
    ///
    /// # Errors
    /// The storage fails.
    fn checkpoints(&self) -> Result<Vec<(Position, Vec<u8>)>, StorageError>;

    /// Deletes the manifest of a checkpoint, if it is there.
    ///
    /// # Errors
    /// The storage fails.
    fn delete_checkpoint(&self, position: Position) -> Result<(), StorageError>;

    /// Makes everything durable that was put or deleted before this call.
    ///
    /// # Errors
    /// The storage fails. What was put since the last successful sync is then in doubt, and every
    /// later sync fails.
    fn sync(&self) -> Result<(), StorageError>;
}
