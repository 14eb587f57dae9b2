//! Everything that has bytes: control messages, journal records, saved state, the agent's store.
//!
//! ```text
//!  domain type ──► layout! table ──► Writer { schema version } ──► bytes   (bincode, fixed-width little endian)
//!  domain type ◄── layout! table ◄── Reader { schema version } ◄── bytes   (no claim is believed before its bytes are seen)
//! ```
//! Domain types know no bytes. A table in this folder (or in the `schema` module of the crate that owns the type) names
//! a type's fields in the order of their bytes. Each table is checked by the compiler: a field that the type has and the
//! table lacks does not build.
//!
//! One number, [`VERSION`], counts every change of every table. Each format stores or negotiates the version that its
//! bytes were written with, and a table says since which version a field or a variant exists and what older bytes mean:
//!
//! ```text
//!  layout! { struct Plan { local_steps, lr_factor, round, progress, codec since 6 or None } }
//! ```
//! Writing at version 5 leaves `codec` out; reading version 5 gives `None`. Golden bytes of every version stay in
//! `common/tests`. docs/adr/0011 has the reasons, CONTRIBUTING.md one example of each kind of change.

#[macro_use]
mod layout;
mod ids;
mod messages;
mod primitives;
mod records;
mod run_text;
mod updates;

pub use layout::{Layout, Reader, Writer};
pub use run_text::{RunText, RunTextError};

/// The version of every table: what this build writes.
pub const VERSION: u16 = 7;
/// The oldest version that this build reads.
pub const OLDEST: u16 = 6;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Longer than allowed.
    #[error("message of {found} bytes, more than {max}")]
    TooLarge {
        /// Its length.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// Bytes are left over.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
    /// The bytes end too soon.
    #[error("message cannot be read: it ends within {0}")]
    Truncated(&'static str),
    /// A tag that no variant has in this version.
    #[error("message cannot be read: {kind} has no variant {tag}")]
    UnknownVariant {
        /// The enum.
        kind: &'static str,
        /// What the bytes say.
        tag: u32,
    },
    /// A variant that the reader's version does not have.
    #[error("{kind}::{variant} is not known to schema version {version}")]
    Newer {
        /// The enum.
        kind: &'static str,
        /// The variant.
        variant: &'static str,
        /// The version that is written.
        version: u16,
    },
    /// Bytes of a version that this build does not read.
    #[error("schema version {found}; this program reads {}", readable())]
    Version {
        /// The version in front of them.
        found: u16,
    },
    /// A value that is not allowed.
    #[error("message cannot be read: {0}")]
    Malformed(String),
}

/// Encodes `value` in at most `max_bytes` bytes, in the newest version.
///
/// # Errors
/// The encoding is longer than that, or `value` has none.
pub fn encode<T: Layout>(value: &T, max_bytes: usize) -> Result<Vec<u8>, SchemaError> {
    encode_as(VERSION, value, max_bytes)
}

/// Encodes `value` for a reader of `version`.
///
/// # Errors
/// As [`encode`], and where that version has no such variant.
pub fn encode_as<T: Layout>(version: u16, value: &T, max_bytes: usize) -> Result<Vec<u8>, SchemaError> {
    let mut writer = Writer::new(version);
    value.write(&mut writer)?;
    let bytes = writer.into_bytes();
    check_length(&bytes, max_bytes)?;
    Ok(bytes)
}

/// Decodes `bytes` of the newest version. They must hold one value and nothing else.
///
/// Allocates at most [`MESSAGE_EXPANSION`](crate::limits::MESSAGE_EXPANSION) times their length, whatever they claim.
///
/// # Errors
/// Too long, malformed, or followed by other bytes.
pub fn decode<T: Layout>(bytes: &[u8], max_bytes: usize) -> Result<T, SchemaError> {
    decode_as(VERSION, bytes, max_bytes)
}

/// Decodes `bytes` that were written in `version`.
///
/// # Errors
/// As [`decode`].
pub fn decode_as<T: Layout>(version: u16, bytes: &[u8], max_bytes: usize) -> Result<T, SchemaError> {
    check_length(bytes, max_bytes)?;
    let mut reader = Reader::new(version, bytes);
    let value = T::read(&mut reader)?;
    match reader.remaining() {
        0 => Ok(value),
        left => Err(SchemaError::Trailing(left)),
    }
}

/// Encodes `value` in the newest version behind that version's number (u16), for what is stored by itself.
///
/// # Errors
/// As [`encode`].
pub fn encode_numbered<T: Layout>(value: &T, max_bytes: usize) -> Result<Vec<u8>, SchemaError> {
    Ok([&VERSION.to_le_bytes()[..], &encode(value, max_bytes)?].concat())
}

/// Decodes what [`encode_numbered`] wrote, in any version that this build reads.
///
/// # Errors
/// As [`decode`], and where the version is not readable.
pub fn decode_numbered<T: Layout>(bytes: &[u8], max_bytes: usize) -> Result<T, SchemaError> {
    let (number, body) = bytes.split_first_chunk().ok_or(SchemaError::Truncated("its version"))?;
    let version = u16::from_le_bytes(*number);
    if !is_readable(version) {
        return Err(SchemaError::Version { found: version });
    }
    decode_as(version, body, max_bytes)
}

/// Returns whether this build reads what was written in `version`.
#[must_use]
pub fn is_readable(version: u16) -> bool {
    (OLDEST..=VERSION).contains(&version)
}

/// Returns the range of versions that this build reads, for people.
#[must_use]
pub fn readable() -> String {
    if OLDEST == VERSION { format!("version {VERSION}") } else { format!("versions {OLDEST} to {VERSION}") }
}

fn check_length(bytes: &[u8], max: usize) -> Result<(), SchemaError> {
    if bytes.len() > max { Err(SchemaError::TooLarge { found: bytes.len(), max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
