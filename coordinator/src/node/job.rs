//! What the node wants done beside the loop. A job is a value; whoever runs it brings what it needs.
//!
//! | job | runs on | needs |
//! |---|---|---|
//! | [`Job::Write`] | the writer | the store |
//! | [`Job::Merge`] | the merger | the model that it moves |
//! | [`Job::Checkpoint`] | the checkpointer | the store |
//! | [`Job::Sign`] | the signer | the run's keys |
//!
//! Of each kind at most one is out.

use anabranch_common::codec::EncodeError;
use anabranch_common::schema::SchemaError;

use super::checkpoint::CheckpointJob;
use super::merge::{MergeJob, Merged};
use super::sign::{SignJob, Signed};
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
    /// Issue certificates: [`SignJob::run`].
    Sign(Vec<SignJob>),
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
    /// The certificates, as far as they could be issued.
    Sign(Vec<Signed>),
    /// The worker of this name has panicked.
    Panicked(&'static str),
}

/// Why a job failed. The process must stop, and nobody may be told anything more.
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
    /// A durable record cannot be merged.
    #[error("a journalled record cannot be merged")]
    Merge(#[from] MergeError),
    /// A model cannot be encoded.
    #[error("the model cannot be encoded")]
    Encode(#[from] EncodeError),
    /// A mistake of this program.
    #[error("the {0} has panicked")]
    Panicked(&'static str),
}
