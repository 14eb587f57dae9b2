//! Trains on local shards and sends compressed, error-corrected deltas.
//!
//! ```text
//!  shard ──► train ──► delta ──► encode: residual added ──► store: kept in the outbox (durable)
//!              ▲                                              │
//!  replica ◄───┤        coordinator: verdict ◄── transport ◄──┘
//!              └── session: decides; node: gives its jobs out; driver: carries out; worker: threads for maths and store
//! ```
//! `cli::main` is the whole program; `Driver` with a [`worker::TrainerFactory`] of your own is an agent with another
//! trainer.

mod arenas;
pub mod cli;
pub mod clock;
mod commands;
pub mod config;
pub mod device;
mod doctor;
pub mod driver;
pub mod encode;
pub mod files;
pub mod host;
pub mod identity;
pub mod manners;
pub mod metrics;
pub mod node;
pub mod pod;
pub mod report;
pub mod session;
pub mod shard;
pub mod size;
pub mod store;
pub mod train;
pub mod transport;
pub mod worker;

pub use commands::run::{finish, native_factory, native_factory_with, run_with, serve};
