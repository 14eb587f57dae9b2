//! What the ledger needs of a storage: keys, values, blobs of any length, and a commit.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anabranch_common::ids::{Digest, Digester};
use anabranch_common::limits;
use anabranch_io::durable::{Access, DbOptions, DurableDb, Files, StorageError, Tree};
use anabranch_io::faults;

use super::blob_key;

/// Directory of the blobs that are files. (`blobs` is sled's, which removes what it does not know there.)
const FILES_DIR: &str = "bulk";
/// Bytes of what is turned into bytes, written and hashed at a time.
const PIECE_BYTES: usize = 64 << 10;

/// What a blob is made of: a long one need not be copied to be stored.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Bytes.
    Bytes(&'a [u8]),
    /// The little-endian bytes of floats, one after another.
    Floats(&'a [f32]),
}

impl<'a> Content<'a> {
    /// How many bytes it is.
    #[must_use]
    pub fn byte_count(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Floats(values) => size_of_val(values),
        }
    }

    /// All of it at once; a copy unless it is bytes already.
    #[must_use]
    pub fn to_bytes(self) -> Cow<'a, [u8]> {
        match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytes),
            Self::Floats(values) => Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        }
    }

    /// Gives it to `take` in pieces of bounded length, until one is refused.
    ///
    /// # Errors
    /// What `take` returned.
    pub fn each_piece<E>(self, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Self::Bytes(bytes) => bytes.chunks(PIECE_BYTES).try_for_each(take),
            Self::Floats(values) => {
                let mut piece = Vec::with_capacity(PIECE_BYTES);
                for values in values.chunks(PIECE_BYTES / size_of::<f32>()) {
                    piece.clear();
                    piece.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                    take(&piece)?;
                }
                Ok(())
            }
        }
    }
}

/// Keys and values. Each single insertion and removal is atomic; they become durable with [`commit`](Self::commit), and
/// before it in no particular order. What is found at opening is durable: what a process that was killed had written and
/// not synced is synced before anything else happens, so that what it no longer names can go.
pub trait Shelf: Send + std::fmt::Debug {
    /// The value of a key.
    ///
    /// # Errors
    /// The storage fails.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Sets the value of a key, at most `limits::STORE_VALUE_BYTES` long.
    ///
    /// # Errors
    /// The storage fails.
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError>;

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// The storage fails.
    fn remove(&self, key: &[u8]) -> Result<(), StorageError>;

    /// Stores a blob of any length in entries whose keys start with `prefix`, of which no other begins with the same
    /// bytes and under which there is nothing yet. Not atomic. Returns the digest of its bytes.
    ///
    /// # Errors
    /// The storage fails.
    fn put(&self, prefix: &[u8], content: Content<'_>) -> Result<Digest, StorageError>;

    /// What [`put`](Self::put) stored, or nothing if there is nothing. What a crash cut off may come back in part.
    ///
    /// # Errors
    /// The storage fails, or a part is missing.
    fn read(&self, prefix: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Removes what [`put`](Self::put) stored, or what is left of it.
    ///
    /// # Errors
    /// The storage fails.
    fn delete(&self, prefix: &[u8]) -> Result<(), StorageError>;

    /// The keys that start with `prefix`, in ascending order.
    ///
    /// # Errors
    /// The storage fails.
    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StorageError>;

    /// Makes everything before this call durable.
    ///
    /// # Errors
    /// The storage fails; it must not be used any more.
    fn commit(&self) -> Result<(), StorageError>;

    /// Where it lies, for messages.
    fn path(&self) -> &Path;

    /// Where a blob lies or should lie, for messages.
    fn place(&self, prefix: &[u8]) -> PathBuf;
}

/// A sled store in a directory of its own, and beside it a file for each longer blob, under the blob's number. The head
/// names a blob with its digest, which tells a whole file from a torn one.
#[derive(Debug)]
pub(super) struct SledShelf {
    db: DurableDb,
    tree: Tree,
    files: Files,
    file_bytes: usize,
}

impl SledShelf {
    /// Opens the store in `dir`. Blobs of `file_bytes` and more will be files; what was stored otherwise is read as it
    /// is.
    pub(super) fn open(dir: &Path, file_bytes: usize) -> Result<Self, StorageError> {
        let db = DurableDb::open_with_segments(
            dir,
            DbOptions { cache_bytes: limits::STORE_CACHE_BYTES },
            limits::STORE_SEGMENT_BYTES,
        )?;
        let tree = db.tree("ledger")?;
        let files = Files::open(dir.join(FILES_DIR), Access::Write)?;
        Ok(Self { db, tree, files, file_bytes })
    }

    /// Opens the store in `dir` for reading: nothing in it is created or changed. One that is not there is empty.
    pub(super) fn open_copy(dir: &Path) -> Result<Self, StorageError> {
        let db = DurableDb::open_copy(
            dir,
            DbOptions { cache_bytes: limits::STORE_CACHE_BYTES },
            limits::STORE_SEGMENT_BYTES,
        )?;
        let tree = db.tree("ledger")?;
        let files = Files::open(dir.join(FILES_DIR), Access::Read)?;
        Ok(Self { db, tree, files, file_bytes: super::FILE_BYTES })
    }

    fn put_file(&self, number: u64, content: Content<'_>) -> Result<Digest, StorageError> {
        let mut file = self.files.create(number)?;
        let mut digester = Digester::default();
        let written = content.each_piece(|piece| {
            faults::point("ledger-in-file");
            digester.add(piece);
            self.files.append(&mut file, piece).map(drop)
        });
        if written.is_err() {
            // Where there is no space left, half a residual should not take what there was. The next start would remove it
            // too.
            let _ = self.files.remove(number);
        }
        written.map(|()| digester.digest())
    }
}

impl Shelf for SledShelf {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.tree.get(key)?.map(|value| value.to_vec()))
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.tree.insert(key, value)
    }

    fn remove(&self, key: &[u8]) -> Result<(), StorageError> {
        self.tree.remove(key)
    }

    fn put(&self, prefix: &[u8], content: Content<'_>) -> Result<Digest, StorageError> {
        if content.byte_count() >= self.file_bytes {
            return self.put_file(number_of(prefix), content);
        }
        let bytes = content.to_bytes();
        self.tree.put_chunked(prefix, &bytes)?;
        Ok(Digest::of(&bytes))
    }

    fn read(&self, prefix: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        match self.tree.get_chunked(prefix)? {
            Some(bytes) => Ok(Some(bytes)),
            None => self.files.read(number_of(prefix)),
        }
    }

    fn delete(&self, prefix: &[u8]) -> Result<(), StorageError> {
        self.tree.delete_chunked(prefix)?;
        self.files.remove(number_of(prefix))
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StorageError> {
        let mut keys: BTreeSet<Vec<u8>> = self.files.numbers()?.into_iter().map(blob_key).collect();
        keys.retain(|key| key.starts_with(prefix));
        for entry in self.tree.scan_prefix(prefix) {
            keys.insert(entry?.0.to_vec());
        }
        Ok(keys.into_iter().collect())
    }

    fn commit(&self) -> Result<(), StorageError> {
        self.db.commit_after(|| {
            self.files.sync()?;
            faults::point("ledger-files-synced");
            Ok(())
        })
    }

    fn path(&self) -> &Path {
        self.db.dir()
    }

    fn place(&self, prefix: &[u8]) -> PathBuf {
        let is_chunked = self.tree.scan_prefix(prefix).next().is_some();
        if is_chunked { self.path().to_path_buf() } else { self.files.path(number_of(prefix)) }
    }
}

/// Returns the number of the file that a blob with this key is or would be.
fn number_of(key: &[u8]) -> u64 {
    key.last_chunk().map_or(0, |number| u64::from_be_bytes(*number))
}
