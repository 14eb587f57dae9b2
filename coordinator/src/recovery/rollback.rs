//! Going back to an earlier version: a new branch of the history, beside the one that it leaves.

use anabranch_common::codec::euclidean_norm;
use anabranch_common::ids::{BranchId, ModelVersion, Position};
use anabranch_common::journal::{Record, RecordBody};

use super::{RecoveryError, checkpoint, pins, replay};
use crate::store::Store;

/// What a rollback did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolledBack {
    /// The branch that counts now.
    pub branch: BranchId,
    /// Position of the record that starts it.
    pub position: Position,
    /// The last position of the branch it leaves that still counts.
    pub from: Position,
    /// The version it starts with.
    pub version: ModelVersion,
    /// The newest version of the branch that was current before.
    pub before: ModelVersion,
}

/// Starts `branch` from `version` of the current history, durably: the run goes on from there, also when it had ended.
/// No record is removed; leases and buffered updates of the old branch end with it. No coordinator may be serving the
/// store, and `branch` must be fresh.
///
/// The checkpoint at the end is for the next start alone. When it cannot be written, the rollback has happened
/// nevertheless, and the error says what keeps the store from being written to.
///
/// # Errors
/// There is no run, the version cannot be rebuilt (the error says which can), or the storage fails.
pub fn rollback(
    store: &dyn Store,
    version: ModelVersion,
    branch: BranchId,
    at_ms: u64,
) -> Result<RolledBack, RecoveryError> {
    let last = store.journal().last_position()?.ok_or(RecoveryError::Empty)?;
    let before = replay::recover(store)?.state.version;
    let (state, model) = replay::model_at(store, version)?;
    let point = pins::put_branch(store, branch, &state, model.model())?;
    let position = last.next();
    let norm = euclidean_norm(model.model());
    let body = RecordBody::Branched { branch, from: point.from, version, norm, examples: state.examples };
    let record = Record::new(position, at_ms, body, [].into());
    store.journal().append(&[(position, record.to_bytes()?)])?;
    store.journal().sync()?;
    // Not from what is at hand: what the next start will find is what must be right.
    let after = replay::recover(store)?;
    checkpoint::write(store, &after.state, after.chain, &after.model, at_ms)?;
    Ok(RolledBack { branch, position, from: point.from, version, before })
}
