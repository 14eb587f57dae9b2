//! What the process shows over HTTP: figures for Prometheus, and whether it is well (docs/adr/0038-figures.md).
//!
//! ```text
//!  the loop ─ about once a second ─► Snapshot ─► watch ─┬─► /metrics: figures of the newest snapshot, written once for all
//!                                                       └─► /healthz: 200, or 503 with the reason
//!  writers, checkpointers, connections ─► Events ─► /metrics
//! ```
//! Requests never reach the loop: they are answered from what it published.
//!
//! | file | what is in it |
//! |---|---|
//! | `snapshot` | what the loop publishes |
//! | `server` | connections over HTTP/1.1, within bounds |
//! | `patient` | a stream whose reader may not stand still |
//! | `routes` | what is answered |
//! | `figures` | the names of Prometheus, and their values in a snapshot |
//! | `page` | the operator's page |
//! | `events`, `timed` | figures of what happens, recorded where it happens |

mod events;
mod figures;
mod names;
mod page;
mod patient;
mod routes;
mod server;
mod snapshot;
#[cfg(test)]
mod tests;
mod timed;

pub use events::Events;
pub(crate) use events::RunEvents;
pub use figures::names;
pub use names::{Kind, Name};
pub(crate) use page::serve as serve_page;
pub use page::{Names, page_address};
pub use routes::{Snapshots, router};
pub use server::{Bounds, Server, WebError, listen_address};
pub use snapshot::{Certificate, Snapshot};
