//! Which versions a journal publishes.

use std::collections::BTreeSet;

use anabranch_common::ids::{ModelVersion, Position};
use anabranch_common::journal::RecordBody;

use crate::recovery::{RecoveryError, cursor};
use crate::store::Journal;

/// A part of the history in which every version but the first is made by merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where it begins: at record 0, at an anchor, or at a record that brings a model.
    pub(super) position: Position,
    /// The version that it begins with.
    pub(super) version: ModelVersion,
}

/// The versions that are published, each with the beginning of its segment.
#[derive(Debug, Default)]
pub(super) struct PublishedVersions(BTreeSet<(Position, ModelVersion)>);

impl PublishedVersions {
    /// Reads the records after `from` up to `last`, or up to one that is damaged: the check of the records finds it too, and
    /// says what is wrong with it.
    ///
    /// # Errors
    /// The storage fails.
    pub(super) fn of(journal: &dyn Journal, from: Position, last: Position) -> Result<Self, RecoveryError> {
        let (mut versions, mut segment) = (BTreeSet::new(), from);
        for position in (from.0 + 1..=last.0).map(Position) {
            let body = match cursor::read(journal, position) {
                Ok(record) => record.body,
                Err(error) if error.is_local() => break,
                Err(error) => return Err(error),
            };
            match body {
                RecordBody::Published(publication) => {
                    versions.insert((segment, publication.version));
                }
                RecordBody::Imported { .. } | RecordBody::Branched { .. } => segment = position,
                _ => {}
            }
        }
        Ok(Self(versions))
    }

    /// Returns whether a version of a segment is published.
    pub(super) fn contains(&self, segment: Segment, version: ModelVersion) -> bool {
        self.0.contains(&(segment.position, version))
    }
}
