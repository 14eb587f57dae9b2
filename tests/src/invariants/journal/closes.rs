//! Versions and publications: the contributions that fill the buffer are closed by the next record, one that does not fill
//! it by none, and a lease is given on the version that was published last, under its digest.

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{Close, CloseReason, Publication, Record, RecordBody};
use anabranch_common::spec::RunSpec;

use super::{Checked, ensure};

const NAME: &str = "closes";

#[derive(Debug, Default)]
pub(super) struct Closes {
    waiting: u32,
    published: Option<Publication>,
}

impl Closes {
    /// `spec` and `version` are those before the record.
    pub(super) fn apply(&mut self, spec: Option<&RunSpec>, version: ModelVersion, record: &Record) -> Checked {
        let size = spec.map_or(u32::MAX, |spec| spec.merge.updates_per_version());
        let position = record.position;
        let closes = matches!(record.body, RecordBody::Closed(_));
        ensure(self.waiting < size || closes, NAME, || {
            format!("record {position} follows {} contributions of {size} that are not closed", self.waiting)
        })?;
        match &record.body {
            RecordBody::Contribution(_) => self.waiting += 1,
            RecordBody::Closed(Close { version: made, contributions, why: CloseReason::Filled }) => {
                ensure(
                    *made == version.next() && *contributions == self.waiting && *contributions == size,
                    NAME,
                    || {
                        format!(
                            "record {position} makes {made} of {contributions}: {} of {size} wait at {version}",
                            self.waiting
                        )
                    },
                )?;
                self.waiting = 0;
            }
            RecordBody::ConfigChanged { spec: new } if new.merge.updates_per_version() == size => {}
            RecordBody::ConfigChanged { .. } | RecordBody::Imported { .. } => self.waiting = 0,
            RecordBody::Branched { .. } => *self = Self::default(),
            RecordBody::Published(publication) => return self.publish(version, record, *publication),
            RecordBody::LeaseGranted(lease) => {
                let published = self.published.map(|published| (published.version, published.digest));
                return ensure(published == Some((lease.base_version, lease.base_digest)), NAME, || {
                    format!("lease {:?} at record {position} is of another version than {published:?}", lease.id)
                });
            }
            _ => {}
        }
        Ok(())
    }

    fn publish(&mut self, version: ModelVersion, record: &Record, publication: Publication) -> Checked {
        let position = record.position;
        ensure(publication.version <= version, NAME, || {
            format!("record {position} publishes {}, and the newest is {version}", publication.version)
        })?;
        let before = self.published.replace(publication);
        ensure(before.is_none_or(|before| before.version < publication.version), NAME, || {
            format!("record {position} publishes {} after {before:?}", publication.version)
        })
    }
}
