//! Models out of a run and into one.

use anabranch_common::codec::euclidean_norm;
use anabranch_common::ids::{BranchId, Digest, ModelVersion, Position, RunId};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::manifest::ModelManifest;
use anabranch_common::spec::RunSpec;

use super::{ImportError, RecoveryError, pins, replay};
use crate::store::Store;

/// A model taken out of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// Its version.
    pub version: ModelVersion,
    /// Its tensors.
    pub manifest: ModelManifest,
    /// The flat vector.
    pub model: Vec<f32>,
    /// Digest of the flat vector.
    pub digest: Digest,
}

/// Takes a model out: `version`, or the run's result, or the newest version when the run goes on.
///
/// # Errors
/// The run cannot be recovered, or the version is no longer available (the error says which are).
pub fn export(store: &dyn Store, version: Option<ModelVersion>) -> Result<Exported, RecoveryError> {
    let newest = replay::steadily(store, || replay::recover(store), |_| true)?;
    let oldest = newest.oldest;
    let version = version.or(newest.state.finished.map(|(_, result)| result)).unwrap_or(newest.state.version);
    let (state, model) =
        if version == newest.state.version { (newest.state, newest.model) } else { replay::model_at(store, version)? };
    if let Some(overflowed) = model.overflowed() {
        let newest = ModelVersion(overflowed.0.saturating_sub(1));
        return Err(RecoveryError::Version { version, oldest, newest });
    }
    let model = model.model().to_vec();
    Ok(Exported { version, manifest: state.manifest, digest: Digest::of_f32(&model), model })
}

/// The run that an import starts when the store holds none.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRun {
    /// Its identifier.
    pub run: RunId,
    /// Its first branch.
    pub branch: BranchId,
    /// Its configuration.
    pub spec: RunSpec,
}

/// Brings a model in, durably: as version 0 of `new_run` when the store holds no run, else as the run's next version.
/// No coordinator may be serving the store. Returns the record's position and the model's version.
///
/// # Errors
/// The model does not fit or is not finite, there is nothing to import into, the run has ended, or the storage fails.
pub fn import(
    store: &dyn Store,
    manifest: &ModelManifest,
    model: &[f32],
    new_run: Option<NewRun>,
    at_ms: u64,
) -> Result<(Position, ModelVersion), ImportError> {
    if model.len() != manifest.params() {
        return Err(ImportError::WrongLength { expected: manifest.params(), found: model.len() });
    }
    let norm = euclidean_norm(model);
    let (position, version, body) = if store.journal().last_position()?.is_some() {
        let newest = replay::recover(store)?;
        if newest.state.manifest != *manifest {
            return Err(ImportError::OtherManifest);
        }
        if let Some((_, result)) = newest.state.finished {
            return Err(ImportError::Finished(result));
        }
        let version = newest.state.version.next();
        let model = pins::put_model(store, manifest, model)?;
        (newest.position.next(), version, RecordBody::Imported { model, version, norm })
    } else {
        let NewRun { run, branch, spec } = new_run.ok_or(ImportError::NoRun)?;
        let model = pins::put_model(store, manifest, model)?;
        let body = RecordBody::Genesis { run, branch, spec: Box::new(spec), manifest: manifest.clone(), model, norm };
        (Position(0), ModelVersion(0), body)
    };
    let record = Record::new(position, at_ms, body, [].into());
    store.journal().append(&[(position, record.to_bytes().map_err(RecoveryError::from)?)])?;
    store.journal().sync()?;
    Ok((position, version))
}
