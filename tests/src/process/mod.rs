//! Real daemons: this crate's binary, executed again as one of them.
//!
//! ```text
//!  Cluster ── directories, certificates, tokens, one coordinator, agents by name
//!     └── Process ── a child with its log: signals, exit, what it said since it was started; killed when dropped
//!  Line ── a relay for UDP that can be cut in the middle of something
//!  Role ── which daemon, and how the binary becomes it
//! ```

mod child;
mod cluster;
mod line;
mod role;

pub use child::{Ended, Process, call};
pub use cluster::{Cluster, PATIENCE};
pub use line::{Line, Way};
pub use role::Role;
