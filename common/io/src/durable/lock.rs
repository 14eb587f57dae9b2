//! One process a directory.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::StorageError;

/// Bytes read from a lock file at most: a process id and a line end.
const PID_TEXT_BYTES: u64 = 16;

/// Held while this process uses a directory; the system lets go of it when the process ends, however it ends. The file
/// stays behind on purpose: removing it would let two processes lock two files of the same name.
#[derive(Debug)]
pub(super) struct DirLock {
    _file: File,
}

impl DirLock {
    pub(super) fn acquire(dir: &Path) -> Result<Self, StorageError> {
        let path = dir.join("lock");
        let at = |source| StorageError::of_io(&path, source);
        let mut options = File::options();
        // Not truncated: until the lock is ours, the content is the other process's.
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).map_err(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StorageError::Locked { path: dir.to_owned(), pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(at(source)),
        }
        file.set_len(0).map_err(at)?;
        file.rewind().map_err(at)?;
        writeln!(file, "{}", std::process::id()).map_err(at)?;
        Ok(Self { _file: file })
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_TEXT_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
