//! Text from outside on a terminal: names, headers, paths and messages may hold control characters that recolour, move
//! or retitle a terminal, and bidirectional overrides that show text in another order.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns `text` with its control characters and bidirectional overrides written out as `\u001b` and so on. Line
/// breaks and tabs stay. Inside a JSON string the result is still the same string.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    escape(text, |character| is_hidden(character) && !matches!(character, '\n' | '\t'))
}

/// Returns `text` as one line: as [`visible`], with line breaks and tabs written out as well.
#[must_use]
pub fn visible_line(text: &str) -> Cow<'_, str> {
    escape(text, is_hidden)
}

/// Rewrites every string in a JSON value with [`visible_line`]: what a table of untrusted names is made from.
pub fn make_visible(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => {
            if let Cow::Owned(escaped) = visible_line(text) {
                *text = escaped;
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(make_visible),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(make_visible),
        _ => {}
    }
}

/// Whether a terminal acts on `character` instead of showing it: controls, line and paragraph separators, and the
/// overrides of UAX #9, table 4.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&hidden) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if hidden(character) {
            // Writing to a String cannot fail. Every hidden character is in the basic plane.
            let _ = write!(escaped, "\\u{:04x}", u32::from(character));
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_written_out() {
        assert_eq!(
            visible("a\x1b[31mred\x1b]0;title\x07\u{9b}1m\x7f"),
            "a\\u001b[31mred\\u001b]0;title\\u0007\\u009b1m\\u007f"
        );
        assert_eq!(visible("one\ttwo\nthree\r\n"), "one\ttwo\nthree\\u000d\n");
        assert_eq!(visible_line("one\ttwo\n"), "one\\u0009two\\u000a");
        assert_eq!(visible("\u{202e}gnp.exe"), "\\u202egnp.exe");
    }

    #[test]
    fn other_text_is_left_alone_without_a_copy() {
        for text in ["", "clinic-3", "Zürich 東京 🙂", "a\\u001b"] {
            assert!(matches!(visible_line(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({ "name": "a\u{7f}\u{9b}b\u{202e}" });
        let printed = visible(&value.to_string()).into_owned();
        assert!(!printed.chars().any(is_hidden), "{printed:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).expect("still JSON"), value);
    }

    #[test]
    fn every_string_of_a_report_becomes_one_line() {
        let mut value = serde_json::json!([{ "name": "a\nb" }, 3, ["\x1b"]]);
        make_visible(&mut value);
        assert_eq!(value, serde_json::json!([{ "name": "a\\u000ab" }, 3, ["\\u001b"]]));
    }
}
