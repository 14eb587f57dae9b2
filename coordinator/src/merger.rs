//! The model and how records move it. The same code merges live and replays.

use std::collections::VecDeque;
use std::sync::Arc;

use anabranch_common::codec::{self, DecodeError, Delta};
use anabranch_common::downlink::track::{Track, TrackRecord};
use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{Close, Contribution, Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::{MergeRule, MergeSpec, RestoreError, SavedRule, Served};
use anabranch_common::spec::{RunSpec, TrackSpec};

/// Why a record cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// Its payload does not decode, though it did when it was admitted.
    #[error("the journalled update does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// The saved merge state does not fit.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The vector has another length than the manifest says.
    #[error("model of {found} values for a manifest of {expected}")]
    WrongLength {
        /// Parameters in the manifest.
        expected: usize,
        /// Length of the vector.
        found: usize,
    },
    /// The record replaces the model as a whole: whoever replays fetches the blob that it names.
    #[error("the record replaces the model")]
    Replaced,
}

/// The published track, with the records that nobody has taken yet.
#[derive(Debug, Clone)]
struct Published {
    track: Track,
    /// At most `limits::TRACK_RECORDS` of `limits::TRACK_RECORDS_BYTES` in all; the oldest go first.
    made: VecDeque<TrackRecord>,
    made_bytes: usize,
}

impl Published {
    fn new(track: Track) -> Self {
        Self { track, made: VecDeque::new(), made_bytes: 0 }
    }

    fn advance(&mut self, manifest: &ModelManifest, model: &[f32], version: ModelVersion) {
        let Some(record) = self.track.advance(manifest, model, version) else { return };
        self.made_bytes += record.payload.len();
        self.made.push_back(record);
        while self.made.len() > limits::TRACK_RECORDS || self.made_bytes > limits::TRACK_RECORDS_BYTES {
            let Some(oldest) = self.made.pop_front() else { break };
            self.made_bytes -= oldest.payload.len();
        }
    }
}

/// The model at a version, with the merge rule's state: what waits for the next one.
#[derive(Debug)]
pub struct ModelState {
    manifest: ModelManifest,
    spec: MergeSpec,
    model: Vec<f32>,
    rule: Box<dyn MergeRule>,
    version: ModelVersion,
    overflowed: Option<ModelVersion>,
    /// What agents train from in place of the model.
    published: Option<Published>,
}

impl ModelState {
    /// A model with an empty merge state.
    ///
    /// # Errors
    /// The vector does not fit the manifest.
    pub fn new(
        manifest: ModelManifest,
        spec: MergeSpec,
        model: Vec<f32>,
        version: ModelVersion,
    ) -> Result<Self, MergeError> {
        if model.len() != manifest.params() {
            return Err(MergeError::WrongLength { expected: manifest.params(), found: model.len() });
        }
        let rule = spec.rule(manifest.params());
        Ok(Self { manifest, spec, model, rule, version, overflowed: None, published: None })
    }

    /// The same with a published track that begins here, if the run has one.
    #[must_use]
    pub fn tracked(mut self, spec: Option<&TrackSpec>) -> Self {
        self.published = spec.map(|spec| Published::new(Track::new(spec.codec, self.model.clone(), self.version)));
        self
    }

    /// The same with a published track that has come to `base` at `version`.
    ///
    /// # Errors
    /// The track does not fit the manifest.
    pub fn with_track(mut self, spec: &TrackSpec, base: Vec<f32>, version: ModelVersion) -> Result<Self, MergeError> {
        if base.len() != self.manifest.params() {
            return Err(MergeError::WrongLength { expected: self.manifest.params(), found: base.len() });
        }
        self.published = Some(Published::new(Track::new(spec.codec, base, version)));
        Ok(self)
    }

    /// The same with a saved merge state.
    ///
    /// # Errors
    /// Model or state do not fit.
    pub fn restore(
        manifest: ModelManifest,
        spec: MergeSpec,
        model: Vec<f32>,
        merge_state: SavedRule<'static>,
        version: ModelVersion,
    ) -> Result<Self, MergeError> {
        let mut state = Self::new(manifest, spec, model, version)?;
        state.rule.restore(merge_state)?;
        Ok(state)
    }

    /// Applies a record, decoding its payload. Records that do not touch the model change nothing.
    ///
    /// # Errors
    /// The payload does not decode, or the record replaces the model ([`MergeError::Replaced`]: `Imported` and
    /// `Branched`, after which the caller builds a new state).
    pub fn apply(&mut self, record: &Record) -> Result<(), MergeError> {
        match &record.body {
            RecordBody::Contribution(contribution) => {
                let delta = codec::decode(contribution.meta.codec, &self.manifest, &record.payload)?;
                self.contribute(contribution, &Arc::new(delta));
                Ok(())
            }
            RecordBody::Closed(close) => {
                self.close(close);
                Ok(())
            }
            RecordBody::ConfigChanged { spec } => {
                self.change_spec(&spec.merge);
                self.change_track(spec);
                Ok(())
            }
            RecordBody::Imported { .. } | RecordBody::Branched { .. } => Err(MergeError::Replaced),
            _ => Ok(()),
        }
    }

    /// Takes in a contribution whose payload is decoded already. The model stays at its version.
    pub fn contribute(&mut self, contribution: &Contribution, delta: &Arc<Delta>) {
        if self.overflowed.is_none() {
            self.rule.contribute(&self.model, delta, &contribution.arrival());
        }
    }

    /// Makes the next version. Once a version has overflowed the model stays as it is: that version and all after it are
    /// never published, and see [`overflowed`](Self::overflowed).
    fn close(&mut self, close: &Close) {
        self.version = close.version;
        if self.overflowed.is_some() {
            return;
        }
        self.rule.close(&mut self.model);
        if !codec::is_finite(&self.model) {
            self.overflowed = Some(self.version);
            return;
        }
        if let Some(published) = self.published.as_mut().filter(|_| close.is_base) {
            published.advance(&self.manifest, &self.model, self.version);
        }
    }

    /// The first version that is not finite, if finite updates have added up to one.
    #[must_use]
    pub fn overflowed(&self) -> Option<ModelVersion> {
        self.overflowed
    }

    /// The merge rule changes: a state of another shape starts empty.
    pub fn change_spec(&mut self, spec: &MergeSpec) {
        if spec.keeps_waiting(&self.spec) {
            self.rule.configure(spec);
        } else {
            self.rule = spec.rule(self.manifest.params());
        }
        self.spec = spec.clone();
    }

    /// A track that is switched on begins at the model, and so does one from whose base no update would be welcome. Another
    /// one goes on.
    fn change_track(&mut self, spec: &RunSpec) {
        match (&mut self.published, &spec.downlink.track) {
            (Some(published), Some(track)) if spec.reaches(published.track.version(), self.version) => {
                published.track.configure(track.codec);
            }
            (_, Some(track)) => {
                self.published = Some(Published::new(Track::new(track.codec, self.model.clone(), self.version)));
            }
            (_, None) => self.published = None,
        }
    }

    /// Returns what agents train from, with its version: the published track, or the model.
    #[must_use]
    pub fn base(&self) -> (ModelVersion, &[f32]) {
        match &self.published {
            Some(published) => (published.track.version(), published.track.base()),
            None => (self.version, &self.model),
        }
    }

    /// Returns the published track at its newest version, if the run has one.
    #[must_use]
    pub fn track(&self) -> Option<&Track> {
        self.published.as_ref().map(|published| &published.track)
    }

    /// Takes the records of the track that were made since this was last called, the oldest first.
    pub fn take_records(&mut self) -> Vec<TrackRecord> {
        let Some(published) = &mut self.published else { return Vec::new() };
        published.made_bytes = 0;
        std::mem::take(&mut published.made).into()
    }

    /// A copy to be written elsewhere while this one goes on.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            manifest: self.manifest.clone(),
            spec: self.spec.clone(),
            model: self.model.clone(),
            rule: self.rule.boxed(),
            version: self.version,
            overflowed: self.overflowed,
            published: self.published.as_ref().map(|published| Published::new(published.track.clone())),
        }
    }

    /// Whether everything beside the model is finite: a buffer may overflow before the model does.
    #[must_use]
    pub fn merge_state_is_finite(&self) -> bool {
        self.rule.is_finite()
    }

    /// The flat vector.
    #[must_use]
    pub fn model(&self) -> &[f32] {
        &self.model
    }

    /// Returns what users of the run are given: for some rules an average, in place of the model that agents train from.
    #[must_use]
    pub fn served(&self) -> (Served, &[f32]) {
        self.rule.served(&self.model)
    }

    /// Returns the flat vector alone.
    #[must_use]
    pub fn into_model(self) -> Vec<f32> {
        self.model
    }

    /// Returns the merge rule's state.
    #[must_use]
    pub fn merge_state(&self) -> SavedRule<'_> {
        self.rule.save()
    }

    /// Its tensors.
    #[must_use]
    pub fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> ModelVersion {
        self.version
    }
}
