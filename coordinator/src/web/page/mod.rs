//! The operator's page: what the process does, in a browser (docs/page.md, docs/adr/0039-page.md).
//!
//! ```text
//!  Snapshot ─ watch ─► follow ─► Page { snapshot, log, rates } ─ watch ─┬─► /api/state: one text
//!                                                                       └─► /api/events: a text for each page, to each client
//! ```
//! A text is written once for all clients that look at the same run. The files of the page are part of the binary.
//!
//! | file | what is in it |
//! |---|---|
//! | `address` | where the page may be served, and under which names |
//! | `guard` | what is refused before a route sees it; headers of every answer |
//! | `routes` | what is answered |
//! | `live` | server-sent events |
//! | `pages` | a page for each snapshot: `overview` has what it tells |
//! | `state` | a page as JSON: the process, its runs and searches |
//! | `run`, `search` | one run and one search in detail |
//! | `assets/` | HTML, CSS and scripts |

mod address;
mod guard;
mod live;
mod pages;
mod routes;
mod run;
mod search;
mod state;
#[cfg(test)]
mod tests;

pub use address::{Names, page_address};
pub(crate) use routes::serve;
