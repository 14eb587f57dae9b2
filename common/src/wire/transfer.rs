//! Bulk transfers: 1 MiB chunks, each under its own digest, each on a stream of its own, so that after a reconnect only
//! the missing ones are sent.
//!
//! A transfer has sections. Chunks are cut from the start of each section, so that no chunk lies in two of them:
//!
//! ```text
//!  one section:   [ 1 MiB ][ 1 MiB ][ 1 MiB ][rest]
//!  three:         [ 1 MiB ][rest] | [rest] | [ 1 MiB ][ 1 MiB ][rest]
//! ```
//! The update of a pod has a section for what each helper can send (docs/adr/0032-ranges.md). Every other transfer has one.

use std::ops::Range;

use crate::ids::Digest;
use crate::limits::{CHUNK_BYTES, TRANSFER_BYTES, TRANSFER_SECTIONS, UPLOAD_GRACE_MS, UPLOAD_MIN_BYTES_PER_S};

/// Length of a transfer and the digest of each of its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferManifest {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of each chunk; every chunk but the last of a section is `CHUNK_BYTES` long.
    pub chunks: Vec<Digest>,
    /// Where the second section begins, and each one after it, in bytes.
    pub sections: Vec<u64>,
}

/// Why a transfer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Larger than allowed.
    #[error("transfer of {found} bytes, more than {max}")]
    TooLarge {
        /// Its length.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// The number of digests does not fit the length.
    #[error("transfer of {bytes} bytes in {chunks} chunks")]
    ChunkCount {
        /// Its length.
        bytes: u64,
        /// Digests given.
        chunks: usize,
    },
    /// The sections do not lie one after the other, or are too many.
    #[error("transfer of {bytes} bytes in {sections} sections, of which one is empty, out of place or too many")]
    Sections {
        /// Its length.
        bytes: u64,
        /// Sections given.
        sections: usize,
    },
    /// A chunk that is not part of it, or whose length is wrong.
    #[error("chunk {0} does not belong to the transfer")]
    NoSuchChunk(u32),
    /// A chunk whose content is not what was announced.
    #[error("chunk {0} does not match its digest")]
    Digest(u32),
}

/// Starts every chunk stream; the chunk's bytes follow to the end of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`TransferManifest::id`] of the transfer.
    pub transfer: Digest,
    /// Which chunk.
    pub index: u32,
    /// QUIC id of the control stream whose transfer it is: runs that share a connection may have transfers of one name.
    pub session: u64,
}

/// A section of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its bytes of the content.
    pub bytes: Range<u64>,
    /// Its chunks.
    pub chunks: Range<u32>,
}

impl TransferManifest {
    /// The manifest of `content`, in one section.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self::in_sections(content, Vec::new())
    }

    /// The manifest of `content`, whose second section and those after it begin at `starts`. [`validate`](Self::validate)
    /// refuses it unless these lie within the content and increase.
    #[must_use]
    pub fn in_sections(content: &[u8], starts: Vec<u64>) -> Self {
        let mut manifest = Self { bytes: content.len() as u64, chunks: Vec::new(), sections: starts };
        let section = |section: Section| content.get(to_usize(section.bytes.start)..to_usize(section.bytes.end));
        let contents: Vec<&[u8]> = manifest.sections().filter_map(section).collect();
        manifest.chunks = contents.into_iter().flat_map(|part| part.chunks(CHUNK_BYTES)).map(Digest::of).collect();
        manifest
    }

    /// Checks that length, sections and digests fit each other and the limits.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn validate(&self, max_bytes: u64) -> Result<(), TransferError> {
        let max = max_bytes.min(TRANSFER_BYTES);
        if self.bytes > max {
            return Err(TransferError::TooLarge { found: self.bytes, max });
        }
        let bounds = [0].into_iter().chain(self.sections.iter().copied()).chain([self.bytes]);
        let increases = self.sections.is_empty() || bounds.clone().zip(bounds.skip(1)).all(|(start, end)| start < end);
        if !increases || self.sections.len() >= TRANSFER_SECTIONS {
            return Err(TransferError::Sections { bytes: self.bytes, sections: self.sections.len() + 1 });
        }
        let chunks = self.sections().last().map_or(0, |section| section.chunks.end);
        if self.chunks.len() != chunks as usize {
            return Err(TransferError::ChunkCount { bytes: self.bytes, chunks: self.chunks.len() });
        }
        Ok(())
    }

    /// Digest over the manifest itself: the transfer's name.
    #[must_use]
    pub fn id(&self) -> Digest {
        let mut hasher = match &self.sections[..] {
            [] => blake3::Hasher::new(),
            sections => {
                let mut hasher = blake3::Hasher::new_derive_key("anabranch transfer in sections");
                hasher.update(&(sections.len() as u64).to_le_bytes());
                sections.iter().for_each(|start| _ = hasher.update(&start.to_le_bytes()));
                hasher
            }
        };
        hasher.update(&self.bytes.to_le_bytes());
        for chunk in &self.chunks {
            hasher.update(&chunk.0);
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// How long the whole transfer may take, in milliseconds: what is slower than `UPLOAD_MIN_BYTES_PER_S` is given up.
    #[must_use]
    pub fn deadline_ms(&self) -> u64 {
        UPLOAD_GRACE_MS.saturating_add(self.bytes.saturating_mul(1000) / UPLOAD_MIN_BYTES_PER_S)
    }

    /// The sections in their order, up to the first that lies out of place. One that is empty has no chunk.
    pub fn sections(&self) -> impl Iterator<Item = Section> + '_ {
        let starts = [0].into_iter().chain(self.sections.iter().copied());
        let ends = self.sections.iter().copied().chain([self.bytes]);
        starts.zip(ends).scan(0u32, |first, (start, end)| {
            let chunks = end.checked_sub(start)?.div_ceil(CHUNK_BYTES as u64);
            let chunks = *first..first.checked_add(u32::try_from(chunks).ok()?)?;
            *first = chunks.end;
            Some(Section { bytes: start..end, chunks })
        })
    }

    /// Where chunk `index` lies in the content.
    #[must_use]
    pub fn range(&self, index: u32) -> Option<Range<usize>> {
        let section = self.sections().find(|section| section.chunks.contains(&index))?;
        let within = u64::from(index - section.chunks.start).checked_mul(CHUNK_BYTES as u64)?;
        let start = section.bytes.start.checked_add(within)?;
        let end = section.bytes.end.min(start.checked_add(CHUNK_BYTES as u64)?);
        (start < end).then_some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl TransferManifest {
    /// Where `chunk` lies in the content as chunk `index`.
    ///
    /// # Errors
    /// There is no such chunk, or it has another length.
    pub fn placed(&self, index: u32, chunk: &[u8]) -> Result<Range<usize>, TransferError> {
        self.range(index).filter(|range| range.len() == chunk.len()).ok_or(TransferError::NoSuchChunk(index))
    }

    /// Checks a chunk's digest.
    ///
    /// # Errors
    /// It is not the announced one.
    pub fn matches(&self, index: u32, chunk: &[u8]) -> Result<(), TransferError> {
        let announced = self.chunks.get(index as usize).ok_or(TransferError::NoSuchChunk(index))?;
        if Digest::of(chunk) == *announced { Ok(()) } else { Err(TransferError::Digest(index)) }
    }
}

/// Which chunks are missing, one bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub(crate) bits: Vec<u8>,
}

impl Missing {
    /// All of `chunks` chunks.
    #[must_use]
    pub fn all(chunks: usize) -> Self {
        let mut missing = Self { bits: vec![0; chunks.div_ceil(8)] };
        (0..chunks).for_each(|index| missing.bits[index / 8] |= 1 << (index % 8));
        missing
    }

    /// The missing chunks in order, below `chunks`.
    pub fn indices(&self, chunks: usize) -> impl Iterator<Item = u32> + '_ {
        (0..chunks.min(self.bits.len() * 8))
            .filter(|index| self.bits[index / 8] & (1 << (index % 8)) != 0)
            .filter_map(|index| u32::try_from(index).ok())
    }

    /// Chunk `index` is here now.
    pub fn arrived(&mut self, index: u32) {
        if let Some(byte) = self.bits.get_mut(index as usize / 8) {
            *byte &= !(1 << (index % 8));
        }
    }

    /// Whether chunk `index` is missing.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.bits.get(index as usize / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }

    /// Whether nothing is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|byte| *byte == 0)
    }

    /// Those of `chunks`, counted from the first of these.
    #[must_use]
    pub fn within(&self, chunks: Range<u32>) -> Self {
        let mut within = Self { bits: vec![0; chunks.len().div_ceil(8)] };
        for (place, _) in chunks.enumerate().filter(|(_, index)| self.contains(*index)) {
            within.bits[place / 8] |= 1 << (place % 8);
        }
        within
    }

    /// Takes `chunks` out of these, and returns those of them that were missing.
    #[must_use]
    pub fn take(&mut self, chunks: Range<u32>) -> Self {
        let mut taken = Self { bits: vec![0; self.bits.len()] };
        let here = u32::try_from(self.bits.len() * 8).unwrap_or(u32::MAX);
        for index in chunks.start..chunks.end.min(here) {
            let (byte, bit) = (index as usize / 8, 1 << (index % 8));
            taken.bits[byte] |= self.bits[byte] & bit;
            self.bits[byte] &= !bit;
        }
        taken
    }

    /// The chunks that are missing here or in `other`.
    pub fn join(&mut self, other: &Self) {
        self.bits.resize(self.bits.len().max(other.bits.len()), 0);
        self.bits.iter_mut().zip(&other.bits).for_each(|(mine, others)| *mine |= others);
    }
}

/// A transfer on its way in: the buffer and what is still missing. The buffer is allocated when the transfer was
/// granted room, not before.
#[derive(Debug)]
pub struct Assembly {
    manifest: TransferManifest,
    content: Vec<u8>,
    missing: Missing,
}

impl Assembly {
    /// Starts an empty one.
    ///
    /// # Errors
    /// The manifest is not valid or larger than `max_bytes`.
    pub fn new(manifest: TransferManifest, max_bytes: u64) -> Result<Self, TransferError> {
        manifest.validate(max_bytes)?;
        let too_large = |_| TransferError::TooLarge { found: manifest.bytes, max: usize::MAX as u64 };
        let content = vec![0; usize::try_from(manifest.bytes).map_err(too_large)?];
        let missing = Missing::all(manifest.chunks.len());
        Ok(Self { manifest, content, missing })
    }

    /// Its manifest.
    #[must_use]
    pub fn manifest(&self) -> &TransferManifest {
        &self.manifest
    }

    /// What is missing.
    #[must_use]
    pub fn missing(&self) -> &Missing {
        &self.missing
    }

    /// Takes a chunk. A chunk that is already here changes nothing. Returns whether everything is here now.
    ///
    /// # Errors
    /// The chunk does not belong here or is not what was announced.
    pub fn put(&mut self, index: u32, chunk: &[u8]) -> Result<bool, TransferError> {
        let range = self.manifest.placed(index, chunk)?;
        if !self.missing.contains(index) {
            return Ok(self.missing.is_empty());
        }
        self.manifest.matches(index, chunk)?;
        Ok(self.place(index, range, chunk))
    }

    /// Copies a chunk that was checked to its place. Returns whether everything is here now.
    pub(crate) fn place(&mut self, index: u32, range: Range<usize>, chunk: &[u8]) -> bool {
        self.content[range].copy_from_slice(chunk);
        self.missing.arrived(index);
        self.missing.is_empty()
    }

    /// Takes the content out, once nothing is missing.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        self.missing.is_empty().then(|| std::mem::take(&mut self.content))
    }

    /// The content, once nothing is missing.
    #[must_use]
    pub fn finish(self) -> Option<Vec<u8>> {
        self.missing.is_empty().then_some(self.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_in_any_order_and_repeated_give_the_content_back() {
        let content: Vec<u8> = (0..251).cycle().take(CHUNK_BYTES * 2 + 77).collect();
        let manifest = TransferManifest::of(&content);
        let mut assembly = Assembly::new(manifest.clone(), u64::MAX).expect("valid");
        for index in [2u32, 0, 2, 0] {
            let range = manifest.range(index).expect("exists");
            assert_eq!(assembly.put(index, &content[range]), Ok(false));
        }
        assert_eq!(assembly.missing().indices(3).collect::<Vec<_>>(), [1]);
        assert_eq!(assembly.put(1, &content[..CHUNK_BYTES]), Err(TransferError::Digest(1)));
        assert_eq!(assembly.put(1, &content[CHUNK_BYTES..2 * CHUNK_BYTES]), Ok(true));
        assert_eq!(assembly.finish(), Some(content));
    }

    #[test]
    fn lying_manifests_are_refused_before_anything_is_allocated() {
        let lie = TransferManifest { bytes: u64::MAX, chunks: vec![], sections: vec![] };
        assert!(matches!(Assembly::new(lie, u64::MAX), Err(TransferError::TooLarge { .. })));
        let lie = TransferManifest { bytes: 1 << 30, chunks: vec![Digest::default()], sections: vec![] };
        assert!(matches!(Assembly::new(lie, u64::MAX), Err(TransferError::ChunkCount { .. })));
        let many: Vec<u64> = (1..=TRANSFER_SECTIONS as u64).collect();
        for sections in [vec![0], vec![10], vec![11], vec![4, 4], vec![6, 2], vec![u64::MAX], many] {
            let lie = TransferManifest { bytes: 10, chunks: vec![Digest::default(); 2], sections };
            let refused = Assembly::new(lie.clone(), u64::MAX);
            assert!(matches!(refused, Err(TransferError::Sections { .. })), "{lie:?}: {refused:?}");
            // What is asked about it before it is checked has an answer, too.
            assert!((0..4).all(|index| lie.range(index).is_none_or(|range| range.start < range.end)), "{lie:?}");
            assert_ne!(lie.id(), TransferManifest { sections: vec![], ..lie.clone() }.id());
        }
    }

    #[test]
    fn no_chunk_lies_in_two_sections_and_the_name_says_where_they_begin() {
        let content: Vec<u8> = (0..251).cycle().take(2 * CHUNK_BYTES + 77).collect();
        let whole = TransferManifest::of(&content);
        let cut = TransferManifest::in_sections(&content, vec![10, CHUNK_BYTES as u64 + 10]);
        assert_eq!(cut.validate(u64::MAX), Ok(()));
        let chunks: Vec<Range<u32>> = cut.sections().map(|section| section.chunks).collect();
        assert_eq!(chunks, [0..1, 1..2, 2..4]);
        assert_eq!(cut.range(3), Some(2 * CHUNK_BYTES + 10..content.len()));
        assert_eq!((cut.range(4), whole.range(3)), (None, None));
        let other = TransferManifest { sections: vec![11, CHUNK_BYTES as u64 + 10], ..cut.clone() };
        assert!(cut.id() != whole.id() && cut.id() != other.id());
    }

    #[test]
    fn missing_chunks_are_taken_and_joined() {
        let mut missing = Missing::all(11);
        missing.arrived(4);
        assert_eq!(missing.within(3..6).indices(3).collect::<Vec<_>>(), [0, 2]);
        let taken = missing.take(3..9);
        assert_eq!(taken.indices(11).collect::<Vec<_>>(), [3, 5, 6, 7, 8]);
        assert_eq!(missing.indices(11).collect::<Vec<_>>(), [0, 1, 2, 9, 10]);
        assert!(missing.take(90..95).is_empty(), "there are no such chunks");
        missing.join(&taken);
        assert_eq!(missing.indices(11).count(), 10);
    }

    #[test]
    fn an_empty_transfer_is_complete() {
        let assembly = Assembly::new(TransferManifest::of(&[]), 10).expect("valid");
        assert_eq!(assembly.finish(), Some(vec![]));
    }
}
