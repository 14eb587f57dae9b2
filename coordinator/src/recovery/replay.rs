//! Recovery: the newest checkpoint that verifies, and the records after it. Every start takes this path.

use anabranch_common::ids::{Digest, ModelVersion, Position};
use anabranch_common::journal::Chain;
use anabranch_common::limits;
use anabranch_io::faults;

use super::checkpoint::{self, Checkpoint};
use super::cursor::Cursor;
use super::{RecoveryError, pins};
use crate::core::state::RunState;
use crate::merger::ModelState;
use crate::store::{Journal, Store};

/// A run as its journal leaves it.
#[derive(Debug)]
pub struct Recovered {
    /// The fold.
    pub state: RunState,
    /// The model and the merge state.
    pub model: ModelState,
    /// The chain after the newest record.
    pub chain: Chain,
    /// Position of the newest record.
    pub position: Position,
    /// Position of the checkpoint from which replay started; none when it started at record 0.
    pub from_checkpoint: Option<Position>,
    /// Version of the newest checkpoint that can be read.
    pub checkpoint_version: Option<ModelVersion>,
    /// The oldest version that can be rebuilt.
    pub oldest: ModelVersion,
    /// Records that were replayed.
    pub replayed: u64,
    /// What was damaged and got round.
    pub warnings: Vec<String>,
}

/// Recovers the run. Reads only.
///
/// # Errors
/// [`RecoveryError::Empty`] when there is no run; otherwise what is damaged, by position.
pub fn recover(store: &dyn Store) -> Result<Recovered, RecoveryError> {
    let (checkpoints, mut warnings) = checkpoint::readable(store.catalogue())?;
    let last = store.journal().last_position()?.ok_or(RecoveryError::Empty)?;
    if let Some(newest) = checkpoints.first().filter(|newest| newest.position > last) {
        return Err(RecoveryError::Short { last, checkpoint: newest.position });
    }
    faults::point("recovery-begins");
    let (mut cursor, from_checkpoint) = start(store, &checkpoints, &mut warnings)?;
    for warning in &warnings {
        tracing::warn!("{warning}; recovery goes round it");
    }
    let mut replayed = 0;
    while cursor.state.position < last {
        cursor.step(store)?;
        faults::point("recovery-in-replay");
        replayed += 1;
        let here = checkpoints.iter().find(|checkpoint| checkpoint.position == cursor.state.position);
        if here.is_some_and(|checkpoint| checkpoint.chain != cursor.chain) {
            return Err(RecoveryError::Contradiction { position: cursor.state.position, what: "chain" });
        }
    }
    // Agents hold what was published: another model under the same number must not go on.
    let (version, base) = cursor.model.base();
    if let Some(published) = cursor.state.published.filter(|published| published.version == version)
        && cursor.model.overflowed().is_none()
        && Digest::of_f32(base) != published.digest
    {
        return Err(RecoveryError::Published(published.version));
    }
    Ok(Recovered {
        position: last,
        from_checkpoint,
        checkpoint_version: checkpoints.first().map(|newest| newest.version),
        oldest: oldest_version(store.journal(), &checkpoints, cursor.state.version)?,
        replayed,
        warnings,
        state: cursor.state,
        model: cursor.model,
        chain: cursor.chain,
    })
}

/// The newest checkpoint that verifies, else record 0 if everything since it is there.
fn start(
    store: &dyn Store,
    checkpoints: &[Checkpoint],
    warnings: &mut Vec<String>,
) -> Result<(Cursor, Option<Position>), RecoveryError> {
    for checkpoint in checkpoints {
        match Cursor::checkpoint(store.blobs(), checkpoint) {
            Ok(cursor) => return Ok((cursor, Some(checkpoint.position))),
            Err(error) if error.is_local() => {
                warnings.push(format!("the checkpoint at position {} is damaged: {error}", checkpoint.position));
            }
            Err(error) => return Err(error),
        }
    }
    match store.journal().first_position()? {
        Some(Position(0)) => Ok((Cursor::genesis(store)?, None)),
        Some(first) => Err(RecoveryError::NoCheckpoint { first, problems: describe(warnings) }),
        None => Err(RecoveryError::Empty),
    }
}

fn describe(problems: &[String]) -> String {
    if problems.is_empty() { "there is none".to_owned() } else { problems.join("; ") }
}

fn oldest_version(
    journal: &dyn Journal,
    newest_first: &[Checkpoint],
    current: ModelVersion,
) -> Result<ModelVersion, RecoveryError> {
    if journal.first_position()? == Some(Position(0)) {
        return Ok(ModelVersion(0));
    }
    Ok(newest_first.iter().map(|checkpoint| checkpoint.version).min().unwrap_or(current).min(current))
}

/// Rebuilds the model of an earlier version of the current history, for export and rollback.
///
/// # Errors
/// [`RecoveryError::Version`] when the version is not reached from anything that is kept; otherwise what is damaged.
pub fn model_at(store: &dyn Store, version: ModelVersion) -> Result<(RunState, ModelState), RecoveryError> {
    steadily(store, || rebuild(store, version), |_| true)
}

fn rebuild(store: &dyn Store, version: ModelVersion) -> Result<(RunState, ModelState), RecoveryError> {
    let newest = recover(store)?;
    let oldest = newest.oldest;
    finite(replayed(store, newest, version)?, version, oldest)
}

/// A version that has overflowed is not available.
pub(super) fn finite(
    (state, model): (RunState, ModelState),
    version: ModelVersion,
    oldest: ModelVersion,
) -> Result<(RunState, ModelState), RecoveryError> {
    let Some(overflowed) = model.overflowed() else { return Ok((state, model)) };
    let newest = ModelVersion(overflowed.0.saturating_sub(1));
    Err(RecoveryError::Version { version, oldest, newest })
}

fn replayed(
    store: &dyn Store,
    newest: Recovered,
    version: ModelVersion,
) -> Result<(RunState, ModelState), RecoveryError> {
    let unavailable = RecoveryError::Version { version, oldest: newest.oldest, newest: newest.state.version };
    if version > newest.state.version {
        return Err(unavailable);
    }
    let segment = pins::segment(store.catalogue(), newest.state.branch, newest.position, version)?;
    let (checkpoints, _) = checkpoint::readable(store.catalogue())?;
    for checkpoint in checkpoints.iter().filter(|checkpoint| checkpoint.position <= segment.until) {
        if checkpoint.branch == segment.branch && checkpoint.version > version {
            continue;
        }
        match Cursor::checkpoint(store.blobs(), checkpoint) {
            Ok(cursor) => return reach(store, cursor, &segment, version, unavailable),
            Err(error) if error.is_local() => {}
            Err(error) => return Err(error),
        }
    }
    if store.journal().first_position()? == Some(Position(0)) {
        return reach(store, Cursor::genesis(store)?, &segment, version, unavailable);
    }
    Err(unavailable)
}

fn reach(
    store: &dyn Store,
    mut cursor: Cursor,
    segment: &pins::Segment,
    version: ModelVersion,
    unavailable: RecoveryError,
) -> Result<(RunState, ModelState), RecoveryError> {
    while (cursor.state.branch, cursor.state.version) != (segment.branch, version) {
        if cursor.state.position >= segment.until {
            return Err(unavailable);
        }
        cursor.step(store)?;
    }
    Ok((cursor.state, cursor.model))
}

/// Repeats a reading that did not succeed when a coordinator that serves the same store has written or pruned a
/// checkpoint meanwhile, and so may have pulled the ground from under it.
pub(super) fn steadily<T>(
    store: &dyn Store,
    read: impl Fn() -> Result<T, RecoveryError>,
    sound: impl Fn(&T) -> bool,
) -> Result<T, RecoveryError> {
    for _ in 1..limits::STORE_READ_TRIES {
        let before = kept(store)?;
        let outcome = read();
        if outcome.as_ref().is_ok_and(&sound) || kept(store)? == before {
            return outcome;
        }
    }
    read()
}

fn kept(store: &dyn Store) -> Result<(Option<Position>, Vec<Position>), RecoveryError> {
    let positions = store.catalogue().checkpoints()?.into_iter().map(|(position, _)| position).collect();
    Ok((store.journal().first_position()?, positions))
}
