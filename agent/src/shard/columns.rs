//! The header of a CSV file: which column is the label, which are features, and in what order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::error::Place;
use super::{ShardError, ShardOptions};

/// Column names that a message lists.
const COLUMNS_SHOWN: usize = 12;

/// The columns of a file.
pub(super) struct Columns {
    /// Names of all of them, in file order.
    all: Vec<String>,
    label: usize,
    /// Column of each feature, in the order in which features are read.
    features: Vec<usize>,
    names: Vec<String>,
}

impl Columns {
    /// Reads the header, which is at `line`.
    pub(super) fn new(
        path: &Path,
        line: u64,
        header: &csv::ByteRecord,
        options: &ShardOptions,
    ) -> Result<Self, ShardError> {
        let all: Vec<String> =
            header.iter().map(|name| String::from_utf8_lossy(name.trim_ascii()).into_owned()).collect();
        let corrupt = |what: String| ShardError::Corrupt { path: path.to_path_buf(), place: Place::Line(line), what };
        let label = label(path, &all, &options.label_column, corrupt)?;
        if options.drop_columns.contains(&all[label]) {
            return Err(corrupt(format!("column {:?} holds the labels and cannot be dropped", all[label])));
        }
        let is_feature = |index: &usize| *index != label && !options.drop_columns.contains(&all[*index]);
        let mut features: Vec<usize> = (0..all.len()).filter(is_feature).collect();
        if features.is_empty() {
            return Err(corrupt("there is no column beside the label".to_owned()));
        }
        if let Some(wanted) = &options.columns {
            features = in_order(&all, features, wanted)
                .map_err(|what| ShardError::OtherColumns { path: path.to_path_buf(), what })?;
        }
        let names = features.iter().map(|index| all[*index].clone()).collect();
        Ok(Self { all, label, features, names })
    }

    /// Names of all columns, in file order.
    pub(super) fn all(&self) -> &[String] {
        &self.all
    }

    /// Names of the features, in the order in which they are read.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the columns that are read, in file order; `None` where all are.
    pub(super) fn kept(&self) -> Option<Vec<usize>> {
        let mut kept = self.features.clone();
        kept.push(self.label);
        kept.sort_unstable();
        (kept.len() < self.all.len()).then_some(kept)
    }

    /// Fills `values` with the features of a row and returns its label.
    pub(super) fn parse(
        &self,
        path: &Path,
        line: u64,
        record: &csv::ByteRecord,
        values: &mut Vec<f32>,
    ) -> Result<u32, ShardError> {
        let corrupt = |what| ShardError::Corrupt { path: path.to_path_buf(), place: Place::Line(line), what };
        if record.len() != self.all.len() {
            return Err(corrupt(format!("{} columns, expected {} as in the header", record.len(), self.all.len())));
        }
        let text = |column: usize| std::str::from_utf8(record[column].trim_ascii()).ok();
        let label = text(self.label).and_then(|text| text.parse().ok()).filter(|label| *label < u32::MAX);
        let label = label
            .ok_or_else(|| corrupt(format!("label {} is not a whole number from 0", shown(&record[self.label]))))?;
        values.clear();
        for column in &self.features {
            let parsed = text(*column).and_then(|text| text.parse::<f32>().ok()).filter(|value| value.is_finite());
            values.push(parsed.ok_or_else(|| {
                corrupt(format!("column {} holds {}, expected a finite number", column + 1, shown(&record[*column])))
            })?);
        }
        Ok(label)
    }
}

/// Returns the names among features that a table's row index has: pandas writes it with an empty name, and reads that
/// as `Unnamed: 0`.
#[must_use]
pub fn index_columns(names: &[String]) -> Vec<&str> {
    let is_index = |name: &&str| {
        let number = name.strip_prefix("Unnamed: ");
        name.is_empty() || number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
    };
    names.iter().map(String::as_str).filter(is_index).collect()
}

/// Returns what people are told about a feature that looks like a row index.
#[must_use]
pub fn index_warning(name: &str) -> String {
    let column = if name.is_empty() { "a column without a name".to_owned() } else { format!("column {name:?}") };
    format!("{column} is used as a feature, but looks like a row index; leave it out with --drop-column '{name}'")
}

/// Finds the label column.
fn label(
    path: &Path,
    names: &[String],
    wanted: &str,
    corrupt: impl Fn(String) -> ShardError,
) -> Result<usize, ShardError> {
    let mut labels = names.iter().enumerate().filter(|(_, name)| *name == wanted).map(|(index, _)| index);
    let Some(label) = labels.next() else {
        if names.iter().all(|name| name.parse::<f64>().is_ok()) {
            return Err(corrupt("the first line holds numbers, expected a header row with column names".to_owned()));
        }
        let (path, wanted, columns) = (path.to_path_buf(), wanted.to_owned(), listing(names));
        return Err(ShardError::LabelColumn { path, wanted, columns });
    };
    match labels.next() {
        None => Ok(label),
        Some(_) => Err(corrupt(format!("two columns are called {wanted:?}"))),
    }
}

/// Puts `features` into the order of the names `wanted`, or says why that cannot be.
fn in_order(all: &[String], features: Vec<usize>, wanted: &[String]) -> Result<Vec<usize>, String> {
    if features.iter().map(|index| &all[*index]).eq(wanted) {
        return Ok(features);
    }
    let found: BTreeMap<&String, usize> = features.iter().map(|index| (&all[*index], *index)).collect();
    let expected: BTreeSet<&String> = wanted.iter().collect();
    let missing: Vec<String> = wanted.iter().filter(|name| !found.contains_key(name)).cloned().collect();
    let other: Vec<String> =
        features.iter().map(|index| &all[*index]).filter(|name| !expected.contains(name)).cloned().collect();
    match (missing.is_empty(), other.is_empty()) {
        (false, false) => return Err(format!("it lacks {} and has {} instead", listing(&missing), listing(&other))),
        (false, true) => return Err(format!("it lacks {}", listing(&missing))),
        (true, false) => return Err(format!("it has {} in addition", listing(&other))),
        (true, true) => {}
    }
    if found.len() < features.len() || expected.len() < wanted.len() {
        return Err("a name is repeated, and the order is another, so columns cannot be matched by name".to_owned());
    }
    Ok(wanted.iter().map(|name| found[name]).collect())
}

/// A field for a message, cut to a readable length.
fn shown(field: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(field.trim_ascii()).chars().take(40).collect();
    format!("{text:?}")
}

pub(super) fn listing(names: &[String]) -> String {
    let show = |name: &String| match name.is_empty() {
        true => "\"\"".to_owned(),
        false => name.chars().take(40).collect(),
    };
    let mut shown: Vec<String> = names.iter().take(COLUMNS_SHOWN).map(show).collect();
    if names.len() > COLUMNS_SHOWN {
        shown.push(format!("and {} more, the last {:?}", names.len() - COLUMNS_SHOWN, names[names.len() - 1]));
    }
    shown.join(", ")
}
