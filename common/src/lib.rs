//! The vocabulary that coordinator, agents and tests share: pure functions over bytes and flat `f32` vectors.
//!
//! ```text
//!  agent                                             coordinator
//!  end - base = delta ─┐                               ┌─► wire::Frame ─► codec::decode ─► codec::Delta
//!    + codec::Feedback ┴► codec::encode ─► UpdateMeta ─┘        (caps checked before any allocation)
//!                                                                       │
//!                       journal::Record ◄── weight, staleness ◄── merge::MergeSpec
//!                             │                                         │
//!                       journal::Chain                           merge::MergeRule ─► model + 1 version
//! ```
//!
//! Nothing here opens a socket, reads a clock, touches a disk or draws entropy: time and seeds are arguments. A test
//! (`tests/tests/architecture`) checks the imports. Byte layouts are drawn in `docs/protocol.md`.

#[macro_use]
pub mod schema;

pub mod backoff;
pub mod codec;
pub mod downlink;
pub mod ids;
pub mod journal;
pub mod lane;
pub mod limits;
pub mod manifest;
pub mod merge;
pub mod now;
pub mod plain;
pub mod pod;
pub mod rng;
pub mod spec;
pub mod status;
pub mod token;
pub mod transfer;
pub mod update;
pub mod vector;
pub mod wire;
