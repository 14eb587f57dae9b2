//! Blobs in a bucket. Each is put at once, under a key of its own; it counts when a snapshot lists it.

use anabranch_common::ids::Digest;

use super::book::blob_object_bytes;
use super::bucket::{self, Put};
use super::format::{self, Kind};
use super::snapshot::BlobAt;
use super::{ObjectStore, keys};
use crate::store::{Blobs, StorageError};

impl ObjectStore {
    fn read_blob(&self, id: Digest) -> Result<Option<Vec<u8>>, StorageError> {
        let at = {
            let book = self.book.lock();
            if let Some(content) = book.private.get(&id) {
                return Ok(Some(content.clone()));
            }
            let Some(at) = book.blobs.get(&id).copied() else { return Ok(None) };
            at
        };
        let key = keys::blob(id, at.copy);
        let damaged = |what| Err(bucket::damaged(self.bucket.as_ref(), &key, what));
        let Some(bytes) = bucket::get(self.bucket.as_ref(), &key)? else { return damaged("is missing") };
        match format::read(&bytes) {
            Ok((Kind::Blob, _, content)) if content.len() as u64 == at.bytes => Ok(Some(content.to_vec())),
            Ok(_) => damaged("is not the blob that was stored"),
            Err(what) => damaged(what),
        }
    }

    /// Reads a blob, and notes whether it is whole.
    fn look_at_blob(&self, id: Digest) -> Result<Option<Vec<u8>>, StorageError> {
        let read = self.read_blob(id);
        let mut book = self.book.lock();
        if matches!(read, Ok(Some(_))) {
            book.whole.insert(id);
        } else {
            book.whole.remove(&id);
        }
        read
    }
}

impl Blobs for ObjectStore {
    fn put(&self, id: Digest, bytes: &[u8]) -> Result<(), StorageError> {
        self.check_running()?;
        if matches!(self.look_at_blob(id), Ok(Some(stored)) if stored == bytes) {
            return Ok(());
        }
        let len = bytes.len() as u64;
        let copy = self.book.lock().next_blob();
        let at = BlobAt { copy, bytes: len };
        if let Some(author) = self.author {
            let (key, object) = (keys::blob(id, copy), format::object(Kind::Blob, author, bytes));
            match bucket::create(self.bucket.as_ref(), &key, &object)? {
                Put::Done => self.stored(object.len()),
                Put::Taken(other) => return Err(self.taken(&key, &other)),
            }
        }
        let mut book = self.book.lock();
        if self.author.is_none() {
            book.private.insert(id, bytes.to_vec());
        }
        // A damaged one stays until a snapshot lists the new one.
        if let Some(old) = book.blobs.insert(id, at) {
            book.discard(keys::blob(id, old.copy), blob_object_bytes(&old));
        }
        book.whole.insert(id);
        book.change();
        Ok(())
    }

    fn get(&self, id: Digest) -> Result<Option<Vec<u8>>, StorageError> {
        self.look_at_blob(id)
    }

    fn holds(&self, id: Digest) -> Result<bool, StorageError> {
        if self.book.lock().whole.contains(&id) {
            return Ok(true);
        }
        match self.look_at_blob(id) {
            Err(StorageError::Corrupt { .. }) => Ok(false),
            read => Ok(read?.is_some()),
        }
    }

    fn bytes(&self, id: Digest) -> Result<Option<u64>, StorageError> {
        Ok(self.book.lock().blobs.get(&id).map(|at| at.bytes))
    }

    fn delete(&self, id: Digest) -> Result<(), StorageError> {
        self.check_running()?;
        let mut book = self.book.lock();
        book.whole.remove(&id);
        book.private.remove(&id);
        if let Some(old) = book.blobs.remove(&id) {
            book.discard(keys::blob(id, old.copy), blob_object_bytes(&old));
            book.change();
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<Digest>, StorageError> {
        Ok(self.book.lock().blobs.keys().copied().collect())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.commit()
    }
}
