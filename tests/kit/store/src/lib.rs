//! What tests of the coordinator's stores share.
//!
//! | module | content |
//! |---|---|
//! | [`suite`] | what every store must do: one suite for each seam, and one for all three |
//! | [`memory`] | a store in memory: power loss, storage errors and damage on demand |
//! | [`bucket`] | a bucket in memory: lost answers, late and duplicated puts, lagging listings, deaths on demand |
//!
//! Unit tests of `anabranch-coordinator` cannot use either: they are compiled with a second instance of that crate, whose
//! traits are other traits. Tests of stores are in `coordinator/tests/store`.

pub mod bucket;
pub mod memory;
pub mod suite;

pub use bucket::SimBucket;
pub use memory::MemoryStore;
