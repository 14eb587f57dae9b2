//! Text: the bytes of all files of a folder, one file after another. A token is a byte.
//!
//! ```text
//!  a.txt  b/c.txt        one NUL byte between two files
//!  ┌─────┐┌─────────┐
//!  T h e y 0 O n c e     windows of `context` = 3:   inputs T h e   y 0 O
//!                                                    labels h e y   0 O n
//! ```
//! Windows follow each other by `context` bytes, so that every byte but the first is the label of exactly one position;
//! what is left at the end and fills no window is not used.

use std::io::Read as _;
use std::path::Path;

use anabranch_common::limits;
use anabranch_common::spec::GPT_TOKENS;
use serde::Serialize;

use super::source::{Content, TextFiles, read_failed};
use super::{Shard, ShardError};

/// Between two files.
pub(super) const SEPARATOR: u8 = 0;
/// Bytes of a window where no model has said how many it takes: what examples are counted by until then.
pub const DEFAULT_CONTEXT: usize = 256;

/// A file of a shard of text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TextFile {
    /// Its path below the shard's folder.
    pub name: String,
    /// Its bytes, after decompression.
    pub bytes: u64,
}

/// A shard of text in memory. As a [`Shard`] it is cut into windows of [`DEFAULT_CONTEXT`] bytes, or of all it has where
/// that is less, with one label a position; a model reads windows of its own context from it.
#[derive(Clone)]
pub struct Text {
    bytes: Vec<u8>,
    files: Vec<TextFile>,
    shape: [u64; 1],
}

impl Text {
    /// A text of one nameless file; `None` where it has fewer than two bytes, which hold nothing to tell.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        let files = vec![TextFile { name: String::new(), bytes: bytes.len() as u64 }];
        Self::of(bytes, files)
    }

    fn of(bytes: Vec<u8>, files: Vec<TextFile>) -> Option<Self> {
        let shape = [counting_context(bytes.len())? as u64];
        Some(Self { bytes, files, shape })
    }

    /// Reads all files; empty ones are left out.
    pub(super) fn read(source: &TextFiles) -> Result<Self, ShardError> {
        let mut bytes = Vec::new();
        let mut files = Vec::with_capacity(source.files.len());
        for path in &source.files {
            let end = bytes.len();
            if end > 0 {
                bytes.push(SEPARATOR);
            }
            let start = bytes.len();
            append(path, &mut bytes)?;
            let found = (bytes.len() - start) as u64;
            if found == 0 {
                bytes.truncate(end);
            } else {
                files.push(TextFile { name: source.name(path), bytes: found });
            }
        }
        Self::of(bytes, files).ok_or_else(|| ShardError::Empty { path: source.root.clone() })
    }

    /// All bytes, with one NUL between files.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The files, in order.
    #[must_use]
    pub fn files(&self) -> &[TextFile] {
        &self.files
    }

    /// Number of windows of `context` bytes, each with a byte after it.
    #[must_use]
    pub fn windows(&self, context: usize) -> usize {
        (self.bytes.len() - 1) / context.max(1)
    }

    /// Replaces the contents of `inputs` with the windows of `context` bytes at `indices`, and those of `labels` with
    /// the byte after each position: `context` values of each a window. Every index must be below
    /// [`windows`](Self::windows).
    pub fn read_windows(&self, context: usize, indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>) {
        inputs.clear();
        labels.clear();
        for &index in indices {
            let window = &self.bytes[index * context..=(index + 1) * context];
            inputs.extend(window[..context].iter().map(|byte| f32::from(*byte)));
            labels.extend(window[1..].iter().map(|byte| u32::from(*byte)));
        }
    }

    fn context(&self) -> usize {
        counting_context(self.bytes.len()).expect("a text has two bytes at least")
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("bytes", &self.bytes.len()).field("files", &self.files.len()).finish()
    }
}

impl Shard for Text {
    fn len(&self) -> usize {
        self.windows(self.context())
    }

    fn input_shape(&self) -> &[u64] {
        &self.shape
    }

    fn classes(&self) -> u32 {
        GPT_TOKENS
    }

    fn read(&self, indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>) {
        self.read_windows(self.context(), indices, inputs, labels);
    }

    fn text(&self) -> Option<&Text> {
        Some(self)
    }
}

/// The context that examples of a text of so many bytes are counted by; `None` where it is too short for any.
fn counting_context(bytes: usize) -> Option<usize> {
    let most = bytes.checked_sub(1).filter(|most| *most > 0)?;
    Some(most.min(DEFAULT_CONTEXT))
}

/// Examples that a text of so many bytes is counted as before a model has said what it takes.
pub(super) fn examples(bytes: usize) -> usize {
    counting_context(bytes).map_or(0, |context| (bytes - 1) / context)
}

/// Appends a file's content, within the bound on the whole shard.
fn append(path: &Path, bytes: &mut Vec<u8>) -> Result<(), ShardError> {
    let content = Content::open(path)?;
    let before = bytes.len();
    let room = limits::SHARD_BYTES.saturating_sub(before as u64);
    content
        .take(room + 1)
        .read_to_end(bytes)
        .map_err(|error| read_failed(path, (bytes.len() - before) as u64, error))?;
    if (bytes.len() - before) as u64 > room {
        let what = format!("with the files before it, it has more than {} bytes", limits::SHARD_BYTES);
        return Err(ShardError::TooLarge { path: path.to_path_buf(), what });
    }
    Ok(())
}
