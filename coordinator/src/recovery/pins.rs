//! Which blobs the journal needs besides those of checkpoints: models that a record names.
//!
//! | item | value | meaning |
//! |---|---|---|
//! | `model/pin/DIGEST` | empty | stored for a record that may not be written yet |
//! | `model/record/POSITION` | digest | named by the record at that position |
//! | `model/scanned` | position u64 le | records below this have been looked at |
//! | `model/branch/BRANCH` | [`BranchPoint`] | from where and from which model a branch starts |

use std::collections::BTreeSet;

use anabranch_common::ids::{BranchId, Digest, ModelVersion, Position};
use anabranch_common::journal::RecordBody;
use anabranch_common::manifest::ModelManifest;
use anabranch_common::schema;

use super::{RecoveryError, cursor, vectors};
use crate::store::{Catalogue, StorageError, Store};

anabranch_common::layout! {
    struct BranchPoint { parent, from, version, model }
}

const PIN: &str = "model/pin/";
const RECORD: &str = "model/record/";
const SCANNED: &str = "model/scanned";
/// Bytes of an encoded branch point.
const POINT_BYTES: usize = 64 + 16;

/// Stores the model of a record that is about to be written (`Genesis`, `Imported`, `Branched`), so that pruning leaves it
/// alone. Model and pin are durable when it returns, as the record requires.
///
/// # Errors
/// The model does not fit its manifest or is not finite, or the storage fails.
pub fn put_model(store: &dyn Store, manifest: &ModelManifest, model: &[f32]) -> Result<Digest, RecoveryError> {
    // The pin comes first: between the two, pruning would see a blob that nothing names.
    let digest = Digest::of_f32(model);
    store.catalogue().put(&format!("{PIN}{digest}"), &[])?;
    vectors::put(store.blobs(), manifest, model)?;
    store.blobs().sync()?;
    store.catalogue().sync()?;
    Ok(digest)
}

/// Where a branch leaves its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BranchPoint {
    /// The history that it continues.
    pub parent: BranchId,
    /// The last position of the parent that still counts.
    pub from: Position,
    /// The version there.
    pub version: ModelVersion,
    /// Digest of that version's content.
    pub model: Digest,
}

/// Stores where `branch` starts. The branch point is durable when it returns, as the `Branched` record requires; its model
/// has to be durable before: see [`put_model`].
///
/// # Errors
/// The storage fails.
pub fn put_branch(catalogue: &dyn Catalogue, branch: BranchId, point: &BranchPoint) -> Result<(), RecoveryError> {
    catalogue.put(&branch_key(branch), &schema::encode_numbered(point, POINT_BYTES)?)?;
    catalogue.sync()?;
    Ok(())
}

fn branch_key(branch: BranchId) -> String {
    format!("model/branch/{branch}")
}

fn branch_point(catalogue: &dyn Catalogue, branch: BranchId) -> Result<Option<BranchPoint>, RecoveryError> {
    let Some(bytes) = catalogue.get(&branch_key(branch))? else { return Ok(None) };
    Ok(Some(schema::decode_numbered(&bytes, POINT_BYTES)?))
}

/// The digest of the model from which `branch` starts.
pub(super) fn branch_model(catalogue: &dyn Catalogue, branch: BranchId) -> Result<Digest, RecoveryError> {
    let missing = || RecoveryError::Blob {
        what: "first model of a branch",
        digest: Digest::default(),
        problem: format!("is not stored (branch {branch})"),
    };
    Ok(branch_point(catalogue, branch)?.ok_or_else(missing)?.model)
}

/// The part of the journal in which a version of the current history was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// The branch that made it.
    pub(super) branch: BranchId,
    /// The last position of that branch that counts.
    pub(super) until: Position,
}

/// Follows the branches back from `branch`, whose newest record is at `until`, to the one that made `version`.
pub(super) fn segment(
    catalogue: &dyn Catalogue,
    branch: BranchId,
    until: Position,
    version: ModelVersion,
) -> Result<Segment, RecoveryError> {
    let mut segment = Segment { branch, until };
    while let Some(point) = branch_point(catalogue, segment.branch)?.filter(|point| version < point.version) {
        segment = Segment { branch: point.parent, until: point.from };
    }
    Ok(segment)
}

fn digest_item(catalogue: &dyn Catalogue, key: &str) -> Result<Option<Digest>, StorageError> {
    Ok(catalogue.get(key)?.and_then(|bytes| bytes.try_into().ok()).map(Digest))
}

/// The blobs that records from `floor` on name, and those that are pinned. Forgets what only records below `floor`
/// named: that is durable after [`Catalogue::sync`].
pub(super) fn referenced(store: &dyn Store, floor: Position) -> Result<BTreeSet<Digest>, RecoveryError> {
    scan(store)?;
    let catalogue = store.catalogue();
    let mut digests = BTreeSet::new();
    for key in catalogue.list(RECORD)? {
        let position = key[RECORD.len()..].parse().map(Position);
        if position.is_ok_and(|position| position < floor) {
            catalogue.delete(&key)?;
        } else {
            digests.extend(digest_item(catalogue, &key)?);
        }
    }
    digests.extend(catalogue.list(PIN)?.iter().filter_map(|key| key[PIN.len()..].parse::<Digest>().ok()));
    Ok(digests)
}

/// Looks at the records that were written since the last call, and notes which models they name.
pub(super) fn scan(store: &dyn Store) -> Result<(), RecoveryError> {
    let (journal, catalogue) = (store.journal(), store.catalogue());
    let (Some(first), Some(last)) = (journal.first_position()?, journal.last_position()?) else { return Ok(()) };
    let scanned = catalogue.get(SCANNED)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    // The mark at the end must not be ahead of what survives.
    journal.sync()?;
    let mut found = false;
    for position in (scanned.max(first.0)..=last.0).map(Position) {
        let digest = match cursor::read(journal, position)?.body {
            RecordBody::Genesis { model, .. } | RecordBody::Imported { model, .. } => model,
            RecordBody::Branched { branch, .. } => branch_model(catalogue, branch)?,
            _ => continue,
        };
        found = true;
        catalogue.put(&format!("{RECORD}{position:020}", position = position.0), &digest.0)?;
        catalogue.delete(&format!("{PIN}{digest}"))?;
    }
    if found {
        // Unsynced writes may survive in any order: what was found must not be lost where the mark is kept.
        catalogue.sync()?;
    }
    catalogue.put(SCANNED, &last.next().0.to_le_bytes())?;
    Ok(())
}

/// Lets go of models whose record was never written. For start-up, when nothing can be about to be written.
///
/// # Errors
/// A record cannot be read, or the storage fails.
pub fn release(store: &dyn Store) -> Result<(), RecoveryError> {
    scan(store)?;
    for key in store.catalogue().list(PIN)? {
        store.catalogue().delete(&key)?;
    }
    store.catalogue().sync()?;
    Ok(())
}
