//! What a terminal shows of the bytes that it gets: as much of it as views need.

use std::str;

/// Lines of characters, and where the next one goes.
#[derive(Debug, Clone)]
struct Page {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Page {
    fn new(columns: usize, lines: usize) -> Self {
        Self { cells: vec![vec![' '; columns]; lines], row: 0, column: 0 }
    }

    fn put(&mut self, character: char) {
        if let Some(cell) = self.cells.get_mut(self.row).and_then(|line| line.get_mut(self.column)) {
            *cell = character;
        }
        self.column += 1;
    }

    fn next_line(&mut self) {
        if self.row + 1 < self.cells.len() {
            self.row += 1;
        } else if !self.cells.is_empty() {
            let columns = self.cells[0].len();
            self.cells.remove(0);
            self.cells.push(vec![' '; columns]);
        }
    }

    fn clear(&mut self, whole: bool) {
        let (row, column) = if whole { (0, 0) } else { (self.row, self.column) };
        for (index, line) in self.cells.iter_mut().enumerate().skip(row) {
            let from = if index == row { column.min(line.len()) } else { 0 };
            line[from..].fill(' ');
        }
    }
}

/// A terminal without a window.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    size: (usize, usize),
    plain: Page,
    /// The page that a full-screen program draws on.
    full: Option<Page>,
    is_cursor_hidden: bool,
    has_colours: bool,
    /// Bytes of a sequence or a character that has not ended yet.
    rest: Vec<u8>,
}

impl Screen {
    /// Makes an empty one.
    pub(super) fn new(columns: usize, lines: usize) -> Self {
        let plain = Page::new(columns, lines);
        Self {
            size: (columns, lines),
            plain,
            full: None,
            is_cursor_hidden: false,
            has_colours: false,
            rest: Vec::new(),
        }
    }

    /// Switches to the page of full-screen programs.
    pub(super) fn alternate(mut self) -> Self {
        (self.full, self.is_cursor_hidden) = (Some(Page::new(self.size.0, self.size.1)), true);
        self
    }

    /// Takes bytes, which may end anywhere.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.rest);
        let mut at = 0;
        while at < bytes.len() {
            match self.step(&bytes[at..]) {
                Some(used) => at += used,
                None => break,
            }
        }
        self.rest = bytes[at..].to_vec();
    }

    /// Returns what is shown, without the spaces at the ends of lines.
    pub(super) fn text(&self) -> String {
        let page = self.full.as_ref().unwrap_or(&self.plain);
        let lines = page.cells.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }

    /// Whether no full-screen program has it, and the cursor is shown.
    pub(super) fn is_plain(&self) -> bool {
        self.full.is_none() && !self.is_cursor_hidden
    }

    /// Whether any colour was asked for.
    pub(super) fn has_colours(&self) -> bool {
        self.has_colours
    }

    /// Does what the first character or sequence says, and returns its length; nothing where it has not ended.
    fn step(&mut self, bytes: &[u8]) -> Option<usize> {
        let page = self.full.as_mut().unwrap_or(&mut self.plain);
        match bytes[0] {
            b'\x1b' if bytes.get(1)? == &b'[' => {
                let end = 2 + bytes[2..].iter().position(|byte| (0x40..0x7f).contains(byte))?;
                let arguments = str::from_utf8(&bytes[2..end]).unwrap_or_default().to_owned();
                self.sequence(&arguments, bytes[end]);
                Some(end + 1)
            }
            b'\x1b' => Some(2),
            b'\r' => {
                page.column = 0;
                Some(1)
            }
            b'\n' => {
                page.next_line();
                Some(1)
            }
            0..0x20 | 0x7f => Some(1),
            first => {
                let length = match first {
                    0xf0.. => 4,
                    0xe0.. => 3,
                    0xc0.. => 2,
                    _ => 1,
                };
                let character = str::from_utf8(bytes.get(..length)?).ok().and_then(|text| text.chars().next());
                page.put(character.unwrap_or('\u{fffd}'));
                Some(length)
            }
        }
    }

    fn sequence(&mut self, arguments: &str, last: u8) {
        let numbers: Vec<usize> =
            arguments.trim_start_matches('?').split(';').map(|number| number.parse().unwrap_or(0)).collect();
        let number = |index: usize| numbers.get(index).copied().unwrap_or(0);
        let page = self.full.as_mut().unwrap_or(&mut self.plain);
        match (last, arguments) {
            (b'h', "?1049") => self.full = Some(Page::new(self.size.0, self.size.1)),
            (b'l', "?1049") => self.full = None,
            (b'h', "?25") => self.is_cursor_hidden = false,
            (b'l', "?25") => self.is_cursor_hidden = true,
            (b'H' | b'f', _) => (page.row, page.column) = (number(0).max(1) - 1, number(1).max(1) - 1),
            (b'C', _) => page.column += number(0).max(1),
            (b'J', _) => page.clear(number(0) >= 2),
            // 39 and 49 are the terminal's own colours.
            (b'm', _) => self.has_colours |= numbers.iter().any(|code| matches!(code, 30..=38 | 40..=48 | 90..=107)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_where_it_was_written_whatever_pieces_its_bytes_come_in() {
        let bytes = "one\r\ntwo\x1b[?1049h\x1b[?25l\x1b[2;3H▂x\x1b[1;1H\x1b[32mab\x1b[39m\x1b[2C!".as_bytes();
        let mut whole = Screen::new(8, 3);
        whole.take(bytes);
        let mut pieces = Screen::new(8, 3);
        bytes.iter().for_each(|byte| pieces.take(&[*byte]));
        for screen in [&whole, &pieces] {
            assert_eq!(screen.text(), "ab  !\n  ▂x");
            assert!(!screen.is_plain() && screen.has_colours());
        }
        whole.take(b"\x1b[2J\x1b[?1049l\x1b[?25h");
        assert_eq!(whole.text(), "one\ntwo");
        assert!(whole.is_plain());
    }

    #[test]
    fn lines_beyond_the_last_push_the_first_out() {
        let mut screen = Screen::new(8, 2);
        screen.take(b"one\r\ntwo\r\nthree\x1b[m");
        assert_eq!(screen.text(), "two\nthree");
        assert!(!screen.has_colours());
    }
}
