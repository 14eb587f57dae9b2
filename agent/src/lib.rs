//! Trains on local shards and sends compressed, error-corrected deltas.

pub mod clock;
pub mod config;
pub mod core;
pub mod device;
pub mod driver;
pub mod files;
pub mod identity;
pub mod report;
pub mod shard;
pub mod store;
pub mod train;
pub mod transport;
pub mod worker;
