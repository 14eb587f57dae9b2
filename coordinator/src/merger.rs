//! The model and how records move it. The same code merges live and replays.

use anabranch_common::codec::{self, DecodeError, Delta};
use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{AcceptedUpdate, Record, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::{MergeSpec, MergeStrategy, RestoreError};

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

/// The model at a version, with the merge strategy's state.
#[derive(Debug)]
pub struct ModelState {
    manifest: ModelManifest,
    spec: MergeSpec,
    model: Vec<f32>,
    strategy: Box<dyn MergeStrategy>,
    version: ModelVersion,
    overflowed: Option<ModelVersion>,
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
        let strategy = spec.strategy(manifest.params());
        Ok(Self { manifest, spec, model, strategy, version, overflowed: None })
    }

    /// The same with a saved merge state.
    ///
    /// # Errors
    /// Model or state do not fit.
    pub fn restore(
        manifest: ModelManifest,
        spec: MergeSpec,
        model: Vec<f32>,
        merge_state: Vec<Vec<f32>>,
        version: ModelVersion,
    ) -> Result<Self, MergeError> {
        let mut state = Self::new(manifest, spec, model, version)?;
        state.strategy.restore(merge_state)?;
        Ok(state)
    }

    /// Applies a record, decoding its payload. Records that do not touch the model change nothing.
    ///
    /// # Errors
    /// The payload does not decode, or the record replaces the model ([`MergeError::Replaced`]: `Imported` and
    /// `Branched`, after which the caller builds a new state).
    pub fn apply(&mut self, record: &Record) -> Result<(), MergeError> {
        match &record.body {
            RecordBody::Update(update) => {
                let delta = codec::decode(update.meta.codec, &self.manifest, &record.payload)?;
                self.apply_update(update, &delta);
                Ok(())
            }
            RecordBody::ConfigChanged { spec } => {
                self.change_spec(&spec.merge);
                Ok(())
            }
            RecordBody::Imported { .. } | RecordBody::Branched { .. } => Err(MergeError::Replaced),
            _ => Ok(()),
        }
    }

    /// Applies an update whose payload is decoded already. Once a version has overflowed the model stays as it is: that
    /// version and all after it are never published, and see [`overflowed`](Self::overflowed).
    pub fn apply_update(&mut self, update: &AcceptedUpdate, delta: &Delta) {
        self.version = update.version;
        if self.overflowed.is_some() {
            return;
        }
        self.strategy.apply(&mut self.model, delta, update.weight, update.closes);
        if update.closes && !self.model.iter().fold(true, |finite, value| finite & value.is_finite()) {
            self.overflowed = Some(self.version);
        }
    }

    /// The first version that is not finite, if finite updates have added up to one.
    #[must_use]
    pub fn overflowed(&self) -> Option<ModelVersion> {
        self.overflowed
    }

    /// The merge rule changes: a state of another shape starts empty.
    pub fn change_spec(&mut self, spec: &MergeSpec) {
        let keeps = std::mem::discriminant(spec) == std::mem::discriminant(&self.spec)
            && spec.updates_per_version() == self.spec.updates_per_version();
        if !keeps {
            self.strategy = spec.strategy(self.manifest.params());
        }
        self.spec = spec.clone();
    }

    /// A copy to be written elsewhere while this one goes on.
    ///
    /// # Errors
    /// None but what [`restore`](Self::restore) has: the parts of a state always fit each other.
    pub fn copy(&self) -> Result<Self, MergeError> {
        let merge_state = self.strategy.save().into_iter().map(<[f32]>::to_vec).collect();
        Self::restore(self.manifest.clone(), self.spec.clone(), self.model.clone(), merge_state, self.version)
    }

    /// Whether everything beside the model is finite: a buffer may overflow before the model does.
    #[must_use]
    pub fn merge_state_is_finite(&self) -> bool {
        self.strategy.save().into_iter().all(|values| values.iter().all(|value| value.is_finite()))
    }

    /// The flat vector.
    #[must_use]
    pub fn model(&self) -> &[f32] {
        &self.model
    }

    /// The merge strategy's vectors.
    #[must_use]
    pub fn merge_state(&self) -> Vec<&[f32]> {
        self.strategy.save()
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
