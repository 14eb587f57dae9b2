//! The catalogue in a bucket: in memory, and as a whole in each snapshot.

use anabranch_common::ids::Position;

use super::{ObjectStore, terms};
use crate::store::layout::SMALL_BYTES;
use crate::store::{Catalogue, StorageError};

impl ObjectStore {
    fn check_small(&self, what: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.check_running()?;
        if bytes.len() <= SMALL_BYTES {
            return Ok(());
        }
        let problem = format!("{what} of {} bytes, more than {SMALL_BYTES}", bytes.len());
        Err(terms::refused(self.bucket.as_ref(), problem))
    }
}

impl Catalogue for ObjectStore {
    fn put(&self, key: &str, value: &[u8]) -> Result<(), StorageError> {
        self.check_small(&format!("value {key:?}"), value)?;
        let mut book = self.book.lock();
        book.items.insert(key.to_owned(), value.to_vec());
        book.change();
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.book.lock().items.get(key).cloned())
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let book = self.book.lock();
        let from = book.items.range(prefix.to_owned()..).map(|(key, _)| key);
        Ok(from.take_while(|key| key.starts_with(prefix)).cloned().collect())
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.check_running()?;
        let mut book = self.book.lock();
        if book.items.remove(key).is_some() {
            book.change();
        }
        Ok(())
    }

    fn put_checkpoint(&self, position: Position, manifest: &[u8]) -> Result<(), StorageError> {
        self.check_small(&format!("checkpoint at position {position}"), manifest)?;
        let mut book = self.book.lock();
        book.checkpoints.insert(position, manifest.to_vec());
        book.change();
        Ok(())
    }

    fn checkpoints(&self) -> Result<Vec<(Position, Vec<u8>)>, StorageError> {
        let book = self.book.lock();
        Ok(book.checkpoints.iter().map(|(position, manifest)| (*position, manifest.clone())).collect())
    }

    fn delete_checkpoint(&self, position: Position) -> Result<(), StorageError> {
        self.check_running()?;
        let mut book = self.book.lock();
        if book.checkpoints.remove(&position).is_some() {
            book.change();
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.commit()
    }
}
