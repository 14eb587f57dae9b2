//! A snapshot: the whole catalogue, which blobs there are, and where the journal begins and ends.
//!
//! ```text
//!  floor   position u64, slot u64, bytes of all records before u64, bytes of record 0 u64
//!  tail    position u64, slot u64, bytes of all records before u64: of the next record, when this was written
//!  fences  count u32, each: position u64, slot u64
//!  seals   count u32, each: term u64, number u64
//!  blobs   count u32, each: digest 32 bytes, term u64, number u64, length u64
//!  items   count u32, each: key (length u32, UTF-8), value (length u32, bytes)
//!  checkpoints  count u32, each: position u64, manifest (length u32, bytes)
//! ```

use std::collections::BTreeMap;

use anabranch_common::ids::{Digest, Position};

use super::format::{Author, Kind, Problem, Reader, object, put_counted, read};
use super::keys::BlobCopy;

/// A place in the journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Position of the record there.
    pub(super) position: Position,
    /// The slot of the object that holds it; of the next object where there is no record yet.
    pub(super) slot: u64,
    /// Bytes of all records before it.
    pub(super) bytes_before: u64,
}

/// From where on the journal is without gaps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Floor {
    /// The first record that was not pruned; position 0 where none was.
    pub(super) place: Place,
    /// Bytes of record 0, which is kept. 0 where nothing was pruned.
    pub(super) genesis_bytes: u64,
}

/// Where a fence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FenceAt {
    /// The position of the next record.
    pub(super) next: Position,
    pub(super) slot: u64,
}

/// Where the bytes of a blob are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobAt {
    pub(super) copy: BlobCopy,
    /// Length of the content.
    pub(super) bytes: u64,
}

/// What a writer knows of a store when it writes a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) floor: Floor,
    pub(super) tail: Place,
    /// Fences, in the order of their slots.
    pub(super) fences: Vec<FenceAt>,
    /// The number of the seal of each sealed term.
    pub(super) seals: BTreeMap<u64, u64>,
    pub(super) blobs: BTreeMap<Digest, BlobAt>,
    pub(super) items: BTreeMap<String, Vec<u8>>,
    pub(super) checkpoints: BTreeMap<Position, Vec<u8>>,
}

impl Snapshot {
    pub(super) fn to_object(&self, author: Author) -> Vec<u8> {
        let mut out = Vec::new();
        let mut numbers = |numbers: &[u64]| numbers.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        let (floor, tail) = (self.floor.place, self.tail);
        numbers(&[floor.position.0, floor.slot, floor.bytes_before, self.floor.genesis_bytes]);
        numbers(&[tail.position.0, tail.slot, tail.bytes_before]);
        put_count(&mut out, self.fences.len());
        for fence in &self.fences {
            put_numbers(&mut out, &[fence.next.0, fence.slot]);
        }
        put_count(&mut out, self.seals.len());
        for (term, number) in &self.seals {
            put_numbers(&mut out, &[*term, *number]);
        }
        put_count(&mut out, self.blobs.len());
        for (id, at) in &self.blobs {
            out.extend_from_slice(&id.0);
            put_numbers(&mut out, &[at.copy.term, at.copy.number, at.bytes]);
        }
        put_count(&mut out, self.items.len());
        for (key, value) in &self.items {
            put_counted(&mut out, key.as_bytes());
            put_counted(&mut out, value);
        }
        put_count(&mut out, self.checkpoints.len());
        for (position, manifest) in &self.checkpoints {
            put_numbers(&mut out, &[position.0]);
            put_counted(&mut out, manifest);
        }
        object(Kind::Snapshot, author, &out)
    }

    fn from_body(body: &[u8]) -> Result<Self, Problem> {
        let mut reader = Reader(body);
        let mut out = Self::default();
        out.floor.place = place(&mut reader)?;
        out.floor.genesis_bytes = reader.u64()?;
        out.tail = place(&mut reader)?;
        for _ in 0..reader.u32()? {
            out.fences.push(FenceAt { next: Position(reader.u64()?), slot: reader.u64()? });
        }
        for _ in 0..reader.u32()? {
            out.seals.insert(reader.u64()?, reader.u64()?);
        }
        for _ in 0..reader.u32()? {
            let id = Digest(reader.array()?);
            let copy = BlobCopy { term: reader.u64()?, number: reader.u64()? };
            out.blobs.insert(id, BlobAt { copy, bytes: reader.u64()? });
        }
        for _ in 0..reader.u32()? {
            let key = std::str::from_utf8(reader.counted()?).map_err(|_| "has a key that is no text")?;
            out.items.insert(key.to_owned(), reader.counted()?.to_vec());
        }
        for _ in 0..reader.u32()? {
            out.checkpoints.insert(Position(reader.u64()?), reader.counted()?.to_vec());
        }
        reader.end()?;
        Ok(out)
    }
}

fn place(reader: &mut Reader<'_>) -> Result<Place, Problem> {
    Ok(Place { position: Position(reader.u64()?), slot: reader.u64()?, bytes_before: reader.u64()? })
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

/// What a number of a term's catalogue holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Numbered {
    /// A snapshot.
    Snapshot(Box<Snapshot>),
    /// The end of the term, put by the writer of a later one.
    Seal,
}

impl Numbered {
    pub(super) fn read(bytes: &[u8]) -> Result<(Author, Self), Problem> {
        let (kind, author, body) = read(bytes)?;
        match kind {
            Kind::Snapshot => Ok((author, Self::Snapshot(Box::new(Snapshot::from_body(body)?)))),
            Kind::Seal => Ok((author, Self::Seal)),
            _ => Err("is no part of a catalogue"),
        }
    }
}

/// The numbers that are kept of a term's snapshots when `newest` is the newest: `newest` with its lowest bits cleared, one
/// after another. [`find`](super::terms) finds `newest` among them without a listing: bit by bit from the highest, each
/// number either is there or was never made.
pub(super) fn kept(newest: u64) -> Vec<u64> {
    let mut kept = Vec::new();
    let mut number = newest;
    while number != 0 {
        kept.push(number);
        number &= number - 1;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let place = |position, slot, bytes_before| Place { position: Position(position), slot, bytes_before };
        Snapshot {
            floor: Floor { place: place(5, 7, 100), genesis_bytes: 20 },
            tail: place(9, 12, 300),
            fences: vec![FenceAt { next: Position(0), slot: 0 }, FenceAt { next: Position(6), slot: 7 }],
            seals: [(1, 9), (2, 1)].into(),
            blobs: [(Digest([4; 32]), BlobAt { copy: BlobCopy { term: 1, number: 2 }, bytes: 77 })].into(),
            items: [("token/a".to_owned(), vec![1, 2]), ("run".to_owned(), vec![])].into(),
            checkpoints: [(Position(8), vec![9; 5])].into(),
        }
    }

    #[test]
    fn a_snapshot_comes_back_and_every_change_of_its_bytes_is_noticed() {
        let author = Author { term: 2, writer: [1; 16] };
        let bytes = snapshot().to_object(author);
        assert_eq!(Numbered::read(&bytes), Ok((author, Numbered::Snapshot(Box::new(snapshot())))));
        assert_eq!(bytes[5], 4);
        for len in 0..bytes.len() {
            assert!(Numbered::read(&bytes[..len]).is_err(), "a prefix of {len} bytes was accepted");
        }
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(Numbered::read(&broken).is_err(), "flipping bit {bit} went unnoticed");
        }
    }

    #[test]
    fn the_kept_numbers_are_few_and_lead_to_the_newest() {
        assert_eq!(kept(0), [0; 0]);
        assert_eq!(kept(8), [8]);
        assert_eq!(kept(13), [13, 12, 8]);
        for newest in 1..2000u64 {
            let next = kept(newest + 1);
            // Only what was there, and the new one, is needed afterwards.
            assert!(next.iter().all(|number| *number == newest + 1 || kept(newest).contains(number)));
            assert!(next.len() <= 12);
        }
    }
}
