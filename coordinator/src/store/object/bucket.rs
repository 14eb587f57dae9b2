//! What the store needs of an object store: objects that are created once, read, deleted and listed.

use std::path::{Path, PathBuf};

use anabranch_common::limits;

use crate::store::StorageError;

/// What became of [`Bucket::create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is there and durable, with these bytes.
    Created,
    /// The store says that there is an object under this key. It may be the one that was meant, if an earlier answer was
    /// lost.
    Exists,
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// No answer, or one that says "later". The request may have been carried out, or may be carried out later.
    #[error("{0}")]
    Transient(String),
    /// The store refuses, and would refuse again: credentials, permissions, a bucket that does not exist.
    #[error("{0}")]
    Refused(String),
}

/// An object and its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key, below the prefix of the bucket.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Objects under keys. A key is created at most once, and an object never changes. A read of one key sees every creation
/// and deletion of that key that was answered before; a listing may lag behind. Every call blocks.
///
/// A deleted key can be created again by the store, which therefore never creates a key that it has deleted.
pub trait Bucket: Send + Sync + std::fmt::Debug {
    /// Creates an object, unless one is there.
    ///
    /// # Errors
    /// See [`BucketError`].
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, BucketError>;

    /// Returns the bytes of an object.
    ///
    /// # Errors
    /// See [`BucketError`].
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, BucketError>;

    /// Says whether there is an object.
    ///
    /// # Errors
    /// See [`BucketError`].
    fn exists(&self, key: &str) -> Result<bool, BucketError> {
        Ok(self.get(key)?.is_some())
    }

    /// Deletes an object, if it is there.
    ///
    /// # Errors
    /// See [`BucketError`].
    fn delete(&self, key: &str) -> Result<(), BucketError>;

    /// Returns the objects whose keys start with `prefix`, in any order. `prefix` ends with `/`, or is empty.
    ///
    /// # Errors
    /// See [`BucketError`].
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError>;

    /// Rests before attempt number `attempt` of a request, from 1.
    fn rest(&self, attempt: u32);

    /// Returns its address, for messages.
    fn address(&self) -> &str;
}

/// What became of [`create`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// The object is there, with the bytes that were meant.
    Done,
    /// Another object is there.
    Taken(Vec<u8>),
}

/// Creates an object. An answer that was lost is made up for: the request is repeated, and an object that is there is
/// compared with what was meant. So each object must be distinguishable from those of other writers.
///
/// # Errors
/// The store refuses, or gives no answer in `limits::OBJECT_ATTEMPTS` attempts.
pub(super) fn create(bucket: &dyn Bucket, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
    patiently(bucket, || match bucket.create(key, bytes)? {
        Created::Created => Ok(Put::Done),
        Created::Exists => match bucket.get(key)? {
            Some(found) if found == bytes => Ok(Put::Done),
            Some(found) => Ok(Put::Taken(found)),
            // Two requests met, and the store has refused both.
            None => Err(BucketError::Transient(format!("{key} exists and cannot be read"))),
        },
    })
}

/// Reads an object.
///
/// # Errors
/// The store refuses, or gives no answer in `limits::OBJECT_ATTEMPTS` attempts.
pub(super) fn get(bucket: &dyn Bucket, key: &str) -> Result<Option<Vec<u8>>, StorageError> {
    patiently(bucket, || bucket.get(key))
}

/// Says whether there is an object.
///
/// # Errors
/// The store refuses, or gives no answer in `limits::OBJECT_ATTEMPTS` attempts.
pub(super) fn exists(bucket: &dyn Bucket, key: &str) -> Result<bool, StorageError> {
    patiently(bucket, || bucket.exists(key))
}

/// Deletes an object, if it is there.
///
/// # Errors
/// The store refuses, or gives no answer in `limits::OBJECT_ATTEMPTS` attempts.
pub(super) fn delete(bucket: &dyn Bucket, key: &str) -> Result<(), StorageError> {
    patiently(bucket, || bucket.delete(key))
}

/// Lists objects.
///
/// # Errors
/// The store refuses, or gives no answer in `limits::OBJECT_ATTEMPTS` attempts.
pub(super) fn list(bucket: &dyn Bucket, prefix: &str) -> Result<Vec<Listed>, StorageError> {
    patiently(bucket, || bucket.list(prefix))
}

fn patiently<T>(bucket: &dyn Bucket, request: impl Fn() -> Result<T, BucketError>) -> Result<T, StorageError> {
    let mut attempt = 1;
    loop {
        let detail = match request() {
            Ok(answer) => return Ok(answer),
            Err(BucketError::Transient(detail)) if attempt < limits::OBJECT_ATTEMPTS => {
                tracing::debug!(attempt, detail, "the object store gave no answer");
                bucket.rest(attempt);
                attempt += 1;
                continue;
            }
            Err(BucketError::Transient(detail)) => format!("no answer in {attempt} attempts: {detail}"),
            Err(BucketError::Refused(detail)) => detail,
        };
        return Err(StorageError::Remote { path: path(bucket), detail });
    }
}

/// Returns the address of the bucket as errors name it.
pub(super) fn path(bucket: &dyn Bucket) -> PathBuf {
    Path::new(bucket.address()).to_path_buf()
}

/// An object that cannot be what was written under its key.
pub(super) fn damaged(bucket: &dyn Bucket, key: &str, what: &str) -> StorageError {
    StorageError::Corrupt { path: path(bucket), detail: format!("object {key} {what}") }
}
