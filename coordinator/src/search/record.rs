//! Records of a search: every decision, and everything that decisions rest on.
//!
//! ```text
//!  0      4        6          8         12
//!  ┌──────┬────────┬──────────┬─────────┬──────────────────────────┐
//!  │"ANBS"│schema  │ reserved │ crc32c  │ position · at_ms · body  │
//!  │ 4    │ u16 le │ u16 = 0  │ u32 le  │                          │
//!  └──────┴────────┴──────────┴─────────┴──────────────────────────┘
//! ```
//! The checksum covers the first eight bytes and everything behind it.

use std::fmt;

use anabranch_common::ids::{ModelVersion, Position};
use anabranch_common::limits;
use anabranch_common::schema::{self, SchemaError};
use serde::{Deserialize, Serialize};

use super::space::Overrides;

/// Magic bytes of a stored record.
pub const MAGIC: [u8; 4] = *b"ANBS";

/// Number of a trial within its search, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrialId(pub u32);

impl fmt::Display for TrialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One entry of a search's journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its index.
    pub position: Position,
    /// Unix time in milliseconds at which it was decided; nothing follows from it.
    pub at_ms: u64,
    /// What it says.
    pub body: RecordBody,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordBody {
    /// Record 0: what the search was started with. Later changes of the files change nothing.
    Started {
        /// Path of `SEARCH.toml`, as the operator gave it.
        path: String,
        /// Its text.
        search: String,
        /// The tables of the base that trials have, as text.
        base: String,
    },
    /// A new trial runs to the first rung.
    Trial {
        /// Its number: one more than the one before.
        trial: TrialId,
        /// What it changes in the base.
        overrides: Overrides,
    },
    /// A trial has the contributions of the rung that it runs to.
    Reached {
        /// Which.
        trial: TrialId,
        /// The rung, from 0.
        rung: u32,
        /// Its contributions.
        contributions: u64,
        /// The version to be measured.
        version: ModelVersion,
    },
    /// The version with which a trial reached its rung was measured. The trial waits there.
    Measured {
        /// Which.
        trial: TrialId,
        /// The rung.
        rung: u32,
        /// The version.
        version: ModelVersion,
        /// Accuracy or loss, as the search compares; finite.
        metric: f64,
    },
    /// A trial runs on, to this rung.
    Promoted {
        /// Which.
        trial: TrialId,
        /// The rung that it runs to.
        rung: u32,
    },
    /// A trial of a population continues from a copy of another one.
    Exploited {
        /// Which.
        trial: TrialId,
        /// The rung at which both were compared.
        rung: u32,
        /// The trial that is copied.
        from: TrialId,
        /// That trial's version, as measured at the rung.
        version: ModelVersion,
        /// What the copy changes in the base from here on.
        overrides: Overrides,
    },
    /// A trial is over. It counts as the worst at the rung that it ran to or waited at.
    Closed {
        /// Which.
        trial: TrialId,
        /// Why.
        why: CloseReason,
        /// The same for people, at most [`limits::SEARCH_REASON_BYTES`].
        reason: String,
    },
    /// The search is over.
    Finished {
        /// The best trial at the highest rung that a trial was measured at; none when every trial was closed.
        winner: Option<TrialId>,
        /// Whether an operator ended it.
        stopped: bool,
    },
}

/// Why a trial was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloseReason {
    /// Its configuration is impossible.
    Impossible,
    /// Its model or its metric stopped being finite.
    Diverged,
    /// Its run could not be made or went wrong.
    Failed,
    /// Its run was deleted or ended by an operator.
    Gone,
}

anabranch_common::layout! {
    newtype TrialId;

    struct Entry { position, at_ms, body }

    enum RecordBody {
        0 = Started { path, search, base },
        1 = Trial { trial, overrides },
        2 = Reached { trial, rung, contributions, version },
        3 = Measured { trial, rung, version, metric },
        4 = Promoted { trial, rung },
        5 = Exploited { trial, rung, from, version, overrides },
        6 = Closed { trial, why, reason },
        7 = Finished { winner, stopped },
    }

    enum CloseReason { 0 = Impossible, 1 = Diverged, 2 = Failed, 3 = Gone }
}

/// A record as it is stored.
#[derive(Debug, Clone)]
struct Entry {
    position: Position,
    at_ms: u64,
    body: RecordBody,
}

/// Why stored bytes are not a record of a search.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Something else, or cut short.
    #[error("record of a search does not start with its magic bytes")]
    Magic,
    /// Written by another version.
    #[error("record of a search of schema version {found}; this program reads {}", schema::readable())]
    Schema {
        /// The version in front of it.
        found: u16,
    },
    /// The bytes changed after they were written.
    #[error("record of a search does not match its checksum")]
    Checksum,
    /// A value that is not allowed.
    #[error("record of a search: {0}")]
    Body(#[from] SchemaError),
}

impl Record {
    /// Returns the stored form.
    ///
    /// # Errors
    /// The record is longer than [`limits::SEARCH_RECORD_BYTES`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, RecordError> {
        let entry = Entry { position: self.position, at_ms: self.at_ms, body: self.body.clone() };
        let content = schema::encode(&entry, limits::SEARCH_RECORD_BYTES)?;
        let head = [&MAGIC[..], &schema::VERSION.to_le_bytes(), &[0; 2]].concat();
        Ok([&head[..], &checksum(&head, &content).to_le_bytes(), &content].concat())
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let (head, rest) = bytes.split_first_chunk::<8>().ok_or(RecordError::Magic)?;
        let (sum, content) = rest.split_first_chunk().ok_or(RecordError::Magic)?;
        let [a, b, c, d, low, high, ..] = *head;
        if [a, b, c, d] != MAGIC {
            return Err(RecordError::Magic);
        }
        let version = u16::from_le_bytes([low, high]);
        if !schema::is_readable(version) {
            return Err(RecordError::Schema { found: version });
        }
        if checksum(head, content) != u32::from_le_bytes(*sum) {
            return Err(RecordError::Checksum);
        }
        let Entry { position, at_ms, body } = schema::decode_as(version, content, limits::SEARCH_RECORD_BYTES)?;
        Ok(Self { position, at_ms, body })
    }
}

fn checksum(head: &[u8], content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), content)
}
