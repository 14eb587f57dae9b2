//! The directories of runs beside the one that `init` has made.
//!
//! ```text
//!  DIR/                       the process, and the run that `init` has made: run.toml, store/, uploads/
//!    runs/NAME/               one more run: run.toml without [server] and [log], store/, uploads/
//!      submitted              how it was asked for, if with a token: two digests
//!    runs/.new-NAME/          one that is being created: not there yet
//!    runs/.gone-NAME/         one that is being deleted: not there any more
//! ```
//! A run comes and goes with one rename, which is synced. What a crash leaves under one of the other names is removed by
//! the next process ([`sweep`]).

mod look;
mod open;
pub mod searches;
pub mod stores;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_io::durable::{StorageError, create_private_dir};
use anabranch_io::text_file;

use crate::config::{FILE_NAME, is_label, label_problem};

pub use look::{answer, status, summary, unreadable};
pub(crate) use open::open_with;
pub use open::{Files, Open, OpenError, open, options, reopen};

/// Directory of runs below the coordinator's.
pub const RUNS_DIR: &str = "runs";
/// Directory of the store below a run's.
pub const STORE_DIR: &str = "store";
/// Directory of half-received uploads below a run's. It may be deleted while no coordinator runs.
pub const UPLOADS_DIR: &str = "uploads";

/// File that keeps how a run was asked for.
const SUBMITTED: &str = "submitted";
/// A configuration that is about to take the place of the one that is there.
const NEW_CONFIG: &str = ".new-run.toml";
const NEW_PREFIX: &str = ".new-";
const GONE_PREFIX: &str = ".gone-";

/// How a run was asked for: two requests with the same one are the same request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submission {
    /// BLAKE3 of the token.
    pub token: Digest,
    /// BLAKE3 of the text of the configuration.
    pub config: Digest,
}

impl Submission {
    /// Returns what a request with a token is known by.
    #[must_use]
    pub fn new(token: &str, config: &str) -> Self {
        Self { token: Digest::of(token.as_bytes()), config: Digest::of(config.as_bytes()) }
    }

    /// Checks what is asked for: name, length of the text and of the token. Returns what the request is known by, if it has a
    /// token.
    ///
    /// # Errors
    /// The problem.
    pub(crate) fn of_request(name: &str, config: &str, token: Option<&str>) -> Result<Option<Self>, String> {
        check_name(name)?;
        if config.len() > limits::RUN_CONFIG_BYTES {
            return Err(format!("a run's configuration has at most {} bytes", limits::RUN_CONFIG_BYTES));
        }
        if token.is_some_and(|token| token.len() > limits::SUBMIT_TOKEN_BYTES) {
            return Err(format!("a submit token has at most {} bytes", limits::SUBMIT_TOKEN_BYTES));
        }
        Ok(token.map(|token| Self::new(token, config)))
    }

    pub(crate) fn read(dir: &Path) -> Option<Self> {
        let text = text_file::read(&dir.join(SUBMITTED), limits::SUBMISSION_BYTES).ok()?;
        let (token, config) = text.trim().split_once(' ')?;
        Some(Self { token: token.parse().ok()?, config: config.parse().ok()? })
    }
}

/// Returns what is wrong with the name of a run.
///
/// # Errors
/// It cannot be typed in a shell, is too long, or would hide the directory.
pub fn check_name(name: &str) -> Result<(), String> {
    if !is_label(name) {
        return Err(format!("the name of a run {}", label_problem(name)));
    }
    if name.starts_with('.') {
        return Err(format!("the name of a run must not begin with a dot, but is {name:?}"));
    }
    Ok(())
}

/// What to say of a name that is taken.
#[must_use]
pub(crate) fn taken(name: &str) -> String {
    format!(
        "there is a run {name}, made by another request; choose another name, or repeat a request with the same \
         --submit-token and the same file"
    )
}

/// What to say when there are too many runs.
#[must_use]
pub(crate) fn too_many() -> String {
    format!("there are {} runs already; delete one first with `runs delete`", limits::RUNS)
}

/// Why the run that shares its directory with the process cannot be deleted.
#[must_use]
pub(crate) fn is_own(name: &str) -> String {
    format!(
        "run {name} shares its directory with the coordinator and cannot be deleted alone; end it with `runs stop \
         {name}`, or stop the coordinator and remove its directory"
    )
}

/// Why a run that gives leases cannot be deleted.
#[must_use]
pub(crate) fn is_running(name: &str) -> String {
    format!(
        "run {name} is running; pause it with `runs pause {name}`, or end it with `runs stop {name}`, then delete it"
    )
}

/// The directory of a run.
#[must_use]
pub fn dir_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(RUNS_DIR).join(name)
}

/// Returns the names of the runs in `dir`, in ascending order. With the run that `init` has made there are at most
/// `limits::RUNS`: those that are left out are logged.
///
/// # Errors
/// The directory cannot be read.
pub fn names(dir: &Path) -> Result<Vec<String>, StorageError> {
    let folder = dir.join(RUNS_DIR);
    let mut names: Vec<String> = entries(&folder)?.into_iter().filter(|name| check_name(name).is_ok()).collect();
    names.retain(|name| folder.join(name).is_dir());
    names.sort();
    if names.len() > limits::RUNS - 1 {
        let left_out = names.split_off(limits::RUNS - 1);
        tracing::warn!(first = %left_out[0], count = left_out.len(), "there are too many runs; some are left out");
    }
    Ok(names)
}

fn entries(folder: &Path) -> Result<Vec<String>, StorageError> {
    let at = |source| StorageError::of_io(folder, source);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(error)),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(Result::transpose).collect::<io::Result<_>>().map_err(at)
}

/// Makes the directory of a run with its configuration, which was checked before. It is there as a whole afterwards, and
/// durable, or not at all.
///
/// # Errors
/// There is one of this name, or the disk fails.
pub fn create(dir: &Path, name: &str, config: &str, submission: Option<Submission>) -> Result<(), StorageError> {
    let folder = dir.join(RUNS_DIR);
    create_private_dir(&folder)?;
    let new = folder.join(format!("{NEW_PREFIX}{name}"));
    remove_all(&new)?;
    remove_all(&folder.join(format!("{GONE_PREFIX}{name}")))?;
    create_private_dir(&new)?;
    write_new(&new.join(FILE_NAME), config)?;
    if let Some(Submission { token, config }) = submission {
        write_new(&new.join(SUBMITTED), &format!("{token} {config}\n"))?;
    }
    sync_dir(&new)?;
    let there = folder.join(name);
    // A rename would replace an empty directory of this name.
    if there.symlink_metadata().is_ok() {
        return Err(StorageError::of_io(&there, io::ErrorKind::AlreadyExists.into()));
    }
    fs::rename(&new, &there).map_err(|source| StorageError::of_io(&there, source))?;
    sync_dir(&folder)
}

/// Puts another configuration, which was checked before, in the place of a run's. After a crash in the middle it has one of the
/// two.
///
/// # Errors
/// The disk fails.
pub fn set_config(dir: &Path, name: &str, config: &str) -> Result<(), StorageError> {
    let folder = dir_of(dir, name);
    let (new, there) = (folder.join(NEW_CONFIG), folder.join(FILE_NAME));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StorageError::of_io(&new, error)),
        _ => write_new(&new, config)?,
    }
    fs::rename(&new, &there).map_err(|source| StorageError::of_io(&there, source))?;
    sync_dir(&folder)
}

/// Deletes the directory of a run, with all that is in it. After a crash in the middle the run is there as a whole, or gone.
///
/// # Errors
/// The disk fails. The run may be gone then, while its files still take room: the next process removes them.
pub fn delete(dir: &Path, name: &str) -> Result<(), StorageError> {
    let folder = dir.join(RUNS_DIR);
    let gone = folder.join(format!("{GONE_PREFIX}{name}"));
    remove_all(&gone)?;
    let there = folder.join(name);
    match fs::rename(&there, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => renamed.map_err(|source| StorageError::of_io(&there, source))?,
    }
    sync_dir(&folder)?;
    remove_all(&gone)
}

/// Removes what earlier processes have begun to create or to delete. What cannot be removed is logged: it takes room, and is
/// in nobody's way.
///
/// # Errors
/// The directory cannot be read.
pub fn sweep(dir: &Path) -> Result<(), StorageError> {
    let folder = dir.join(RUNS_DIR);
    for name in entries(&folder)? {
        if name.starts_with(NEW_PREFIX) || name.starts_with(GONE_PREFIX) {
            tracing::info!(directory = %name, "removing what a crash has left of a run");
            if let Err(error) = remove_all(&folder.join(&name)) {
                tracing::warn!(directory = %name, %error, "files of a run that is gone are left");
            }
        }
    }
    Ok(())
}

/// Removes a directory, if it is there. Threads of sled may still write into a store that was just closed.
pub(crate) fn remove_all(path: &Path) -> Result<(), StorageError> {
    let mut tries = 0;
    loop {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries < limits::RUN_REMOVALS => {
                tries += 1;
                std::thread::sleep(REST);
            }
            Err(error) => return Err(StorageError::of_io(path, error)),
        }
    }
}

/// Rest between two attempts to remove a directory.
pub(crate) const REST: std::time::Duration = std::time::Duration::from_millis(limits::RUN_REMOVAL_REST_MS);

fn write_new(path: &Path, text: &str) -> Result<(), StorageError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| StorageError::of_io(path, source))
}

fn sync_dir(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|source| StorageError::of_io(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_there_as_a_whole_and_goes_as_a_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path();
        assert_eq!(names(dir).expect("read"), [""; 0], "no directory of runs yet");
        let submission = Submission::new("job 7", "text");
        create(dir, "b", "text", Some(submission)).expect("created");
        create(dir, "a", "other", None).expect("created");
        assert_eq!(names(dir).expect("read"), ["a", "b"]);
        assert_eq!(fs::read_to_string(dir_of(dir, "b").join(FILE_NAME)).expect("read"), "text");
        assert_eq!(Submission::read(&dir_of(dir, "b")), Some(submission));
        assert_eq!(Submission::read(&dir_of(dir, "a")), None);
        // A crash has left half of another configuration.
        fs::write(dir_of(dir, "b").join(NEW_CONFIG), "ha").expect("written");
        set_config(dir, "b", "another text").expect("replaced");
        assert_eq!(fs::read_to_string(dir_of(dir, "b").join(FILE_NAME)).expect("read"), "another text");
        assert!(!dir_of(dir, "b").join(NEW_CONFIG).exists());
        assert!(create(dir, "a", "again", None).is_err(), "there is one");
        assert_eq!(fs::read_to_string(dir_of(dir, "a").join(FILE_NAME)).expect("read"), "other");
        delete(dir, "b").expect("deleted");
        delete(dir, "b").expect("a second time");
        assert_eq!(names(dir).expect("read"), ["a"]);
        assert!(!dir_of(dir, "b").exists());
    }

    /// Between two steps of either, the run is there as a whole or not at all, and the next process cleans up.
    #[test]
    fn a_crash_between_the_steps_leaves_no_half_of_a_run() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path();
        create(dir, "kept", "text", None).expect("created");
        let folder = dir.join(RUNS_DIR);
        // Written, and not renamed.
        fs::create_dir(folder.join(".new-early")).expect("made");
        fs::write(folder.join(".new-early").join(FILE_NAME), "half").expect("written");
        // Renamed, and not removed.
        create(dir, "late", "text", None).expect("created");
        fs::rename(folder.join("late"), folder.join(".gone-late")).expect("renamed");
        assert_eq!(names(dir).expect("read"), ["kept"]);
        create(dir, "early", "whole", None).expect("what a crash has left is no hindrance");
        assert_eq!(fs::read_to_string(folder.join("early").join(FILE_NAME)).expect("read"), "whole");
        delete(dir, "early").expect("deleted");
        fs::create_dir(folder.join(".gone-again")).expect("made");
        create(dir, "again", "text", None).expect("created");
        assert!(!folder.join(".gone-again").exists(), "the name is used again");
        delete(dir, "again").expect("deleted");
        // Not a directory: it cannot be removed as one.
        fs::write(folder.join(".gone-file"), "left").expect("written");
        sweep(dir).expect("swept");
        let left: Vec<_> = fs::read_dir(&folder).expect("read").map(|entry| entry.expect("read").file_name()).collect();
        assert_eq!(left.iter().filter(|name| *name != ".gone-file").collect::<Vec<_>>(), ["kept"]);
    }

    #[test]
    fn no_more_runs_are_found_than_a_process_has() {
        let dir = tempfile::tempdir().expect("a folder");
        let names_of = |count: usize| (0..count).map(|number| format!("run-{number:04}")).collect::<Vec<_>>();
        for name in names_of(limits::RUNS + 1) {
            fs::create_dir_all(dir_of(dir.path(), &name)).expect("made");
        }
        assert_eq!(names(dir.path()).expect("read"), names_of(limits::RUNS - 1), "one is the run of the process");
    }

    #[test]
    fn names_can_be_typed_and_are_no_hidden_directories() {
        for name in ["a", "A-1_b.c", &"x".repeat(limits::NAME_BYTES)] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", ".", "..", ".new-a", "a/b", "a b", "ä", &"x".repeat(limits::NAME_BYTES + 1)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
