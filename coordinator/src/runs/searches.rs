//! The directories of searches: `DIR/searches/NAME/store`, a store whose journal is the search's.
//!
//! A directory without a record 0 is a start that was never answered. The next process removes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anabranch_common::limits;
use anabranch_io::durable::{StorageError, create_private_dir};

use super::STORE_DIR;
use crate::search::base::Base;
use crate::search::check::{self, Impossible};
use crate::search::spec::SearchSpec;
use crate::store::SledStore;

/// Directory of searches below the coordinator's.
pub const SEARCHES_DIR: &str = "searches";

/// Returns the directory of a search.
#[must_use]
pub fn dir_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(SEARCHES_DIR).join(name)
}

/// Returns the names of the searches in `dir`, in ascending order.
///
/// # Errors
/// The directory cannot be read.
pub fn names(dir: &Path) -> Result<Vec<String>, StorageError> {
    let folder = dir.join(SEARCHES_DIR);
    let at = |source| StorageError::of_io(&folder, source);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(error)),
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name().into_string().ok())).collect();
    let is_search = |name: &String| super::check_name(name).is_ok() && folder.join(name).is_dir();
    let mut names: Vec<String> = names.map_err(at)?.into_iter().flatten().filter(is_search).collect();
    names.sort();
    names.truncate(limits::SEARCHES);
    Ok(names)
}

/// Makes the directory of a search with an empty store, and opens that.
///
/// # Errors
/// There is one of this name, or the disk fails.
pub fn create(dir: &Path, name: &str) -> Result<SledStore, StorageError> {
    create_private_dir(&dir.join(SEARCHES_DIR))?;
    let folder = dir_of(dir, name);
    if folder.symlink_metadata().is_ok() {
        return Err(StorageError::of_io(&folder, io::ErrorKind::AlreadyExists.into()));
    }
    create_private_dir(&folder)?;
    open(dir, name)
}

/// Opens the store of a search.
///
/// # Errors
/// It is in use, is damaged, or the disk fails.
pub fn open(dir: &Path, name: &str) -> Result<SledStore, StorageError> {
    SledStore::open_dir(&dir_of(dir, name).join(STORE_DIR))
}

/// Removes the directory of a search that has not begun. Its store was closed.
///
/// # Errors
/// The disk fails.
pub fn remove(dir: &Path, name: &str) -> Result<(), StorageError> {
    super::remove_all(&dir_of(dir, name))
}

/// Checks what a search is to be started with. Returns the search, its base, and which combinations are impossible.
///
/// # Errors
/// A text is refused: the text of the error names the place.
pub fn check_texts(
    (path, search): (&Path, &str),
    base: &str,
) -> Result<(SearchSpec, Base, Vec<Impossible>), anyhow::Error> {
    let spec = SearchSpec::parse(path, search)?;
    let base = Base::parse(&spec.base_path(path), base)?;
    let impossible = check::check(&spec, &base, path, search)?;
    Ok((spec, base, impossible))
}
