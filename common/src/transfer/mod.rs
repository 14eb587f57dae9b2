//! Uploads on the receiving side: all that is decided about them, without I/O.
//!
//! ```text
//!  offer ─► turn of large uploads ─► share of its agent ─► room in the budget of payloads ─► what is here of it on disk
//!                                                                                                   │
//!  merged or refused ◄─ ... ◄─ decode ◄─ room in the budget of decoded content ◄─ all of it ◄─ chunks ◄┘
//!  └────────────────────── both budgets are held until here, by a guard ──────────────────────┘
//! ```
//! [`Uploads`] owns the queues, the budgets, the deadlines and the list of halves. Chunks never pass it: whoever receives
//! them checks and copies them into a [`Sink`], and tells it how many bytes have come.
//!
//! Decoded content waits for no budget, only for the disk and the merger. So uploads that wait for the second budget get
//! it, and neither budget can be held in a circle.
//!
//! Halves of uploads of more than one chunk are spooled to disk, or kept in memory where that fails. After a reconnect, a
//! new address or a restart only the missing chunks are sent.
//!
//! Members of a pod send their sections of its update beside the agent that has offered it, each on its own line ([`Helper`]).

mod action;
mod budget;
mod expected;
mod halves;
mod helpers;
mod name;
mod room;
mod sink;
#[cfg(test)]
mod tests;
mod upload;
mod uploads;

pub use action::{Action, Guard, Opened, Received};
pub use budget::Budgets;
pub use expected::Expected;
pub use halves::{Half, leaves_spare};
pub use helpers::Helper;
pub use name::UploadName;
pub use sink::{Put, Sink};
pub use upload::UploadId;
pub use uploads::Uploads;
