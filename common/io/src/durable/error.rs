//! Why the store cannot be used, in terms of what a person can do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::exit::ExitCode;

/// A storage error. All but `Locked` and `Missing` mean: stop, and acknowledge nothing (promise P7).
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process uses the directory.
    #[error("{path} is {holder}", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who uses it.
        holder: LockHolder,
    },
    /// The file system or the quota is full.
    #[error("no space left for {path}", path = path.display())]
    NoSpace {
        /// The directory.
        path: PathBuf,
    },
    /// No permission, or the file system is mounted read-only.
    #[error("no permission to use {path}: {source}", path = path.display())]
    Permission {
        /// The directory or file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The store cannot be read.
    #[error("the store in {path} is damaged: {detail}", path = path.display())]
    Corrupt {
        /// The directory.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Any other error of the system.
    #[error("cannot use {path}: {source}", path = path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// An earlier commit failed, so what is on disk is unknown: nothing more may be written by this process.
    #[error("the store in {path} can no longer be written: an earlier commit failed: {reason}", path = path.display())]
    Poisoned {
        /// The directory.
        path: PathBuf,
        /// Why the first commit failed.
        reason: String,
    },
    /// Something that should be there is not.
    #[error("{path} does not exist", path = path.display())]
    Missing {
        /// What.
        path: PathBuf,
    },
    /// An object store gives no answer, or refuses.
    #[error("cannot use the object store {path}: {detail}", path = path.display())]
    Remote {
        /// Its address.
        path: PathBuf,
        /// What it, or the way to it, has answered.
        detail: String,
    },
    /// An object store may not be used for a run.
    #[error("the object store {path} may not be used: {detail}", path = path.display())]
    Unfit {
        /// Its address.
        path: PathBuf,
        /// Why not.
        detail: String,
    },
    /// Another process has taken the store over: this one may not write to it any more.
    #[error("the store {path} was taken over by {by}", path = path.display())]
    Superseded {
        /// Its address.
        path: PathBuf,
        /// The writer that has it now.
        by: String,
    },
}

/// Who holds the lock of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LockHolder {
    /// A process that writes: a daemon, or a verb that changes something.
    #[error("in use by process {0}")]
    Process(u32),
    /// Verbs that only read.
    #[error("being read by another process: `status`, `checkpoint verify` or another verb that reads")]
    Readers,
    /// Not known.
    #[error("in use by another process")]
    Unknown,
}

impl LockHolder {
    /// The holder of an exclusive lock, whose process id was `pid`, if it could be read.
    pub(super) fn of_writer(pid: Option<u32>) -> Self {
        pid.map_or(Self::Unknown, Self::Process)
    }
}

impl StorageError {
    /// Sorts an error of the system that happened at `path`.
    #[must_use]
    pub fn of_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoSpace { path }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Permission { path, source },
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Io { path, source },
        }
    }

    /// The same error of a file below `to` instead of `from`.
    #[must_use]
    pub(super) fn moved(mut self, from: &Path, to: &Path) -> Self {
        let (Self::Locked { path, .. }
        | Self::NoSpace { path }
        | Self::Permission { path, .. }
        | Self::Corrupt { path, .. }
        | Self::Io { path, .. }
        | Self::Poisoned { path, .. }
        | Self::Missing { path }
        | Self::Remote { path, .. }
        | Self::Unfit { path, .. }
        | Self::Superseded { path, .. }) = &mut self;
        if let Ok(rest) = path.strip_prefix(from) {
            *path = to.join(rest);
        }
        self
    }

    /// Sorts an error of sled, whose store is at `path`.
    #[must_use]
    pub(super) fn of_sled(path: &Path, error: sled::Error) -> Self {
        match error {
            // The one error that sled makes up itself; see `Config::try_lock` there.
            sled::Error::Io(source) if source.to_string().starts_with("could not acquire lock") => {
                Self::Locked { path: path.to_owned(), holder: LockHolder::Unknown }
            }
            sled::Error::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Corrupt { path: path.to_owned(), detail: "the file ends too early".to_owned() }
            }
            sled::Error::Io(source) => Self::of_io(path, source),
            sled::Error::Corruption { at, .. } => Self::Corrupt {
                path: path.to_owned(),
                detail: at.map_or_else(|| "checksum".to_owned(), |at| format!("checksum at {at:?}")),
            },
            other => Self::Corrupt { path: path.to_owned(), detail: other.to_string() },
        }
    }

    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Locked { .. } => ExitCode::Locked,
            Self::Superseded { .. } => ExitCode::Superseded,
            _ => ExitCode::Storage,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::Locked { holder: LockHolder::Readers, .. } => "wait until that verb has ended, or stop it",
            Self::Locked { .. } => "one process can use a directory; stop the other one, or choose another directory",
            Self::NoSpace { .. } => {
                "free some space and start again; everything that was acknowledged is on disk, nothing else was"
            }
            Self::Permission { .. } => "run as the user that owns the directory, on a file system that can be written",
            Self::Corrupt { .. } => {
                "nothing in it was changed; restore the directory from a backup, and check the disk"
            }
            Self::Io { .. } => {
                "check the path, the disk and the system's log; nothing was acknowledged after the error"
            }
            Self::Poisoned { .. } => "restart; the store recovers what was acknowledged",
            Self::Remote { .. } => {
                "check the address, the credentials in the environment and the network; what was acknowledged is stored"
            }
            Self::Unfit { .. } => {
                "use one that keeps `If-None-Match: *`, with a program that is built for it; `store check` measures it"
            }
            Self::Superseded { .. } => {
                "the other coordinator serves the run; start this one again only to take the run back from it"
            }
            Self::Missing { .. } => return None,
        };
        Some(help.to_owned())
    }
}
