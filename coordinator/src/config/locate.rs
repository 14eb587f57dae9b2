//! Where in the text a key or a problem stands.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Line and column (from 1, in characters) of a byte offset.
pub(crate) fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// Byte offset of what `error` complains of.
///
/// A table that is read as one of several variants (`[merge]`, `optimizer`) reports an unknown key at the table's
/// start; the key itself is looked up then.
pub(super) fn of_error(text: &str, error: &toml::de::Error) -> usize {
    let span = error.span().unwrap_or(0..0);
    let named = error.message().strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    let key = named.and_then(|name| {
        let root = DeTable::parse(text).ok()?;
        find_name(root.get_ref(), name, &span)
    });
    key.unwrap_or(span.start)
}

/// The keys that say which variant of a table is meant.
const TAGS: [&str; 3] = ["kind", "strategy", "fn"];

/// The dotted key of the value that an error complains of, when the error's own text names no key.
///
/// A table that is read as one of several variants reports a bad value at the table's start. The key to blame is the
/// one without which the complaint is another; `complaint` reads a file's text and says what is wrong with it.
pub(super) fn culprit(
    text: &str,
    error: &toml::de::Error,
    complaint: impl Fn(&str) -> Option<String>,
) -> Option<String> {
    if ["missing field", "unknown field"].iter().any(|said| error.message().starts_with(said)) {
        return None;
    }
    let end = error.span()?.end;
    let table: toml::Table = text.parse().ok()?;
    let before = complaint(text)?;
    let root = DeTable::parse(text).ok()?;
    let sections = root.get_ref().iter().filter(|(name, _)| name.span().start <= end);
    let (name, section) = sections.max_by_key(|(name, _)| name.span().start)?;
    let mut keys = Vec::new();
    leaves(name.get_ref(), section.get_ref(), &mut keys);
    // Without its tag a table is no variant at all: the tag is to blame when nothing else is.
    keys.sort_by_key(|key| key.rsplit('.').next().is_some_and(|last| TAGS.contains(&last)));
    let to_blame = |path: &str| {
        let mut without = table.clone();
        remove(&mut without, path) && complaint(&without.to_string()).as_ref() != Some(&before)
    };
    // A table that lacks a key is complained of before a later table is looked at: the key counts
    // only where its own table is to blame too.
    let own_table =
        |key: &str| key.rsplit_once('.').map(|(table, _)| table.to_owned()).filter(|path| path.contains('.'));
    keys.into_iter().find(|key| to_blame(key) && own_table(key).is_none_or(|path| to_blame(&path)))
}

fn leaves(path: &str, value: &DeValue<'_>, keys: &mut Vec<String>) {
    match value {
        DeValue::Table(inner) => {
            inner.iter().for_each(|(name, value)| leaves(&format!("{path}.{}", name.get_ref()), value.get_ref(), keys));
        }
        _ => keys.push(path.to_owned()),
    }
}

fn remove(table: &mut toml::Table, path: &str) -> bool {
    match path.split_once('.') {
        None => table.remove(path).is_some(),
        Some((name, rest)) => {
            table.get_mut(name).and_then(toml::Value::as_table_mut).is_some_and(|inner| remove(inner, rest))
        }
    }
}

/// Byte offset of the value at the dotted path `key`; of the nearest table above it when it is not written.
pub(super) fn of_key(text: &str, key: &str) -> usize {
    let Ok(root) = DeTable::parse(text) else { return 0 };
    let mut table = root.get_ref();
    let mut offset = 0;
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
        offset = match value.get_ref() {
            DeValue::Table(inner) => {
                table = inner;
                name.span().start
            }
            _ => return value.span().start,
        };
    }
    offset
}

/// The first key called `name` in a table that `within` touches.
fn find_name(table: &DeTable<'_>, name: &str, within: &Range<usize>) -> Option<usize> {
    let touches = |span: &Range<usize>| span.start <= within.end && within.start <= span.end;
    for (key, value) in table {
        let DeValue::Table(inner) = value.get_ref() else { continue };
        if touches(&value.span()) || touches(&key.span()) || inner_touches(inner, within) {
            let here = inner.keys().find(|key| key.get_ref() == name).map(Spanned::span);
            if let Some(found) = here.map(|span| span.start).or_else(|| find_name(inner, name, within)) {
                return Some(found);
            }
        }
    }
    None
}

fn inner_touches(table: &DeTable<'_>, within: &Range<usize>) -> bool {
    table.values().any(|value| value.span().start <= within.end && within.start <= value.span().end)
}
