//! The text of `SEARCH.toml`, and where in it a key stands.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::config::locate::line_column;

/// Why a search was refused before it began.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}:{column}: {problem}", path.display())]
pub struct SpecError {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key with its table and what is wrong with it, or what is wrong with the text.
    pub problem: String,
}

/// A text and the file it is from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Source<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text }
    }

    /// Parses the text.
    ///
    /// # Errors
    /// The text is not TOML.
    pub(super) fn table(&self) -> Result<toml::Table, SpecError> {
        toml::from_str(self.text)
            .map_err(|error| self.at(error.span().map_or(0, |span| span.start), error.message().to_owned()))
    }

    /// Returns the error for the key at `path`, which may hold dots of its own: `search.eta is 1, expected ...`.
    pub(super) fn refused(&self, path: &[&str], problem: &str) -> SpecError {
        self.at(self.offset(path), format!("{} {problem}", path.join(".")))
    }

    fn at(&self, offset: usize, problem: String) -> SpecError {
        let (line, column) = line_column(self.text, offset);
        SpecError { path: self.path.to_owned(), line, column, problem }
    }

    /// Byte offset of the value at `path`, or of the nearest table above it that is written.
    fn offset(&self, path: &[&str]) -> usize {
        let Ok(root) = DeTable::parse(self.text) else { return 0 };
        let (mut table, mut offset) = (root.get_ref(), 0);
        for part in path {
            let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
            offset = name.span().start;
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        offset
    }
}

/// A table of the text whose keys are read one by one.
#[derive(Debug)]
pub(super) struct Section<'a> {
    pub(super) source: Source<'a>,
    name: &'a str,
    table: &'a toml::Table,
}

impl<'a> Section<'a> {
    /// Returns the table `name`, which may hold `known` keys only.
    ///
    /// # Errors
    /// The table is missing or is no table, or one of its keys is not known.
    pub(super) fn of(
        source: Source<'a>,
        root: &'a toml::Table,
        name: &'a str,
        known: &[&str],
    ) -> Result<Self, SpecError> {
        let missing = || source.refused(&[name], "is missing, expected a table of that name: see docs/search.md");
        let table = root.get(name).and_then(toml::Value::as_table).ok_or_else(missing)?;
        match table.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(Self { source, name, table }),
            Some(key) => {
                Err(source.refused(&[name, key], &format!("is not known, expected one of: {}", known.join(", "))))
            }
        }
    }

    pub(super) fn refused(&self, key: &str, problem: &str) -> SpecError {
        self.source.refused(&[self.name, key], problem)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Returns a whole number, if it is written.
    ///
    /// # Errors
    /// The value is no whole number, or is out of `range`.
    pub(super) fn whole(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, SpecError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
        let number = number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (from, to) = range.into_inner();
            self.refused(key, &format!("is {value}, expected a whole number from {from} to {to}"))
        })?;
        Ok(Some(number))
    }

    /// Returns a whole number that must be written.
    ///
    /// # Errors
    /// As [`whole`](Self::whole), and where the key is missing: then `purpose` says what it is for.
    pub(super) fn required(&self, key: &str, range: RangeInclusive<u64>, purpose: &str) -> Result<u64, SpecError> {
        self.whole(key, range)?.ok_or_else(|| self.refused(key, &format!("is missing: set it to {purpose}")))
    }

    /// Returns the place of a word in `words`, the first one where the key is not written.
    ///
    /// # Errors
    /// The value is none of the words.
    pub(super) fn word(&self, key: &str, words: &[&str]) -> Result<usize, SpecError> {
        let Some(value) = self.table.get(key) else { return Ok(0) };
        let place = value.as_str().and_then(|text| words.iter().position(|word| *word == text));
        place.ok_or_else(|| {
            let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
            self.refused(key, &format!("is {value}, expected {}", words.join(" or ")))
        })
    }

    /// Returns a text, if it is written.
    ///
    /// # Errors
    /// The value is no text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, SpecError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let text = value.as_str();
        text.map(Some).ok_or_else(|| self.refused(key, &format!("is {value}, expected text in quotes")))
    }
}
