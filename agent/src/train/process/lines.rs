//! Lines of bounded length.

use std::io::{self, BufRead, Read as _};

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Its text, without the line's end; bytes that are no UTF-8 are replaced.
    Text(String),
    /// It was longer than allowed. This is its beginning; the rest was skipped.
    TooLong(String),
    /// There is no more.
    End,
}

/// Reads a line of at most `limit` bytes, its end included. At the end of the input, what lies there without an end of
/// line is a line too.
pub(super) fn read(from: &mut impl BufRead, limit: usize) -> io::Result<Line> {
    let mut bytes = Vec::new();
    from.by_ref().take(limit as u64).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(Line::End);
    }
    let ended = bytes.last() == Some(&b'\n');
    let whole = ended || bytes.len() < limit;
    let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
    if whole {
        return Ok(Line::Text(text));
    }
    skip(from)?;
    Ok(Line::TooLong(text))
}

/// Up to the end of the line, without keeping it.
fn skip(from: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = from.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(buffer.len(), |end| end + 1);
        from.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_one_by_one_and_a_long_one_costs_only_itself() {
        let mut input = io::BufReader::with_capacity(3, &b"one\r\n\nfour4\n123456789\nlast"[..]);
        let mut next = || read(&mut input, 7).expect("memory does not fail");
        assert_eq!(next(), Line::Text("one".into()));
        assert_eq!(next(), Line::Text(String::new()));
        assert_eq!(next(), Line::Text("four4".into()), "six bytes and its end: just allowed");
        assert_eq!(next(), Line::TooLong("1234567".into()));
        assert_eq!(next(), Line::Text("last".into()));
        assert_eq!(next(), Line::End);
    }
}
