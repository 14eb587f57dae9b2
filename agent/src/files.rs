//! Files that must be whole or not there: certificates, keys, `agent.toml`, a long round.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Mode of files that hold a secret.
pub const PRIVATE: u32 = 0o600;
/// Mode of files that hold none.
pub const PUBLIC: u32 = 0o644;

/// Replaces `path` with `content` in one step that survives power loss: a temporary file beside it is written, synced
/// and renamed, then the directory is synced.
///
/// # Errors
/// The system's, whatever step it happens in; `path` is then as it was.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace(path, mode, |file| file.write_all(content))
}

/// The same with content that `write` makes as it goes.
///
/// # Errors
/// As [`write_atomic`], and those of `write`.
pub fn replace(path: &Path, mode: u32, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let dir = folder_of(path);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = dir.join(name);
    // A crash may have left one behind, with a mode that is not this one.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = BufWriter::with_capacity(1 << 16, options.open(&temporary)?);
    write(&mut file)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Makes durable what was created, renamed or removed at `path`.
///
/// # Errors
/// The system's.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a directory for its owner alone, if it is not there.
///
/// # Errors
/// The system's.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards private keys: they are never readable by others, not even for a moment, and a rest of a crash is no harm.
    #[test]
    fn a_file_is_replaced_whole_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("agent.key");
        fs::write(dir.path().join("agent.key.new"), "left over").expect("written");
        write_atomic(&path, b"one", PRIVATE).expect("first");
        write_atomic(&path, b"two", PRIVATE).expect("second");
        assert_eq!(fs::read(&path).expect("there"), b"two");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "no temporary file is left");
    }
}
