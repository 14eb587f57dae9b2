//! The coordinator: admits, journals and merges updates as they arrive, and survives kill -9 with the same bits.
//!
//! ```text
//!            transport                 core (sans-IO)              writer            merger
//!  chunks ──► assemble ──► decode ──► admit ──► Append ─────────► append, sync ┐
//!                                        ▲                                     │ Journalled
//!                                        └─────────────────────────────────────┘
//!                                     Send Verdict, Merge ─────────────────────────► model + weight * delta
//!                                     Publish ◄── Published ◄──────────────────────── snapshot of a version
//!                                     Checkpoint ──────────────► blobs, manifest ◄── copy of the model
//! ```
//!
//! The core takes one event and returns commands; the [`node`] carries them out without I/O. The [`host`] joins the nodes
//! of a process to the [`registry`] of its members; [`driver`] is the only `select!`. Nothing is told to anyone before the record that says it is durable.

pub mod cli;
pub mod clock;
mod columns;
mod commands;
pub mod config;
pub mod core;
mod doctor;
pub mod driver;
mod heap;
pub mod host;
pub mod identity;
pub mod merger;
pub mod node;
mod overview;
pub mod recovery;
pub mod registry;
pub mod rest;
pub mod runs;
pub mod search;
pub mod store;
mod tensorboard;
pub mod transport;
pub mod web;
pub mod widgets;
mod workers;
