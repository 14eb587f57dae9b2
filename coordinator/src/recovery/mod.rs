//! Checkpoints, and the only way to start: the newest checkpoint that verifies, then replay.
//!
//! ```text
//!  checkpoint::write    vectors, pages, head ─► sync ─► manifest ─► sync         a manifest never names what is not durable
//!  checkpoint::prune    old manifests ─► sync ─► records, blobs                  and is gone before what it names
//!  replay::recover      newest checkpoint that verifies (else an older one, else record 0) ─► records after it
//!  verify::verify       the same records through a second, independent implementation
//! ```
//!
//! Recovery reads and never writes, so that a kill in it changes nothing, however often it happens.

pub mod checkpoint;
mod cursor;
mod error;
mod export;
mod pins;
pub mod replay;
pub(crate) mod saved;
mod vectors;
pub mod verify;

pub use checkpoint::Checkpoint;
pub(crate) use error::OTHER_VERSION_HELP;
pub use error::RecoveryError;
pub use export::{Exported, earlier, export};
pub use pins::{BranchPoint, put_branch, put_model, release};
pub use replay::{Recovered, model_at, recover};
pub use verify::verify;
