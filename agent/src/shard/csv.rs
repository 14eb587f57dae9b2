//! CSV with a header row: one column of labels, numbers in all others.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anabranch_common::limits;

use super::columns::Columns;
use super::error::Place;
use super::examples::{Examples, Inputs};
use super::lines::{Fault, Lines};
use super::source::read_failed;
use super::{ShardError, ShardOptions};

/// Line ends in Unix form; of Windows' form the rest is white space and trimmed. The csv crate's own treatment of both
/// leaves its line count behind.
const LINE_END: csv::Terminator = csv::Terminator::Any(b'\n');

/// One good row.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Line, counted from 1, the header included.
    pub(super) line: u64,
    /// The features, in order.
    pub(super) values: &'a [f32],
    /// The label.
    pub(super) label: u32,
}

/// What is done with each row, good or bad.
type Each<'a> = dyn for<'r> FnMut(Result<Row<'r>, ShardError>) -> Result<(), ShardError> + 'a;

/// A file whose header has been read.
pub(super) struct Table<'a> {
    path: &'a Path,
    reader: csv::Reader<Lines>,
    columns: Columns,
}

impl<'a> Table<'a> {
    /// Opens a file and reads its header: the first line that is not blank.
    pub(super) fn open(path: &'a Path, options: &ShardOptions) -> Result<Self, ShardError> {
        let mut reader = builder().from_reader(Lines::open(path)?);
        let mut header = csv::ByteRecord::new();
        match next(path, &mut reader, &mut header)? {
            None => Err(ShardError::Empty { path: path.to_path_buf() }),
            Some(line) => Ok(Self { path, columns: Columns::new(path, line, &header, options)?, reader }),
        }
    }

    /// The columns that are read.
    pub(super) fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Reads every row and hands it, or what is wrong with it, to `each`, which ends the reading with an error.
    ///
    /// # Errors
    /// What `each` returns, and whatever keeps the file from being read at all.
    pub(super) fn rows(&mut self, each: &mut Each<'_>) -> Result<(), ShardError> {
        let mut record = csv::ByteRecord::new();
        let mut values = Vec::with_capacity(self.columns.names().len());
        let mut examples = 0;
        while let Some(line) = next(self.path, &mut self.reader, &mut record)? {
            each(match self.columns.parse(self.path, line, &record, &mut values) {
                Ok(label) => Ok(Row { line, values: &values, label }),
                Err(error) => Err(error),
            })?;
            examples += 1;
            if examples > limits::SHARD_EXAMPLES {
                let what = format!("it has more than {} rows", limits::SHARD_EXAMPLES);
                return Err(ShardError::TooLarge { path: self.path.to_path_buf(), what });
            }
        }
        Ok(())
    }
}

/// Reads the next record that is not blank, and returns its line; `None` at the end.
fn next(path: &Path, reader: &mut csv::Reader<Lines>, record: &mut csv::ByteRecord) -> Result<Option<u64>, ShardError> {
    loop {
        match reader.read_byte_record(record) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => return Err(broken(path, reader.get_ref().position(), error)),
        }
        // A record's own position is no help: it is that of the blank lines before it.
        let now = reader.position().line();
        let inside = record.iter().flatten().filter(|byte| **byte == b'\n').count() as u64;
        if reader.get_ref().ended() {
            let place = Place::Line(now.saturating_sub(inside));
            let what = "a quote is opened and never closed".to_owned();
            return Err(ShardError::Corrupt { path: path.to_path_buf(), place, what });
        }
        if !is_blank(record) {
            return Ok(Some(now.saturating_sub(1 + inside)));
        }
    }
}

/// Reads a whole file that has to be good.
pub(super) fn read(path: &Path, options: &ShardOptions) -> Result<Examples, ShardError> {
    let mut inputs = Inputs::Bytes(Vec::new());
    let mut labels = Vec::new();
    let mut width = 0;
    let mut table = Table::open(path, options)?;
    table.rows(&mut |row| {
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
    let examples = Examples::new(inputs, labels, vec![width as u64]);
    let examples = examples.expect("every row has as many values as the header");
    Ok(examples.with_columns(table.columns().names().to_vec()))
}

/// The file as text, with the extent of its header and of each row: for copying rows as they are.
pub(super) struct Text {
    bytes: Vec<u8>,
    header: std::ops::Range<usize>,
    rows: Vec<std::ops::Range<usize>>,
    /// The columns that are copied; `None` where all are.
    kept: Option<Vec<usize>>,
}

impl Text {
    /// Reads a file that [`read`] has found good.
    pub(super) fn read(path: &Path, options: &ShardOptions) -> Result<Self, ShardError> {
        let kept = Table::open(path, options)?.columns().kept();
        let mut bytes = Vec::new();
        let mut lines = Lines::open(path)?;
        if let Err(error) = lines.read_to_end(&mut bytes) {
            return Err(broken(path, lines.position(), error.into()));
        }
        let mut reader = builder().from_reader(bytes.as_slice());
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
        Ok(Self { bytes, header, rows, kept })
    }

    /// The header and the rows at `indices`, each on a line of its own.
    pub(super) fn select(&self, indices: &[usize]) -> Vec<u8> {
        let mut selected = Vec::new();
        for range in [&self.header].into_iter().chain(indices.iter().map(|index| &self.rows[*index])) {
            selected.extend_from_slice(self.bytes[range.clone()].trim_ascii());
            selected.push(b'\n');
        }
        match &self.kept {
            None => selected,
            Some(kept) => columns_of(&selected, kept),
        }
    }
}

/// The columns at `kept` of rows of text.
fn columns_of(rows: &[u8], kept: &[usize]) -> Vec<u8> {
    let mut reader = builder().from_reader(rows);
    let mut writer = csv::WriterBuilder::new().terminator(LINE_END).from_writer(Vec::new());
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).expect("a slice can be read") {
        // A blank line may stand behind a row.
        if !is_blank(&record) {
            let fields = kept.iter().map(|column| record.get(*column).unwrap_or_default().trim_ascii());
            writer.write_record(fields).expect("memory can be written to");
        }
    }
    writer.into_inner().expect("memory can be written to")
}

/// Rows of another length are reported with their line by [`Columns::parse`]; fields are trimmed there, because the line
/// ends within a record are counted.
fn builder() -> csv::ReaderBuilder {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).terminator(LINE_END);
    builder
}

fn is_blank(record: &csv::ByteRecord) -> bool {
    record.len() == 1 && record[0].trim_ascii().is_empty()
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
        csv::ErrorKind::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()) {
            Some(fault) => fault.to_error(&path),
            None => read_failed(&path, offset, error),
        },
        other => {
            ShardError::Corrupt { path, place: Place::Line(line), what: format!("cannot be read as CSV ({other:?})") }
        }
    }
}
