//! The search's journal: its records over the store's seam.

use anabranch_common::ids::Position;

use super::record::{Record, RecordError};
use crate::store::{Journal, StorageError};

/// Why the journal of a search cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The storage failed. What was appended since the last success is in doubt: the search stops.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A record is missing: records of a search are never pruned.
    #[error("record {position} of the search's journal is missing: restore its directory from a copy")]
    Missing {
        /// Which.
        position: Position,
    },
    /// A record is damaged, or was written by a newer program.
    #[error("record {position} of the search's journal: {source}")]
    Record {
        /// Which.
        position: Position,
        /// Why.
        source: RecordError,
    },
    /// A record says that it is another one.
    #[error("record {position} of the search's journal says that it is record {found}")]
    Position {
        /// Where it lies.
        position: Position,
        /// What it says.
        found: Position,
    },
}

/// Makes records durable with one sync. Returns the position of the newest one, for
/// [`Input::Written`](super::Input::Written); `None` without any.
///
/// # Errors
/// See [`JournalError`].
pub fn write(journal: &dyn Journal, records: &[Record]) -> Result<Option<Position>, JournalError> {
    let stored = |record: &Record| {
        let bytes = record.to_bytes();
        let position = record.position;
        bytes.map(|bytes| (position, bytes)).map_err(|source| JournalError::Record { position, source })
    };
    let stored: Vec<(Position, Vec<u8>)> = records.iter().map(stored).collect::<Result<_, _>>()?;
    journal.append(&stored)?;
    journal.sync()?;
    Ok(records.last().map(|record| record.position))
}

/// Reads every record; none where the search has not begun.
///
/// # Errors
/// See [`JournalError`].
pub fn read(journal: &dyn Journal) -> Result<Vec<Record>, JournalError> {
    let Some(last) = journal.last_position()? else { return Ok(Vec::new()) };
    let mut records = Vec::new();
    for position in (0..=last.0).map(Position) {
        let bytes = journal.record(position)?.ok_or(JournalError::Missing { position })?;
        let record = Record::from_bytes(&bytes).map_err(|source| JournalError::Record { position, source })?;
        if record.position != position {
            return Err(JournalError::Position { position, found: record.position });
        }
        records.push(record);
    }
    Ok(records)
}
