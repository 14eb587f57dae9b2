//! Items: values of the catalogue that are replaced, and that may be long.
//!
//! A short one lies beside its head and is replaced in one step. The chunks of a long one lie under a digest of key and
//! content, so that no chunk is ever written over: new chunks, commit, the head that names them, commit, and only then do
//! the old chunks go. Whatever is cut off in between, the head names chunks that are all there.

use std::collections::BTreeSet;

use anabranch_common::ids::{Digest, Position};

use super::engine::Engine;
use super::layout::{CHUNK_BYTES, EntryHead, ITEM_BYTES, Name, Placement, SMALL_BYTES, item_chunk_key};
use super::{Area, Medium, StorageError};

impl<M: Medium> Engine<M> {
    pub(super) fn write_item(&self, key: &str, content: &[u8]) -> Result<(), StorageError> {
        let name = Name::Item(key.to_owned());
        if content.len() > ITEM_BYTES {
            return Err(self.refused(format!("{name} of {} bytes, more than {ITEM_BYTES}", content.len())));
        }
        let old = self.medium.get(Area::Catalogue, &name.key())?;
        let old = old.as_deref().and_then(|value| EntryHead::from_value(value).ok());
        let old_chunks = old.and_then(|(head, rest)| chunks_of(&head, rest));
        if content.len() <= SMALL_BYTES {
            self.write_small(&name, content)?;
        } else {
            let place = Digest::of(&[Digest::of(key.as_bytes()).0, Digest::of(content).0].concat());
            if old_chunks == Some(place) && matches!(self.read_item(key), Ok(Some(_))) {
                return Ok(());
            }
            let head = EntryHead::of(content, SMALL_BYTES, Position(0));
            for (chunk, bytes) in (0u32..).zip(content.chunks(CHUNK_BYTES)) {
                self.medium.insert(Area::Bulk, &item_chunk_key(place, chunk), bytes.to_vec())?;
            }
            self.medium.commit()?;
            let value = [&head.to_value(&[])[..], &place.0].concat();
            self.medium.insert(Area::Catalogue, &name.key(), value)?;
            self.live_bytes_change(old.map_or(0, |(head, _)| head.len), head.len);
            if old_chunks == Some(place) {
                return Ok(());
            }
        }
        match old_chunks {
            Some(place) => {
                self.medium.commit()?;
                self.remove_item_chunks(place)
            }
            None => Ok(()),
        }
    }

    pub(super) fn read_item(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError> {
        let name = Name::Item(key.to_owned());
        let Some(value) = self.medium.get(Area::Catalogue, &name.key())? else { return Ok(None) };
        let (head, rest) = EntryHead::from_value(&value).map_err(|what| self.damaged(&name, what))?;
        if head.placement == Placement::Inline {
            return self.check(&name, &head, rest.to_vec()).map(Some);
        }
        let place = chunks_of(&head, rest).ok_or_else(|| self.damaged(&name, "does not say where its content is"))?;
        let mut content = Vec::new();
        for chunk in 0..self.chunks(&name, &head)? {
            let bytes = self.medium.get(Area::Bulk, &item_chunk_key(place, chunk))?;
            content.extend(bytes.ok_or_else(|| self.damaged(&name, "is not complete"))?);
        }
        self.check(&name, &head, content).map(Some)
    }

    pub(super) fn delete_whole_item(&self, key: &str) -> Result<(), StorageError> {
        let name = Name::Item(key.to_owned());
        let Some(value) = self.medium.get(Area::Catalogue, &name.key())? else { return Ok(()) };
        let head = EntryHead::from_value(&value).ok();
        self.medium.remove(Area::Catalogue, &name.key())?;
        self.live_bytes_change(head.map_or(0, |(head, _)| head.len), 0);
        match head.and_then(|(head, rest)| chunks_of(&head, rest)) {
            Some(place) => {
                self.medium.commit()?;
                self.remove_item_chunks(place)
            }
            None => Ok(()),
        }
    }

    fn remove_item_chunks(&self, place: Digest) -> Result<(), StorageError> {
        for key in self.keys(Area::Bulk, item_chunk_key(place, 0)..=item_chunk_key(place, u32::MAX))? {
            self.medium.remove(Area::Bulk, &key)?;
        }
        Ok(())
    }

    /// Removes chunks that no item names: what a crash left of a replacement.
    pub(super) fn sweep_item_chunks(&self) -> Result<(), StorageError> {
        let first = item_chunk_key(Digest([0; 32]), 0);
        let found = self.keys(Area::Bulk, first..=item_chunk_key(Digest([u8::MAX; 32]), u32::MAX))?;
        if found.is_empty() {
            return Ok(());
        }
        let mut named = BTreeSet::new();
        let items = Name::Item(String::new()).key()..=vec![b'i', u8::MAX];
        self.medium.scan(Area::Catalogue, items, &mut |_, value| {
            named.extend(EntryHead::from_value(value).ok().and_then(|(head, rest)| chunks_of(&head, rest)));
            Ok(())
        })?;
        for key in found {
            let place = key.get(1..33).and_then(|place| place.try_into().ok()).map(Digest);
            if !place.is_some_and(|place| named.contains(&place)) {
                self.medium.remove(Area::Bulk, &key)?;
            }
        }
        Ok(())
    }
}

/// Under which digest the chunks of an item lie, when it has any.
fn chunks_of(head: &EntryHead, rest: &[u8]) -> Option<Digest> {
    (head.placement == Placement::Bulk).then(|| rest.try_into().ok().map(Digest)).flatten()
}
