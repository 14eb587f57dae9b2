//! Blobs on a [`Medium`], and which of them are known to be whole.

use anabranch_common::ids::Digest;

use super::Engine;
use super::entries::Entries;
use crate::store::layout::{EntryHead, INLINE_BYTES, Name};
use crate::store::{Area, Blobs, Medium, StorageError};

impl<M: Medium> Blobs for Engine<M> {
    fn put(&self, id: Digest, bytes: &[u8]) -> Result<(), StorageError> {
        let name = Name::Blob(id);
        if matches!(self.entries.read(&name), Ok(Some(stored)) if stored == bytes) {
            self.whole.lock().insert(id);
            return Ok(());
        }
        self.whole.lock().remove(&id);
        self.entries.write_over(&name, bytes, INLINE_BYTES)?;
        self.whole.lock().insert(id);
        Ok(())
    }

    fn get(&self, id: Digest) -> Result<Option<Vec<u8>>, StorageError> {
        let read = self.entries.read(&Name::Blob(id));
        if matches!(read, Ok(Some(_))) {
            self.whole.lock().insert(id);
        } else {
            self.whole.lock().remove(&id);
        }
        read
    }

    fn holds(&self, id: Digest) -> Result<bool, StorageError> {
        if self.whole.lock().contains(&id) {
            return Ok(true);
        }
        match Blobs::get(self, id) {
            Err(StorageError::Corrupt { .. }) => Ok(false),
            read => Ok(read?.is_some()),
        }
    }

    fn bytes(&self, id: Digest) -> Result<Option<u64>, StorageError> {
        let name = Name::Blob(id);
        let Some(value) = self.entries.medium.get(Area::Catalogue, &name.key())? else { return Ok(None) };
        EntryHead::from_value(&value).map(|(head, _)| Some(head.len)).map_err(|what| self.entries.damaged(&name, what))
    }

    fn delete(&self, id: Digest) -> Result<(), StorageError> {
        self.whole.lock().remove(&id);
        self.entries.delete(&Name::Blob(id)).map(drop)
    }

    fn list(&self) -> Result<Vec<Digest>, StorageError> {
        let range = Name::Blob(Digest([0; 32])).key()..=Name::Blob(Digest([u8::MAX; 32])).key();
        let keys = self.entries.keys(Area::Catalogue, range)?;
        let digest = |key: &Vec<u8>| match Name::of_key(key) {
            Some(Name::Blob(id)) => Some(id),
            _ => None,
        };
        Ok(keys.iter().filter_map(digest).collect())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.commit()
    }
}

/// Removes the chunks of blobs that are not listed: a deletion was cut short, or the entry of a
/// new one was lost.
pub(super) fn sweep_chunks<M: Medium>(entries: &Entries<M>) -> Result<(), StorageError> {
    let first = Name::Blob(Digest([0; 32])).chunk_key(0);
    for key in entries.keys(Area::Bulk, first..=Name::Blob(Digest([u8::MAX; 32])).chunk_key(u32::MAX))? {
        let owner = &key[..key.len().saturating_sub(4)];
        if entries.medium.get(Area::Catalogue, owner)?.is_none() {
            entries.remove(Area::Bulk, &key)?;
        }
    }
    Ok(())
}
