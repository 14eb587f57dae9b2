//! Where durable state lives: the journal's records, content-addressed blobs, and a catalogue of
//! small values.
//!
//! ```text
//!   Journal    Blobs    Catalogue     the seams, each with a conformance suite (`tests/kit/store`)
//!        └───────┼───────┘
//!             Store                   all three of one run
//!               │
//!             Engine ── layout: kinds, keys, checked entry heads, chunks of at most 128 KiB, torn tails
//!               │
//!             Medium ── two areas of ordered keys, commit
//!             └── SledMedium    anabranch-io's DurableDb: flush and sync_data on a descriptor of our own; long chunks
//!                               in files beside it (bulk.rs)
//! ```
//! [`ObjectStore`] implements the three seams in a bucket, without an engine ([`object`]).
//!
//!
//! Reads see every write at once. A write is durable when the `sync` of its seam has returned
//! `Ok`, and nothing may be told to anyone before that. No seam orders anything for another:
//! callers write what is named, sync it, and only then write its name. Names go in the opposite
//! order.
//!
//! | writing | order |
//! |---|---|
//! | a record that names a model | pin (catalogue), model (blobs) ─► both synced ─► `append` ─► `Journal::sync` |
//! | a checkpoint | vectors, pages, head (blobs) ─► `Blobs::sync` ─► manifest ─► `Catalogue::sync` |
//! | pruning | manifests deleted ─► `Catalogue::sync` ─► `Journal::prune`; items deleted ─► `Catalogue::sync` ─► blobs deleted |
//!
//! A sync may make more durable than its seam's writes: a commit of [`Engine`] covers all three.
//! Callers may not rely on it; `tests/store/apart.rs` runs them on three media.

mod blobs;
mod bulk;
mod catalogue;
pub mod copy;
mod engine;
#[cfg(test)]
pub(crate) mod for_tests;
mod journal;
pub mod layout;
mod medium;
pub mod object;
pub mod sled;

pub use anabranch_io::durable::StorageError;

pub use self::blobs::Blobs;
pub use self::catalogue::Catalogue;
pub use self::engine::Engine;
pub use self::journal::Journal;
pub use self::medium::{Area, Medium, Visit};
pub use self::object::ObjectStore;
pub use self::sled::SledStore;

/// The durable state of one run. A caller that needs one seam takes that seam.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// The records.
    fn journal(&self) -> &dyn Journal;

    /// The blobs.
    fn blobs(&self) -> &dyn Blobs;

    /// The small values.
    fn catalogue(&self) -> &dyn Catalogue;

    /// Returns how much room all of it takes.
    ///
    /// # Errors
    /// The storage fails.
    fn usage(&self) -> Result<StoreUsage, StorageError>;
}

/// How much room a store takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Bytes on the disk.
    pub disk_bytes: u64,
    /// Bytes of content that is still wanted: records, blobs, manifests and items that were not
    /// deleted.
    pub live_bytes: u64,
}
