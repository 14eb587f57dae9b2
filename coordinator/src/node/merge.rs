//! The merger's jobs: the model moves by records, and is copied for agents and for checkpoints.

use std::collections::VecDeque;
use std::sync::Arc;

use anabranch_common::downlink::track::TrackRecord;
use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::{MergeSpec, Served};
use anabranch_common::spec::TrackSpec;
use anabranch_io::faults;

use super::checkpoint::CheckpointJob;
use super::job::JobError;
use super::publish::PublishedModel;
use crate::core::command::CheckpointOrder;
use crate::core::content::Content;
use crate::merger::ModelState;

/// Something to do with the model.
#[derive(Debug)]
pub enum MergeJob {
    /// A model that a durable record brings is the model from here on.
    Replace {
        /// Its tensors.
        manifest: Arc<ModelManifest>,
        /// The rule by which updates are merged into it.
        merge: MergeSpec,
        /// The published track that begins at it, if the run has one.
        track: Option<TrackSpec>,
        /// Every value of it.
        model: Arc<Content>,
        /// Its version.
        version: ModelVersion,
    },
    /// The recovered model is the model from here on.
    Start(Box<ModelState>),
    /// Merge a durable record.
    Merge {
        /// The record.
        record: Arc<Record>,
        /// Its decoded payload, where it has one.
        content: Option<Arc<Content>>,
    },
    /// Copy the newest version for agents.
    Publish {
        /// Also what users are given of it, where that is another vector.
        served: bool,
    },
    /// Copy the model for a checkpoint.
    Checkpoint(Box<CheckpointOrder>),
}

/// Takes everything that waits as one batch, up to the first job that somebody waits for: agents hear of a version, and
/// the checkpointer gets its copy, before later records are merged.
#[must_use]
pub fn batch(waiting: &mut VecDeque<MergeJob>) -> Vec<MergeJob> {
    let answered = |job: &MergeJob| matches!(job, MergeJob::Publish { .. } | MergeJob::Checkpoint(_));
    let end = waiting.iter().position(answered).map_or(waiting.len(), |index| index + 1);
    waiting.drain(..end).collect()
}

/// What a job of the merger led to, where somebody waits for it.
#[derive(Debug)]
pub enum Merged {
    /// The model is no longer finite, from this version on.
    NonFinite(ModelVersion),
    /// A version can be fetched.
    Published {
        /// What agents train from.
        model: Arc<PublishedModel>,
        /// What users are given of the newest version.
        served: ServedVector,
        /// Records of the published track since the last time.
        records: Vec<TrackRecord>,
    },
    /// A copy of the model is ready to be written.
    Checkpoint(Box<CheckpointJob>),
}

/// What users are given of a version, beside the model that agents train from.
#[derive(Debug)]
pub enum ServedVector {
    /// The same model.
    Same,
    /// Another vector, which nobody has asked for.
    Other,
    /// Another vector.
    Ready(Arc<PublishedModel>),
}

/// The model, and the jobs that move it, one after the other.
#[derive(Debug, Default)]
pub struct Merger {
    /// `None` before there is a model, and again once it is no longer finite: nothing is published then.
    state: Option<ModelState>,
}

impl Merger {
    /// Does the jobs of a batch, one after the other.
    ///
    /// # Errors
    /// A durable record cannot be merged, or the model cannot be published: the process must stop.
    pub fn run(&mut self, batch: Vec<MergeJob>) -> Result<Vec<Merged>, JobError> {
        batch.into_iter().filter_map(|job| self.handle(job).transpose()).collect()
    }

    fn handle(&mut self, job: MergeJob) -> Result<Option<Merged>, JobError> {
        match job {
            MergeJob::Replace { manifest, merge, track, model, version } => {
                let values = model.delta().values().to_vec();
                let state = ModelState::new((*manifest).clone(), merge, values, version)?;
                self.state = Some(state.tracked(track.as_ref()));
                return Ok(None);
            }
            MergeJob::Start(state) => {
                self.state = Some(*state);
                return Ok(None);
            }
            _ => {}
        }
        let Some(state) = &mut self.state else { return Ok(None) };
        match job {
            MergeJob::Replace { .. } | MergeJob::Start(_) => Ok(None),
            MergeJob::Merge { record, content } => {
                faults::point("merge-before");
                match (&record.body, content) {
                    (RecordBody::Contribution(contribution), Some(content)) => {
                        state.contribute(contribution, content.delta());
                    }
                    _ => state.apply(&record)?,
                }
                let overflowed = state.overflowed();
                faults::point("merge-after");
                Ok(overflowed.map(|version| self.not_finite(version)))
            }
            MergeJob::Publish { served } => self.publish(served).map(Some),
            // A buffer that overflowed would take the next version with it: the run ends at the last finite one.
            MergeJob::Checkpoint(_) if !state.merge_state_is_finite() => {
                let version = state.version().next();
                Ok(Some(self.not_finite(version)))
            }
            MergeJob::Checkpoint(order) => {
                Ok(Some(Merged::Checkpoint(Box::new(CheckpointJob { order: *order, model: state.copy() }))))
            }
        }
    }

    /// Copies what agents train from, and with `served` what users are given where that is another vector.
    fn publish(&mut self, served: bool) -> Result<Merged, JobError> {
        let Some(state) = &mut self.state else { return Ok(Merged::NonFinite(ModelVersion::default())) };
        let records = state.take_records();
        let (newest, manifest) = (state.version(), state.manifest());
        let served = match state.served() {
            (Served::Model, _) if state.track().is_none() => ServedVector::Same,
            _ if !served => ServedVector::Other,
            (_, vector) if vector.iter().all(|value| value.is_finite()) => {
                ServedVector::Ready(Arc::new(PublishedModel::of(newest, manifest, vector)?))
            }
            _ => return Ok(self.not_finite(newest)),
        };
        let (version, base) = state.base();
        let model = Arc::new(PublishedModel::of(version, manifest, base)?);
        Ok(Merged::Published { model, served, records })
    }

    fn not_finite(&mut self, version: ModelVersion) -> Merged {
        self.state = None;
        Merged::NonFinite(version)
    }

    /// The model, if there is one that may be shown.
    #[must_use]
    pub fn model(&self) -> Option<&ModelState> {
        self.state.as_ref()
    }
}
