//! Trains on local shards and sends compressed, error-corrected deltas.

pub mod core;
pub mod device;
pub mod shard;
pub mod train;
