//! Peers that do not keep to the protocol, or keep to it with bad intent.
//!
//! ```text
//!  member    an enrolled agent's side of a connection, message by message: says what a test wants it to say
//!  stranger  datagrams from raw sockets of many addresses, half-open handshakes, connections without a certificate
//!  payloads  bombs, truncations and numbers that are none
//! ```

pub mod member;
pub mod payloads;
pub mod stranger;

pub use member::{Identity, Member};
