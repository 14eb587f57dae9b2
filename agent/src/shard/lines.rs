//! The bytes of a CSV file on their way to the parser, checked line by line.

use std::io::{self, Read};
use std::path::Path;

use anabranch_common::limits;

use super::ShardError;
use super::error::Place;
use super::source::{Content, read_failed};

/// What a line of text cannot have, as an `io::Error` carries it through the CSV parser.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// A line is too long.
    #[error("a line has more than {} bytes", limits::SHARD_LINE_BYTES)]
    LongLine,
    /// The file is too long.
    #[error("it has more than {} bytes", limits::SHARD_BYTES)]
    LongFile,
    /// Not a character of text.
    #[error("a NUL byte, expected text")]
    Nul(u64),
    /// Classic Mac OS ended lines so; a reader that does not would see a single line.
    #[error("a carriage return within a line, expected LF or CRLF line ends")]
    CarriageReturn(u64),
}

impl Fault {
    /// Returns the shard's error.
    pub(super) fn to_error(&self, path: &Path) -> ShardError {
        let (path, what) = (path.to_path_buf(), self.to_string());
        match *self {
            Self::LongLine | Self::LongFile => ShardError::TooLarge { path, what },
            Self::Nul(line) | Self::CarriageReturn(line) => {
                ShardError::Corrupt { path, place: Place::Line(line), what }
            }
        }
    }
}

/// Content with bounded lines and a bounded total: neither a file without line ends nor a small file that decompresses
/// without end takes all memory. Leaves out a byte order mark, and ends the last line where the file does not.
///
/// The lines before a fault are handed out before its error is.
pub(super) struct Lines {
    content: Content,
    /// First bytes of the content, read to look for a byte order mark.
    start: io::Cursor<Vec<u8>>,
    fault: Option<Fault>,
    line: u64,
    line_bytes: usize,
    after_carriage_return: bool,
    bytes: u64,
    ended: bool,
}

impl Lines {
    /// Opens a file.
    pub(super) fn open(path: &Path) -> Result<Self, ShardError> {
        const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
        let mut content = Content::open(path)?;
        let mut start = Vec::new();
        let read = Read::take(&mut content, BYTE_ORDER_MARK.len() as u64).read_to_end(&mut start);
        read.map_err(|error| read_failed(path, 0, error))?;
        if start == BYTE_ORDER_MARK {
            start.clear();
        }
        if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
            let what = "the file is UTF-16, expected UTF-8".to_owned();
            return Err(ShardError::Corrupt { path: path.to_path_buf(), place: Place::Line(1), what });
        }
        Ok(Self {
            content,
            start: io::Cursor::new(start),
            fault: None,
            line: 1,
            line_bytes: 0,
            after_carriage_return: false,
            bytes: 0,
            ended: false,
        })
    }

    /// Bytes handed out so far.
    pub(super) fn position(&self) -> u64 {
        self.bytes
    }

    /// Whether the end of the file has been reported. Every line has an end, so the parser needs that report within a
    /// record only where a quote is open.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Checks `line`, which may be a part of a line, after the earlier parts.
    fn check(&mut self, line: &[u8]) -> Result<(), Fault> {
        self.line_bytes += line.len();
        if self.line_bytes > limits::SHARD_LINE_BYTES {
            return Err(Fault::LongLine);
        }
        if line.contains(&0) {
            return Err(Fault::Nul(self.line));
        }
        for byte in line {
            if self.after_carriage_return && !matches!(byte, b'\r' | b'\n') {
                return Err(Fault::CarriageReturn(self.line));
            }
            self.after_carriage_return = *byte == b'\r';
        }
        if line.ends_with(b"\n") {
            self.line_bytes = 0;
            self.line += 1;
        }
        Ok(())
    }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(fault) = self.fault.take() {
            return Err(io::Error::other(fault));
        }
        let mut count = self.start.read(buffer)?;
        if count == 0 {
            count = self.content.read(buffer)?;
        }
        if count == 0 && self.line_bytes > 0 && !buffer.is_empty() {
            buffer[0] = b'\n';
            count = 1;
        }
        self.ended = count == 0 && !buffer.is_empty();
        self.bytes += count as u64;
        if self.bytes > limits::SHARD_BYTES {
            return Err(io::Error::other(Fault::LongFile));
        }
        let mut good = 0;
        for line in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
            match self.check(line) {
                Ok(()) => good += line.len(),
                Err(fault) if good == 0 => return Err(io::Error::other(fault)),
                Err(fault) => {
                    self.fault = Some(fault);
                    return Ok(good);
                }
            }
        }
        Ok(count)
    }
}
