//! Keys of objects, below the prefix of a bucket.
//!
//! | key | object | deleted |
//! |---|---|---|
//! | `terms/{term}` | who has announced this term | never |
//! | `journal/{slot}` | a group of records, or the fence with which a term begins | groups: when their records were pruned, but not that of record 0. Fences: never |
//! | `catalogue/{term}/{number}` | a snapshot, or the seal that ends a term | snapshots: when newer ones make them unnecessary. Seals: never |
//! | `blobs/{digest}/{term}-{number}` | a blob; `number` counts the blobs of the term | when a durable snapshot no longer lists it |
//!
//! Numbers have 20 digits, so that keys sort as numbers do. Terms and the snapshots of a term count from 1. A record
//! takes one slot, and so does a fence: the slot of a record is its position plus the number of fences before it.

use anabranch_common::ids::Digest;

/// What is below `terms/`.
pub(super) const TERMS: &str = "terms/";
/// What is below `journal/`.
pub(super) const JOURNAL: &str = "journal/";
/// What is below `catalogue/`.
pub(super) const CATALOGUE: &str = "catalogue/";
/// What is below `blobs/`.
pub(super) const BLOBS: &str = "blobs/";

/// Which copy of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlobCopy {
    pub(super) term: u64,
    pub(super) number: u64,
}

pub(super) fn term(term: u64) -> String {
    format!("{TERMS}{term:020}")
}

pub(super) fn slot(slot: u64) -> String {
    format!("{JOURNAL}{slot:020}")
}

pub(super) fn snapshot(term: u64, number: u64) -> String {
    format!("{CATALOGUE}{term:020}/{number:020}")
}

pub(super) fn blob(id: Digest, copy: BlobCopy) -> String {
    format!("{BLOBS}{id}/{:020}-{:020}", copy.term, copy.number)
}

/// Returns the slot of a key below `journal/`.
pub(super) fn parse_slot(key: &str) -> Option<u64> {
    number(key.strip_prefix(JOURNAL)?)
}

/// Returns term and number of a key below `catalogue/`.
pub(super) fn parse_snapshot(key: &str) -> Option<(u64, u64)> {
    let (term, snapshot) = key.strip_prefix(CATALOGUE)?.split_once('/')?;
    Some((number(term)?, number(snapshot)?))
}

/// Returns digest and copy of a key below `blobs/`.
pub(super) fn parse_blob(key: &str) -> Option<(Digest, BlobCopy)> {
    let (id, copy) = key.strip_prefix(BLOBS)?.split_once('/')?;
    let (term, count) = copy.split_once('-')?;
    Some((id.parse().ok()?, BlobCopy { term: number(term)?, number: number(count)? }))
}

fn number(text: &str) -> Option<u64> {
    let is_number = text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout is a promise to buckets that exist.
    #[test]
    fn keys_are_these_and_can_be_read_back() {
        let copy = BlobCopy { term: 2, number: 7 };
        assert_eq!(term(3), "terms/00000000000000000003");
        assert_eq!(slot(258), "journal/00000000000000000258");
        assert_eq!(snapshot(2, 9), "catalogue/00000000000000000002/00000000000000000009");
        let key = blob(Digest([0xab; 32]), copy);
        assert_eq!(key, format!("blobs/{}/00000000000000000002-00000000000000000007", "ab".repeat(32)));
        assert_eq!(parse_slot(&slot(u64::MAX)), Some(u64::MAX));
        assert_eq!(parse_snapshot(&snapshot(2, 9)), Some((2, 9)));
        assert_eq!(parse_blob(&key), Some((Digest([0xab; 32]), copy)));
        for strange in ["journal/1", "journal/+0000000000000000001", "catalogue/2", "blobs/ab/1-2", "terms/x"] {
            assert!(
                parse_slot(strange).is_none() && parse_snapshot(strange).is_none() && parse_blob(strange).is_none()
            );
        }
    }
}
