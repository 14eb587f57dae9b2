//! What leaves a search rests on a durable record: the making of a run, and the rebuilding of a version.

use anabranch_common::ids::ModelVersion;
use anabranch_coordinator::search::record::{Record, RecordBody, TrialId};

use crate::invariants::journal::{Checked, ensure};

const NAME: &str = "search orders";

pub(super) fn creates(durable: &[Record], name: &str) -> Checked {
    let of = |trial: &TrialId| name.rsplit_once('-').is_some_and(|(_, number)| *number == trial.to_string());
    let is_made = durable.iter().any(|record| matches!(&record.body, RecordBody::Trial { trial, .. } if of(trial)));
    ensure(is_made, NAME, || format!("run {name} is made before the record of its trial is durable"))
}

pub(super) fn measures(durable: &[Record], trial: TrialId, version: ModelVersion) -> Checked {
    let came = durable.iter().rev().find_map(|record| match &record.body {
        RecordBody::Reached { trial: of, version, .. } if *of == trial => Some(*version),
        _ => None,
    });
    ensure(came == Some(version), NAME, || {
        format!("version {version} of trial {trial} is to be measured; durable is that it came with {came:?}")
    })
}
