//! What views on a terminal are drawn from: `top`, `status --watch`, `search status --watch`, and the examples.
//!
//! ```text
//!  StatusReport ─► RunPanel ───┬─ Curves       accuracy and loss over time
//!                              └─ agents       verdicts from `overview`, those that need the operator first
//!  SearchReport ─► SearchPanel ── trials       from best to worst
//!  Page         ─► runs, searches, notes, events
//! ```
//! A widget draws what it is given into whatever area it is given, and does nothing else. Text that others chose is
//! written out (`text::shown`) where it enters a widget.
//!
//! | file | what is in it |
//! |---|---|
//! | `panel` | one run |
//! | `search` | one search |
//! | `tables` | agents, runs, searches, measurements, trials |
//! | `sentences` | what needs attention, events |
//! | `curve` | curves and bars |
//! | `grid`, `items` | a table, and a list of sentences, for any width |
//! | `text`, `style` | text in so many columns, and colours |

mod curve;
mod grid;
mod items;
mod panel;
mod search;
mod sentences;
mod style;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
mod text;

pub use curve::{Curve, Curves, Measure};
pub(crate) use items::{Item, Items};
pub use panel::RunPanel;
pub use search::SearchPanel;
pub(crate) use sentences::{Of, events, notes, time_of_day};
pub(crate) use style::{BAD, HEADING, QUIET, WAITS, WELL, standing};
pub use style::{is_colourless, remove_colours};
pub(crate) use tables::{measurements, runs, searches};
pub(crate) use text::{fit, shown, width};
