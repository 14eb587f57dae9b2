//! The end of a search: the best open trial among those measured at the last rung has won, the version that was measured is
//! its run's result, and every other run has ended too.

use std::collections::BTreeSet;
use std::sync::Arc;

use anabranch_common::ids::ModelVersion;
use anabranch_common::journal::{Record as RunRecord, RecordBody as RunBody};
use anabranch_coordinator::search::record::{Record, RecordBody, TrialId};
use anabranch_coordinator::search::spec::SearchSpec;

use crate::invariants::journal::{Checked, broken, ensure};

const NAME: &str = "search winner";

/// `run_of`: the records of a trial's run; `gone`: trials whose runs an operator has stopped.
pub(super) fn check<'a>(
    records: &[Record],
    spec: &SearchSpec,
    gone: &BTreeSet<TrialId>,
    run_of: impl Fn(TrialId) -> &'a [Arc<RunRecord>],
) -> Checked {
    let Some(RecordBody::Finished { winner, stopped }) = records.last().map(|record| &record.body) else {
        return broken(NAME, "the process has ended, and its search has not");
    };
    let trials = records.iter().filter_map(|record| match &record.body {
        RecordBody::Trial { trial, .. } => Some(*trial),
        _ => None,
    });
    let trials: Vec<TrialId> = trials.collect();
    let is_over = |trial: &TrialId| {
        records.iter().any(|record| matches!(&record.body, RecordBody::Closed { trial: of, .. } if of == trial))
    };
    let open = || trials.iter().filter(|trial| !is_over(trial));
    let goes_on = trials.iter().find(|trial| {
        let run = run_of(**trial);
        !run.is_empty() && !run.iter().any(|record| matches!(record.body, RunBody::Finished { .. }))
    });
    if let Some(trial) = goes_on {
        return broken(NAME, format!("the search has ended, and the run of trial {trial} has not"));
    }
    let Some(winner) = winner else {
        let none = open().next().is_none();
        return ensure(none || *stopped, NAME, || "the search has ended without a winner, and a trial is open".into());
    };
    let at_last = |trial: &TrialId| metric(records, *trial, spec.last_rung());
    if !stopped {
        let Some((_, won)) = at_last(winner).filter(|_| !is_over(winner)) else {
            return broken(NAME, format!("trial {winner} wins, and is closed or was not measured at max"));
        };
        let better = open().find(|trial| at_last(trial).is_some_and(|(_, metric)| metric > won));
        if let Some(better) = better {
            return broken(NAME, format!("trial {winner} wins, and trial {better} was better at max"));
        }
    }
    let last = (0..=spec.last_rung()).rev().find_map(|rung| metric(records, *winner, rung));
    let result = run_of(*winner).iter().rev().find_map(|record| match &record.body {
        RunBody::Finished { result, .. } => Some(*result),
        _ => None,
    });
    let is_result = last.is_some_and(|(version, _)| result == Some(version));
    ensure(is_result || gone.contains(winner), NAME, || {
        format!("trial {winner} was measured last at {last:?}, and its run ended with version {result:?}")
    })
}

/// The version and metric of a trial at a rung.
fn metric(records: &[Record], trial: TrialId, rung: u32) -> Option<(ModelVersion, f64)> {
    records.iter().find_map(|record| match &record.body {
        RecordBody::Measured { trial: of, rung: at, version, metric } if (*of, *at) == (trial, rung) => {
            Some((*version, *metric))
        }
        _ => None,
    })
}
