//! What the process shows over HTTP: figures for Prometheus, and whether it is well (docs/adr/0038-figures.md).
//!
//! ```text
//!  the loop ─ about once a second ─► Snapshot ─► watch ─┬─► /metrics: figures of the newest snapshot, written once for all
//!                                                       └─► /healthz: 200, or 503 with the reason
//!  writers, checkpointers, connections ─► Events ─► /metrics
//! ```
//! Requests never reach the loop, but for what owners of page tokens ask of runs: all others are answered from what it
//! published. `anabranch_io::web` has the server.
//!
//! | file | what is in it |
//! |---|---|
//! | `snapshot` | what the loop publishes |
//! | `routes` | what is answered |
//! | `figures` | the names of Prometheus, and their values in a snapshot |
//! | `page` | the operator's page |
//! | `events`, `timed` | figures of what happens, recorded where it happens |

mod events;
mod figures;
mod names;
mod page;
mod routes;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod timed;

pub use events::Events;
pub(crate) use events::RunEvents;
pub use figures::names;
pub use names::{Kind, Name};
pub(crate) use page::{Served as ServedPage, Viewing, serve as serve_page};
pub use routes::{Snapshots, router};
pub use snapshot::{Certificate, Snapshot};
