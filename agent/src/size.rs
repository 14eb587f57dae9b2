//! Sizes of memory as people write them.

use std::fmt;
use std::str::FromStr;

pub use anabranch_io::cli::size_text as text;
use serde::{Deserialize, Serialize};

/// A size that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size of memory above 0, like 512M, 2G or 1.5GiB (K, M, G and T count by 1024)")]
pub struct SizeError(String);

/// Bytes of memory, at least 1: `512M`, `2G`, `1.5GiB` or a plain number of bytes; units count by 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(u64);

impl Size {
    /// That many bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let bad = || SizeError(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let shift = match lower[digits.len()..].trim_end_matches('b').trim_end_matches('i') {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(bad()),
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(bad());
        }
        let bytes = digits.parse::<f64>().map_err(|_| bad())? * (1u64 << shift) as f64;
        // Larger than any memory, and exact in f64.
        if !(1.0..=(1u64 << 50) as f64).contains(&bytes) {
            return Err(bad());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is in 1..=2^50")]
        Ok(Self(bytes as u64))
    }
}

impl TryFrom<String> for Size {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        let exact = units.iter().find(|(shift, _)| size.0.trailing_zeros() >= *shift);
        exact.map_or_else(|| size.0.to_string(), |(shift, unit)| format!("{}{unit}", size.0 >> shift))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them_and_written_as_they_are_read() {
        let bytes = |text: &str| text.parse::<Size>().expect("a size").bytes();
        assert_eq!((bytes("512M"), bytes("2G"), bytes("1.5GiB")), (512 << 20, 2 << 30, 3 << 29));
        assert_eq!((bytes("64kb"), bytes("4096"), bytes(" 1T ")), (64 << 10, 4096, 1 << 40));
        for size in ["512M", "3G", "1000"] {
            assert_eq!(String::from(size.parse::<Size>().expect("a size")), size);
        }
    }

    #[test]
    fn nonsense_is_no_size() {
        for bad in ["", "M", "0", "0G", "-1G", "1e9", "2X", "2 5M", "1.2.3G", "inf", "nan", "lots", "2GG", "9999999T"] {
            let error = bad.parse::<Size>().expect_err(bad).to_string();
            assert!(error.contains("not a size of memory"), "{error}");
        }
    }
}
