//! Join tokens: one line that a person copies from the coordinator to an agent.
//!
//! ```text
//!  anb1-<base32, lower case, without padding>            one address, one CA
//!
//!  0      1          1+n         33+n      65+n       69+n
//!  ┌──────┬──────────┬───────────┬─────────┬──────────┐
//!  │ n u8 │ address  │ CA digest │ secret  │ crc32c   │
//!  │      │ n bytes  │ 32        │ 32      │ u32 le   │
//!  └──────┴──────────┴───────────┴─────────┴──────────┘
//!
//!  anb2-<the same alphabet>                              several addresses, or the two CAs of a rollover
//!
//!  ┌──────┬───────────────────────┬──────┬────────────────┬─────────┬──────────┐
//!  │ a u8 │ a times: n u8, address│ c u8 │ c times: digest│ secret  │ crc32c   │
//!  │      │          n bytes      │      │ 32             │ 32      │ u32 le   │
//!  └──────┴───────────────────────┴──────┴────────────────┴─────────┴──────────┘
//! ```
//! The checksum covers the prefix and everything before it, so that a mistyped or missing character is noticed before
//! anything is sent. Base32 is RFC 4648's: no 0 or 1, nothing that a double click would not select.

use std::fmt;
use std::str::FromStr;

use crate::ids::Digest;
use crate::limits;

/// How a token with one address and one CA starts. The digit is the version of the layout.
pub const PREFIX: &str = "anb1-";
/// How a token with several addresses or two CAs starts.
pub const PREFIX_OF_SEVERAL: &str = "anb2-";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const CHECKSUM_BYTES: usize = 4;
/// Bytes of what each token has: a count, one digest, the secret and the checksum.
const FIXED_BYTES: usize = 1 + 32 + 32 + CHECKSUM_BYTES;

/// What an agent needs to join: where, whom to trust, and what to show.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// `host:port` of the coordinator: 1 to [`limits::COORDINATOR_ADDRESSES`], in the order in which they are tried.
    pub addresses: Vec<String>,
    /// BLAKE3 over the certificate of each CA in DER: 1 to [`limits::AUTHORITIES`], two during a rollover.
    pub ca_fingerprints: Vec<Digest>,
    /// What the coordinator knows the digest of.
    pub secret: [u8; 32],
}

/// Why a text is not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It starts with something else.
    #[error("a join token starts with {PREFIX:?} or {PREFIX_OF_SEVERAL:?}")]
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
    /// An address in it is no `host:port`.
    #[error("the address in the join token is not a host and a port")]
    Address,
    /// It has no address or CA, or too many.
    #[error(
        "a join token has 1 to {addresses} addresses and 1 to {cas} CAs",
        addresses = limits::COORDINATOR_ADDRESSES,
        cas = limits::AUTHORITIES
    )]
    Counts,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_several = self.addresses.len() != 1 || self.ca_fingerprints.len() != 1;
        let prefix = if is_several { PREFIX_OF_SEVERAL } else { PREFIX };
        let mut bytes =
            Vec::with_capacity(FIXED_BYTES + self.addresses.iter().map(|address| address.len() + 1).sum::<usize>());
        // A count or an address that is too long is cut, and the token then refused when it is read.
        let count = |length: usize| u8::try_from(length).unwrap_or(u8::MAX);
        if is_several {
            bytes.push(count(self.addresses.len()));
        }
        for address in self.addresses.iter().take(usize::from(u8::MAX)) {
            let address = &address.as_bytes()[..address.len().min(usize::from(u8::MAX))];
            bytes.push(count(address.len()));
            bytes.extend_from_slice(address);
        }
        if is_several {
            bytes.push(count(self.ca_fingerprints.len()));
        }
        for fingerprint in self.ca_fingerprints.iter().take(usize::from(u8::MAX)) {
            bytes.extend_from_slice(&fingerprint.0);
        }
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&checksum(prefix, &bytes).to_le_bytes());
        write!(f, "{prefix}{}", to_base32(&bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addresses, ca_fingerprints, .. } = self;
        f.debug_struct("JoinToken")
            .field("addresses", addresses)
            .field("ca_fingerprints", ca_fingerprints)
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
        let begins = |prefix: &&str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
        let prefix = [PREFIX, PREFIX_OF_SEVERAL].into_iter().find(begins).ok_or(TokenError::Prefix)?;
        let body = &text[prefix.len()..];
        let bytes = from_base32(body, prefix.len())?;
        let mut rest = &bytes[..];
        let count = |rest: &mut &[u8]| if prefix == PREFIX { Ok(1) } else { number(rest) };
        let mut addresses = Vec::new();
        for _ in 0..count(&mut rest)? {
            let length = number(&mut rest)?;
            addresses.push(take(&mut rest, length)?);
        }
        let mut ca_fingerprints = Vec::new();
        for _ in 0..count(&mut rest)? {
            ca_fingerprints.push(Digest(digest(&mut rest)?));
        }
        let secret = digest(&mut rest)?;
        if rest.len() < CHECKSUM_BYTES {
            return Err(TokenError::Truncated);
        }
        let content = &bytes[..bytes.len() - rest.len()];
        // The text itself is compared as well: it says more than the bytes, because of the bits that fill it up.
        if *rest != checksum(prefix, content).to_le_bytes() || !to_base32(&bytes).eq_ignore_ascii_case(body) {
            return Err(TokenError::Checksum);
        }
        if !(1..=limits::COORDINATOR_ADDRESSES).contains(&addresses.len())
            || !(1..=limits::AUTHORITIES).contains(&ca_fingerprints.len())
        {
            return Err(TokenError::Counts);
        }
        let addresses = addresses.into_iter().map(read_address).collect::<Result<_, _>>()?;
        Ok(Self { addresses, ca_fingerprints, secret })
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], TokenError> {
    let (taken, left) = rest.split_at_checked(count).ok_or(TokenError::Truncated)?;
    *rest = left;
    Ok(taken)
}

fn number(rest: &mut &[u8]) -> Result<usize, TokenError> {
    take(rest, 1).map(|byte| usize::from(byte[0]))
}

fn digest(rest: &mut &[u8]) -> Result<[u8; 32], TokenError> {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(take(rest, 32)?);
    Ok(bytes)
}

/// `host:port`, the host of an IPv6 address in brackets.
fn read_address(bytes: &[u8]) -> Result<String, TokenError> {
    let address = std::str::from_utf8(bytes).map_err(|_| TokenError::Address)?;
    let (host, port) = address.rsplit_once(':').ok_or(TokenError::Address)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let port_is_good = port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_is_good = !host.is_empty()
        && host.chars().all(|c| c.is_ascii_graphic() && c != '/')
        && (bracketed || !host.contains(':'));
    if port_is_good && host_is_good { Ok(address.to_owned()) } else { Err(TokenError::Address) }
}

fn checksum(prefix: &str, content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(prefix.as_bytes()), content)
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

/// Decodes the characters of a token behind the first `before` ones.
fn from_base32(text: &str, before: usize) -> Result<Vec<u8>, TokenError> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut bits, mut count) = (0u16, 0u32);
    for (i, found) in text.chars().enumerate() {
        let lower = found.to_ascii_lowercase();
        let digit = ALPHABET.iter().position(|letter| char::from(*letter) == lower);
        let digit = digit.ok_or(TokenError::Character { at: before + i + 1, found })?;
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
        let addresses = vec!["trainer.example.org:4433".into()];
        JoinToken { addresses, ca_fingerprints: vec![Digest::of(b"ca")], secret }
    }

    /// A token of a rollover, with several addresses.
    fn token_of_several() -> JoinToken {
        let addresses = ["trainer.example.org:4433", "10.0.0.7:4433", "[fd00::7]:1"].map(String::from).to_vec();
        JoinToken { addresses, ca_fingerprints: vec![Digest::of(b"ca"), Digest::of(b"next")], ..token() }
    }

    #[test]
    fn base32_is_the_published_one() {
        // RFC 4648, section 10, in lower case and without padding.
        for (plain, encoded) in [("", ""), ("f", "my"), ("fo", "mzxq"), ("fooba", "mzxw6ytb"), ("foobar", "mzxw6ytboi")]
        {
            assert_eq!(to_base32(plain.as_bytes()), encoded);
            assert_eq!(from_base32(encoded, 0), Ok(plain.as_bytes().to_vec()));
        }
    }

    #[test]
    fn a_token_round_trips_in_either_case_and_with_spaces_around() {
        for address in ["trainer.example.org:4433", "127.0.0.1:1", "[fd00::7]:4433"] {
            let token = JoinToken { addresses: vec![address.into()], ..token() };
            let text = token.to_string();
            assert!(text.starts_with("anb1-") && text.len() < limits::TOKEN_CHARS, "{text}");
            assert_eq!(text.parse(), Ok(token.clone()));
            assert_eq!(format!(" {}\n", text.to_uppercase()).parse(), Ok(token));
        }
    }

    #[test]
    fn a_token_of_several_addresses_round_trips_and_has_the_bounds() {
        let token = token_of_several();
        let text = token.to_string();
        assert!(text.starts_with("anb2-"), "{text}");
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(text.to_uppercase().parse(), Ok(token.clone()));
        let with = |addresses: usize, cas: usize| {
            let addresses = (0..addresses).map(|n| format!("10.0.0.{n}:7")).collect();
            let token = JoinToken { addresses, ca_fingerprints: vec![Digest::of(b"ca"); cas], ..token.clone() };
            token.to_string().parse::<JoinToken>().map(|read| read == token)
        };
        assert_eq!(with(limits::COORDINATOR_ADDRESSES, limits::AUTHORITIES), Ok(true));
        let beyond = (limits::COORDINATOR_ADDRESSES + 1, limits::AUTHORITIES + 1);
        for (addresses, cas) in [(0, 1), (1, 0), (beyond.0, 1), (1, beyond.1)] {
            assert_eq!(with(addresses, cas), Err(TokenError::Counts), "{addresses} addresses, {cas} CAs");
        }
    }

    #[test]
    fn every_mistyped_character_is_noticed() {
        [token(), token_of_several()].iter().for_each(|token| notices_mistyped_characters(&token.to_string()));
    }

    fn notices_mistyped_characters(text: &str) {
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
        assert_eq!(parse(&text.replacen('1', "3", 1)), TokenError::Prefix);
        assert!(text.replacen('1', "2", 1).parse::<JoinToken>().is_err(), "another layout");
        assert_eq!(parse("ärger-"), TokenError::Prefix);
        assert_eq!(parse("anb1-"), TokenError::Truncated);
        assert_eq!(parse(&text.replacen("-", "-0", 1)), TokenError::Character { at: 6, found: '0' });
        assert_eq!(parse(&text.repeat(9).replace("-", "")), TokenError::TooLong(9 * (text.len() - 1)));
        assert_eq!(parse(&format!("{text}a")), TokenError::Checksum);
        for address in ["host", "host:0", "host:99999", ":1", "a b:1", "fd00::7:1"] {
            let text = JoinToken { addresses: vec![address.into()], ..token() }.to_string();
            assert_eq!(parse(&text), TokenError::Address, "{address}");
        }
    }

    #[test]
    fn every_prefix_of_a_token_is_refused() {
        for text in [token().to_string(), token_of_several().to_string()] {
            for len in 0..text.len() {
                assert!(text[..len].parse::<JoinToken>().is_err(), "the first {len} characters were accepted");
            }
        }
        let text = token().to_string();
        assert_eq!(text[..60].parse::<JoinToken>(), Err(TokenError::Truncated));
    }

    #[test]
    fn the_secret_stays_out_of_logs() {
        assert!(!format!("{:?}", token()).contains("secret"));
    }
}
