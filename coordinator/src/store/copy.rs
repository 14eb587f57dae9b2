//! Copies of a whole store into another kind of store, verified by reading both back.
//!
//! ```text
//!  mark ─► blobs ─► items ─► record 0 ─► skip what was pruned ─► records ─► checkpoints ─► compare ─► unmark
//! ```
//! A store with the mark is a copy that was cut short. Nothing opens it.

use anabranch_common::ids::Position;
use anabranch_common::limits;

use super::{Catalogue, StorageError, Store};

/// The item of a copy that is under way.
const MARK: &str = "store/copying";

/// What was copied, or compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct CopyReport {
    /// Records.
    pub records: u64,
    /// Blobs.
    pub blobs: u64,
    /// Items of the catalogue.
    pub items: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Why a store was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A store fails.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// There is something in the target.
    #[error("the target is not empty")]
    NotEmpty,
    /// There is nothing to copy.
    #[error("there is no run to copy")]
    Nothing,
    /// A damaged checkpoint or a gap.
    #[error("{0} cannot be read from the source")]
    Unreadable(String),
    /// What was read back is something else.
    #[error("{0} of the copy is not that of the source")]
    Differs(String),
}

/// Whether a copy into this store was cut short.
///
/// # Errors
/// The storage fails.
pub fn is_incomplete(catalogue: &dyn Catalogue) -> Result<bool, StorageError> {
    Ok(catalogue.get(MARK)?.is_some())
}

/// Copies everything in `from` to `to`, which is empty, and compares the two. Nobody may write to either meanwhile.
///
/// # Errors
/// See [`CopyError`]. What is in `to` then is no store that can be opened.
pub fn copy(from: &dyn Store, to: &dyn Store) -> Result<CopyReport, CopyError> {
    let (journal, catalogue) = (to.journal(), to.catalogue());
    if journal.last_position()?.is_some()
        || !catalogue.list("")?.is_empty()
        || !catalogue.checkpoints()?.is_empty()
        || !to.blobs().list()?.is_empty()
    {
        return Err(CopyError::NotEmpty);
    }
    let last = from.journal().last_position()?;
    if last.is_none() && from.catalogue().list("")?.is_empty() {
        return Err(CopyError::Nothing);
    }
    catalogue.put(MARK, &[])?;
    catalogue.sync()?;
    for id in from.blobs().list()? {
        let bytes = from.blobs().get(id)?.ok_or_else(|| CopyError::Unreadable(format!("blob {id}")))?;
        to.blobs().put(id, &bytes)?;
    }
    to.blobs().sync()?;
    for key in from.catalogue().list("")? {
        if let Some(value) = from.catalogue().get(&key)? {
            catalogue.put(&key, &value)?;
        }
    }
    catalogue.sync()?;
    if let Some(last) = last {
        copy_records(from, to, last)?;
    }
    for (position, manifest) in from.catalogue().checkpoints()? {
        catalogue.put_checkpoint(position, &manifest)?;
    }
    catalogue.sync()?;
    let report = compare(from, to)?;
    catalogue.delete(MARK)?;
    catalogue.sync()?;
    Ok(report)
}

fn copy_records(from: &dyn Store, to: &dyn Store, last: Position) -> Result<(), CopyError> {
    let journal = to.journal();
    let record = |position: Position| {
        let bytes = from.journal().record(position)?;
        bytes.ok_or_else(|| CopyError::Unreadable(format!("record {position}")))
    };
    journal.append(&[(Position(0), record(Position(0))?)])?;
    journal.sync()?;
    let first = from.journal().first_position()?.unwrap_or_default().max(Position(1));
    journal.skip_to(first)?;
    let mut bytes = 0;
    for position in (first.0..=last.0).map(Position) {
        let content = record(position)?;
        bytes += content.len();
        journal.append(&[(position, content)])?;
        if bytes >= limits::GROUP_COMMIT_BYTES {
            journal.sync()?;
            bytes = 0;
        }
    }
    journal.sync()?;
    Ok(())
}

/// Reads both stores and compares all that is in them; the mark of a copy does not count.
///
/// # Errors
/// See [`CopyError`].
pub fn compare(from: &dyn Store, to: &dyn Store) -> Result<CopyReport, CopyError> {
    let differs = |what: String| Err(CopyError::Differs(what));
    let mut report = CopyReport::default();
    let ends = |store: &dyn Store| {
        Ok::<_, StorageError>((store.journal().first_position()?, store.journal().last_position()?))
    };
    let (first, last) = ends(from)?;
    if (first, last) != ends(to)? {
        return differs("the extent of the journal".to_owned());
    }
    if let (Some(first), Some(last)) = (first, last) {
        for position in std::iter::once(0).chain(first.0.max(1)..=last.0).map(Position) {
            let (one, other) = (from.journal().record(position)?, to.journal().record(position)?);
            if one.is_none() || one != other {
                return differs(format!("record {position}"));
            }
            report.records += 1;
            report.bytes += one.map_or(0, |bytes| bytes.len() as u64);
        }
    }
    let blobs = from.blobs().list()?;
    if blobs != to.blobs().list()? {
        return differs("the list of blobs".to_owned());
    }
    for id in blobs {
        let (one, other) = (from.blobs().get(id)?, to.blobs().get(id)?);
        if one.is_none() || one != other {
            return differs(format!("blob {id}"));
        }
        report.blobs += 1;
        report.bytes += one.map_or(0, |bytes| bytes.len() as u64);
    }
    let keys = |store: &dyn Store| store.catalogue().list("");
    let items = keys(from)?;
    if !items.iter().eq(keys(to)?.iter().filter(|key| *key != MARK)) {
        return differs("the list of items".to_owned());
    }
    for key in items {
        let (one, other) = (from.catalogue().get(&key)?, to.catalogue().get(&key)?);
        if one != other {
            return differs(format!("item {key:?}"));
        }
        report.items += 1;
        report.bytes += one.map_or(0, |bytes| bytes.len() as u64);
    }
    let checkpoints = from.catalogue().checkpoints()?;
    if checkpoints != to.catalogue().checkpoints()? {
        return differs("the list of checkpoints".to_owned());
    }
    report.checkpoints = checkpoints.len() as u64;
    report.bytes += checkpoints.iter().map(|(_, manifest)| manifest.len() as u64).sum::<u64>();
    Ok(report)
}
