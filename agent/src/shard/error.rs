//! Why a shard cannot be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why a shard cannot be used. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// There is no such file, or a directory without a data set in it.
    #[error("{} {what}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// The file may not be read (or the directory not be written).
    #[error("{} may not be opened by this user", path.display())]
    Permission {
        /// The file.
        path: PathBuf,
    },
    /// Not a single example.
    #[error("{} holds no examples", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Text that does not fill one window.
    #[error("{} holds {bytes} bytes of text, too few for a window of {context} and the byte after it", path.display())]
    TooShort {
        /// The folder or file.
        path: PathBuf,
        /// Bytes it has.
        bytes: u64,
        /// Bytes of a window.
        context: u64,
    },
    /// The content is not what the format says.
    #[error("{}, {place}: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong there.
        what: String,
    },
    /// The CSV header has no column with the configured name.
    #[error("{} has no column {wanted:?}; its columns are {columns}", path.display())]
    LabelColumn {
        /// The file.
        path: PathBuf,
        /// The configured name.
        wanted: String,
        /// The columns it has, as a list for people.
        columns: String,
    },
    /// No CSV header has a column with a name that is to be left out.
    #[error("{} has no column {wanted:?} to drop; its columns are {columns}{other}", path.display())]
    DropColumn {
        /// The file.
        path: PathBuf,
        /// The configured name.
        wanted: String,
        /// The columns it has, as a list for people.
        columns: String,
        /// The same about the agent's other shard; empty where there is none.
        other: String,
    },
    /// A column is to be left out of a shard that is not CSV.
    #[error("{} is {format}, which has no column {wanted:?} to drop", path.display())]
    NoColumns {
        /// The file, or the folder of text.
        path: PathBuf,
        /// `IDX` or `text`.
        format: &'static str,
        /// The configured name.
        wanted: String,
    },
    /// The features of a CSV file are not those of the training shard.
    #[error("{} has other columns than the training shard: {what}", path.display())]
    OtherColumns {
        /// The file.
        path: PathBuf,
        /// Which are missing or additional.
        what: String,
    },
    /// Examples have another shape than the model takes.
    #[error("{} holds examples of shape {found:?}, but `model.input` in run.toml is {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Shape of its examples.
        found: Vec<u64>,
        /// Shape that the model takes.
        expected: Vec<u64>,
    },
    /// A label is not a class of the model.
    #[error(
        "{}, {place}: label {label} is out of range, `model.classes` in run.toml is {classes} (labels 0 to {})",
        path.display(), classes.saturating_sub(1)
    )]
    LabelRange {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// The label.
        label: u32,
        /// Classes of the model.
        classes: u32,
    },
    /// More than a limit allows.
    #[error("{} is too large: {what}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Which limit, with both numbers.
        what: String,
    },
    /// The directory that is to be written has something in it.
    #[error("{} is not empty", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The data set cannot be split as asked.
    #[error("{} cannot be split: {what}", path.display())]
    Split {
        /// The data set.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// Any other failure of reading or writing.
    #[error("{} cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Line, counted from 1, the header included.
    Line(u64),
    /// Byte offset in the decompressed content.
    Byte(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Byte(offset) => write!(f, "byte {offset}"),
        }
    }
}

impl ShardError {
    /// Sorts an operating-system error into the variants that an operator can act upon.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path, what: "does not exist".to_owned() },
            io::ErrorKind::PermissionDenied => Self::Permission { path },
            _ => Self::Io { path, source },
        }
    }
}
