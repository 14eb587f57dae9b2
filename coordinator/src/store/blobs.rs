//! The seam of the blobs: bytes under a digest that names their content.

use anabranch_common::ids::Digest;

use super::StorageError;

/// Models, merge vectors, heads and pages of saved folds: bytes of any length, each under a
/// digest.
///
/// Blobs that were put or deleted and not synced survive a power loss in no particular order.
pub trait Blobs: Send + Sync + std::fmt::Debug {
    /// Stores bytes under an identifier that names their content. They can be read at once. They
    /// are durable after [`sync`](Self::sync). The same identifier again changes nothing, unless
    /// what is stored is damaged or something else. That is written over and never deleted first:
    /// a crash in between leaves it damaged, and not missing.
    ///
    /// # Errors
    /// The storage fails.
    fn put(&self, id: Digest, bytes: &[u8]) -> Result<(), StorageError>;

    /// Returns the bytes of a blob.
    ///
    /// # Errors
    /// The blob is damaged, or the storage fails.
    fn get(&self, id: Digest) -> Result<Option<Vec<u8>>, StorageError>;

    /// Says whether a blob is there and whole. One that this store has written or read since it
    /// was opened is not read again.
    ///
    /// # Errors
    /// The storage fails.
    fn holds(&self, id: Digest) -> Result<bool, StorageError>;

    /// Returns the length of a blob in bytes, without reading it.
    ///
    /// # Errors
    /// The blob's entry is damaged, or the storage fails.
    fn bytes(&self, id: Digest) -> Result<Option<u64>, StorageError>;

    /// Deletes a blob, if it is there. No record and no value of the catalogue may name it durably
    /// any more.
    ///
    /// # Errors
    /// The storage fails.
    fn delete(&self, id: Digest) -> Result<(), StorageError>;

    /// Returns the identifiers of all blobs, damaged ones too, in ascending order.
    ///
    /// # Errors
    /// The storage fails.
    fn list(&self) -> Result<Vec<Digest>, StorageError>;

    /// Makes everything durable that was put or deleted before this call.
    ///
    /// # Errors
    /// The storage fails. What was put since the last successful sync is then in doubt, and every
    /// later sync fails.
    fn sync(&self) -> Result<(), StorageError>;
}
