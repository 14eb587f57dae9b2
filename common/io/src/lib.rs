//! What both daemons share and what is not pure: durable sled, QUIC framing, TLS, control socket, command line, logging.
//!
//! ```text
//!  cli, exit, logging, terminal  what a person sees           control    a daemon's Unix socket: JSON lines
//!  durable           sled that survives power loss                faults     named kill points, for tests
//!  manual            manual pages of a command line            doctor     findings about a machine and its line
//!  model_file        a model as safetensors                    text_file  configuration, as UTF-8
//!  signals           what ends a daemon                        malloc     settings of glibc's, by starting anew
//!  memory            what is free, the limits of cgroups counted
//!  tls ──► quinn::Connection ──► frames: messages on streams
//!                            └─► chunks: bulk, one stream a chunk
//! ```
//! Deadlines are arguments, bounds come from `anabranch_common::limits`. Nothing here decides anything about a run.

pub mod chunks;
pub mod cli;
pub mod control;
pub mod doctor;
pub mod durable;
pub mod exit;
pub mod faults;
pub mod frames;
pub mod logging;
pub mod malloc;
pub mod manual;
pub mod memory;
pub mod model_file;
pub mod signals;
pub mod terminal;
pub mod text_file;
pub mod tls;
pub mod web;
