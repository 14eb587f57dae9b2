//! What the members of a pod hand to each other while they compute a round together (docs/adr/0031).
//!
//! ```text
//!  stages of this member ─ Parcel ─► Wire ─► the member that computes the part it is for
//! ```

mod parcel;

pub use parcel::{Address, Parcel, Wire, WireError};
