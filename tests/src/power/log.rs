//! What the recorder (`record.c`) wrote down.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, bail};

/// Which file an entry is about: a number of the recorder's, not used twice.
pub(super) type FileId = u32;

/// Bytes of an entry's head.
const HEAD_BYTES: usize = 32;

/// One change, sync or acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    /// A file is created.
    Created { file: FileId, path: String },
    /// Bytes are written; where they stand in the log's own bytes.
    Write { file: FileId, offset: u64, data: Range<usize> },
    /// The file's length changes.
    Truncate { file: FileId, len: u64 },
    /// A sync of the file has returned.
    Sync { file: FileId },
    /// A sync of the directory has returned.
    SyncDir { path: String },
    /// A name changes.
    Rename { from: String, to: String },
    /// A name is removed.
    Unlink { path: String },
    /// A directory is made.
    MakeDir { path: String },
    /// A directory is removed.
    RemoveDir { path: String },
    /// The process told somebody.
    Ack { text: String },
}

/// A recording.
#[derive(Debug)]
pub(super) struct Log {
    bytes: Vec<u8>,
    /// In the order in which they happened.
    pub(super) entries: Vec<Operation>,
}

impl Log {
    /// Reads a recording. An entry that the end of the process cut off is passed over.
    ///
    /// # Errors
    /// The file cannot be read, or is not a recording.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut entries = Vec::new();
        let mut at = 0;
        while let Some(head) = bytes.get(at..at + HEAD_BYTES) {
            let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
            let one = at + HEAD_BYTES..at + HEAD_BYTES + u32_at(24) as usize;
            let two = one.end..one.end + u32_at(28) as usize;
            if bytes.len() < two.end {
                break;
            }
            let text = |range: &Range<usize>| String::from_utf8_lossy(&bytes[range.clone()]).into_owned();
            let (file, path) = (u32_at(4), text(&one));
            let operation = match head[0] {
                1 => bail!("{path} was there before the recording began"),
                2 => Operation::Created { file, path },
                3 => Operation::Write { file, offset: u64_at(16), data: one },
                4 => Operation::Truncate { file, len: u64_at(16) },
                5 => Operation::Sync { file },
                6 => Operation::SyncDir { path },
                7 => Operation::Rename { from: path, to: text(&two) },
                8 => Operation::Unlink { path },
                9 => Operation::MakeDir { path },
                10 => Operation::RemoveDir { path },
                11 => Operation::Ack { text: path },
                other => bail!("{}: operation {other} at byte {at}", path),
            };
            entries.push(operation);
            at = two.end;
        }
        Ok(Self { bytes, entries })
    }

    /// The bytes of a write.
    #[must_use]
    pub(super) fn data(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }
}
