//! What the members of a pod hand to each other while they compute a round together (docs/adr/0031).
//!
//! ```text
//!  stages of this member ─ Parcel ─► Wire ─► the member that computes the part it is for
//!
//!  Links (one endpoint a process)
//!    open(attempt) ─┬─ dial:   members behind this one    ─┐ greeting, answer
//!                   └─ accept: members in front of it     ─┴─► link ─► desk ◄─► LinkWire, the thread that computes
//! ```

mod accept;
mod desk;
mod dial;
mod frame;
mod handshakes;
mod link;
mod links;
mod parcel;
pub(crate) mod rows;
mod terms;
#[cfg(test)]
mod tests;

pub use links::{Attempt, LinkIdentity, LinkWire, Links, LinksError, Stop};
pub use parcel::{Address, LayerContent, MemberWire, OpenLinks, Parcel, Wire, WireError};
pub use terms::{ContentSizes, ParcelSizes};
