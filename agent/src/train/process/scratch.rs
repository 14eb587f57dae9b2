//! The private directory through which tensors pass: on tmpfs where there is room, else in the agent's directory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anabranch_common::limits;

/// Where Linux has a tmpfs for everyone.
const SHARED_MEMORY: &str = "/dev/shm";
/// Name of the directory in the agent's own: hidden, because people keep programs of theirs there.
const HOME_FOLDER: &str = ".trainer-tensors";

/// The directory, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    home: PathBuf,
}

impl Scratch {
    /// A directory for the agent whose own directory is `home`.
    pub(super) fn new(home: &Path) -> io::Result<Self> {
        let shared = Path::new(SHARED_MEMORY);
        if has_room(shared) {
            // One agent directory is used by one process at a time, so its inode is a name that nobody else has, and what
            // a killed process left there is found again.
            let path = shared_path(home)?;
            if make(&path).is_ok() {
                return Ok(Self { path, home: home.to_owned() });
            }
        }
        Self::at_home(home)
    }

    fn at_home(home: &Path) -> io::Result<Self> {
        let path = home_path(home)?;
        make(&path)?;
        Ok(Self { path, home: home.to_owned() })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory again if it is gone: whatever cleans up shared memory, or a trainer that was ended, removed it.
    pub(super) fn ensure(&self) -> io::Result<()> {
        if self.path.is_dir() { Ok(()) } else { make(&self.path) }
    }

    /// Moves to the agent's directory, for a child that is still to be started. `false` when it is there already.
    pub(super) fn move_home(&mut self) -> io::Result<bool> {
        if !self.path.starts_with(SHARED_MEMORY) {
            return Ok(false);
        }
        *self = Self::at_home(&self.home)?;
        Ok(true)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is found by the next process.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The inode of an agent's directory: a name that no other agent on this machine has.
pub(super) fn name_of(home: &Path) -> io::Result<String> {
    let metadata = fs::metadata(home)?;
    Ok(format!("{:x}-{:x}", metadata.dev(), metadata.ino()))
}

fn shared_path(home: &Path) -> io::Result<PathBuf> {
    Ok(Path::new(SHARED_MEMORY).join(format!("anabranch-{}", name_of(home)?)))
}

fn home_path(home: &Path) -> io::Result<PathBuf> {
    Ok(std::path::absolute(home)?.join(HOME_FOLDER))
}

/// Removes what a killed process has left in either place. What cannot be removed is found again by the next one.
pub(super) fn sweep(home: &Path) {
    for path in [shared_path(home), home_path(home)].into_iter().flatten() {
        if is_ours(&path) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn is_ours(path: &Path) -> bool {
    let found = fs::symlink_metadata(path);
    found.is_ok_and(|found| found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw())
}

/// Makes the directory empty and private. One of somebody else's is not touched.
fn make(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw() => fs::remove_dir_all(path)?,
        Ok(_) => return Err(io::Error::from(io::ErrorKind::AlreadyExists)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    DirBuilder::new().mode(0o700).create(path)
}

fn has_room(path: &Path) -> bool {
    nix::sys::statvfs::statvfs(path)
        .is_ok_and(|found| found.blocks_available() * found.fragment_size() >= limits::SCRATCH_ROOM_BYTES)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_private_empty_and_gone_in_the_end() {
        let home = tempfile::tempdir().expect("a folder");
        let left_over = Scratch::new(home.path()).expect("made");
        let path = left_over.path().to_owned();
        fs::write(path.join("base-1.safetensors"), "left by a killed process").expect("written");
        std::mem::forget(left_over);
        let mut scratch = Scratch::new(home.path()).expect("made");
        assert_eq!(scratch.path(), path);
        assert_eq!(fs::read_dir(&path).expect("listed").count(), 0);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o700);
        if scratch.move_home().expect("made") {
            assert!(!path.exists() && scratch.path().starts_with(home.path()));
            assert!(!scratch.move_home().expect("it is there already"));
        }
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
    }

    /// A process that was killed may have used either place; folders of other names are people's.
    #[test]
    fn it_is_made_again_where_it_was_removed_and_kept_where_it_is() {
        let home = tempfile::tempdir().expect("a directory");
        let scratch = Scratch::new(home.path()).expect("made");
        fs::write(scratch.path().join("kept"), b"x").expect("written");
        scratch.ensure().expect("there");
        assert!(scratch.path().join("kept").exists());
        fs::remove_dir_all(scratch.path()).expect("removed");
        scratch.ensure().expect("made again");
        assert!(scratch.path().is_dir());
    }

    #[test]
    fn both_places_are_swept() {
        let home = tempfile::tempdir().expect("a folder");
        fs::create_dir(home.path().join("trainer")).expect("made");
        for make in [Scratch::new, Scratch::at_home] {
            let scratch = make(home.path()).expect("made");
            let path = scratch.path().to_owned();
            std::mem::forget(scratch);
            assert!(path.exists());
            sweep(home.path());
            assert!(!path.exists(), "{}", path.display());
        }
        assert!(home.path().join("trainer").exists());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let home = tempfile::tempdir().expect("a folder");
        let (target, link) = (home.path().join("target"), home.path().join("link"));
        fs::create_dir(&target).expect("made");
        std::os::unix::fs::symlink(&target, &link).expect("made");
        assert_eq!(make(&link).expect_err("a link").kind(), io::ErrorKind::AlreadyExists);
        assert!(target.exists());
    }
}
