//! What is in a shard, and what is wrong with it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anabranch_common::limits;
use serde::Serialize;

use super::columns::listing;
use super::source::{Source, TextFiles};
use super::text::{Text, TextFile};
use super::{Inputs, Shard, ShardError, ShardOptions, csv, dropped, idx, index_columns, index_warning};

/// What is in a shard.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectReport {
    /// The file (IDX: the images; text: the folder).
    pub path: PathBuf,
    /// `csv`, `idx` or `text`.
    pub format: &'static str,
    /// Examples that can be used; windows of text.
    pub examples: u64,
    /// Shape of one example.
    pub input_shape: Vec<u64>,
    /// Examples of each label; none where it is text.
    pub labels: BTreeMap<u32, u64>,
    /// Where it is text: how much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextReport>,
    /// Smallest and largest input value, where there is an example.
    pub range: Option<[f32; 2]>,
    /// What may be a mistake, though the shard can be used.
    pub warnings: Vec<String>,
    /// Problems found.
    pub problem_count: u64,
    /// The first of them (at most `limits::SHARD_PROBLEMS_SHOWN`), each with its line or offset.
    pub problems: Vec<String>,
}

/// What a shard of text consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TextReport {
    /// Its files, in order; empty ones are left out.
    pub files: Vec<TextFile>,
    /// Bytes, those between two files included.
    pub bytes: u64,
    /// Bytes of the windows that are counted as examples.
    pub context: u64,
}

impl InspectReport {
    fn new(path: PathBuf, format: &'static str) -> Self {
        Self {
            path,
            format,
            examples: 0,
            input_shape: Vec::new(),
            labels: BTreeMap::new(),
            text: None,
            range: None,
            warnings: Vec::new(),
            problem_count: 0,
            problems: Vec::new(),
        }
    }

    /// Whether the shard can be trained on as it is.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.problem_count == 0 && self.examples > 0
    }

    fn example(&mut self, values: impl Iterator<Item = f32>, label: u32) {
        self.examples += 1;
        *self.labels.entry(label).or_default() += 1;
        for value in values {
            let [low, high] = self.range.get_or_insert([value, value]);
            *low = low.min(value);
            *high = high.max(value);
        }
    }

    fn problem(&mut self, problem: &ShardError) {
        self.problem_count += 1;
        if self.problems.len() < limits::SHARD_PROBLEMS_SHOWN {
            self.problems.push(problem.to_string());
        }
    }
}

/// Looks through the shard at `path` and lists what is wrong instead of stopping at it. Of `options`, the columns are
/// used. Text is counted in windows of `context` bytes.
///
/// # Errors
/// What keeps it from being looked at: missing, not permitted, no header to go by.
pub fn inspect(path: &Path, options: &ShardOptions, context: usize) -> Result<InspectReport, ShardError> {
    let source = Source::locate(path)?;
    if !matches!(source, Source::Csv(_)) {
        dropped::check(&source, None, options)?;
    }
    match source {
        Source::Csv(file) => {
            let mut report = InspectReport::new(file.clone(), "csv");
            let end = inspect_csv(&mut report, &file, options);
            finish(report, end)
        }
        Source::Idx { images, labels } => {
            let mut report = InspectReport::new(images.clone(), "idx");
            let end = idx::read(&images, &labels).map(|(images, labels)| {
                let examples = idx::examples(images, &labels);
                report.input_shape = examples.input_shape().to_vec();
                let Inputs::Bytes(values) = examples.inputs() else { return };
                let length = values.len() / examples.len();
                for (row, label) in values.chunks_exact(length).zip(examples.labels()) {
                    report.example(row.iter().map(|byte| f32::from(*byte)), *label);
                }
            });
            finish(report, end)
        }
        Source::Text(files) => {
            let mut report = InspectReport::new(files.root.clone(), "text");
            let end = inspect_text(&mut report, &files, context);
            finish(report, end)
        }
    }
}

fn inspect_csv(report: &mut InspectReport, file: &Path, options: &ShardOptions) -> Result<(), ShardError> {
    let mut table = csv::Table::open(file, options)?;
    let columns = table.columns();
    report.warnings = index_columns(columns.names()).into_iter().map(index_warning).collect();
    // The agent's other shard may have the column.
    let absent = options.drop_columns.iter().filter(|name| !columns.all().contains(name));
    let warning = |name| format!("no column {name:?} to drop; the columns are {}", listing(columns.all()));
    report.warnings.extend(absent.map(warning));
    table.rows(&mut |row| {
        match row {
            Ok(row) => {
                report.input_shape = vec![row.values.len() as u64];
                report.example(row.values.iter().copied(), row.label);
            }
            Err(problem) => report.problem(&problem),
        }
        Ok(())
    })
}

fn inspect_text(report: &mut InspectReport, source: &TextFiles, context: usize) -> Result<(), ShardError> {
    let text = Text::read(source)?;
    let (bytes, context_bytes) = (text.bytes().len() as u64, context as u64);
    report.examples = text.windows(context) as u64;
    report.input_shape = vec![context_bytes];
    report.text = Some(TextReport { files: text.files().to_vec(), bytes, context: context_bytes });
    if report.examples == 0 {
        return Err(ShardError::TooShort { path: source.root.clone(), bytes, context: context_bytes });
    }
    Ok(())
}

/// A file that turns bad on the way has a report all the same.
fn finish(mut report: InspectReport, end: Result<(), ShardError>) -> Result<InspectReport, ShardError> {
    match end {
        Ok(()) if report.examples == 0 && report.problem_count == 0 => {
            report.problem(&ShardError::Empty { path: report.path.clone() });
        }
        Ok(()) => {}
        Err(
            problem @ (ShardError::Corrupt { .. }
            | ShardError::TooLarge { .. }
            | ShardError::TooShort { .. }
            | ShardError::Empty { .. }),
        ) => report.problem(&problem),
        Err(error) => return Err(error),
    }
    Ok(report)
}

impl fmt::Display for InspectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.path.display(), self.format)?;
        if let Some(text) = &self.text {
            write!(f, "{text}")?;
            writeln!(f, "  windows   {} of {} bytes", self.examples, text.context)?;
        } else {
            writeln!(f, "  examples  {}", self.examples)?;
            writeln!(f, "  shape     {:?}", self.input_shape)?;
            if let Some([low, high]) = self.range {
                writeln!(f, "  values    {low} to {high}")?;
            }
            writeln!(f, "  labels    {}", Labels(&self.labels))?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning   {warning}")?;
        }
        if self.problem_count > 0 {
            writeln!(f, "  problems  {}", self.problem_count)?;
            for problem in &self.problems {
                writeln!(f, "    {problem}")?;
            }
            let more = self.problem_count - self.problems.len() as u64;
            if more > 0 {
                writeln!(f, "    and {more} more")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for TextReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        writeln!(f, "  files     {}", self.files.len())?;
        for file in self.files.iter().take(SHOWN) {
            writeln!(f, "    {}, {} bytes", file.name, file.bytes)?;
        }
        if self.files.len() > SHOWN {
            writeln!(f, "    and {} more", self.files.len() - SHOWN)?;
        }
        writeln!(f, "  bytes     {}", self.bytes)
    }
}

/// A histogram on one line: `0: 12, 1: 8`.
pub(super) struct Labels<'a>(pub(super) &'a BTreeMap<u32, u64>);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        for (index, (label, count)) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{label}: {count}")?;
        }
        if self.0.len() > SHOWN {
            write!(f, " and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}
