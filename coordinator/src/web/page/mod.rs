//! The operator's page: what the process does, in a browser (docs/page.md, docs/adr/0039-page.md).
//!
//! ```text
//!  Snapshot ─ watch ─► follow ─► Page { snapshot, log, rates } ─ watch ─┬─► /api/state: one text
//!                                                                       └─► /api/events: a text for each page, to each client
//!  PageGrants ─ watch ─► access: whose token is it? ─┬─► operate ─► the loop, as a verb does
//!                                                    └─► models: read beside the loop
//! ```
//! A text is written once for all clients that look at the same run. The files of the page are part of the binary.
//!
//! | file | what is in it |
//! |---|---|
//! | `guard` | what is refused before a route sees it; headers of every answer |
//! | `access`, `wrong` | tokens: who may see and do what, and how many wrong ones are answered |
//! | `routes` | what is answered |
//! | `operate`, `whole` | pause, resume and stop |
//! | `models` | checkpoints, and models as files |
//! | `live` | server-sent events |
//! | `pages` | a page for each snapshot: `overview` has what it tells |
//! | `state` | a page as JSON: the process, its runs and searches |
//! | `run`, `pods`, `search` | one run, its pods, and one search in detail |
//! | `assets/` | HTML, CSS and scripts |

mod access;
mod guard;
mod live;
mod models;
mod operate;
mod pages;
mod pods;
mod routes;
mod run;
mod search;
mod state;
#[cfg(test)]
mod tests;
mod whole;
mod wrong;

pub(crate) use access::Viewing;
pub(crate) use routes::{Served, serve};
