//! CSV with a header row: one column of labels, numbers in all others.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anabranch_common::limits;

use super::error::Place;
use super::examples::{Examples, Inputs};
use super::source::{Content, read_failed};
use super::{ShardError, ShardOptions};

/// Line ends in Unix form; of Windows' form the rest is white space and trimmed. The csv crate's own treatment of both
/// leaves its line count behind.
const LINE_END: csv::Terminator = csv::Terminator::Any(b'\n');
/// Column names that a message lists.
const COLUMNS_SHOWN: usize = 12;

/// One good row.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Line, counted from 1, the header included.
    pub(super) line: u64,
    /// All columns but the label, in order.
    pub(super) values: &'a [f32],
    /// The label.
    pub(super) label: u32,
}

/// What is done with each row, good or bad.
type Each<'a> = dyn for<'r> FnMut(Result<Row<'r>, ShardError>) -> Result<(), ShardError> + 'a;

/// Reads every row and hands it, or what is wrong with it, to `each`, which ends the reading with an error.
///
/// # Errors
/// What `each` returns, and whatever keeps the file from being read at all.
pub(super) fn rows(path: &Path, label_column: &str, each: &mut Each<'_>) -> Result<(), ShardError> {
    let mut reader = reader(path)?;
    let columns = Columns::read(path, &mut reader, label_column)?;
    let mut record = csv::ByteRecord::new();
    let mut values = Vec::with_capacity(columns.count - 1);
    let mut examples = 0;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(error) => return Err(broken(path, reader.get_ref().bytes, error)),
        }
        if is_blank(&record) {
            continue;
        }
        let line = line_of(&record, reader.position().line());
        each(match columns.parse(path, line, &record, &mut values) {
            Ok(label) => Ok(Row { line, values: &values, label }),
            Err(error) => Err(error),
        })?;
        examples += 1;
        if examples > limits::SHARD_EXAMPLES {
            let what = format!("it has more than {} rows", limits::SHARD_EXAMPLES);
            return Err(ShardError::TooLarge { path: path.to_path_buf(), what });
        }
    }
}

/// Reads a whole file that has to be good.
pub(super) fn read(path: &Path, options: &ShardOptions) -> Result<Examples, ShardError> {
    let mut inputs = Inputs::Bytes(Vec::new());
    let mut labels = Vec::new();
    let mut width = 0;
    rows(path, &options.label_column, &mut |row| {
        let row = row?;
        if let Some(classes) = options.classes.filter(|classes| row.label >= *classes) {
            let (path, place) = (path.to_path_buf(), Place::Line(row.line));
            return Err(ShardError::LabelRange { path, place, label: row.label, classes });
        }
        width = row.values.len();
        append(&mut inputs, row.values);
        labels.push(row.label);
        Ok(())
    })?;
    if labels.is_empty() {
        return Err(ShardError::Empty { path: path.to_path_buf() });
    }
    Ok(Examples::new(inputs, labels, vec![width as u64]).expect("every row has as many values as the header"))
}

/// The file as text, with the extent of its header and of each row: for copying rows as they are.
pub(super) struct Text {
    bytes: Vec<u8>,
    header: std::ops::Range<usize>,
    rows: Vec<std::ops::Range<usize>>,
}

impl Text {
    /// Reads a file that [`read`] has found good.
    pub(super) fn read(path: &Path) -> Result<Self, ShardError> {
        let mut bytes = Vec::new();
        let mut content = guarded(path)?;
        if let Err(error) = content.read_to_end(&mut bytes) {
            return Err(broken(path, content.bytes, error.into()));
        }
        let mut builder = csv::ReaderBuilder::new();
        builder.has_headers(false).flexible(true).trim(csv::Trim::All).terminator(LINE_END);
        let mut reader = builder.from_reader(bytes.as_slice());
        let mut record = csv::ByteRecord::new();
        let mut starts = Vec::new();
        while reader.read_byte_record(&mut record).map_err(|error| broken(path, 0, error))? {
            if is_blank(&record) {
                continue;
            }
            let start = record.position().map_or(0, csv::Position::byte);
            starts.push(usize::try_from(start).expect("a position in a slice"));
        }
        let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
        let mut ranges = starts.iter().copied().zip(ends).map(|(start, end)| start..end);
        let header = ranges.next().unwrap_or(0..0);
        let rows = ranges.collect();
        Ok(Self { bytes, header, rows })
    }

    /// The header and the rows at `indices`, each on a line of its own.
    pub(super) fn select(&self, indices: &[usize]) -> Vec<u8> {
        let mut selected = Vec::new();
        for range in [&self.header].into_iter().chain(indices.iter().map(|index| &self.rows[*index])) {
            selected.extend_from_slice(self.bytes[range.clone()].trim_ascii());
            selected.push(b'\n');
        }
        selected
    }
}

fn reader(path: &Path) -> Result<csv::Reader<Guarded>, ShardError> {
    // Rows of another length are reported with their line by `Columns::parse`.
    let mut builder = csv::ReaderBuilder::new();
    Ok(builder.has_headers(false).flexible(true).trim(csv::Trim::All).terminator(LINE_END).from_reader(guarded(path)?))
}

fn guarded(path: &Path) -> Result<Guarded, ShardError> {
    Ok(Guarded { content: Content::open(path)?, line_bytes: 0, bytes: 0 })
}

fn is_blank(record: &csv::ByteRecord) -> bool {
    record.len() == 1 && record[0].is_empty()
}

/// Line of the record that was just read, where the reader stands at line `now`. A record's own position is no help: it
/// is that of the blank lines before it.
fn line_of(record: &csv::ByteRecord, now: u64) -> u64 {
    let inside = record.iter().flatten().filter(|byte| **byte == b'\n').count() as u64;
    now.saturating_sub(1 + inside)
}

/// The header.
struct Columns {
    count: usize,
    label: usize,
}

impl Columns {
    fn read(path: &Path, reader: &mut csv::Reader<Guarded>, wanted: &str) -> Result<Self, ShardError> {
        let mut header = csv::ByteRecord::new();
        let found = reader.read_byte_record(&mut header);
        if !found.map_err(|error| broken(path, reader.get_ref().bytes, error))? {
            return Err(ShardError::Empty { path: path.to_path_buf() });
        }
        let names: Vec<String> = header.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let corrupt = |what: String| Err(ShardError::Corrupt { path: path.to_path_buf(), place: Place::Line(1), what });
        let mut labels = names.iter().enumerate().filter(|(_, name)| *name == wanted).map(|(index, _)| index);
        let Some(label) = labels.next() else {
            if names.iter().all(|name| name.parse::<f64>().is_ok()) {
                return corrupt("the first line holds numbers, expected a header row with column names".to_owned());
            }
            return Err(ShardError::LabelColumn {
                path: path.to_path_buf(),
                wanted: wanted.to_owned(),
                columns: listing(&names),
            });
        };
        if labels.next().is_some() {
            return corrupt(format!("two columns are called {wanted:?}"));
        }
        if names.len() < 2 {
            return corrupt("there is no column beside the label".to_owned());
        }
        Ok(Self { count: names.len(), label })
    }

    /// Fills `values` and returns the label.
    fn parse(
        &self,
        path: &Path,
        line: u64,
        record: &csv::ByteRecord,
        values: &mut Vec<f32>,
    ) -> Result<u32, ShardError> {
        let corrupt = |what| ShardError::Corrupt { path: path.to_path_buf(), place: Place::Line(line), what };
        if record.len() != self.count {
            return Err(corrupt(format!("{} columns, expected {} as in the header", record.len(), self.count)));
        }
        values.clear();
        let mut label = 0;
        for (column, field) in record.iter().enumerate() {
            let text = std::str::from_utf8(field).ok();
            if column == self.label {
                let parsed = text.and_then(|text| text.parse().ok()).filter(|label| *label < u32::MAX);
                label =
                    parsed.ok_or_else(|| corrupt(format!("label {} is not a whole number from 0", shown(field))))?;
            } else {
                let parsed = text.and_then(|text| text.parse::<f32>().ok()).filter(|value| value.is_finite());
                values.push(parsed.ok_or_else(|| {
                    corrupt(format!("column {} holds {}, expected a finite number", column + 1, shown(field)))
                })?);
            }
        }
        Ok(label)
    }
}

/// A field for a message, cut to a readable length.
fn shown(field: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(field).chars().take(40).collect();
    format!("{text:?}")
}

fn listing(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(COLUMNS_SHOWN).map(|name| name.chars().take(40).collect()).collect();
    if names.len() > COLUMNS_SHOWN {
        shown.push(format!("and {} more, the last {:?}", names.len() - COLUMNS_SHOWN, names[names.len() - 1]));
    }
    shown.join(", ")
}

/// Appends a row; the first value that is no byte turns all into floats.
fn append(inputs: &mut Inputs, row: &[f32]) {
    if let Inputs::Bytes(bytes) = inputs {
        if row.iter().all(|value| as_byte(*value).is_some()) {
            bytes.extend(row.iter().filter_map(|value| as_byte(*value)));
            return;
        }
        *inputs = Inputs::Floats(bytes.iter().map(|byte| f32::from(*byte)).collect());
    }
    if let Inputs::Floats(floats) = inputs {
        floats.extend_from_slice(row);
    }
}

/// A whole number from 0 to 255 as a byte; nothing else (-0 neither) comes back from a byte unchanged.
#[expect(clippy::cast_possible_truncation, reason = "the comparison refuses what was truncated")]
fn as_byte(value: f32) -> Option<u8> {
    let byte = value as u8;
    (f32::from(byte) == value && value.is_sign_positive()).then_some(byte)
}

/// Sorts what the csv reader reports.
fn broken(path: &Path, offset: u64, error: csv::Error) -> ShardError {
    let path: PathBuf = path.to_path_buf();
    let line = error.position().map_or(0, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<OverLimit>()) {
            Some(over) => ShardError::TooLarge { path, what: over.to_string() },
            None => read_failed(&path, offset, error),
        },
        other => {
            ShardError::Corrupt { path, place: Place::Line(line), what: format!("cannot be read as CSV ({other:?})") }
        }
    }
}

/// A bound that the content broke, as an `io::Error` carries it through the csv reader.
#[derive(Debug, thiserror::Error)]
enum OverLimit {
    #[error("a line has more than {} bytes", limits::SHARD_LINE_BYTES)]
    Line,
    #[error("it has more than {} bytes", limits::SHARD_BYTES)]
    File,
}

/// Content with bounded lines and a bounded total, so that neither a file without line ends nor a small file that
/// decompresses without end takes all memory. Skips a byte order mark, and ends the last line where the file does not.
struct Guarded {
    content: Content,
    line_bytes: usize,
    bytes: u64,
}

impl Read for Guarded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
        let mut count = self.content.read(buffer)?;
        if self.bytes == 0 && buffer[..count].starts_with(&BYTE_ORDER_MARK) {
            buffer.copy_within(BYTE_ORDER_MARK.len()..count, 0);
            count -= BYTE_ORDER_MARK.len();
        }
        if count == 0 && self.line_bytes > 0 && !buffer.is_empty() {
            buffer[0] = b'\n';
            count = 1;
        }
        self.bytes += count as u64;
        if self.bytes > limits::SHARD_BYTES {
            return Err(io::Error::other(OverLimit::File));
        }
        for line in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
            self.line_bytes += line.len();
            if self.line_bytes > limits::SHARD_LINE_BYTES {
                return Err(io::Error::other(OverLimit::Line));
            }
            if line.ends_with(b"\n") {
                self.line_bytes = 0;
            }
        }
        Ok(count)
    }
}
