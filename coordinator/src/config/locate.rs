//! Where in the text a key or a problem stands.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Line and column (from 1, in characters) of a byte offset.
pub(super) fn line_column(text: &str, offset: usize) -> (usize, usize) {
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
