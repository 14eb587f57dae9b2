//! Why a run cannot be recovered, and what to do about it.

use anabranch_common::codec::EncodeError;
use anabranch_common::ids::{Digest, ModelVersion, Position};
use anabranch_common::journal::RecordError;
use anabranch_common::schema::{self, SchemaError};

use crate::core::state::FoldError;
use crate::merger::MergeError;
use crate::store::StorageError;

/// What to do about a directory of another version.
pub(crate) const OTHER_VERSION_HELP: &str = "another version of Anabranch wrote this directory, and nothing was changed; \
     export the model with that version (`checkpoint export`), then import the file into a new directory (`init`, \
     `checkpoint import`)";

/// Why a run cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The storage fails, or an entry is damaged.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// There is no record 0.
    #[error("the store holds no run")]
    Empty,
    /// A record cannot be read.
    #[error("record {position} cannot be read: {source}")]
    Record {
        /// Its position.
        position: Position,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Another record lies at this position.
    #[error("record {position} says that it is record {said}")]
    Misplaced {
        /// Where it lies.
        position: Position,
        /// What it says.
        said: Position,
    },
    /// A record is not there.
    #[error("record {0} is missing")]
    MissingRecord(Position),
    /// A record cannot follow the ones before it.
    #[error("the journal does not replay: {0}")]
    Fold(#[from] FoldError),
    /// A record cannot be merged.
    #[error("record {position} cannot be merged: {source}")]
    Merge {
        /// Its position.
        position: Position,
        /// Why.
        source: MergeError,
    },
    /// A model, merge vector or state is not there, or is not what its digest says.
    #[error("{what} {digest} {problem}", digest = digest.short())]
    Blob {
        /// What it is.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What is wrong.
        problem: String,
    },
    /// A checkpoint contradicts the journal.
    #[error("replay arrives at position {position} with another {what} than the checkpoint that was taken there")]
    Contradiction {
        /// Position of the checkpoint.
        position: Position,
        /// What differs.
        what: &'static str,
    },
    /// Replay makes another model than the one that agents hold under this number.
    #[error("replay makes another model of version {0} than was published")]
    Published(ModelVersion),
    /// A record says another norm of its model than the model has.
    #[error("record {0} says another norm of its model than the model has")]
    Norm(Position),
    /// A checkpoint lies beyond the end of the journal: acknowledged records were lost.
    #[error("the journal ends at record {last}, before the checkpoint at position {checkpoint}")]
    Short {
        /// The newest record.
        last: Position,
        /// The newest checkpoint.
        checkpoint: Position,
    },
    /// No checkpoint verifies and the journal's beginning was pruned.
    #[error("no checkpoint is usable ({problems}), and the journal begins at record {first}")]
    NoCheckpoint {
        /// The oldest record since which there are no gaps.
        first: Position,
        /// What is wrong with each checkpoint.
        problems: String,
    },
    /// A version that cannot be rebuilt.
    #[error("version {version} is not available; versions {oldest} to {newest} are")]
    Version {
        /// The one asked for.
        version: ModelVersion,
        /// The oldest that can be rebuilt.
        oldest: ModelVersion,
        /// The newest.
        newest: ModelVersion,
    },
    /// Another version of the software wrote a part of a checkpoint.
    #[error("{what} of schema version {found}; this program reads {}", schema::readable())]
    Schema {
        /// Which part.
        what: &'static str,
        /// The version in its header.
        found: u16,
    },
    /// A manifest of a checkpoint cannot be read.
    #[error("the checkpoint's manifest {0}")]
    Manifest(String),
    /// Something cannot be written in the stored format.
    #[error("cannot be stored: {0}")]
    Message(#[from] SchemaError),
    /// A vector cannot be written.
    #[error("the model or its merge state cannot be stored: {0}")]
    Encode(#[from] EncodeError),
}

impl RecoveryError {
    /// What the operator can do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::Storage(error) => return error.help(),
            Self::Empty => "start the coordinator once and let an agent join, or import a model",
            Self::Schema { .. } | Self::Record { source: RecordError::Schema { .. }, .. } => OTHER_VERSION_HELP,
            Self::Record { .. }
            | Self::Misplaced { .. }
            | Self::MissingRecord(_)
            | Self::Fold(_)
            | Self::Merge { .. }
            | Self::Contradiction { .. }
            | Self::Norm(_)
            | Self::Published(_)
            | Self::Short { .. } => {
                "nothing was changed; `checkpoint verify` says up to where the journal holds; restore the directory from \
                 a backup, and check the disk"
            }
            Self::Blob { .. } | Self::NoCheckpoint { .. } | Self::Manifest(_) => {
                "nothing was changed; restore the directory from a backup, and check the disk"
            }
            Self::Version { .. } => {
                "choose one of these, or set `retention = \"all\"` before the next run to keep every version"
            }
            Self::Message(_) | Self::Encode(_) => return None,
        };
        Some(text.to_owned())
    }

    /// Whether this error may be the disk's fault in one place, so that an older checkpoint may do.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Storage(error) => matches!(error, StorageError::Corrupt { .. }),
            Self::Schema { .. } => false,
            _ => true,
        }
    }
}
