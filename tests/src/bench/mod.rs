//! How fast, how large, how soon back.

pub mod codec;
pub mod downlink;
pub mod encoder;
pub mod fleet;
pub mod flood;
pub mod ledger;
#[cfg(test)]
mod merge;
pub mod overlap;
pub mod page;
pub mod pipeline;
pub mod recovery;
pub mod replicas;
pub mod runs;
pub mod slow_disk;
pub mod store;
pub mod swarm;
pub mod trainer;
pub mod utilisation;
pub mod w1;
