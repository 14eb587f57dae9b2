//! A store comes into being in one step.
//!
//! sled writes its settings and the start of its log without syncing either, and does not open what a power loss has made
//! of them. So it creates its files in a folder `new`, and they are moved out when they are synced, `db` last: a
//! directory without `db` holds no store, whatever else is left in it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::{DbOptions, StorageError, open_sled};

const FOLDER: &str = "new";

/// Creates the store, unless it is there.
pub(super) fn complete(dir: &Path, options: DbOptions, segment_bytes: usize) -> Result<(), StorageError> {
    let at = |source| StorageError::of_io(dir, source);
    let new = dir.join(FOLDER);
    if !dir.join("db").try_exists().map_err(at)? {
        remove_leftovers(dir).map_err(at)?;
        fs::create_dir(&new).map_err(at)?;
        drop(open_sled(&new, options, segment_bytes)?);
        // Closed once more: until then sled's threads may have been writing.
        drop(open_sled(&new, options, segment_bytes)?);
        publish(dir, &new).map_err(at)?;
    }
    remove_folder(&new).map_err(at)
}

fn remove_leftovers(dir: &Path) -> io::Result<()> {
    remove_folder(&dir.join(FOLDER))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == "blobs" {
            remove_folder(&entry.path())?;
        } else if name == "conf" || name.starts_with("snap.") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn publish(dir: &Path, new: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir(new)? {
        let entry = entry?;
        File::open(entry.path())?.sync_all()?;
        if entry.file_name() != "db" {
            others.push(entry.file_name());
        }
    }
    File::open(new)?.sync_all()?;
    for name in others {
        fs::rename(new.join(&name), dir.join(&name))?;
    }
    File::open(dir)?.sync_all()?;
    fs::rename(new.join("db"), dir.join("db"))?;
    File::open(dir)?.sync_all()
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
