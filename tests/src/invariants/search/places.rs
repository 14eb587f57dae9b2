//! At most `parallel` trials run or are measured at the same time.

use std::collections::BTreeMap;

use anabranch_coordinator::search::record::{Record, RecordBody};
use anabranch_coordinator::search::spec::SearchSpec;

use crate::invariants::journal::{Checked, ensure};

pub(super) fn check(records: &[Record], spec: &SearchSpec) -> Checked {
    let mut active = BTreeMap::new();
    for record in records {
        match &record.body {
            RecordBody::Trial { trial, .. } | RecordBody::Promoted { trial, .. } => active.insert(*trial, true),
            RecordBody::Measured { trial, .. } | RecordBody::Closed { trial, .. } => active.insert(*trial, false),
            _ => None,
        };
    }
    let active = active.values().filter(|active| **active).count();
    let most = usize::try_from(spec.parallel).unwrap_or(usize::MAX);
    ensure(active <= most, "search places", || format!("{active} trials are active, and {most} may be"))
}
