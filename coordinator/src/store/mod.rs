//! Where durable state lives: the journal's records, content-addressed blobs, checkpoint manifests and a small
//! catalogue of values.
//!
//! ```text
//!             Store (the seam)
//!               │
//!             Engine ── layout: kinds, keys, checked entry heads, chunks of at most 128 KiB, torn tails
//!               │
//!             Medium ── two areas of ordered keys, commit
//!             ├── SledMedium    anabranch-io's DurableDb: flush and sync_data on a descriptor of our own; long chunks
//!             │                 in files beside it (bulk.rs)
//!             └── MemoryMedium  knows what was synced: power loss and storage errors on demand
//! ```
//!
//! Nothing is durable until [`Store::commit`] returns `Ok`, and nobody may be told of anything before that. Every
//! implementation runs [`suite::conformance`].

mod bulk;
mod engine;
pub mod layout;
mod medium;
pub mod memory;
pub mod sled;
pub mod suite;

use anabranch_common::ids::{Digest, Position};
pub use anabranch_io::durable::StorageError;

pub use self::engine::Engine;
pub use self::medium::{Area, Medium, Visit};
pub use self::memory::MemoryStore;
pub use self::sled::SledStore;

/// How much room a store takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Bytes on the disk.
    pub disk_bytes: u64,
    /// Bytes of content that is still wanted: records, blobs, manifests and items that were not deleted.
    pub live_bytes: u64,
}

/// Durable state. Reads see every write at once; only what was written before a successful [`commit`](Self::commit)
/// survives power loss. After an error of a write or of `commit` nothing more may be acknowledged: the caller stops.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Adds records at the end of the journal. Not durable until [`commit`](Self::commit).
    ///
    /// # Errors
    /// The positions do not follow the last one without a gap (the first record ever has position 0), or the storage
    /// fails.
    fn append(&self, records: &[(Position, Vec<u8>)]) -> Result<(), StorageError>;

    /// Makes everything that was written before this call survive power loss.
    ///
    /// # Errors
    /// The storage fails. What was written since the last successful commit is then in doubt, and this store accepts
    /// no further commit.
    fn commit(&self) -> Result<(), StorageError>;

    /// The bytes of a record; `None` when it was pruned or not written yet.
    ///
    /// # Errors
    /// The record is damaged, or it is missing between records that are there.
    fn record(&self, position: Position) -> Result<Option<Vec<u8>>, StorageError>;

    /// Position of the newest record.
    ///
    /// # Errors
    /// The storage fails.
    fn last_position(&self) -> Result<Option<Position>, StorageError>;

    /// Position from which the journal is without gaps up to its end. Record 0, which is always kept, does not count
    /// when records after it were pruned.
    ///
    /// # Errors
    /// The storage fails.
    fn first_position(&self) -> Result<Option<Position>, StorageError>;

    /// Deletes the records below `below`, except record 0 and the newest record. Returns how many. Commits on its own,
    /// so that a half-done pruning is finished at the next opening.
    ///
    /// # Errors
    /// The storage fails.
    fn prune_records(&self, below: Position) -> Result<u64, StorageError>;

    /// Stores bytes under an identifier that names their content. The same identifier again changes nothing, unless
    /// what is stored is damaged or something else. That is written over and never deleted first: a crash in between
    /// leaves it damaged, and not missing.
    ///
    /// # Errors
    /// The storage fails.
    fn put_blob(&self, id: Digest, bytes: &[u8]) -> Result<(), StorageError>;

    /// The bytes of a blob.
    ///
    /// # Errors
    /// The blob is damaged, or the storage fails.
    fn blob(&self, id: Digest) -> Result<Option<Vec<u8>>, StorageError>;

    /// Whether a blob is there and whole. One that this store has written or read since it was opened is not read again.
    ///
    /// # Errors
    /// The storage fails.
    fn holds_blob(&self, id: Digest) -> Result<bool, StorageError>;

    /// Length of a blob in bytes, without reading it.
    ///
    /// # Errors
    /// The blob's entry is damaged, or the storage fails.
    fn blob_bytes(&self, id: Digest) -> Result<Option<u64>, StorageError>;

    /// Deletes a blob, if it is there.
    ///
    /// # Errors
    /// The storage fails.
    fn delete_blob(&self, id: Digest) -> Result<(), StorageError>;

    /// The identifiers of all blobs, damaged ones too, in ascending order.
    ///
    /// # Errors
    /// The storage fails.
    fn blobs(&self) -> Result<Vec<Digest>, StorageError>;

    /// Stores the manifest of a checkpoint.
    ///
    /// # Errors
    /// The manifest is longer than [`layout::SMALL_BYTES`], or the storage fails.
    fn put_checkpoint(&self, position: Position, manifest: &[u8]) -> Result<(), StorageError>;

    /// All checkpoint manifests, by position in ascending order. One that is damaged comes as empty bytes, so that its
    /// reader can refuse it and fall back to another.
    ///
    /// # Errors
    /// The storage fails.
    fn checkpoints(&self) -> Result<Vec<(Position, Vec<u8>)>, StorageError>;

    /// Deletes the manifest of a checkpoint, if it is there.
    ///
    /// # Errors
    /// The storage fails.
    fn delete_checkpoint(&self, position: Position) -> Result<(), StorageError>;

    /// Stores a value of the catalogue (tokens and the like), replacing one of the same key: after a crash it is the old
    /// or the new one.
    ///
    /// # Errors
    /// The value is longer than [`layout::SMALL_BYTES`], or the storage fails.
    fn put_item(&self, key: &str, value: &[u8]) -> Result<(), StorageError>;

    /// A value of the catalogue.
    ///
    /// # Errors
    /// The value is damaged, or the storage fails.
    fn item(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError>;

    /// The keys of the catalogue that start with `prefix`, in ascending order.
    ///
    /// # Errors
    /// The storage fails.
    fn items(&self, prefix: &str) -> Result<Vec<String>, StorageError>;

    /// Deletes a value of the catalogue, if it is there.
    ///
    /// # Errors
    /// The storage fails.
    fn delete_item(&self, key: &str) -> Result<(), StorageError>;

    /// How much room is taken.
    ///
    /// # Errors
    /// The storage fails.
    fn usage(&self) -> Result<StoreUsage, StorageError>;
}
