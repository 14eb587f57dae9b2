//! Reading a store without changing anything in its directory.
//!
//! sled writes when it opens: it names new snapshots, and repairs what a crash has left. So whoever only reads opens a
//! private copy of the database; files beside it are read where they are.
//!
//! ```text
//!  dir/lock        held together with other readers while the copy is made; never created, never written
//!  dir/db, ...  ─► $TMPDIR/anabranch-PID-N/ (0700) ─► opened; removed when the last handle is dropped
//! ```

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::StorageError;
use super::lock::ReadLock;

/// Names that are tried for a copy.
const NAMES: u32 = 1_000;
/// sled's threads may still be writing when the last handle has gone.
const REMOVALS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(10);

/// A copy of a database, removed when this is dropped.
#[derive(Debug)]
pub(super) struct PrivateCopy {
    path: PathBuf,
}

impl PrivateCopy {
    /// Copies the database in `dir`; of a directory without one an empty folder.
    pub(super) fn of(dir: &Path) -> Result<Self, StorageError> {
        let copy = Self::empty()?;
        let _lock = ReadLock::acquire(dir)?;
        // Without it there is no store, whatever else is left.
        if dir.join("db").try_exists().map_err(|source| StorageError::of_io(dir, source))? {
            copy_files(dir, &copy.path)?;
        }
        Ok(copy)
    }

    fn empty() -> Result<Self, StorageError> {
        let parent = std::env::temp_dir();
        let name = |n| parent.join(format!("anabranch-{}-{n}", std::process::id()));
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        for path in (0..NAMES).map(name) {
            match builder.create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(StorageError::of_io(&path, source)),
            }
        }
        Err(StorageError::of_io(&parent, io::ErrorKind::AlreadyExists.into()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateCopy {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            match fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => std::thread::sleep(PAUSE),
                _ => return,
            }
        }
    }
}

/// Whether a file of a store's directory belongs to the database.
fn is_part(name: &str) -> bool {
    ["db", "conf", "commits", "blobs"].contains(&name) || (name.starts_with("snap.") && !name.ends_with(".generating"))
}

fn copy_files(from: &Path, to: &Path) -> Result<(), StorageError> {
    for entry in fs::read_dir(from).map_err(|source| StorageError::of_io(from, source))? {
        let entry = entry.map_err(|source| StorageError::of_io(from, source))?;
        if is_part(&entry.file_name().to_string_lossy()) {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), StorageError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| StorageError::of_io(&path, source)
    };
    if from.is_dir() {
        DirBuilder::new().mode(0o700).create(to).map_err(at(to))?;
        for entry in fs::read_dir(from).map_err(at(from))? {
            let entry = entry.map_err(at(from))?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    let mut source = fs::File::open(from).map_err(at(from))?;
    let mut target = fs::File::create_new(to).map_err(at(to))?;
    io::copy(&mut source, &mut target).map_err(at(to))?;
    fs::set_permissions(to, Permissions::from_mode(0o600)).map_err(at(to))
}
