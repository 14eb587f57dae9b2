//! Page tokens: one line that a person types into the operator's page.
//!
//! ```text
//!  anp1-<base32, lower case, without padding>
//!
//!  0          32         36
//!  ┌──────────┬──────────┐
//!  │ secret   │ crc32c   │
//!  │ 32       │ u32 le   │
//!  └──────────┴──────────┘
//! ```
//! The checksum covers `anp1-` and the secret. The alphabet is that of join tokens.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{CHECKSUM_BYTES, from_base32, to_base32};

/// How a page token starts. The digit is the version of the layout.
pub const PAGE_PREFIX: &str = "anp1-";
/// Characters after the prefix.
const BODY_CHARS: usize = (8 * (32 + CHECKSUM_BYTES)).div_ceil(5);

/// What the owner of a page token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PagePermission {
    /// See everything that the page shows, and download models.
    View,
    /// The same, and pause, resume and stop runs.
    Operate,
}

impl PagePermission {
    /// Returns the word for it, everywhere the same: in tables, on the page, in the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Operate => "operate",
        }
    }
}

/// What an operator shows to the page.
#[derive(Clone, PartialEq, Eq)]
pub struct PageToken {
    /// What the coordinator knows the digest of.
    pub secret: [u8; 32],
}

/// Why a text is not a page token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageTokenError {
    /// It starts with something else, or has another length.
    #[error("a page token starts with {PAGE_PREFIX:?} and has {} characters", PAGE_PREFIX.len() + BODY_CHARS)]
    Form,
    /// It is not the text that was printed.
    #[error("the page token is mistyped: its checksum does not match")]
    Checksum,
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [self.secret.as_slice(), &checksum(&self.secret)].concat();
        write!(f, "{PAGE_PREFIX}{}", to_base32(&bytes))
    }
}

impl fmt::Debug for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageToken").finish_non_exhaustive()
    }
}

impl FromStr for PageToken {
    type Err = PageTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let prefix = text.get(..PAGE_PREFIX.len()).filter(|prefix| prefix.eq_ignore_ascii_case(PAGE_PREFIX));
        let body = &text[prefix.ok_or(PageTokenError::Form)?.len()..];
        if body.len() != BODY_CHARS {
            return Err(PageTokenError::Form);
        }
        let bytes = from_base32(body, PAGE_PREFIX.len()).map_err(|_| PageTokenError::Form)?;
        let (secret, sum) = bytes.split_first_chunk::<32>().ok_or(PageTokenError::Form)?;
        // The text itself is compared as well: it says more than the bytes, because of the bits that fill it up.
        if checksum(secret) != *sum || !to_base32(&bytes).eq_ignore_ascii_case(body) {
            return Err(PageTokenError::Checksum);
        }
        Ok(Self { secret: *secret })
    }
}

fn checksum(secret: &[u8]) -> [u8; CHECKSUM_BYTES] {
    crc32c::crc32c_append(crc32c::crc32c(PAGE_PREFIX.as_bytes()), secret).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> PageToken {
        PageToken { secret: std::array::from_fn(|i| u8::try_from(i * 7 % 256).unwrap_or(0)) }
    }

    #[test]
    fn a_page_token_round_trips_in_either_case_and_with_spaces_around() {
        let text = token().to_string();
        assert_eq!(text.len(), PAGE_PREFIX.len() + BODY_CHARS);
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {}\n", text.to_uppercase()).parse(), Ok(token()));
    }

    #[test]
    fn every_mistyped_character_is_noticed() {
        let text = token().to_string();
        for at in 0..text.len() {
            for letter in ('a'..='z').chain('0'..='9') {
                let mistyped = format!("{}{letter}{}", &text[..at], &text[at + 1..]);
                if mistyped != text {
                    assert!(mistyped.parse::<PageToken>().is_err(), "{letter} at {at} went unnoticed");
                }
            }
            assert_eq!(text[..at].parse::<PageToken>(), Err(PageTokenError::Form), "the first {at} characters");
        }
        assert_eq!(format!("{text}a").parse::<PageToken>(), Err(PageTokenError::Form));
        assert_eq!(text.replacen('p', "b", 1).parse::<PageToken>(), Err(PageTokenError::Form), "a join token's");
        assert_eq!("anp1-ärger".parse::<PageToken>(), Err(PageTokenError::Form));
        let wide = format!("{PAGE_PREFIX}{}", "ä".repeat(BODY_CHARS / 2));
        assert_eq!(wide.parse::<PageToken>(), Err(PageTokenError::Form), "as many bytes, other characters");
    }

    #[test]
    fn the_secret_stays_out_of_logs() {
        assert_eq!(format!("{:?}", token()), "PageToken { .. }");
    }
}
