//! A search over configurations (docs/search.md, docs/adr/0037-search.md), without I/O.
//!
//! ```text
//!  SEARCH.toml ──► spec, space ─┐                      ┌──► Append ──► journal ──► Written ─┐
//!  run.toml ─────► base ────────┴──► check ──► Search ─┤                                    │
//!                                                ▲     └──► Make, Copy, Continue, Hold, ◄───┘
//!                                                │          Measure, End, Finished
//!                     Reached, Measured,         │              │
//!                     Diverged, Failed, Gone ────┴── host ◄─────┘   a trial is a run of the process
//! ```
//! Every decision is a record. [`SearchState`] is the fold over the records; `rungs` and `population` decide from it, and
//! `verify` decides a second time, by a scan over the records. Draws follow from the seed, the trial and the key alone.

pub mod base;
pub mod check;
pub mod draw;
pub mod journal;
mod machine;
mod population;
pub mod price;
pub mod record;
pub mod report;
mod rungs;
mod source;
pub mod space;
pub mod spec;
mod state;
pub mod verify;

pub use machine::{EndReason, Input, Output, Search, run_name};
pub use source::SpecError;
pub use state::{Copied, FoldError, Measurement, Outcome, Phase, Plan, SearchState, Trial};

#[cfg(test)]
mod tests;
