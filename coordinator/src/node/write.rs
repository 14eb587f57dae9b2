//! The writer's jobs: records become durable, many with one sync (group commit).

use std::collections::VecDeque;
use std::sync::Arc;

use anabranch_common::ids::{BranchId, Position};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::manifest::ModelManifest;
use anabranch_io::faults;

use super::job::JobError;
use crate::core::content::Content;
use crate::core::event::Event;
use crate::recovery::{self, BranchPoint};
use crate::store::Store;

/// Something to make durable.
#[derive(Debug)]
pub enum WriteJob {
    /// Store a model, then append the record that names it.
    Model {
        /// The record: `Genesis`, `Imported` or `Branched`.
        record: Arc<Record>,
        /// The model's tensors.
        manifest: Arc<ModelManifest>,
        /// The model.
        model: Arc<Content>,
        /// The branch that the new one leaves, for `Branched`.
        parent: Option<BranchId>,
    },
    /// Append a record.
    Append(Arc<Record>),
}

impl WriteJob {
    /// The record that it makes durable.
    #[must_use]
    pub fn record(&self) -> &Arc<Record> {
        match self {
            Self::Model { record, .. } | Self::Append(record) => record,
        }
    }
}

/// Takes the jobs that are made durable with one sync: those that wait, within the limits of a group.
/// Each payload of a group is copied while it is written.
#[must_use]
pub fn group(waiting: &mut VecDeque<WriteJob>) -> Vec<WriteJob> {
    let (mut jobs, mut bytes) = (Vec::new(), 0);
    while jobs.len() < limits::GROUP_COMMIT_RECORDS
        && bytes < limits::GROUP_COMMIT_BYTES
        && let Some(job) = waiting.pop_front()
    {
        bytes += job.record().payload.len();
        jobs.push(job);
    }
    jobs
}

/// Makes a group of jobs durable with one sync; answered by `Journalled`.
///
/// # Errors
/// The store fails: the process must stop, and nobody may be told of any of these jobs.
pub fn write(store: &dyn Store, jobs: Vec<WriteJob>) -> Result<Vec<Event>, JobError> {
    let mut events = Vec::new();
    let mut records: Vec<(Position, Vec<u8>)> = Vec::new();
    for job in jobs {
        match job {
            WriteJob::Model { record, manifest, model, parent } => {
                let digest = recovery::put_model(store, &manifest, model.delta().values())?;
                if let RecordBody::Genesis { model: named, .. } | RecordBody::Imported { model: named, .. } =
                    &record.body
                    && *named != digest
                {
                    return Err(JobError::OtherModel(record.position));
                }
                if let (RecordBody::Branched { branch, from, version, .. }, Some(parent)) = (&record.body, parent) {
                    let point = BranchPoint { parent, from: *from, version: *version, model: digest };
                    recovery::put_branch(store.catalogue(), *branch, &point)?;
                }
                faults::point("model-stored");
                records.push((record.position, record.to_bytes()?));
            }
            WriteJob::Append(record) => records.push((record.position, record.to_bytes()?)),
        }
    }
    if let Some((upto, _)) = records.last() {
        let upto = *upto;
        faults::point("journal-before-write");
        store.journal().append(&records)?;
        faults::point("journal-before-sync");
        events.push(Event::Journalled { upto });
    }
    store.journal().sync()?;
    faults::point("journal-before-ack");
    Ok(events)
}

#[cfg(test)]
mod tests {
    use anabranch_common::codec::Delta;
    use anabranch_common::ids::{Digest, ModelVersion};
    use anabranch_common::manifest::TensorSpec;

    use super::*;
    use crate::core::content::Reservation;
    use crate::store::for_tests::MapStore;

    /// A record that names a model which is not stored could never be replayed.
    #[test]
    fn a_record_that_names_another_model_is_not_written() {
        let store = MapStore::new();
        let tensor = TensorSpec { name: "w".into(), shape: vec![2] };
        let manifest = Arc::new(ModelManifest::new(vec![tensor]).expect("valid"));
        let values = vec![1.0, 2.0];
        let named = [Digest::of_f32(&[2.0, 1.0]), Digest::of_f32(&values)];
        let written = named.map(|digest| {
            let body = RecordBody::Imported { model: digest, version: ModelVersion(1), norm: 1.0, copied: None };
            let record = Arc::new(Record::new(Position(0), 0, body, Arc::from([])));
            let model = Arc::new(Content::measure(Delta::Dense(values.clone()), Reservation::default()));
            write(&store, vec![WriteJob::Model { record, manifest: Arc::clone(&manifest), model, parent: None }])
        });
        assert!(matches!(written, [Err(JobError::OtherModel(Position(0))), Ok(_)]), "{written:?}");
    }

    fn append(position: u64, payload_bytes: usize) -> WriteJob {
        let payload: Arc<[u8]> = vec![0; payload_bytes].into();
        WriteJob::Append(Arc::new(Record::new(Position(position), 0, RecordBody::Paused, payload)))
    }

    /// How many of these records are made durable with one sync.
    fn grouped(payload_bytes: &[usize]) -> usize {
        let mut jobs = (0..).zip(payload_bytes).map(|(position, bytes)| append(position, *bytes)).collect();
        group(&mut jobs).len()
    }

    /// Each payload is copied while its group is written: without a bound a slow disk would
    /// double the budget of payloads.
    #[test]
    fn a_group_is_bounded_in_records_and_in_bytes() {
        let quarter = limits::GROUP_COMMIT_BYTES / 4;
        assert_eq!(grouped(&[0; 3]), 3);
        assert_eq!(grouped(&[0; limits::GROUP_COMMIT_RECORDS + 1]), limits::GROUP_COMMIT_RECORDS);
        assert_eq!(grouped(&[quarter; 6]), 4);
        assert_eq!(grouped(&[limits::GROUP_COMMIT_BYTES + 1, 1]), 1, "one record always fits");
        assert_eq!(grouped(&[quarter - 1; 6]), 5, "the record that reaches the bound is the last one");
    }
}
