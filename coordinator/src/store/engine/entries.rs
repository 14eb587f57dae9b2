//! Entries of any kind on a [`Medium`]: a checked head, and the content beside it or in chunks.

use std::sync::atomic::{AtomicU64, Ordering};

use anabranch_common::ids::Position;

use crate::store::layout::{CHUNK_BYTES, EntryHead, Name, Placement, SMALL_BYTES};
use crate::store::{Area, Medium, StorageError};

/// The entries of a medium, how much of them is wanted, and whether any change waits for a commit.
#[derive(Debug)]
pub(super) struct Entries<M> {
    pub(super) medium: M,
    pub(super) live_bytes: AtomicU64,
    /// Insertions and removals that have returned.
    changes: AtomicU64,
    /// So many of them were followed by a successful commit.
    committed: AtomicU64,
}

impl<M: Medium> Entries<M> {
    pub(super) fn new(medium: M) -> Self {
        let none = || AtomicU64::new(0);
        Self { medium, live_bytes: none(), changes: none(), committed: none() }
    }

    /// Makes every change that has returned durable. Without a change since the last commit there
    /// is nothing to do.
    pub(super) fn commit(&self) -> Result<(), StorageError> {
        let changes = self.changes.load(Ordering::SeqCst);
        if self.committed.load(Ordering::SeqCst) < changes {
            self.medium.commit()?;
            self.committed.fetch_max(changes, Ordering::SeqCst);
        }
        Ok(())
    }

    fn insert(&self, area: Area, key: &[u8], value: Vec<u8>) -> Result<(), StorageError> {
        let inserted = self.medium.insert(area, key, value);
        self.changes.fetch_add(1, Ordering::SeqCst);
        inserted
    }

    pub(super) fn remove(&self, area: Area, key: &[u8]) -> Result<(), StorageError> {
        let removed = self.medium.remove(area, key);
        self.changes.fetch_add(1, Ordering::SeqCst);
        removed
    }

    pub(super) fn damaged(&self, name: &Name, what: &str) -> StorageError {
        StorageError::Corrupt { path: self.medium.path().to_path_buf(), detail: format!("{name} {what}") }
    }

    /// Whether head and chunks are there. Says nothing about their content.
    pub(super) fn is_whole(&self, name: &Name) -> Result<bool, StorageError> {
        let Some(value) = self.medium.get(Area::Catalogue, &name.key())? else { return Ok(false) };
        let (head, _) = EntryHead::from_value(&value).map_err(|what| self.damaged(name, what))?;
        for chunk in 0..self.chunks(name, &head)? {
            if self.medium.get(Area::Bulk, &name.chunk_key(chunk))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn chunks(&self, name: &Name, head: &EntryHead) -> Result<u32, StorageError> {
        u32::try_from(head.chunks()).map_err(|_| self.damaged(name, "has a head that says an impossible length"))
    }

    pub(super) fn keys(
        &self,
        area: Area,
        range: std::ops::RangeInclusive<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, StorageError> {
        self.medium.keys(area, range)
    }

    pub(super) fn count_live_bytes(&self) -> Result<u64, StorageError> {
        let mut live_bytes = 0;
        self.medium.scan(Area::Catalogue, vec![0]..=vec![u8::MAX], &mut |_, value| {
            live_bytes += EntryHead::from_value(value).map_or(0, |(head, _)| head.len);
            Ok(())
        })?;
        Ok(live_bytes)
    }

    /// Writes the catalogue's entry first, then the chunks: what a crash leaves behind is then
    /// always listed.
    pub(super) fn write(&self, name: &Name, content: &[u8], head: &EntryHead) -> Result<(), StorageError> {
        self.insert(Area::Catalogue, &name.key(), head.to_value(content))?;
        if head.placement == Placement::Bulk {
            for (chunk, bytes) in (0..self.chunks(name, head)?).zip(content.chunks(CHUNK_BYTES)) {
                self.insert(Area::Bulk, &name.chunk_key(chunk), bytes.to_vec())?;
            }
        }
        self.live_bytes_change(0, head.len);
        Ok(())
    }

    pub(super) fn write_small(&self, name: &Name, content: &[u8]) -> Result<(), StorageError> {
        if content.len() > SMALL_BYTES {
            let problem = format!("{name} of {} bytes, more than {SMALL_BYTES}", content.len());
            return Err(self.refused(problem));
        }
        self.write_over(name, content, SMALL_BYTES)
    }

    /// Writes an entry in place of what is there under its name, if anything is.
    pub(super) fn write_over(&self, name: &Name, content: &[u8], inline_bytes: usize) -> Result<(), StorageError> {
        let old = self.medium.get(Area::Catalogue, &name.key())?;
        let old = old.map(|value| EntryHead::from_value(&value).map(|(head, _)| head));
        let head = EntryHead::of(content, inline_bytes, Position(0));
        self.write(name, content, &head)?;
        if old.as_ref().is_some_and(|old| !matches!(old, Ok(old) if old.placement == Placement::Inline)) {
            let first = if head.placement == Placement::Bulk { self.chunks(name, &head)? } else { 0 };
            for key in self.keys(Area::Bulk, name.chunk_key(first)..=name.chunk_key(u32::MAX))? {
                self.remove(Area::Bulk, &key)?;
            }
        }
        self.live_bytes_change(old.and_then(Result::ok).map_or(0, |old| old.len), 0);
        Ok(())
    }

    pub(super) fn refused(&self, problem: String) -> StorageError {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, problem);
        StorageError::Io { path: self.medium.path().to_path_buf(), source }
    }

    pub(super) fn read(&self, name: &Name) -> Result<Option<Vec<u8>>, StorageError> {
        let Some(value) = self.medium.get(Area::Catalogue, &name.key())? else { return Ok(None) };
        let (head, inline) = EntryHead::from_value(&value).map_err(|what| self.damaged(name, what))?;
        let content = match head.placement {
            Placement::Inline => inline.to_vec(),
            Placement::Bulk => {
                let chunks = self.chunks(name, &head)?;
                // A damaged length must not reserve what was never stored.
                let whole = chunks == 0 || self.medium.get(Area::Bulk, &name.chunk_key(chunks - 1))?.is_some();
                let mut content = Vec::with_capacity(if whole { usize::try_from(head.len).unwrap_or(0) } else { 0 });
                for chunk in 0..chunks {
                    let bytes = self.medium.get(Area::Bulk, &name.chunk_key(chunk))?;
                    content.extend(bytes.ok_or_else(|| self.damaged(name, "is not complete"))?);
                }
                content
            }
        };
        self.check(name, &head, content).map(Some)
    }

    /// Passes the content on if it is what its head says.
    fn check(&self, name: &Name, head: &EntryHead, content: Vec<u8>) -> Result<Vec<u8>, StorageError> {
        if content.len() as u64 != head.len {
            return Err(self.damaged(name, "has another length than its head says"));
        }
        if crc32c::crc32c(&content) != head.crc {
            return Err(self.damaged(name, "does not match its checksum"));
        }
        Ok(content)
    }

    fn live_bytes_change(&self, less: u64, more: u64) {
        let change = |live: u64| Some((live + more).saturating_sub(less));
        _ = self.live_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Deletes the chunks first, so that a deletion that is cut short leaves an entry that can be
    /// deleted again.
    pub(super) fn delete(&self, name: &Name) -> Result<bool, StorageError> {
        let Some(value) = self.medium.get(Area::Catalogue, &name.key())? else { return Ok(false) };
        let len = match EntryHead::from_value(&value) {
            Ok((head, _)) => {
                for chunk in 0..self.chunks(name, &head)? {
                    self.remove(Area::Bulk, &name.chunk_key(chunk))?;
                }
                head.len
            }
            Err(_) => {
                for key in self.keys(Area::Bulk, name.chunk_key(0)..=name.chunk_key(u32::MAX))? {
                    self.remove(Area::Bulk, &key)?;
                }
                0
            }
        };
        self.remove(Area::Catalogue, &name.key())?;
        self.live_bytes_change(len, 0);
        Ok(true)
    }
}
