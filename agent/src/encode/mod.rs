//! How an update is encoded: on the CPU, or where it was trained.
//!
//! ```text
//!  order    what a trainer with an encoder is told, and how the ledger judges what it made
//!  states   the ledger's feedback state by number
//!  chain    the feedback states of a child's encoder
//!  cuda     the top-k encoder on a GPU
//! ```

pub(crate) mod chain;
pub mod cuda;
mod order;
mod states;

pub use order::{EncodeOrder, FeedbackSource};
pub use states::States;
