//! What an operator is told of a process, in whatever view: verdicts on agents, what needs attention, the log of events.
//!
//! ```text
//!  Snapshot ─► History::take ─► Page { snapshot, log, rates } ─┬─► attention::notes
//!                                                              └─► agents::verdict, for each agent of a run
//! ```
//! The page of a process (`web::page`) gets its snapshots from the loop, `top` makes them from what an operator is answered.
//!
//! | file | what is in it |
//! |---|---|
//! | `history` | what only successive snapshots tell: the log of events, and rates |
//! | `changes` | the events between two snapshots |
//! | `attention` | what needs the operator, with its reason |
//! | `agents` | what each agent does, and why |
//! | `runs` | the line of each run |
//! | `words` | measurements, shares and health as people read them |

pub(crate) mod agents;
pub(crate) mod attention;
pub(crate) mod changes;
pub(crate) mod history;
pub(crate) mod runs;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod words;
