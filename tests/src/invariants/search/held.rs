//! Leases of a trial: given only while a durable record lets the trial run to a rung, and only until it has the contributions
//! of that rung. A rule that buffers goes on to its next close.

use std::sync::Arc;

use anabranch_common::journal::{Record as RunRecord, RecordBody as RunBody};
use anabranch_coordinator::search::record::{Record, RecordBody, TrialId};
use anabranch_coordinator::search::spec::SearchSpec;

use crate::invariants::journal::{Checked, ensure};

/// `of_run`: the run's records, the lease's last.
pub(super) fn check(durable: &[Record], spec: &SearchSpec, trial: TrialId, of_run: &[Arc<RunRecord>]) -> Checked {
    let until = until(durable, spec, trial);
    let accepted = of_run.iter().filter(|record| matches!(record.body, RunBody::Contribution(_))).count() as u64;
    let since_close = of_run.iter().rev().take_while(|record| !matches!(record.body, RunBody::Closed(_)));
    let waits = since_close.filter(|record| matches!(record.body, RunBody::Contribution(_))).count() > 0;
    let may = until.is_some_and(|until| accepted < until || waits);
    ensure(may, "search held", || {
        format!("trial {trial} gives a lease with {accepted} contributions, and may go on until {until:?}")
    })
}

/// How far a trial may go, by what is durable; nothing where it is held.
fn until(durable: &[Record], spec: &SearchSpec, trial: TrialId) -> Option<u64> {
    let mut until = None;
    for record in durable {
        match &record.body {
            RecordBody::Trial { trial: of, .. } if *of == trial => until = Some(spec.contributions(0)),
            RecordBody::Promoted { trial: of, rung } if *of == trial => until = Some(spec.contributions(*rung)),
            RecordBody::Reached { trial: of, .. } | RecordBody::Closed { trial: of, .. } if *of == trial => {
                until = None
            }
            RecordBody::Finished { .. } => until = None,
            _ => {}
        }
    }
    until
}
