//! What the verbs of a stopped coordinator do to a store.

use anabranch_common::ids::{BranchId, ModelVersion, RunId};
use anabranch_common::manifest::ModelManifest;
use anabranch_coordinator::core::Options;
use anabranch_coordinator::core::replacement::Replaced;
use anabranch_coordinator::recovery::{self, RecoveryError};
use anabranch_coordinator::registry::Registry;
use anabranch_coordinator::rest::{Rest, RestError, RolledBack};
use anabranch_coordinator::store::Store;

use crate::history::{fedasync, spec};

pub(crate) fn at_rest(store: &dyn Store, at_ms: u64) -> Result<Rest<'_>, RestError> {
    let options = Options {
        run: RunId([1; 16]),
        first_branch: BranchId([2; 16]),
        starts: 0,
        lease_ttl_ms: 1,
        checkpoint_every_versions: 1,
        checkpoint_every_ms: 1,
    };
    let recovered = match recovery::recover(store) {
        Err(RecoveryError::Empty) => None,
        recovered => Some(recovered?),
    };
    Rest::start(store, options, spec(fedasync()), Registry::default(), recovered, at_ms)
}

/// `checkpoint rollback`.
pub(crate) fn rollback(
    store: &dyn Store,
    version: ModelVersion,
    branch: BranchId,
    at_ms: u64,
) -> Result<RolledBack, RestError> {
    at_rest(store, at_ms)?.roll_back(version, branch)
}

/// `checkpoint import`.
pub(crate) fn import(
    store: &dyn Store,
    manifest: &ModelManifest,
    model: &[f32],
    at_ms: u64,
) -> Result<Replaced, RestError> {
    at_rest(store, at_ms)?.import(manifest.clone(), model.to_vec())
}
