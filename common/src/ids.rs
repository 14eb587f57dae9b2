//! Identifiers: one newtype a meaning, so that a version can never be passed for a position.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a textual identifier could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected_chars} hexadecimal characters, found {found:?}")]
pub struct ParseIdError {
    /// How many characters a correct identifier has.
    pub expected_chars: usize,
    /// What was there instead (at most 80 characters of it).
    pub found: String,
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let error = || ParseIdError { expected_chars: 2 * N, found: text.chars().take(80).collect() };
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(error());
    }
    let mut out = [0u8; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| error())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
    }
    Ok(out)
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl $name {
            /// The first eight hexadecimal characters: enough for a log line or a table.
            #[must_use]
            pub fn short(&self) -> String {
                self.0[..4].iter().map(|byte| format!("{byte:02x}")).collect()
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// One training job: a manifest, a configuration and a journal.
    RunId, 16
);
hex_id!(
    /// One enrolled identity: the first half of BLAKE3 over the public key (SubjectPublicKeyInfo, DER) of its certificate.
    AgentId, 16
);
hex_id!(
    /// One history of the model. A rollback or a restore starts another.
    BranchId, 16
);
hex_id!(
    /// Chosen at random by an agent process when it starts, so that the coordinator can tell a restart from a reconnect.
    Incarnation, 16
);
hex_id!(
    /// A BLAKE3 digest.
    Digest, 32
);

impl AgentId {
    /// The identity that belongs to a public key, given as SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        let mut id = [0u8; 16];
        id.copy_from_slice(&blake3::hash(spki_der).as_bytes()[..16]);
        Self(id)
    }
}

impl Digest {
    /// BLAKE3 over `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Returns whether two digests are the same, in a time that does not depend on where they differ: for digests of secrets.
    #[must_use]
    pub fn is_same_secret(self, other: Self) -> bool {
        // The crate compares its own type so.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }

    /// BLAKE3 over the little-endian bytes of a flat vector: the digest of a model is the digest of its content, never
    /// of a compressed form.
    #[must_use]
    pub fn of_f32(values: &[f32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = [0u8; 4096];
        for block in values.chunks(buffer.len() / 4) {
            for (slot, value) in buffer.chunks_exact_mut(4).zip(block) {
                slot.copy_from_slice(&value.to_le_bytes());
            }
            hasher.update(&buffer[..block.len() * 4]);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// A [`Digest`] of bytes that come in pieces.
#[derive(Debug, Clone, Default)]
pub struct Digester(blake3::Hasher);

impl Digester {
    /// The next piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// BLAKE3 over all pieces, one after another.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl $name {
            /// The one after this. Saturates: 2^32 restarts or 2^64 records do not happen, and an end is better than a
            /// repetition.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }
    };
}

counter!(
    /// How many server steps have been applied to the model.
    ModelVersion, u64
);
counter!(
    /// Index of a record in the journal.
    Position, u64
);
counter!(
    /// Permission to train from a base version, numbered by the coordinator.
    LeaseId, u64
);
counter!(
    /// Number of an update within one epoch of one agent, counted by the agent from 0.
    UpdateSeq, u64
);
counter!(
    /// One incarnation of an agent's process, numbered by the coordinator from 1.
    Epoch, u32
);

impl ModelVersion {
    /// Staleness (tau) of work that started from `base` when it is merged into `self`, in versions.
    #[must_use]
    pub fn staleness_of(self, base: Self) -> u64 {
        self.0.saturating_sub(base.0)
    }
}

/// One connection of an agent; never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_says_what_is_wrong() {
        let id = AgentId::of_public_key(b"a key");
        assert_eq!(id.to_string().parse::<AgentId>(), Ok(id));
        let error = "xyz".parse::<AgentId>().expect_err("three characters are not an id");
        assert_eq!(error.to_string(), "expected 32 hexadecimal characters, found \"xyz\"");
        assert!("é".repeat(16).parse::<AgentId>().is_err(), "multi-byte characters are refused, not split");
    }

    #[test]
    fn digest_of_f32_is_the_digest_of_the_bytes() {
        let values: Vec<f32> = (0..5000u16).map(|i| f32::from(i) * 0.5).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(Digest::of_f32(&values), Digest::of(&bytes));
        let mut digester = Digester::default();
        [&bytes[..1], &[], &bytes[1..7_000], &bytes[7_000..]].iter().for_each(|piece| digester.add(piece));
        assert_eq!(digester.digest(), Digest::of(&bytes));
    }
}
