//! Root works on a store as its owner.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Uid, geteuid, setegid, seteuid, setgroups};

use super::StorageError;

/// Gives up root's rights for those of the owner of `dir`, for the rest of the process: a file that is made in it then
/// belongs to whoever uses the directory. Does nothing unless root runs this and `dir` is another user's.
///
/// # Errors
/// The system refuses.
pub fn act_as_owner(dir: &Path) -> Result<(), StorageError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let at = |source| StorageError::of_io(dir, source);
    let owner = match fs::metadata(dir) {
        Ok(metadata) => metadata,
        // Whoever uses it next says so.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(error)),
    };
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    if uid.is_root() {
        return Ok(());
    }
    let changed = setgroups(&[gid]).and_then(|()| setegid(gid)).and_then(|()| seteuid(uid));
    changed.map_err(|error| at(error.into()))
}
