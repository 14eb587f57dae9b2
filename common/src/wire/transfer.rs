//! Bulk transfers: 1 MiB chunks, each under its own digest, each on a stream of its own, so that after a reconnect only
//! the missing ones are sent.

use crate::ids::Digest;
use crate::limits::{CHUNK_BYTES, TRANSFER_BYTES, UPLOAD_GRACE_MS, UPLOAD_MIN_BYTES_PER_S};

/// Length of a transfer and the digest of each of its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferManifest {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of each chunk; every chunk but the last is `CHUNK_BYTES` long.
    pub chunks: Vec<Digest>,
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
}

impl TransferManifest {
    /// The manifest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self { bytes: content.len() as u64, chunks: content.chunks(CHUNK_BYTES).map(Digest::of).collect() }
    }

    /// Checks that length and digests fit each other and the limits.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn validate(&self, max_bytes: u64) -> Result<(), TransferError> {
        let max = max_bytes.min(TRANSFER_BYTES);
        if self.bytes > max {
            return Err(TransferError::TooLarge { found: self.bytes, max });
        }
        if self.chunks.len() as u64 != self.bytes.div_ceil(CHUNK_BYTES as u64) {
            return Err(TransferError::ChunkCount { bytes: self.bytes, chunks: self.chunks.len() });
        }
        Ok(())
    }

    /// Digest over the manifest itself: the transfer's name.
    #[must_use]
    pub fn id(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
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

    /// Where chunk `index` lies in the content.
    #[must_use]
    pub fn range(&self, index: u32) -> Option<std::ops::Range<usize>> {
        let start = (index as usize).checked_mul(CHUNK_BYTES)?;
        let end = usize::try_from(self.bytes).ok()?.min(start.checked_add(CHUNK_BYTES)?);
        (start < end).then_some(start..end)
    }
}

impl TransferManifest {
    /// Where `chunk` lies in the content as chunk `index`.
    ///
    /// # Errors
    /// There is no such chunk, or it has another length.
    pub fn placed(&self, index: u32, chunk: &[u8]) -> Result<std::ops::Range<usize>, TransferError> {
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
    pub(crate) fn place(&mut self, index: u32, range: std::ops::Range<usize>, chunk: &[u8]) -> bool {
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
        let lie = TransferManifest { bytes: u64::MAX, chunks: vec![] };
        assert!(matches!(Assembly::new(lie, u64::MAX), Err(TransferError::TooLarge { .. })));
        let lie = TransferManifest { bytes: 1 << 30, chunks: vec![Digest::default()] };
        assert!(matches!(Assembly::new(lie, u64::MAX), Err(TransferError::ChunkCount { .. })));
    }

    #[test]
    fn an_empty_transfer_is_complete() {
        let assembly = Assembly::new(TransferManifest::of(&[]), 10).expect("valid");
        assert_eq!(assembly.finish(), Some(vec![]));
    }
}
