//! Extreme but well-formed values, for tests that no message of a peer makes a core panic.

/// Draws extreme values. A test draws the messages of its peer with a trait of its own that has this one as its supertrait.
pub trait Draw {
    /// Returns the next choice.
    fn choice(&mut self) -> u8;

    /// Returns one of `values`.
    fn of<T: Clone>(&mut self, values: &[T]) -> T {
        values[usize::from(self.choice()) % values.len()].clone()
    }

    /// Returns a whole number; small ones, which exist as identifiers, are more frequent.
    fn number(&mut self) -> u64 {
        let half = 1 << 63;
        self.of(&[0, 0, 1, 1, 2, 3, 16, u64::from(u32::MAX), 1 << 53, half - 1, half, u64::MAX - 1, u64::MAX])
    }

    /// Returns a whole number of 32 bits.
    fn short(&mut self) -> u32 {
        self.of(&[5, 0, 1, 2, u32::MAX / 2, u32::MAX - 1, u32::MAX])
    }

    /// Returns a number that may be infinite or none at all.
    fn float(&mut self) -> f64 {
        let tiny = f64::MIN_POSITIVE;
        self.of(&[0.0, -0.0, 0.5, 1.0, tiny, f64::MAX, f64::MIN, f64::NAN, f64::INFINITY, f64::NEG_INFINITY])
    }

    /// Returns the same as an f32.
    #[expect(clippy::cast_possible_truncation, reason = "an extreme f64 is an extreme f32")]
    fn single(&mut self) -> f32 {
        self.float() as f32
    }

    /// Returns text of one of `lengths`, which a terminal would not show.
    fn text_of(&mut self, lengths: &[usize]) -> String {
        let length = self.of(lengths);
        self.of(&["x", "\u{1b}", "\u{0}", "\n"]).repeat(length)
    }
}

/// Extreme values, one after another, chosen by a list of small numbers; the first of each kind when the list has ended.
#[derive(Debug, Clone)]
pub struct Extremes<'a> {
    choices: std::slice::Iter<'a, u8>,
}

impl<'a> Extremes<'a> {
    /// Returns the values that `choices` choose.
    #[must_use]
    pub fn new(choices: &'a [u8]) -> Self {
        Self { choices: choices.iter() }
    }
}

impl Draw for Extremes<'_> {
    fn choice(&mut self) -> u8 {
        self.choices.next().copied().unwrap_or(0)
    }
}
