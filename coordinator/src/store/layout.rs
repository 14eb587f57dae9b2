//! Keys and entries: how everything that is stored lies in the two areas of a [`Medium`](super::Medium).
//!
//! | kind | key in `Catalogue` | chunks in `Bulk` | content |
//! |---|---|---|---|
//! | `r` record | `r`, position u64 be | `r`, position u64 be, chunk u32 be | `journal::Record` bytes |
//! | `b` blob | `b`, digest 32 bytes | `b`, digest, chunk u32 be | models, merge vectors, heads and pages of saved folds |
//! | `c` checkpoint | `c`, position u64 be | none | `recovery::checkpoint` manifest |
//! | `i` item | `i`, key in UTF-8 | none | values that are replaced |
//! | `p` pruned | `p` | none | u64 le: records from 1 to below this are gone |
//!
//! An entry in the catalogue is a head, followed by the content if that has at most [`INLINE_BYTES`] bytes (or if its
//! kind is kept whole); otherwise the content lies in chunks of [`CHUNK_BYTES`]:
//!
//! ```text
//!  0         1           2          4              12           16               24         28
//!  ┌─────────┬───────────┬──────────┬──────────────┬────────────┬────────────────┬──────────┬─────────┐
//!  │ layout  │ placement │ reserved │ content len  │content crc │ durable below  │ head crc │ content │
//!  │ u8 = 2  │ u8        │ u16 = 0  │ u64 le       │ crc32c     │ u64 le         │ crc32c   │         │
//!  └─────────┴───────────┴──────────┴──────────────┴────────────┴────────────────┴──────────┴─────────┘
//! ```
//! `durable below` is used by records: when this one was written, every record below that position had been committed.
//! It is what tells a torn tail (never acknowledged, dropped at opening) from damage (refused).

use anabranch_common::ids::{Digest, Position};
use anabranch_common::limits;

/// Version of the entry head.
pub const LAYOUT_VERSION: u8 = 2;
/// Bytes of an entry head.
pub const HEAD_BYTES: usize = 28;
/// Contents up to this length lie beside their head.
pub const INLINE_BYTES: usize = 1 << 10;
/// Longest content of a manifest or an item, which are never chunked: replacing them must be atomic.
pub const SMALL_BYTES: usize = limits::STORE_VALUE_BYTES - HEAD_BYTES;
/// Bytes of one chunk: the largest value whose pages sled reclaims well.
pub const CHUNK_BYTES: usize = limits::STORE_VALUE_BYTES;

/// Where the content of an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// After the head.
    Inline,
    /// In chunks.
    Bulk,
}

/// The head of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHead {
    /// Where the content is.
    pub placement: Placement,
    /// Length of the content in bytes.
    pub len: u64,
    /// CRC32C of the content.
    pub crc: u32,
    /// For records: every record below this position was committed before this one was written.
    pub durable_below: Position,
}

impl EntryHead {
    /// The head of `content`; it goes into chunks when it is too long to lie beside the head.
    #[must_use]
    pub fn of(content: &[u8], inline_bytes: usize, durable_below: Position) -> Self {
        let placement = if content.len() <= inline_bytes { Placement::Inline } else { Placement::Bulk };
        Self { placement, len: content.len() as u64, crc: crc32c::crc32c(content), durable_below }
    }

    /// How many chunks the content has in bulk.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        match self.placement {
            Placement::Inline => 0,
            Placement::Bulk => self.len.div_ceil(CHUNK_BYTES as u64),
        }
    }

    /// The value that is stored: the head and, if it is inline, the content.
    #[must_use]
    pub fn to_value(self, content: &[u8]) -> Vec<u8> {
        let inline = if self.placement == Placement::Inline { content } else { &[] };
        let mut out = Vec::with_capacity(HEAD_BYTES + inline.len());
        out.push(LAYOUT_VERSION);
        out.push(u8::from(self.placement == Placement::Bulk));
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
        out.extend_from_slice(&self.durable_below.0.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.extend_from_slice(inline);
        out
    }

    /// Reads a stored value: the head, and the bytes after it.
    ///
    /// # Errors
    /// What is wrong with it, as a fragment for a message.
    pub fn from_value(value: &[u8]) -> Result<(Self, &[u8]), &'static str> {
        let Some((head, content)) = value.split_first_chunk::<HEAD_BYTES>() else {
            return Err("is shorter than its head");
        };
        let mut crc = [0; 4];
        crc.copy_from_slice(&head[24..28]);
        if crc32c::crc32c(&head[..24]) != u32::from_le_bytes(crc) {
            return Err("has a head that does not match its checksum");
        }
        if head[0] != LAYOUT_VERSION {
            return Err("has a layout that this version does not know");
        }
        let placement = if head[1] == 0 { Placement::Inline } else { Placement::Bulk };
        let u64_at = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        crc.copy_from_slice(&head[12..16]);
        let head =
            Self { placement, len: u64_at(4), crc: u32::from_le_bytes(crc), durable_below: Position(u64_at(16)) };
        Ok((head, content))
    }
}

/// What a key in the catalogue names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A journal record.
    Record(Position),
    /// A blob.
    Blob(Digest),
    /// A checkpoint manifest.
    Checkpoint(Position),
    /// A catalogue value.
    Item(String),
    /// The position below which records were pruned.
    Pruned,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Record(position) => write!(f, "record {position}"),
            Self::Blob(id) => write!(f, "blob {}", id.short()),
            Self::Checkpoint(position) => write!(f, "checkpoint at position {position}"),
            Self::Item(key) => write!(f, "value {key:?}"),
            Self::Pruned => f.write_str("pruning mark"),
        }
    }
}

impl Name {
    /// Its key in the catalogue.
    #[must_use]
    pub fn key(&self) -> Vec<u8> {
        match self {
            Self::Record(position) => positioned(b'r', *position),
            Self::Blob(id) => [&b"b"[..], &id.0].concat(),
            Self::Checkpoint(position) => positioned(b'c', *position),
            Self::Item(key) => [b"i", key.as_bytes()].concat(),
            Self::Pruned => vec![b'p'],
        }
    }

    /// The key of one of its chunks in bulk.
    #[must_use]
    pub fn chunk_key(&self, chunk: u32) -> Vec<u8> {
        let mut key = self.key();
        key.extend_from_slice(&chunk.to_be_bytes());
        key
    }

    /// What a key in the catalogue names; `None` for a key that this version never writes.
    #[must_use]
    pub fn of_key(key: &[u8]) -> Option<Self> {
        let (kind, rest) = key.split_first()?;
        let position = || Some(Position(u64::from_be_bytes(rest.try_into().ok()?)));
        Some(match kind {
            b'r' => Self::Record(position()?),
            b'b' => Self::Blob(Digest(rest.try_into().ok()?)),
            b'c' => Self::Checkpoint(position()?),
            b'i' => Self::Item(String::from_utf8(rest.to_vec()).ok()?),
            b'p' if rest.is_empty() => Self::Pruned,
            _ => return None,
        })
    }
}

fn positioned(kind: u8, position: Position) -> Vec<u8> {
    [&[kind][..], &position.0.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout is a promise to stores that exist: these bytes may not change without a new layout version.
    #[test]
    fn the_bytes_of_keys_and_heads_are_these() {
        assert_eq!(Name::Record(Position(258)).key(), *b"r\0\0\0\0\0\0\x01\x02");
        assert_eq!(Name::Record(Position(1)).chunk_key(3), *b"r\0\0\0\0\0\0\0\x01\0\0\0\x03");
        assert_eq!(Name::Item("token/a".into()).key(), *b"itoken/a");
        let head = EntryHead::of(b"hi", INLINE_BYTES, Position(5));
        let value = head.to_value(b"hi");
        assert_eq!(value[..12], *b"\x02\0\0\0\x02\0\0\0\0\0\0\0");
        assert_eq!(value[16..24], *b"\x05\0\0\0\0\0\0\0");
        assert_eq!(EntryHead::from_value(&value), Ok((head, &b"hi"[..])));
    }

    #[test]
    fn names_round_trip_and_strange_keys_are_not_names() {
        let names = [
            Name::Record(Position(7)),
            Name::Blob(Digest([9; 32])),
            Name::Checkpoint(Position(u64::MAX)),
            Name::Item("a".into()),
            Name::Pruned,
        ];
        for name in names {
            assert_eq!(Name::of_key(&name.key()), Some(name));
        }
        for key in [&b""[..], b"x", b"r123", b"b", b"p1", b"i\xff"] {
            assert_eq!(Name::of_key(key), None);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_head_is_noticed() {
        let value = EntryHead::of(&[1; 4096], INLINE_BYTES, Position(5)).to_value(&[]);
        for bit in 0..HEAD_BYTES * 8 {
            let mut broken = value.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(EntryHead::from_value(&broken).is_err(), "flipping bit {bit} went unnoticed");
        }
    }
}
