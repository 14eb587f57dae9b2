//! Models out of a run: to be written to a file, or to go back to.

use std::sync::Arc;

use anabranch_common::codec::Delta;
use anabranch_common::ids::{Digest, ModelVersion};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::merge::Served;

use super::{RecoveryError, replay};
use crate::core::content::{Content, Reservation};
use crate::core::replacement::EarlierVersion;
use crate::core::state::RunState;
use crate::store::Store;

/// A model taken out of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// Its version.
    pub version: ModelVersion,
    /// Its tensors.
    pub manifest: ModelManifest,
    /// Which vector of the version it is.
    pub served: Served,
    /// The flat vector.
    pub model: Vec<f32>,
    /// Digest of the flat vector.
    pub digest: Digest,
}

/// Takes out what users are given of `version`, or of the run's result, or of the newest version when the run goes on: the
/// model, or the average that the merge rule serves.
///
/// # Errors
/// The run cannot be recovered, or the version is no longer available (the error says which are).
pub fn export(store: &dyn Store, version: Option<ModelVersion>) -> Result<Exported, RecoveryError> {
    let newest = replay::steadily(store, || replay::recover(store), |_| true)?;
    let oldest = newest.oldest;
    let version = version.or(newest.state.finished.map(|(_, result)| result)).unwrap_or(newest.state.version);
    let found = if version == newest.state.version {
        (newest.state, newest.model)
    } else {
        // Two models are not held at the same time.
        drop(newest);
        replay::model_at(store, version)?
    };
    let (state, model) = replay::finite(found, version, oldest)?;
    let (served, vector) = model.served();
    let (digest, vector) = (Digest::of_f32(vector), vector.to_vec());
    Ok(Exported { version, manifest: state.manifest, served, digest, model: vector })
}

/// Rebuilds a version that the run is to go back to: the model that agents trained from.
///
/// # Errors
/// As [`export`].
pub fn earlier(store: &dyn Store, version: ModelVersion) -> Result<EarlierVersion, RecoveryError> {
    let (state, model) = replay::model_at(store, version)?;
    let RunState { branch, position, version, examples, .. } = state;
    let model = Arc::new(Content::measure(Delta::Dense(model.into_model()), Reservation::default()));
    Ok(EarlierVersion { branch, position, version, examples, model })
}
