//! The catalogue on a [`Medium`].

use anabranch_common::ids::Position;

use super::Engine;
use crate::store::layout::Name;
use crate::store::{Area, Catalogue, Medium, StorageError};

impl<M: Medium> Catalogue for Engine<M> {
    fn put(&self, key: &str, value: &[u8]) -> Result<(), StorageError> {
        self.entries.write_small(&Name::Item(key.to_owned()), value)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError> {
        self.entries.read(&Name::Item(key.to_owned()))
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        // 0xff is in no UTF-8 text, so it comes after every key with this prefix.
        let mut end = Name::Item(prefix.to_owned()).key();
        end.push(u8::MAX);
        let keys = self.entries.keys(Area::Catalogue, Name::Item(prefix.to_owned()).key()..=end)?;
        let text = |key: &Vec<u8>| match Name::of_key(key) {
            Some(Name::Item(text)) => Some(text),
            _ => None,
        };
        Ok(keys.iter().filter_map(text).collect())
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.entries.delete(&Name::Item(key.to_owned())).map(drop)
    }

    fn put_checkpoint(&self, position: Position, manifest: &[u8]) -> Result<(), StorageError> {
        self.entries.write_small(&Name::Checkpoint(position), manifest)
    }

    fn checkpoints(&self) -> Result<Vec<(Position, Vec<u8>)>, StorageError> {
        let range = Name::Checkpoint(Position(0)).key()..=Name::Checkpoint(Position(u64::MAX)).key();
        let mut out = Vec::new();
        for key in self.entries.keys(Area::Catalogue, range)? {
            let Some(name @ Name::Checkpoint(position)) = Name::of_key(&key) else { continue };
            match self.entries.read(&name) {
                Ok(manifest) => out.extend(manifest.map(|manifest| (position, manifest))),
                Err(StorageError::Corrupt { .. }) => out.push((position, Vec::new())),
                Err(error) => return Err(error),
            }
        }
        Ok(out)
    }

    fn delete_checkpoint(&self, position: Position) -> Result<(), StorageError> {
        self.entries.delete(&Name::Checkpoint(position)).map(drop)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.commit()
    }
}
