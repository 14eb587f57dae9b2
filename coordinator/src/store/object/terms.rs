//! Terms: one writer after another. Whoever opens a store to write announces the next term, seals the catalogue of every
//! earlier one, and puts its fence where the journal ends. From then on an earlier writer finds its next key taken.
//!
//! ```text
//!  announce ──► terms/{t}                    from here on no earlier writer deletes a snapshot
//!  seal     ──► catalogue/{t-1}/{newest + 1} from here on no earlier writer makes a snapshot, so none prunes
//!  fence    ──► journal/{end}                from here on no earlier writer makes a record durable
//! ```
//! Nothing here trusts a listing. The newest term is found by doubling, since no term is ever deleted. The newest snapshot
//! of a term is found bit by bit ([`kept`](super::snapshot::kept)). The end of the journal is found by following it from
//! where the newest snapshot saw it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anabranch_common::limits;

use super::bucket::{self, Bucket, Put};
use super::format::{self, Author, Entry, Fence, Kind};
use super::keys;
use super::snapshot::{FenceAt, Numbered, Place, Snapshot};
use crate::store::StorageError;

/// Returns the newest term that was announced, 0 where none was.
pub(super) fn newest(bucket: &dyn Bucket) -> Result<u64, StorageError> {
    let there = |term: u64| bucket::exists(bucket, &keys::term(term));
    let mut above = 1u64;
    while there(above)? {
        above = above.saturating_mul(2);
    }
    let mut below = above / 2;
    while below + 1 < above {
        let middle = below + (above - below) / 2;
        if there(middle)? {
            below = middle;
        } else {
            above = middle;
        }
    }
    Ok(below)
}

/// Announces the next term for a writer.
pub(super) fn announce(bucket: &dyn Bucket, writer: [u8; 16], name: &str) -> Result<Author, StorageError> {
    let mut term = newest(bucket)? + 1;
    loop {
        let author = Author { term, writer };
        let object = format::object(Kind::Term, author, name.as_bytes());
        match bucket::create(bucket, &keys::term(term), &object)? {
            Put::Done => return Ok(author),
            Put::Taken(_) => term += 1,
        }
    }
}

/// Whether a later term than `author`'s was announced.
pub(super) fn is_superseded(bucket: &dyn Bucket, author: Author) -> Result<bool, StorageError> {
    bucket::exists(bucket, &keys::term(author.term + 1))
}

/// The error of a writer that has found an object of `term` where its own was to be.
pub(super) fn superseded(bucket: &dyn Bucket, term: u64) -> StorageError {
    let named = bucket::get(bucket, &keys::term(term)).ok().flatten();
    let name = named.as_deref().and_then(|bytes| match format::read(bytes) {
        Ok((Kind::Term, _, name)) => Some(String::from_utf8_lossy(name).into_owned()),
        _ => None,
    });
    let name = name.unwrap_or_else(|| "another process".to_owned());
    StorageError::Superseded { path: bucket::path(bucket), by: format!("{name} (term {term})") }
}

/// The newest snapshot of a store.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) snapshot: Snapshot,
    /// Its term and number; none in a store that has no snapshot yet.
    pub(super) at: Option<(u64, u64)>,
    /// The seals that were found or made on the way.
    pub(super) seals: BTreeMap<u64, u64>,
}

/// Returns the highest number of a term's catalogue, 0 where there is none.
fn newest_number(bucket: &dyn Bucket, term: u64) -> Result<u64, StorageError> {
    let mut number = 0;
    for bit in (0..limits::OBJECT_SNAPSHOT_BITS).rev() {
        let with = number | (1 << bit);
        if bucket::exists(bucket, &keys::snapshot(term, with))? {
            number = with;
        }
    }
    Ok(number)
}

fn read_number(bucket: &dyn Bucket, term: u64, number: u64) -> Result<Option<(Author, Numbered)>, StorageError> {
    let key = keys::snapshot(term, number);
    bucket::get(bucket, &key)?.map(|bytes| decode_number(bucket, &key, &bytes)).transpose()
}

fn decode_number(bucket: &dyn Bucket, key: &str, bytes: &[u8]) -> Result<(Author, Numbered), StorageError> {
    Numbered::read(bytes).map_err(|what| bucket::damaged(bucket, key, what))
}

/// Seals the catalogues of all earlier terms from the newest back to the first that has a snapshot. Returns that snapshot.
pub(super) fn take_over(bucket: &dyn Bucket, author: Author) -> Result<Found, StorageError> {
    let mut seals = BTreeMap::new();
    for term in (1..author.term).rev() {
        let (number, snapshot) = seal(bucket, author, term)?;
        seals.insert(term, number + 1);
        if let Some(snapshot) = snapshot {
            return Ok(Found { snapshot, at: Some((term, number)), seals });
        }
    }
    Ok(Found { seals, ..Found::default() })
}

/// Seals a term. Returns the number of its newest snapshot (0 where it has none), and the snapshot.
fn seal(bucket: &dyn Bucket, author: Author, term: u64) -> Result<(u64, Option<Snapshot>), StorageError> {
    let mut number = newest_number(bucket, term)?;
    let mut newest = None;
    let missing = |number| bucket::damaged(bucket, &keys::snapshot(term, number), "is missing");
    let check = |by: Author| if by.term > author.term { Err(superseded(bucket, by.term)) } else { Ok(()) };
    if number > 0 {
        match read_number(bucket, term, number)?.ok_or_else(|| missing(number))? {
            (_, Numbered::Snapshot(snapshot)) => newest = Some(*snapshot),
            (by, Numbered::Seal) => {
                check(by)?;
                let number = number - 1;
                let last = if number == 0 { None } else { read_number(bucket, term, number)? };
                return match last {
                    None if number == 0 => Ok((0, None)),
                    Some((_, Numbered::Snapshot(snapshot))) => Ok((number, Some(*snapshot))),
                    _ => Err(missing(number)),
                };
            }
        }
    }
    let object = format::object(Kind::Seal, author, &[]);
    loop {
        let key = keys::snapshot(term, number + 1);
        match bucket::create(bucket, &key, &object)? {
            Put::Done => return Ok((number, newest)),
            Put::Taken(bytes) => match decode_number(bucket, &key, &bytes)? {
                // Its writer is still at work.
                (_, Numbered::Snapshot(snapshot)) => (number, newest) = (number + 1, Some(*snapshot)),
                (by, Numbered::Seal) => {
                    check(by)?;
                    return Ok((number, newest));
                }
            },
        }
    }
}

/// Returns the newest snapshot and changes nothing. None where another process has deleted one while it was looked for:
/// worth another look.
pub(super) fn look(bucket: &dyn Bucket) -> Result<Option<Found>, StorageError> {
    for term in (1..=newest(bucket)?).rev() {
        let mut number = newest_number(bucket, term)?;
        while number > 0 {
            match read_number(bucket, term, number)? {
                Some((_, Numbered::Snapshot(snapshot))) => {
                    return Ok(Some(Found { snapshot: *snapshot, at: Some((term, number)), seals: BTreeMap::new() }));
                }
                Some((_, Numbered::Seal)) => number -= 1,
                None => return Ok(None),
            }
        }
    }
    Ok(Some(Found::default()))
}

/// Returns the newest term and the highest number of its catalogue, and the same of older terms, back to the first that has
/// one. Whoever reads a store and finds this as it was before has read what no writer was deleting.
pub(super) fn extent(bucket: &dyn Bucket) -> Result<Vec<(u64, u64)>, StorageError> {
    let mut extent = Vec::new();
    for term in (1..=newest(bucket)?).rev() {
        let number = newest_number(bucket, term)?;
        extent.push((term, number));
        if number > 0 {
            break;
        }
    }
    Ok(extent)
}

/// What was found in the journal behind a snapshot.
#[derive(Debug)]
pub(super) struct Followed {
    /// The place of the next record.
    pub(super) end: Place,
    /// Fences behind the snapshot.
    pub(super) fences: Vec<FenceAt>,
    /// Slots of groups behind the snapshot, and bytes of their objects.
    pub(super) groups: Vec<(u64, u64)>,
}

/// Follows the journal to its end from `tail`. With an author, puts its fence there.
pub(super) fn follow(
    bucket: &dyn Bucket,
    tail: Place,
    writer: Option<(Author, &str)>,
    mut visit: impl FnMut(u64, Entry),
) -> Result<Followed, StorageError> {
    let mut found = Followed { end: tail, fences: Vec::new(), groups: Vec::new() };
    loop {
        let end = found.end;
        let key = keys::slot(end.slot);
        let fence = FenceAt { next: end.position, slot: end.slot };
        let bytes = match (bucket::get(bucket, &key)?, writer) {
            (Some(bytes), _) => bytes,
            (None, None) => return Ok(found),
            (None, Some((author, name))) => {
                let own = Fence { next: end.position, bytes_before: end.bytes_before, name: name.to_owned() };
                match bucket::create(bucket, &key, &own.to_object(author))? {
                    Put::Taken(bytes) => bytes,
                    Put::Done => {
                        found.fences.push(fence);
                        found.end.slot += 1;
                        return Ok(found);
                    }
                }
            }
        };
        let damaged = |what| bucket::damaged(bucket, &key, what);
        let (by, entry) = Entry::read(&bytes).map_err(damaged)?;
        if let Some((author, _)) = writer.filter(|(author, _)| by.term > author.term) {
            tracing::warn!(term = author.term, by = by.term, "another process opens this store");
            return Err(superseded(bucket, by.term));
        }
        let (next, bytes_before) = match &entry {
            Entry::Fence(fence) => (fence.next, fence.bytes_before),
            Entry::Group(group) => (group.first, group.bytes_before),
        };
        if (next, bytes_before) != (end.position, end.bytes_before) {
            return Err(damaged("does not follow the object before it"));
        }
        match &entry {
            Entry::Fence(_) => found.fences.push(fence),
            Entry::Group(group) => {
                found.groups.push((end.slot, bytes.len() as u64));
                found.end.position = group.end();
                found.end.bytes_before += group.bytes();
            }
        }
        found.end.slot += entry.slots();
        visit(end.slot, entry);
    }
}

/// The path of a bucket, for errors about what a caller does.
pub(super) fn refused(bucket: &dyn Bucket, problem: String) -> StorageError {
    let path: PathBuf = bucket::path(bucket);
    StorageError::Io { path, source: std::io::Error::new(std::io::ErrorKind::InvalidInput, problem) }
}
