//! The seam of the journal: records by position, appended and never changed.

use anabranch_common::ids::Position;

use super::StorageError;

/// The records of a run, in order and without gaps.
///
/// A position is written once. An implementation that other processes can write to fails
/// [`sync`](Self::sync) when another writer has taken its next position. After any error the
/// caller stops and acknowledges nothing more.
///
/// Records that were appended and not synced survive a power loss as a prefix: some of the first
/// ones, never one behind a gap.
pub trait Journal: Send + Sync + std::fmt::Debug {
    /// Adds records at the end of the journal. They can be read at once. They are durable after
    /// [`sync`](Self::sync). Everything that a record names must be durable before the record is
    /// appended.
    ///
    /// # Errors
    /// The positions do not follow the last one without a gap (the first record ever has position
    /// 0), or the storage fails.
    fn append(&self, records: &[(Position, Vec<u8>)]) -> Result<(), StorageError>;

    /// Makes every record durable that was appended before this call: the group commit. Without a
    /// record since the last one there is nothing to do.
    ///
    /// # Errors
    /// The storage fails. Records appended since the last successful sync are then in doubt, and
    /// every later sync fails.
    fn sync(&self) -> Result<(), StorageError>;

    /// Returns the bytes of a record; `None` when it was pruned or not written yet.
    ///
    /// # Errors
    /// The record is damaged, or it is missing between records that are there.
    fn record(&self, position: Position) -> Result<Option<Vec<u8>>, StorageError>;

    /// Returns the position from which the journal is without gaps up to its end. Record 0, which
    /// is always kept, does not count when records after it were pruned.
    ///
    /// # Errors
    /// The storage fails.
    fn first_position(&self) -> Result<Option<Position>, StorageError>;

    /// Returns the position of the newest record.
    ///
    /// # Errors
    /// The storage fails.
    fn last_position(&self) -> Result<Option<Position>, StorageError>;

    /// Deletes the records below `below`, except record 0 and the newest record. Returns how many.
    /// Durable when it returns: a pruning that is cut short is finished at the next opening. A
    /// checkpoint that needs the records must have been deleted durably before.
    ///
    /// # Errors
    /// The storage fails.
    fn prune(&self, below: Position) -> Result<u64, StorageError>;

    /// Continues a journal that has record 0 alone at `position`, as if the records between had been pruned: for copies of
    /// a pruned journal. Durable when it returns.
    ///
    /// # Errors
    /// The journal is empty or has more than record 0, `position` is 0, or the storage fails.
    fn skip_to(&self, position: Position) -> Result<(), StorageError>;
}
