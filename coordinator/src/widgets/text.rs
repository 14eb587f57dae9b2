//! Text in so many columns of a terminal.

use anabranch_io::terminal::visible_line;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Stands for what did not fit.
const CUT: char = '…';

/// Returns text as it may be drawn: what a terminal would act on is written out.
pub(crate) fn shown(text: impl Into<String>) -> String {
    let text = text.into();
    match visible_line(&text) {
        std::borrow::Cow::Borrowed(_) => text,
        std::borrow::Cow::Owned(escaped) => escaped,
    }
}

/// Returns how many columns a terminal needs for a text.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// Returns the start of a text that has so many columns, with a sign where the rest is missing.
pub(crate) fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let (mut out, mut used) = (String::new(), 0);
    for character in text.chars() {
        used += character.width().unwrap_or(0);
        if used + 1 > columns {
            break;
        }
        out.push(character);
    }
    if columns > 0 {
        out.push(CUT);
    }
    out
}

/// Breaks a text between words into at most `lines` lines of so many columns. What is missing at the end has a sign.
pub(crate) fn wrap(text: &str, columns: usize, lines: usize) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() && out.len() < lines {
        if out.len() + 1 == lines || width(rest) <= columns {
            out.push(fit(rest, columns));
            break;
        }
        let (mut end, mut space, mut used) = (0, None, 0);
        for (at, character) in rest.char_indices() {
            if character == ' ' {
                space = Some(at);
            }
            used += character.width().unwrap_or(0);
            if used > columns {
                break;
            }
            end = at + character.len_utf8();
        }
        // A word that is wider than the line is broken; a character that is wider stands alone.
        let first = rest.chars().next().map_or(rest.len(), char::len_utf8);
        let end = space.filter(|at| *at > 0).unwrap_or(end).max(first);
        out.push(rest[..end].trim_end().to_owned());
        rest = rest[end..].trim_start();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_by_the_columns_that_it_takes() {
        assert_eq!(["clinic", "clinics", "診療所"].map(|text| fit(text, 6)), ["clinic", "clini…", "診療所"]);
        assert_eq!([fit("診療所", 5), fit("診療所", 4), fit("abc", 1), fit("abc", 0)], ["診療…", "診…", "…", ""]);
    }

    #[test]
    fn lines_are_broken_between_words_and_a_long_word_within() {
        let text = "no evaluator is connected";
        assert_eq!(wrap(text, 14, 3), ["no evaluator", "is connected"]);
        assert_eq!(wrap(text, 12, 2), ["no evaluator", "is connected"]);
        assert_eq!(wrap(text, 10, 2), ["no", "evaluator…"]);
        assert_eq!(wrap("abcdefgh ij", 4, 5), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("診療", 1, 5), ["診", "療"], "nothing is narrower");
        assert_eq!(wrap("", 10, 3), [""; 0]);
    }

    #[test]
    fn what_a_terminal_would_act_on_is_written_out() {
        assert_eq!(shown("\u{1b}[31mred\u{202e}\n"), "\\u001b[31mred\\u202e\\u000a");
    }
}
