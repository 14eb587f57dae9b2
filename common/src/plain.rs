//! Text of a peer, made fit for a log line, a record and a terminal.

/// Returns `text` in one line: control characters become spaces, and what exceeds `max_bytes` is cut off between two
/// characters.
#[must_use]
pub fn plain(text: &str, max_bytes: usize) -> String {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|symbol| if symbol.is_control() { ' ' } else { symbol }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_spaces_and_long_text_is_cut_between_characters() {
        assert_eq!(plain("a\u{1b}[2Jb\nc", 100), "a [2Jb c");
        assert_eq!(plain("aé", 2), "a", "é takes two bytes");
        assert_eq!(plain("aé", 3), "aé");
        assert_eq!(plain("a\u{85}", 3), "a ", "no longer than before");
        assert_eq!(plain("", 0), "");
    }
}
