//! The space: keys of `run.toml`, and what each of them may be.

use std::collections::BTreeMap;

use anabranch_common::limits;

use super::source::{Source, SpecError};
use super::spec::Method;

/// What a trial changes in the base: values as TOML text, by dotted key.
pub type Overrides = BTreeMap<String, String>;

/// The keys that trials differ in, by their dotted names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Space(pub BTreeMap<String, Domain>);

/// What a key may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Domain {
    /// A number whose logarithm is uniform between those of the bounds, both above 0.
    Log(f64, f64),
    /// A number that is uniform between the bounds.
    Uniform(f64, f64),
    /// A whole number between the bounds, which are included.
    Int(i64, i64),
    /// One of these values.
    Choice(Vec<toml::Value>),
}

/// Names of the domains in `[space]`.
const DOMAINS: [&str; 4] = ["log", "uniform", "int", "choice"];
const HOW: &str = "expected { log = [a, b] }, { uniform = [a, b] }, { int = [a, b] } or { choice = [...] }";

impl Space {
    /// Reads `[space]`. A key may be written in quotes (`"train.optimizer.lr" = ...`) or without.
    pub(super) fn read(source: Source<'_>, root: &toml::Table, method: Method) -> Result<Self, SpecError> {
        let missing = || source.refused(&["space"], "is missing or empty: name the keys of run.toml to vary");
        let table = root.get("space").and_then(toml::Value::as_table).filter(|table| !table.is_empty());
        let mut reading = Reading { source, method, found: BTreeMap::new() };
        reading.walk(&mut vec!["space"], table.ok_or_else(missing)?)?;
        Ok(Self(reading.found))
    }

    /// Returns how many points the space has; `None` where a key is continuous, or where 64 bits do not hold the number.
    #[must_use]
    pub fn points(&self) -> Option<u64> {
        self.0.values().try_fold(1u64, |points, domain| points.checked_mul(domain.size()?))
    }
}

impl Domain {
    /// Returns how many values there are; `None` of a continuous domain.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::Log(..) | Self::Uniform(..) => None,
            Self::Int(low, high) => high.checked_sub(*low)?.checked_add(1).and_then(|size| u64::try_from(size).ok()),
            Self::Choice(values) => Some(values.len() as u64),
        }
    }

    /// Returns the value at `index` of a finite domain, as TOML text.
    #[must_use]
    pub fn nth(&self, index: u64) -> Option<String> {
        match self {
            Self::Log(..) | Self::Uniform(..) => None,
            Self::Int(low, high) => {
                let value = low.checked_add_unsigned(index)?;
                (value <= *high).then(|| value.to_string())
            }
            Self::Choice(values) => values.get(usize::try_from(index).ok()?).map(ToString::to_string),
        }
    }

    /// Returns the values at which a key is checked: both bounds, or every choice.
    #[must_use]
    pub fn extremes(&self) -> Vec<String> {
        let mut values = match self {
            Self::Log(low, high) | Self::Uniform(low, high) => vec![number(*low), number(*high)],
            Self::Int(low, high) => vec![low.to_string(), high.to_string()],
            Self::Choice(values) => values.iter().map(ToString::to_string).collect(),
        };
        values.dedup();
        values
    }

    /// Returns whether `text` is a value of this domain.
    #[must_use]
    pub fn contains(&self, text: &str) -> bool {
        let Some(value) = parse_value(text) else { return false };
        match self {
            Self::Log(low, high) | Self::Uniform(low, high) => {
                value.as_float().is_some_and(|value| (*low..=*high).contains(&value))
            }
            Self::Int(low, high) => value.as_integer().is_some_and(|value| (*low..=*high).contains(&value)),
            Self::Choice(values) => values.contains(&value),
        }
    }
}

/// Returns a number as TOML text, which reads as the same bits.
#[must_use]
pub fn number(value: f64) -> String {
    toml::Value::Float(value).to_string()
}

/// Reads a value from TOML text.
#[must_use]
pub fn parse_value(text: &str) -> Option<toml::Value> {
    let table: toml::Table = format!("value = {text}").parse().ok()?;
    (table.len() == 1).then(|| table.into_iter().next())?.map(|(_, value)| value)
}

struct Reading<'a> {
    source: Source<'a>,
    method: Method,
    found: BTreeMap<String, Domain>,
}

impl Reading<'_> {
    fn walk<'t>(&mut self, path: &mut Vec<&'t str>, table: &'t toml::Table) -> Result<(), SpecError> {
        for (key, value) in table {
            path.push(key);
            let refused = |problem: &str| self.source.refused(path, problem);
            let Some(inner) = value.as_table().filter(|inner| !inner.is_empty()) else {
                return Err(refused(&format!("is {value}, {HOW}")));
            };
            let is_domain = inner.iter().any(|(name, value)| DOMAINS.contains(&name.as_str()) && !value.is_table());
            if is_domain {
                let dotted = path.get(1..).unwrap_or_default().join(".");
                allowed(&dotted, self.method).map_err(|problem| refused(&problem))?;
                let domain = domain(inner, self.method).map_err(|problem| refused(&problem))?;
                if self.found.insert(dotted, domain).is_some() {
                    return Err(refused("is written twice, with and without quotes: leave one of them out"));
                }
                if self.found.len() > limits::SEARCH_KEYS {
                    let problem = format!("is one too many: a search varies at most {} keys", limits::SEARCH_KEYS);
                    return Err(self.source.refused(path, &problem));
                }
            } else {
                self.walk(path, inner)?;
            }
            path.pop();
        }
        Ok(())
    }
}

/// Whether trials may differ in a key.
fn allowed(key: &str, method: Method) -> Result<(), String> {
    let table = key.split('.').next().unwrap_or_default();
    let why = match table {
        "server" | "log" => format!("is of the coordinator's process, not of a run: leave [{table}] out of the space"),
        "run" => "is the same in all trials: their names and their seed follow from the search and its base".to_owned(),
        "target" => "does not end a trial, the search does: set search.max in place of a target".to_owned(),
        "model" if method == Method::Pbt => {
            "cannot change while a trial runs, as \"pbt\" asks for: use another method, or leave it out".to_owned()
        }
        _ if key.split('.').any(str::is_empty) => "is no key of run.toml: it has an empty part".to_owned(),
        _ if key == table => format!("is a table of run.toml: name a key in it, such as {table}.KEY"),
        _ => return Ok(()),
    };
    Err(why)
}

fn domain(table: &toml::Table, method: Method) -> Result<Domain, String> {
    let mut keys = table.iter();
    let (Some((name, value)), None) = (keys.next(), keys.next()) else {
        return Err(format!("has {} entries, {HOW}", table.len()));
    };
    let values = value.as_array().ok_or_else(|| format!("has {name} = {value}, {HOW}"))?;
    let domain = match name.as_str() {
        "choice" => choice(values)?,
        "int" => {
            let whole: Vec<i64> = values.iter().filter_map(toml::Value::as_integer).collect();
            match whole[..] {
                [low, high] if values.len() == 2 && low <= high && high.abs_diff(low) < u64::MAX / 2 => {
                    Domain::Int(low, high)
                }
                _ => {
                    return Err(format!(
                        "has int = {value}, expected two whole numbers, the smaller one first, less than 2^63 apart"
                    ));
                }
            }
        }
        "log" | "uniform" => {
            let (low, high) = bounds(values)
                .ok_or_else(|| format!("has {name} = {value}, expected two numbers, the smaller one first"))?;
            match name == "log" {
                true if low <= 0.0 => return Err(format!("has log = {value}, expected bounds of more than 0")),
                true => Domain::Log(low, high),
                false => Domain::Uniform(low, high),
            }
        }
        _ => return Err(format!("has {name}, {HOW}")),
    };
    if method == Method::Grid && domain.size().is_none() {
        return Err(format!("has {name}, expected int or choice: a grid takes every value once"));
    }
    Ok(domain)
}

fn choice(values: &[toml::Value]) -> Result<Domain, String> {
    let most = limits::SEARCH_CHOICES;
    if values.is_empty() || values.len() > most {
        return Err(format!("has {} choices, expected 1 to {most}", values.len()));
    }
    let twice = (1..values.len()).find(|index| values[..*index].contains(&values[*index]));
    match twice {
        Some(index) => Err(format!("has the choice {} twice: leave one out", values[index])),
        None => Ok(Domain::Choice(values.to_vec())),
    }
}

fn bounds(values: &[toml::Value]) -> Option<(f64, f64)> {
    let [low, high] = values else { return None };
    let number = |value: &toml::Value| value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64));
    let (low, high) = (number(low)?, number(high)?);
    (low.is_finite() && high.is_finite() && low < high).then_some((low, high))
}
