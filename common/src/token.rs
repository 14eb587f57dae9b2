//! Join tokens: one line that a person copies from the coordinator to an agent.
//!
//! ```text
//!  anb1-<base32, lower case, without padding>
//!
//!  0      1          1+n         33+n      65+n       69+n
//!  ┌──────┬──────────┬───────────┬─────────┬──────────┐
//!  │ n u8 │ address  │ CA digest │ secret  │ crc32c   │
//!  │      │ n bytes  │ 32        │ 32      │ u32 le   │
//!  └──────┴──────────┴───────────┴─────────┴──────────┘
//! ```
//! The checksum covers `anb1-` and everything before it, so that a mistyped or missing character is noticed before
//! anything is sent. Base32 is RFC 4648's: no 0 or 1, nothing that a double click would not select.

mod page;

use std::fmt;
use std::str::FromStr;

use crate::ids::Digest;
use crate::limits;

pub use page::{PAGE_PREFIX, PagePermission, PageToken, PageTokenError};

/// How a token starts. The digit is the version of the layout.
pub const PREFIX: &str = "anb1-";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const CHECKSUM_BYTES: usize = 4;
const FIXED_BYTES: usize = 1 + 32 + 32 + CHECKSUM_BYTES;

/// What an agent needs to join: where, whom to trust, and what to show.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// `host:port` of the coordinator.
    pub address: String,
    /// BLAKE3 over the CA's certificate in DER.
    pub ca_fingerprint: Digest,
    /// What the coordinator knows the digest of.
    pub secret: [u8; 32],
}

/// Why a text is not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It starts with something else.
    #[error("a join token starts with {PREFIX:?}")]
    Prefix,
    /// A character that no token has.
    #[error("character {at} of the join token is {found:?}, which no token contains")]
    Character {
        /// Which one, from 1.
        at: usize,
        /// What it is.
        found: char,
    },
    /// It is longer than a token can be.
    #[error("the join token has {0} characters, more than {max}", max = limits::TOKEN_CHARS)]
    TooLong(usize),
    /// It ends too soon.
    #[error("the join token is cut off")]
    Truncated,
    /// It is not what was printed.
    #[error("the join token is mistyped: its checksum does not match")]
    Checksum,
    /// The address in it is no `host:port`.
    #[error("the address in the join token is not a host and a port")]
    Address,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An address that is too long is cut, and the token then refused when it is read: `host:port` has at most 259.
        let address = &self.address.as_bytes()[..self.address.len().min(255)];
        let mut bytes = Vec::with_capacity(FIXED_BYTES + address.len());
        bytes.push(u8::try_from(address.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(address);
        bytes.extend_from_slice(&self.ca_fingerprint.0);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
        write!(f, "{PREFIX}{}", to_base32(&bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, ca_fingerprint, .. } = self;
        f.debug_struct("JoinToken")
            .field("address", address)
            .field("ca_fingerprint", ca_fingerprint)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let chars = text.chars().count();
        if chars > limits::TOKEN_CHARS {
            return Err(TokenError::TooLong(chars));
        }
        let prefix = text.get(..PREFIX.len()).filter(|prefix| prefix.eq_ignore_ascii_case(PREFIX));
        let body = &text[prefix.ok_or(TokenError::Prefix)?.len()..];
        let bytes = from_base32(body)?;
        let address_bytes = usize::from(*bytes.first().ok_or(TokenError::Truncated)?);
        if bytes.len() < FIXED_BYTES + address_bytes {
            return Err(TokenError::Truncated);
        }
        let (content, sum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        // The text itself is compared as well: it says more than the bytes, because of the bits that fill it up.
        if checksum(content).to_le_bytes() != *sum
            || content.len() + CHECKSUM_BYTES != FIXED_BYTES + address_bytes
            || !to_base32(&bytes).eq_ignore_ascii_case(body)
        {
            return Err(TokenError::Checksum);
        }
        let (address, digests) = content[1..].split_at(address_bytes);
        let address = std::str::from_utf8(address).map_err(|_| TokenError::Address)?;
        let (mut ca_fingerprint, mut secret) = ([0; 32], [0; 32]);
        ca_fingerprint.copy_from_slice(&digests[..32]);
        secret.copy_from_slice(&digests[32..]);
        check_address(address)?;
        Ok(Self { address: address.to_owned(), ca_fingerprint: Digest(ca_fingerprint), secret })
    }
}

/// `host:port`, the host of an IPv6 address in brackets.
fn check_address(address: &str) -> Result<(), TokenError> {
    let (host, port) = address.rsplit_once(':').ok_or(TokenError::Address)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let port_is_good = port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_is_good = !host.is_empty()
        && host.chars().all(|c| c.is_ascii_graphic() && c != '/')
        && (bracketed || !host.contains(':'));
    if port_is_good && host_is_good { Ok(()) } else { Err(TokenError::Address) }
}

fn checksum(content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(PREFIX.as_bytes()), content)
}

fn to_base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for group in bytes.chunks(5) {
        let mut block = [0u8; 8];
        block[3..3 + group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(block);
        for i in 0..(group.len() * 8).div_ceil(5) {
            text.push(char::from(ALPHABET[(bits >> (35 - 5 * i) & 31) as usize]));
        }
    }
    text
}

fn from_base32(text: &str) -> Result<Vec<u8>, TokenError> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut bits, mut count) = (0u16, 0u32);
    for (i, found) in text.chars().enumerate() {
        let lower = found.to_ascii_lowercase();
        let digit = ALPHABET.iter().position(|letter| char::from(*letter) == lower);
        let digit = digit.ok_or(TokenError::Character { at: PREFIX.len() + i + 1, found })?;
        bits = bits << 5 | u16::try_from(digit).unwrap_or(0);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap_or(0));
            bits &= (1 << count) - 1;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        let secret = std::array::from_fn(|i| u8::try_from(i * 7 % 256).unwrap_or(0));
        JoinToken { address: "trainer.example.org:4433".into(), ca_fingerprint: Digest::of(b"ca"), secret }
    }

    #[test]
    fn base32_is_the_published_one() {
        // RFC 4648, section 10, in lower case and without padding.
        for (plain, encoded) in [("", ""), ("f", "my"), ("fo", "mzxq"), ("fooba", "mzxw6ytb"), ("foobar", "mzxw6ytboi")]
        {
            assert_eq!(to_base32(plain.as_bytes()), encoded);
            assert_eq!(from_base32(encoded), Ok(plain.as_bytes().to_vec()));
        }
    }

    #[test]
    fn a_token_round_trips_in_either_case_and_with_spaces_around() {
        for address in ["trainer.example.org:4433", "127.0.0.1:1", "[fd00::7]:4433"] {
            let token = JoinToken { address: address.into(), ..token() };
            let text = token.to_string();
            assert!(text.starts_with("anb1-") && text.len() < limits::TOKEN_CHARS, "{text}");
            assert_eq!(text.parse(), Ok(token.clone()));
            assert_eq!(format!(" {}\n", text.to_uppercase()).parse(), Ok(token));
        }
    }

    #[test]
    fn every_mistyped_character_is_noticed() {
        let text = token().to_string();
        for at in PREFIX.len()..text.len() {
            for letter in ALPHABET.iter().map(|letter| char::from(*letter)) {
                let mistyped = format!("{}{letter}{}", &text[..at], &text[at + 1..]);
                if mistyped != text {
                    assert!(mistyped.parse::<JoinToken>().is_err(), "{letter} at {at} went unnoticed");
                }
            }
        }
        let swapped = format!("{}{}{}", &text[..40], text[40..42].chars().rev().collect::<String>(), &text[42..]);
        assert!(swapped == text || swapped.parse::<JoinToken>().is_err(), "two swapped characters went unnoticed");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = token().to_string();
        let parse = |text: &str| text.parse::<JoinToken>().expect_err("not a token");
        assert_eq!(parse(""), TokenError::Prefix);
        assert_eq!(parse(&text.replacen('1', "2", 1)), TokenError::Prefix);
        assert_eq!(parse("ärger-"), TokenError::Prefix);
        assert_eq!(parse("anb1-"), TokenError::Truncated);
        assert_eq!(parse(&text.replacen("-", "-0", 1)), TokenError::Character { at: 6, found: '0' });
        assert_eq!(parse(&text.repeat(9).replace("-", "")), TokenError::TooLong(9 * (text.len() - 1)));
        assert_eq!(parse(&format!("{text}a")), TokenError::Checksum);
        for address in ["host", "host:0", "host:99999", ":1", "a b:1", "fd00::7:1"] {
            let text = JoinToken { address: address.into(), ..token() }.to_string();
            assert_eq!(parse(&text), TokenError::Address, "{address}");
        }
    }

    #[test]
    fn every_prefix_of_a_token_is_refused() {
        let text = token().to_string();
        for len in 0..text.len() {
            assert!(text[..len].parse::<JoinToken>().is_err(), "the first {len} characters were accepted");
        }
        assert_eq!(text[..60].parse::<JoinToken>(), Err(TokenError::Truncated));
    }

    #[test]
    fn the_secret_stays_out_of_logs() {
        assert!(!format!("{:?}", token()).contains("secret"));
    }
}
