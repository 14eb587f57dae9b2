//! Bytes of objects. Every object has a head that says who wrote it, and a checksum of all that follows.
//!
//! ```text
//!  0        4         5      6          8        16              32         36
//!  ┌────────┬─────────┬──────┬──────────┬────────┬───────────────┬──────────┬──────┐
//!  │ "ANBO" │ version │ kind │ reserved │ term   │ writer        │ crc32c   │ body │
//!  │        │ u8 = 1  │ u8   │ u16 = 0  │ u64 le │ 16 bytes      │ u32 le   │      │
//!  └────────┴─────────┴──────┴──────────┴────────┴───────────────┴──────────┴──────┘
//! ```
//! The checksum is of the first 32 bytes and the body. The 16 bytes of a writer are drawn at random when it opens the
//! store, so no two writers ever put the same object.
//!
//! | kind | body |
//! |---|---|
//! | 1 term | name of the writer, UTF-8 |
//! | 2 fence | position of the next record u64, bytes of all records before u64, name of the writer |
//! | 3 group | position of its first record u64, bytes of all records before u64, number n of records u32, n lengths u32, the records |
//! | 4 snapshot | `snapshot.rs` |
//! | 5 seal | empty |
//! | 6 blob | its content |

use anabranch_common::ids::Position;
use anabranch_common::limits;

/// What every object begins with.
const MAGIC: &[u8; 4] = b"ANBO";
/// Version of the layout.
const VERSION: u8 = 1;
/// Bytes before the body.
pub(super) const HEAD_BYTES: usize = 36;

/// Who wrote an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Author {
    pub(super) term: u64,
    pub(super) writer: [u8; 16],
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Term = 1,
    Fence = 2,
    Group = 3,
    Snapshot = 4,
    Seal = 5,
    Blob = 6,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Term, Self::Fence, Self::Group, Self::Snapshot, Self::Seal, Self::Blob]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// What is wrong with an object, as a fragment for a message.
pub(super) type Problem = &'static str;

const SHORT: Problem = "is shorter than it says";

/// Encodes an object.
pub(super) fn object(kind: Kind, author: Author, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + body.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[VERSION, kind as u8, 0, 0]);
    out.extend_from_slice(&author.term.to_le_bytes());
    out.extend_from_slice(&author.writer);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), body);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// Reads an object: what it is, who wrote it, and its body.
pub(super) fn read(bytes: &[u8]) -> Result<(Kind, Author, &[u8]), Problem> {
    let (head, body) = bytes.split_at_checked(HEAD_BYTES).ok_or("is shorter than its head")?;
    if &head[..4] != MAGIC {
        return Err("is not an object of this program");
    }
    let mut reader = Reader(&head[8..]);
    let (term, writer, crc) = (reader.u64()?, reader.array()?, reader.u32()?);
    if crc32c::crc32c_append(crc32c::crc32c(&head[..32]), body) != crc {
        return Err("does not match its checksum");
    }
    if head[4] != VERSION {
        return Err("has a layout that this version does not know");
    }
    let kind = Kind::of(head[5]).ok_or("is of a kind that this version does not know")?;
    Ok((kind, Author { term, writer }, body))
}

/// Takes numbers and texts off the front of some bytes.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Bytes behind their length.
    pub(super) fn counted(&mut self) -> Result<&'a [u8], Problem> {
        let len = self.u32()?;
        self.bytes(usize::try_from(len).map_err(|_| SHORT)?)
    }

    pub(super) fn end(&self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err("is longer than it says") }
    }
}

/// Appends bytes behind their length, which is far below 4 GiB for everything that a store holds.
pub(super) fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The name of a writer as objects carry it: cut at the bound.
pub(super) fn writer_name(name: &str) -> &str {
    let mut end = name.len().min(limits::OBJECT_WRITER_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// What a slot of the journal holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// The beginning of a term.
    Fence(Fence),
    /// Records.
    Group(Group),
}

/// The beginning of a term in the journal. Takes one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fence {
    /// The position of the next record.
    pub(super) next: Position,
    /// Bytes of all records before it.
    pub(super) bytes_before: u64,
    /// Name of the writer.
    pub(super) name: String,
}

impl Fence {
    pub(super) fn to_object(&self, author: Author) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.next.0.to_le_bytes());
        body.extend_from_slice(&self.bytes_before.to_le_bytes());
        body.extend_from_slice(self.name.as_bytes());
        object(Kind::Fence, author, &body)
    }
}

/// Records that became durable together. Takes one slot for each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// The position of the first one.
    pub(super) first: Position,
    /// Bytes of all records before it.
    pub(super) bytes_before: u64,
    /// The records; at least one.
    pub(super) records: Vec<Vec<u8>>,
}

impl Group {
    pub(super) fn to_object(&self, author: Author) -> Vec<u8> {
        let bytes: usize = self.records.iter().map(Vec::len).sum();
        let mut body = Vec::with_capacity(20 + 4 * self.records.len() + bytes);
        body.extend_from_slice(&self.first.0.to_le_bytes());
        body.extend_from_slice(&self.bytes_before.to_le_bytes());
        let count = u32::try_from(self.records.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(&count.to_le_bytes());
        for record in &self.records {
            body.extend_from_slice(&u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
        self.records.iter().for_each(|record| body.extend_from_slice(record));
        object(Kind::Group, author, &body)
    }

    /// The position after the last record.
    pub(super) fn end(&self) -> Position {
        Position(self.first.0 + self.records.len() as u64)
    }

    /// Bytes of its records.
    pub(super) fn bytes(&self) -> u64 {
        self.records.iter().map(|record| record.len() as u64).sum()
    }

    /// Bytes of all records of the journal before `position`, which is in this group or right after it.
    pub(super) fn bytes_below(&self, position: Position) -> u64 {
        let before = self.records.iter().zip(self.first.0..position.0);
        self.bytes_before + before.map(|(record, _)| record.len() as u64).sum::<u64>()
    }
}

impl Entry {
    pub(super) fn read(bytes: &[u8]) -> Result<(Author, Self), Problem> {
        let (kind, author, body) = read(bytes)?;
        let mut reader = Reader(body);
        match kind {
            Kind::Fence => {
                let (next, bytes_before) = (Position(reader.u64()?), reader.u64()?);
                let name = std::str::from_utf8(reader.0).map_err(|_| "names a writer that is no text")?;
                Ok((author, Self::Fence(Fence { next, bytes_before, name: name.to_owned() })))
            }
            Kind::Group => {
                let (first, bytes_before, count) = (Position(reader.u64()?), reader.u64()?, reader.u32()?);
                let mut lengths = Reader(reader.bytes((count as usize).checked_mul(4).ok_or(SHORT)?)?);
                let mut records = Vec::with_capacity(count as usize);
                for _ in 0..count {
                    records.push(reader.bytes(lengths.u32()? as usize)?.to_vec());
                }
                reader.end()?;
                if records.is_empty() {
                    return Err("is a group without records");
                }
                Ok((author, Self::Group(Group { first, bytes_before, records })))
            }
            _ => Err("is no part of a journal"),
        }
    }

    /// How many slots it takes.
    pub(super) fn slots(&self) -> u64 {
        match self {
            Self::Fence(_) => 1,
            Self::Group(group) => group.records.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTHOR: Author = Author { term: 3, writer: [7; 16] };

    fn group() -> Group {
        Group { first: Position(5), bytes_before: 40, records: vec![vec![1; 3], vec![], vec![2; 2]] }
    }

    /// The layout is a promise to buckets that exist: these bytes may not change without a new version.
    #[test]
    fn the_bytes_of_a_group_are_these() {
        let bytes = group().to_object(AUTHOR);
        assert_eq!(bytes[..8], *b"ANBO\x01\x03\0\0");
        assert_eq!(bytes[8..16], 3u64.to_le_bytes());
        assert_eq!(bytes[16..32], [7; 16]);
        assert_eq!(bytes[HEAD_BYTES..HEAD_BYTES + 8], 5u64.to_le_bytes());
        assert_eq!(bytes[HEAD_BYTES + 16..HEAD_BYTES + 24], *b"\x03\0\0\0\x03\0\0\0");
        assert_eq!(Entry::read(&bytes), Ok((AUTHOR, Entry::Group(group()))));
        assert_eq!((group().end(), group().bytes(), group().bytes_below(Position(7))), (Position(8), 5, 43));
    }

    #[test]
    fn every_flipped_bit_and_every_prefix_is_noticed() {
        let fence = Fence { next: Position(4), bytes_before: 9, name: "trainer".into() };
        for bytes in [group().to_object(AUTHOR), fence.to_object(AUTHOR)] {
            for len in 0..bytes.len() {
                assert!(Entry::read(&bytes[..len]).is_err(), "a prefix of {len} bytes was accepted");
            }
            for bit in 0..bytes.len() * 8 {
                let mut broken = bytes.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                assert!(Entry::read(&broken).is_err(), "flipping bit {bit} went unnoticed");
            }
        }
    }

    #[test]
    fn the_name_of_a_writer_is_cut_at_the_bound() {
        let name = "ä".repeat(limits::OBJECT_WRITER_BYTES);
        let cut = writer_name(&name);
        assert!(cut.len() <= limits::OBJECT_WRITER_BYTES && cut.len() + 2 > limits::OBJECT_WRITER_BYTES);
        assert_eq!(writer_name("trainer"), "trainer");
    }
}
