//! Where examples come from: files on the agent's machine that never leave it.
//!
//! ```text
//!  file or directory ──► open ──► Examples (in memory, bytes stay bytes) ──► Shard::read(indices) ──► Trainer
//!                    ├─► inspect: counts, shape, range, the first problems with their lines
//!                    └─► split: one directory an agent, drawn from a Dirichlet distribution over labels
//! ```
//!
//! | format | what is accepted |
//! |---|---|
//! | CSV | `*.csv`, `*.csv.gz`: a header row, one label column, every other column a number |
//! | IDX | `*images*idx3-ubyte` with `*labels*idx1-ubyte` beside it, each plain or gzip |
//! | text | a folder of any other files, read as bytes, plain or gzip; or one `*.txt`, `*.txt.gz` |
//!
//! A directory is accepted where it holds exactly one CSV or IDX data set. Where it holds none it is a folder of text: every
//! file in it and in its folders, in the order of their paths. Files and folders whose name begins with a dot are
//! passed over in every case. `agent/tests/shards` holds what the Python reader has to agree on.

mod columns;
mod csv;
pub(crate) mod draw;
mod dropped;
mod error;
mod examples;
mod idx;
mod inspect;
mod lines;
mod source;
mod split;
mod split_text;
mod text;

use std::fmt;
use std::path::Path;

use anabranch_common::spec::{ModelKind, ModelSpec};

pub use columns::{index_columns, index_warning};
pub use error::{Place, ShardError};
pub use examples::{Examples, Inputs};
pub use inspect::{InspectReport, TextReport, inspect};
pub use split::{PartReport, Skew, SplitOptions, SplitReport, TextPart, split};
pub use text::{DEFAULT_CONTEXT, Text, TextFile};

use source::Source;

/// Name of the label column in a CSV file where nothing else is configured.
pub const DEFAULT_LABEL_COLUMN: &str = "label";

/// Labelled examples that can be read in any order, from several threads.
pub trait Shard: Send + Sync + fmt::Debug {
    /// Number of examples; never 0 for a shard that was opened from a file.
    fn len(&self) -> usize;

    /// Whether there is no example.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape of one example, outermost dimension first.
    fn input_shape(&self) -> &[u64];

    /// One more than the largest label.
    fn classes(&self) -> u32;

    /// Whether a trainer in another process has the examples, so that they can be counted here but not read.
    fn is_elsewhere(&self) -> bool {
        false
    }

    /// Name of the column of each value of an example, where the file names its columns (CSV).
    fn columns(&self) -> Option<&[String]> {
        None
    }

    /// Replaces the contents of `inputs` with the examples at `indices` (row-major, one after another, unscaled) and
    /// those of `labels` with their labels. Every index must be below [`len`](Self::len).
    fn read(&self, indices: &[usize], inputs: &mut Vec<f32>, labels: &mut Vec<u32>);

    /// The text, where this is text: its examples have one label a position, and a model that takes text cuts it into
    /// windows of its own.
    fn text(&self) -> Option<&Text> {
        None
    }
}

/// What a shard is read as and checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOptions {
    /// Name of the label column (CSV).
    pub label_column: String,
    /// Names of columns that are left out (CSV); the empty name is that of a column without one.
    pub drop_columns: Vec<String>,
    /// Names of the features in the order in which they are read, as the training shard has them (CSV); `None` takes
    /// the file's own.
    pub columns: Option<Vec<String>>,
    /// Shape of one example that the model takes (`model.input` in `run.toml`); `None` takes what the file has.
    pub input: Option<Vec<u64>>,
    /// Classes of the model (`model.classes` in `run.toml`); `None` takes any label.
    pub classes: Option<u32>,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self {
            label_column: DEFAULT_LABEL_COLUMN.to_owned(),
            drop_columns: Vec::new(),
            columns: None,
            input: None,
            classes: None,
        }
    }
}

impl ShardOptions {
    /// Checks the shard against a model's input shape and number of classes; a gpt takes any text.
    #[must_use]
    pub fn for_model(model: &ModelSpec) -> Self {
        if model.kind == ModelKind::Gpt {
            return Self::default();
        }
        Self { input: Some(model.input.clone()), classes: Some(model.classes), ..Self::default() }
    }

    /// Reads labels from another column (CSV).
    #[must_use]
    pub fn label_column(mut self, name: impl Into<String>) -> Self {
        self.label_column = name.into();
        self
    }

    /// Leaves columns out (CSV).
    #[must_use]
    pub fn drop_columns(mut self, names: impl Into<Vec<String>>) -> Self {
        self.drop_columns = names.into();
        self
    }

    /// Reads features by the names that `shard` has for them, whatever their order in the file (CSV).
    #[must_use]
    pub fn columns_of(mut self, shard: &dyn Shard) -> Self {
        self.columns = shard.columns().map(<[String]>::to_vec);
        self
    }
}

/// Reads the shard at `path`, a file or a directory, into memory.
///
/// # Errors
/// See [`ShardError`]: every variant names the file, and where there is one the line or the byte.
pub fn open(path: &Path, options: &ShardOptions) -> Result<Box<dyn Shard>, ShardError> {
    open_beside(path, None, options)
}

/// Reads the shard at `path` of an agent whose other shard is at `other`: a column that is left out has to be in one of
/// them only.
///
/// # Errors
/// As [`open`].
pub fn open_beside(path: &Path, other: Option<&Path>, options: &ShardOptions) -> Result<Box<dyn Shard>, ShardError> {
    let source = Source::locate(path)?;
    if !options.drop_columns.is_empty() {
        dropped::check(&source, other.map(Source::locate).transpose()?.as_ref(), options)?;
    }
    let (file, examples) = match source {
        Source::Csv(file) => (file.clone(), csv::read(&file, options)?),
        Source::Idx { images, labels } => {
            let (image_array, label_array) = idx::read(&images, &labels)?;
            if let Some(classes) = options.classes {
                idx::check_labels(&labels, &label_array, classes)?;
            }
            (images, idx::examples(image_array, &label_array))
        }
        Source::Text(files) => return Ok(Box::new(Text::read(&files)?)),
    };
    if let Some(expected) = options.input.as_ref().filter(|expected| !same_shape(examples.input_shape(), expected)) {
        let found = examples.input_shape().to_vec();
        return Err(ShardError::Shape { path: file, found, expected: expected.clone() });
    }
    Ok(Box::new(examples))
}

/// Whether examples of shape `found` are those of shape `expected`: equal but for leading extents of 1, or as many
/// values with either of them flat.
#[must_use]
pub fn same_shape(found: &[u64], expected: &[u64]) -> bool {
    let core = |shape: &[u64]| shape.iter().copied().skip_while(|extent| *extent == 1).collect::<Vec<_>>();
    let (found, expected) = (core(found), core(expected));
    let elements = |shape: &[u64]| shape.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent));
    found == expected || (found.len().min(expected.len()) <= 1 && elements(&found) == elements(&expected))
}

#[cfg(test)]
mod case_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod text_tests;

#[cfg(test)]
mod shape_tests {
    use super::*;

    #[test]
    fn shapes_agree_when_flat_or_equal() {
        assert!(same_shape(&[28, 28], &[1, 28, 28]));
        assert!(same_shape(&[28, 28], &[784]) && same_shape(&[784], &[1, 28, 28]));
        assert!(same_shape(&[1], &[1, 1]));
        assert!(!same_shape(&[28, 28], &[14, 56]), "as many pixels, but another image");
        assert!(!same_shape(&[28, 28], &[783]) && !same_shape(&[u64::MAX, 2], &[784]));
    }
}
