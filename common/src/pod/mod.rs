//! Pods: agents that compute one local round together. Pure decisions, which coordinator and members make alike.
//!
//! ```text
//!  layer table ─┐
//!  members ─────┴─► cut: which layers each member computes
//!                       │
//!  schedule ────────────┴─► order: what each stage computes next, and with which weights
//! ```

pub mod cut;
pub mod memory;
pub mod order;
mod round;
mod schedule;
mod sections;

pub use round::{PodMark, PodOffer, PodPart, PodPeer, PodProblem, PodRound};
pub use schedule::{Schedule, Weights};
pub use sections::PodSections;
