//! How fast, how large, how soon back.

pub mod recovery;
pub mod store;
