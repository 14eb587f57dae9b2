//! What the node wants done beside the loop. A job is a value; whoever runs it brings what it needs.
//!
//! | job | runs on | needs |
//! |---|---|---|
//! | [`Job::Write`] | the writer | the store |
//! | [`Job::Merge`] | the merger | the model that it moves |
//! | [`Job::Checkpoint`] | the checkpointer | the store |
//! | [`Job::Decode`] | any thread; a short one at once, on the loop | nothing |
//! | [`Job::Spool`] | any thread | the folder of halves |
//! | [`Job::Pack`] | any thread; a short one at once, on the loop | nothing |
//!
//! Of each of the first three at most one is out; of decoders so many as the budgets say; of packers at most
//! `limits::FORMS`, in `limits::PACKING_BYTES` of memory.

use std::sync::Arc;

use anabranch_common::codec::EncodeError;
use anabranch_common::ids::Position;
use anabranch_common::schema::SchemaError;
use anabranch_common::transfer::{Opened, Sink, UploadId, UploadName};

use super::checkpoint::CheckpointJob;
use super::decode::DecodeJob;
use super::merge::{MergeJob, Merged};
use super::pack::{FormKey, PackJob, PackedModel};
use super::write::WriteJob;
use crate::core::event::Event;
use crate::merger::MergeError;
use crate::recovery::RecoveryError;
use crate::store::StorageError;

/// Work to be done beside the loop; answered by [`Done`].
#[derive(Debug)]
pub enum Job {
    /// Make a group durable: [`write`](super::write::write).
    Write(Vec<WriteJob>),
    /// Move the model: [`Merger::run`](super::merge::Merger::run).
    Merge(Vec<MergeJob>),
    /// Write a checkpoint: [`CheckpointJob::run`].
    Checkpoint(Box<CheckpointJob>),
    /// Decode an upload: [`DecodeJob::run`].
    Decode(Box<DecodeJob>),
    /// Read or delete halves of uploads.
    Spool(SpoolJob),
    /// Bring a published model into a form: [`PackJob::run`].
    Pack(PackJob),
}

/// Something to do with the halves of uploads on disk.
#[derive(Debug)]
pub enum SpoolJob {
    /// Put every chunk that is there into a sink. Answered by [`Done::Open`].
    Open {
        /// The sink.
        sink: Arc<Sink>,
        /// Whether its chunks shall be kept on disk. Otherwise what is there goes.
        keep: bool,
    },
    /// Delete halves. Not answered.
    Delete(Vec<UploadName>),
}

impl SpoolJob {
    /// What is answered if it panics.
    #[must_use]
    pub fn failure(&self) -> Option<Done> {
        match self {
            Self::Open { sink, .. } => Some(Done::Open(Opened { upload: sink.upload(), on_disk: false })),
            Self::Delete(_) => None,
        }
    }
}

/// A job has ended.
#[derive(Debug)]
pub enum Done {
    /// What is durable now.
    Write(Result<Vec<Event>, JobError>),
    /// What became of the model.
    Merge(Result<Vec<Merged>, JobError>),
    /// The checkpoint is durable.
    Checkpoint(Result<Event, JobError>),
    /// An upload is decoded, or cannot be.
    Decode {
        /// Which.
        upload: UploadId,
        /// What it is to the core.
        event: Event,
    },
    /// What was on disk of an upload is in its sink.
    Open(Opened),
    /// The shortest form of a published model is made.
    Packed {
        /// Which.
        key: FormKey,
        /// The form. None if no way from what the agent holds is shorter than the whole model.
        model: Option<Arc<PackedModel>>,
    },
    /// The worker of this name has panicked.
    Panicked(&'static str),
    /// The worker of this name has not taken its job.
    NotTaken(&'static str),
}

/// Why a job failed. Its run must stop, and nobody may be told anything more of it.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A model or a checkpoint could not be written.
    #[error("a model or a checkpoint cannot be stored")]
    Recovery(#[from] RecoveryError),
    /// A record does not fit.
    #[error("a record cannot be stored")]
    Record(#[from] SchemaError),
    /// A record names another model than the one that comes with it.
    #[error("the model of record {0} is not the one that the record names")]
    OtherModel(Position),
    /// A durable record cannot be merged.
    #[error("a journalled record cannot be merged")]
    Merge(#[from] MergeError),
    /// A model cannot be published.
    #[error("the model cannot be published")]
    Encode(#[from] EncodeError),
    /// A mistake of this program: a worker has panicked.
    #[error("the {0} has panicked")]
    Panicked(&'static str),
    /// A mistake of this program: a worker is not there for its job.
    #[error("the {0} has not taken its job")]
    NotTaken(&'static str),
}
