//! Configuration files: text that people write, read whole and as UTF-8.
//!
//! An editor that saves another encoding is told with the place and the remedy. It is not a matter
//! of permissions, although the system's error for both comes from the same call.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

/// Why a file is no text.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The system cannot read it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is a pipe, a socket or a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is longer than any such file.
    #[error("more than {max} bytes are no configuration")]
    TooLong {
        /// The most that is read.
        max: u64,
    },
    /// It is not UTF-8.
    #[error("{}", encoding.problem)]
    Encoding {
        /// Where, and how.
        encoding: BadEncoding,
    },
}

/// A place in a text that is not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadEncoding {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is there.
    pub problem: String,
    /// The encoding that it seems to be in, as `iconv` calls it.
    pub from: &'static str,
}

impl TextError {
    /// What to do about `path`.
    #[must_use]
    pub fn help(&self, path: &Path) -> String {
        let shown = path.display();
        match self {
            Self::Io(error) => match error.kind() {
                io::ErrorKind::PermissionDenied => format!("run as a user that may read it: ls -l {shown}"),
                io::ErrorKind::IsADirectory => "a directory is in its place: move that away".to_owned(),
                _ => "check the path and the disk".to_owned(),
            },
            Self::NotAFile => format!("put a file of text in its place: ls -l {shown}"),
            Self::TooLong { .. } => format!("another file is in its place: look at {shown}"),
            Self::Encoding { encoding } => encoding.help(path),
        }
    }
}

impl BadEncoding {
    /// What to do about `path`.
    #[must_use]
    pub fn help(&self, path: &Path) -> String {
        let (from, path) = (self.from, path.display());
        format!("save it as UTF-8 in an editor, or convert it: iconv -f {from} -t UTF-8 {path} > {path}.new")
    }
}

/// Reads at most `max` bytes of text. A byte order mark of UTF-8 at the start is passed over.
///
/// # Errors
/// See [`TextError`].
pub fn read(path: &Path, max: u64) -> Result<String, TextError> {
    let mut bytes = Vec::new();
    open(path)?.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(TextError::TooLong { max });
    }
    text_of(bytes).map_err(|encoding| TextError::Encoding { encoding })
}

/// Opens a file without waiting: opening a pipe blocks until somebody writes into it.
fn open(path: &Path) -> Result<File, TextError> {
    let file = match OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        // A socket cannot be opened at all.
        Err(_) if std::fs::metadata(path).is_ok_and(|metadata| !is_text_place(&metadata)) => {
            return Err(TextError::NotAFile);
        }
        opened => opened?,
    };
    if is_text_place(&file.metadata()?) { Ok(file) } else { Err(TextError::NotAFile) }
}

/// Whether it is a file, or a directory, which reading refuses with an error of its own.
fn is_text_place(metadata: &std::fs::Metadata) -> bool {
    metadata.is_file() || metadata.is_dir()
}

fn text_of(bytes: Vec<u8>) -> Result<String, BadEncoding> {
    const UTF_8_MARK: char = '\u{feff}';
    let utf_16 = |from, how: &str| BadEncoding {
        line: 1,
        column: 1,
        problem: format!("this is UTF-16 ({how}), expected UTF-8"),
        from,
    };
    match bytes.get(..2) {
        Some([0xFF, 0xFE] | [0xFE, 0xFF]) => return Err(utf_16("UTF-16", "it has a byte order mark")),
        // A configuration begins with a character of ASCII.
        Some([0, _]) => return Err(utf_16("UTF-16BE", "every other byte is 0")),
        Some([_, 0]) => return Err(utf_16("UTF-16LE", "every other byte is 0")),
        _ => {}
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix(UTF_8_MARK).map(str::to_owned).unwrap_or(text)),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let bytes = error.as_bytes();
            let before = String::from_utf8_lossy(&bytes[..at]);
            let before = before.strip_prefix(UTF_8_MARK).unwrap_or(&before);
            Err(BadEncoding {
                line: before.matches('\n').count() + 1,
                column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
                problem: format!("byte 0x{:02X} is not UTF-8 (Latin-1, or Windows-1252?)", bytes[at]),
                from: "WINDOWS-1252",
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8]) -> (usize, usize, String) {
        let BadEncoding { line, column, problem, .. } = text_of(bytes.to_vec()).expect_err("not UTF-8");
        (line, column, problem)
    }

    #[test]
    fn text_is_read_with_and_without_a_mark() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("run.toml");
        for bytes in ["a = \"é\"\n".as_bytes(), "\u{feff}a = \"é\"\n".as_bytes()] {
            std::fs::write(&path, bytes).expect("written");
            assert_eq!(read(&path, 100).expect("text"), "a = \"é\"\n");
        }
        assert!(matches!(read(&path, 3), Err(TextError::TooLong { max: 3 })));
        assert_eq!(text_of(Vec::new()), Ok(String::new()));
    }

    /// Reading a pipe waits for a writer that never comes.
    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).expect("linked");
        for path in [&*pipe, &*socket, &*link, Path::new("/dev/null")] {
            let error = read(path, 100).expect_err("no file");
            assert!(matches!(error, TextError::NotAFile), "{}: {error}", path.display());
            assert!(error.help(path).contains("ls -l"));
        }
        std::fs::write(dir.path().join("text"), "a = 1").expect("written");
        std::fs::remove_file(&link).expect("removed");
        std::os::unix::fs::symlink(dir.path().join("text"), &link).expect("linked");
        assert_eq!(read(&link, 100).expect("a link to text"), "a = 1");
    }

    #[test]
    fn other_encodings_are_told_with_their_place() {
        let latin_1 = b"[run]\nname = \"caf\xe9\"\n";
        let byte = "byte 0xE9 is not UTF-8 (Latin-1, or Windows-1252?)".to_owned();
        assert_eq!(refused(latin_1), (2, 12, byte.clone()));
        assert_eq!(refused(b"\xef\xbb\xbf# \xc3\xa9\xe9"), (1, 4, byte));
        let wide = |mark: bool, big: bool| -> Vec<u8> {
            let text = if mark { "\u{feff}[run]\n" } else { "[run]\n" };
            text.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
        };
        for (mark, big) in [(true, true), (true, false), (false, true), (false, false)] {
            let (line, column, problem) = refused(&wide(mark, big));
            assert_eq!((line, column), (1, 1));
            assert!(problem.starts_with("this is UTF-16 ("), "{problem}");
        }
    }

    /// The remedy belongs to the problem: only a lack of permission is one of permissions.
    #[test]
    fn the_help_is_for_the_problem() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("run.toml");
        let help = |error: &TextError| error.help(&path);
        std::fs::write(&path, b"caf\xe9").expect("written");
        assert!(help(&read(&path, 100).expect_err("Latin-1")).contains("iconv -f WINDOWS-1252 -t UTF-8"));
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("made");
        assert!(help(&read(&path, 100).expect_err("a directory")).contains("a directory is in its place"));
        let denied = TextError::Io(io::ErrorKind::PermissionDenied.into());
        assert!(help(&denied).contains("run as a user that may read it"));
    }
}
