//! The base: the `run.toml` that trials vary, and the configuration of each trial.

use std::path::Path;

use super::space::{Overrides, parse_value};
use crate::config::{Config, ConfigError};

/// Tables of the base that no trial has: the process's own, and targets, which would end a trial before its search does.
const LEFT_OUT: [&str; 3] = ["server", "log", "target"];

/// The configuration that trials vary.
#[derive(Debug, Clone, PartialEq)]
pub struct Base(toml::Table);

impl Base {
    /// Checks `text`, the whole file at `path`.
    ///
    /// # Errors
    /// The file would be refused as a run's configuration.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Config::parse(path, text)?;
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: 1,
            column: 1,
            problem: error.message().to_owned(),
        })?;
        table.retain(|name, _| !LEFT_OUT.contains(&name));
        Ok(Self(table))
    }

    /// Returns the tables that trials have, as TOML text. [`parse`](Self::parse) reads the same from it.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.to_string()
    }

    /// Returns the `run.toml` of a trial: the base with `overrides`, under the name `name`.
    ///
    /// # Errors
    /// Why the trial's configuration is impossible, for people.
    pub fn trial(&self, name: &str, overrides: &Overrides) -> Result<String, String> {
        let mut table = self.0.clone();
        set(&mut table, "run.name", toml::Value::String(name.to_owned()))?;
        for (key, text) in overrides {
            let value = parse_value(text).ok_or_else(|| format!("{key} is {text}, which is no value of TOML"))?;
            set(&mut table, key, value)?;
        }
        let text = table.to_string();
        Config::parse(Path::new("run.toml"), &text).map_err(|error| problem(&error))?;
        Ok(text)
    }
}

/// Sets the value of a dotted key. Tables on the way that are not written yet are made.
fn set(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<(), String> {
    let (path, name) = match key.rsplit_once('.') {
        Some((path, name)) => (path.split('.').collect(), name),
        None => (Vec::new(), key),
    };
    let mut inner = table;
    for part in path {
        let entry = inner.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        inner = entry.as_table_mut().ok_or_else(|| format!("{key} cannot be set: {part} is no table in the base"))?;
    }
    inner.insert(name.to_owned(), value);
    Ok(())
}

/// What is wrong, without a place: nobody has written the text that it is a place in.
fn problem(error: &ConfigError) -> String {
    match error {
        ConfigError::Value { key, problem, .. } => format!("{key} {problem}"),
        ConfigError::Syntax { problem, .. } => problem.clone(),
        ConfigError::Unreadable { .. } | ConfigError::Encoding { .. } => error.to_string(),
    }
}
