//! Finding the files of a data set, and reading them within bounds.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use anabranch_common::limits;

use super::ShardError;
use super::error::Place;

/// The files that make up one data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// One file of rows.
    Csv(PathBuf),
    /// Images and their labels.
    Idx { images: PathBuf, labels: PathBuf },
    /// Any files, read as bytes.
    Text(TextFiles),
}

/// The files of a shard of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TextFiles {
    /// The folder, or the only file.
    pub(super) root: PathBuf,
    /// In the order of their paths.
    pub(super) files: Vec<PathBuf>,
}

impl TextFiles {
    /// All files below `root` whose name, like that of every folder on the way, does not begin with a dot. A link to a
    /// file is that file; a link to a folder is passed over, so that no way leads round in a circle.
    fn below(root: &Path) -> Result<Self, ShardError> {
        let mut files = Vec::new();
        let mut folders = vec![(root.to_path_buf(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let failed = |error| ShardError::io(&folder, error);
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                if is_hidden(&name(&path)) {
                    continue;
                }
                let kind = entry.file_type().map_err(|error| ShardError::io(&path, error))?;
                if kind.is_dir() {
                    folders.push((path, depth + 1));
                } else if kind.is_file() || fs::metadata(&path).is_ok_and(|linked| linked.is_file()) {
                    files.push(path);
                }
                if files.len() > limits::SHARD_FILES || depth >= limits::SHARD_FOLDERS_DEEP {
                    let (most, deep) = (limits::SHARD_FILES, limits::SHARD_FOLDERS_DEEP);
                    let what = format!("it has more than {most} files, or folders more than {deep} deep");
                    return Err(ShardError::TooLarge { path: root.to_path_buf(), what });
                }
            }
        }
        files.sort();
        Ok(Self { root: root.to_path_buf(), files })
    }

    /// A file's path below the root, for people and for parts of a split.
    pub(super) fn name(&self, path: &Path) -> String {
        let below = path.strip_prefix(&self.root).ok().filter(|below| !below.as_os_str().is_empty());
        below.map_or_else(|| name(path), |below| below.to_string_lossy().into_owned())
    }
}

/// Which part of a data set that is stored as two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Train,
    Test,
}

impl Source {
    /// The data set at `path`: a file, or a directory that holds exactly one (or one for training beside one for tests,
    /// and then the one for training). A directory without any is a folder of text.
    pub(super) fn locate(path: &Path) -> Result<Self, ShardError> {
        let metadata = fs::metadata(path).map_err(|error| ShardError::io(path, error))?;
        if !metadata.is_dir() {
            return Self::of_file(path);
        }
        let (train, test): (Vec<_>, Vec<_>) = candidates(path)?.into_iter().partition(|file| part(file) == Part::Train);
        match (train.as_slice(), test.as_slice()) {
            ([one], _) | ([], [one]) => Self::of_file(one),
            ([], []) => {
                let text = TextFiles::below(path)?;
                if text.files.is_empty() || text.files.iter().any(|file| is_labels(&name(file))) {
                    let what = "holds no .csv, .csv.gz or IDX images file, and no text beside";
                    return Err(missing(path, what.to_owned()));
                }
                Ok(Self::Text(text))
            }
            (several @ [_, _, ..], _) | ([], several) => {
                let names: Vec<String> = several.iter().take(10).map(|file| name(file)).collect();
                Err(missing(path, format!("holds several data sets ({}): name one of them", names.join(", "))))
            }
        }
    }

    /// The test part that lies beside this training part, as MNIST's `t10k` files do.
    pub(super) fn test_part(&self) -> Option<Self> {
        let Self::Idx { images, .. } = self else { return None };
        if part(images) == Part::Test {
            return None;
        }
        let beside = candidates(images.parent()?).ok()?;
        let mut tests = beside.iter().filter(|file| part(file) == Part::Test && name(file).contains("images"));
        let first = tests.next()?;
        if tests.next().is_some() { None } else { Self::of_file(first).ok() }
    }

    fn of_file(path: &Path) -> Result<Self, ShardError> {
        let file = name(path);
        if is_csv(&file) {
            return Ok(Self::Csv(path.to_path_buf()));
        }
        if is_text(&file) {
            return Ok(Self::Text(TextFiles { root: path.to_path_buf(), files: vec![path.to_path_buf()] }));
        }
        if !is_images(&file) {
            let what = "is neither a .csv or .csv.gz file nor an IDX images file (*images*idx3-ubyte, plain or .gz) nor a \
                        .txt or .txt.gz file";
            return Err(missing(path, what.to_owned()));
        }
        let plain = file.trim_end_matches(".gz").replace("images", "labels").replace("idx3", "idx1");
        let tries = [path.with_file_name(&plain), path.with_file_name(format!("{plain}.gz"))];
        match tries.iter().find(|labels| labels.exists()) {
            Some(labels) => Ok(Self::Idx { images: path.to_path_buf(), labels: labels.clone() }),
            None => Err(missing(path, format!("has no labels file beside it ({plain} or {plain}.gz)"))),
        }
    }
}

fn missing(path: &Path, what: String) -> ShardError {
    ShardError::Missing { path: path.to_path_buf(), what }
}

/// A file's name for comparing and for messages.
pub(super) fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

/// Returns what a part of the file `name` is called. Parts are read by their directory, which passes over hidden files.
pub(super) fn part_name(name: &str) -> String {
    let visible = name.trim_start_matches('.');
    // Of `.csv` nothing but the extension is left.
    if !is_hidden(name) || is_csv(visible) || is_text(visible) || is_images(visible) || is_labels(visible) {
        visible.to_owned()
    } else {
        format!("part.{visible}")
    }
}

fn is_csv(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".csv") || name.ends_with(".csv.gz")
}

fn is_text(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".txt") || name.ends_with(".txt.gz")
}

/// Labels whose images are missing are no text.
fn is_labels(name: &str) -> bool {
    name.contains("labels") && name.contains("idx")
}

fn is_images(name: &str) -> bool {
    name.contains("images") && name.contains("idx")
}

fn part(path: &Path) -> Part {
    let name = name(path).to_ascii_lowercase();
    if name.starts_with("t10k") || name.starts_with("test") { Part::Test } else { Part::Train }
}

/// The data files in a directory, by name; of a file that is there plain and compressed, the plain one. Hidden files
/// are passed over: macOS writes a `._train.csv` beside a `train.csv` on foreign disks.
fn candidates(directory: &Path) -> Result<Vec<PathBuf>, ShardError> {
    let failed = |error| ShardError::io(directory, error);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let file = name(&path);
        if !is_hidden(&file) && (is_csv(&file) || is_images(&file)) {
            files.push(path);
        }
    }
    files.sort();
    files.dedup_by(|gz, plain| name(gz) == format!("{}.gz", name(plain)));
    Ok(files)
}

/// A file's content, decompressed where it is gzip, that counts what it gives.
pub(super) struct Content {
    path: PathBuf,
    reader: Box<dyn Read>,
    bytes: u64,
}

impl Content {
    pub(super) fn open(path: &Path) -> Result<Self, ShardError> {
        let failed = |error| ShardError::io(path, error);
        let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?);
        let gzip = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Ok(Self { path: path.to_path_buf(), reader, bytes: 0 })
    }

    /// Fills `buffer` or says at which byte the content ends.
    pub(super) fn exact(&mut self, buffer: &mut [u8], what: &str) -> Result<(), ShardError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let count = self.read(&mut buffer[filled..]).map_err(|error| self.failed(error))?;
            if count == 0 {
                let what = format!("the file ends within {what}");
                return Err(ShardError::Corrupt { path: self.path.clone(), place: Place::Byte(self.bytes), what });
            }
            filled += count;
        }
        Ok(())
    }

    /// The next `length` bytes, without trusting `length` with memory before the bytes are there.
    pub(super) fn take(&mut self, length: usize, what: &str) -> Result<Vec<u8>, ShardError> {
        const STEP: usize = 16 << 20;
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let start = bytes.len();
            bytes.resize(length.min(start + STEP), 0);
            self.exact(&mut bytes[start..], what)?;
        }
        Ok(bytes)
    }

    /// Says whether anything follows; a decompressor also checks its checksum here.
    pub(super) fn at_end(&mut self) -> Result<bool, ShardError> {
        self.read(&mut [0]).map(|count| count == 0).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> ShardError {
        read_failed(&self.path, self.bytes, error)
    }
}

/// Sorts a failed read at byte `offset`: bad compressed data is the file's fault, anything else the system's.
pub(super) fn read_failed(path: &Path, offset: u64, error: io::Error) -> ShardError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            let what = format!("the compressed data are damaged or cut off ({error})");
            ShardError::Corrupt { path: path.to_path_buf(), place: Place::Byte(offset), what }
        }
        _ => ShardError::io(path, error),
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.reader.read(buffer) {
                Ok(count) => {
                    self.bytes += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
