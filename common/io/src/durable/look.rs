//! Reading a store without changing anything in its directory.
//!
//! sled writes when it opens: it names new snapshots, and repairs what a crash has left. So a reader opens a private copy
//! of the database. It reads files beside the database in place.
//!
//! ```text
//!  dir/lock        held together with other readers as long as the copy lives; never created, never written
//!  dir/db, ...  ─► $TMPDIR/anabranch-copy-PID-RANDOM/ (0700, locked) ─► opened; removed when the last handle is dropped
//! ```
//! A reader that is killed, or ended by Ctrl-C, leaves its copy behind. The next reader of the same user removes it
//! ([`sweep`]).

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal;
use nix::unistd::{Pid, geteuid};

use super::StorageError;
use super::lock::ReadLock;

/// Names of copies begin with it.
const PREFIX: &str = "anabranch-copy-";
/// sled's threads may still be writing when the last handle has gone.
const REMOVALS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(10);

/// A copy of a database, removed when this is dropped.
#[derive(Debug)]
pub(super) struct PrivateCopy {
    path: PathBuf,
    /// The copy's directory, locked: a sweep of another process leaves it alone.
    _kept: Option<File>,
    /// Lock of the directory that was copied. No process writes there while files beside the database are read.
    _lock: ReadLock,
}

impl PrivateCopy {
    /// Copies the database in `dir`; of a directory without one an empty folder.
    pub(super) fn of(dir: &Path) -> Result<Self, StorageError> {
        let parent = std::env::temp_dir();
        sweep(&parent);
        let lock = ReadLock::acquire(dir)?;
        let (path, kept) = loop {
            let path = parent.join(fresh_name().map_err(|source| StorageError::of_io(&parent, source))?);
            DirBuilder::new().mode(0o700).create(&path).map_err(|source| StorageError::of_io(&path, source))?;
            let kept = locked(&path);
            // A sweep that cannot see this process may have removed it before it was locked.
            if kept.is_some() || path.exists() {
                break (path, kept);
            }
        };
        let copy = Self { _kept: kept, path, _lock: lock };
        // Without it there is no store, whatever else is left.
        if dir.join("db").try_exists().map_err(|source| StorageError::of_io(dir, source))? {
            copy_files(dir, &copy.path)?;
        }
        Ok(copy)
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

/// Returns a name with this process's id that another user cannot guess and take first.
fn fresh_name() -> io::Result<String> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(format!("{PREFIX}{}-{:016x}", std::process::id(), u64::from_be_bytes(random)))
}

/// Returns the process id in the name of a copy.
fn owner_in(name: &str) -> Option<i32> {
    let (pid, random) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let is_random = random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    pid.parse().ok().filter(|pid| is_random && *pid > 0)
}

/// Returns the locked directory; none where another process has it, or the file system has no such locks.
fn locked(dir: &Path) -> Option<File> {
    let file = File::open(dir).ok()?;
    file.try_lock().ok().map(|()| file)
}

/// Removes copies below `parent` whose process has ended: directories of this user alone. A process id may be in use
/// again, or belong to another container with the same `parent`: then the lock decides. An error leaves a copy for the
/// next sweep.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(owner_in) else { continue };
        // Not followed, if it is a link.
        let is_own = entry.metadata().is_ok_and(|metadata| {
            metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o077 == 0
        });
        let has_ended = signal::kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
        if !is_own || !has_ended {
            continue;
        }
        if let Some(_kept) = locked(&entry.path()) {
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => {
                    tracing::debug!(path = %entry.path().display(), "removed the copy of a reader that was killed")
                }
                Err(error) => tracing::debug!(path = %entry.path().display(), %error, "a left copy stays"),
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
    let mut source = File::open(from).map_err(at(from))?;
    let mut target = File::create_new(to).map_err(at(to))?;
    io::copy(&mut source, &mut target).map_err(at(to))?;
    fs::set_permissions(to, Permissions::from_mode(0o600)).map_err(at(to))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    /// The id of a process that has ended and was waited for.
    fn ended() -> u32 {
        let mut child = Command::new("true").spawn().expect("starts");
        let pid = child.id();
        child.wait().expect("ends");
        pid
    }

    fn make(parent: &Path, name: &str, mode: u32) -> PathBuf {
        let path = parent.join(name);
        DirBuilder::new().mode(mode).create(&path).expect("creates");
        fs::write(path.join("db"), b"private").expect("writes");
        path
    }

    /// Ctrl-C ends a verb before it can remove its copy.
    #[test]
    fn copies_of_ended_processes_are_swept_and_nothing_else_is() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let parent = parent.path();
        let (ended, random) = (ended(), "0123456789abcdef");
        let left = make(parent, &format!("{PREFIX}{ended}-{random}"), 0o700);
        let others = [
            make(parent, &format!("{PREFIX}{}-{random}", std::process::id()), 0o700),
            make(parent, &format!("{PREFIX}{ended}-fedcba9876543210"), 0o755),
            make(parent, &format!("{PREFIX}{ended}-0"), 0o700),
            make(parent, &format!("anabranch-{ended}-{random}"), 0o700),
        ];
        let target = make(parent, "target", 0o700);
        symlink(&target, parent.join(format!("{PREFIX}{ended}-aaaaaaaaaaaaaaaa"))).expect("links");
        let in_use = make(parent, &format!("{PREFIX}{ended}-bbbbbbbbbbbbbbbb"), 0o700);
        let kept = locked(&in_use).expect("locks");
        sweep(parent);
        assert!(!left.exists(), "left behind");
        for path in others.iter().chain([&target, &in_use]) {
            assert!(path.join("db").exists(), "{} is gone", path.display());
        }
        drop(kept);
        sweep(parent);
        assert!(!in_use.exists(), "free now");
    }

    #[test]
    fn a_copy_has_a_name_of_its_own_and_is_found_by_the_sweep() {
        let (name, other) = (fresh_name().expect("random"), fresh_name().expect("random"));
        assert_ne!(name, other);
        assert_eq!(owner_in(&name), i32::try_from(std::process::id()).ok());
        for name in ["anabranch-copy-", "anabranch-copy-0-0123456789abcdef", "anabranch-copy--1-0123456789abcdef"] {
            assert_eq!(owner_in(name), None, "{name}");
        }
    }
}
