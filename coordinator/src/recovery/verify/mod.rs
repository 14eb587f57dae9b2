//! An independent checker: what the journal says, computed a second time and in another way.
//!
//! It shares with the coordinator only the reading of records and the decoding of payloads. The chain is recomputed from
//! the stored bytes, the model by an implementation of the merge rules that is written here once more, plainly, and the
//! versions by counting. Where finite updates add up to a model that is not, the run's model stays the last finite one; the
//! chain goes on. A version is closed when the rule says so, never earlier or later, and a published digest is that of the
//! version that the records make. It does not use `ModelState` or any `MergeRule`, and of `RunState` only what a checkpoint
//! has saved, to compare it.
//!
//! ```text
//!  published   which versions the journal publishes: only these are hashed
//!  checker     the records once more, one after the other
//!  own_state   rules with a state of their own: delayed_nesterov, ef21, fadas, recall, and rounds: those behind a barrier
//!  average     the average that is kept beside a rule
//!  track       the published track that agents train from
//! ```

mod average;
mod checker;
mod delayed_nesterov;
mod ef21;
mod fadas;
mod own_state;
mod published;
mod recall;
mod rounds;
mod track;

use std::collections::BTreeSet;

use anabranch_common::ids::{Digest, ModelVersion, Position};
use anabranch_common::status::VerifyReport;

use super::{RecoveryError, checkpoint, replay};
use crate::store::Store;
use checker::{Checker, Problem};
use published::PublishedVersions;

/// Recomputes chain and model from the anchor (the oldest kept checkpoint that can be read, or record 0 when everything
/// since it is kept), compares every checkpoint on the way, and says up to where all of it holds.
///
/// # Errors
/// Only when the storage fails or there is no run: what does not hold is in the report.
pub fn verify(store: &dyn Store) -> Result<VerifyReport, RecoveryError> {
    replay::steadily(store, || check(store), |report| report.holds)
}

fn check(store: &dyn Store) -> Result<VerifyReport, RecoveryError> {
    // A model that has overflowed cannot be taken back: the records are read again, up to there.
    let mut overflows = BTreeSet::new();
    loop {
        match check_around(store, &overflows)? {
            Outcome::Report(report) => return Ok(report),
            Outcome::Overflow(position) => overflows.insert(position),
        };
    }
}

enum Outcome {
    Report(VerifyReport),
    /// The record at this position makes a version that is not finite.
    Overflow(Position),
}

fn check_around(store: &dyn Store, overflows: &BTreeSet<Position>) -> Result<Outcome, RecoveryError> {
    let (mut checkpoints, mut problems) = checkpoint::readable(store.catalogue())?;
    // After the checkpoints: one that is taken meanwhile is not beyond the end.
    let last = store.journal().last_position()?.ok_or(RecoveryError::Empty)?;
    checkpoints.reverse();
    let from_the_start = store.journal().first_position()? == Some(Position(0));
    let started = if from_the_start {
        Checker::genesis(store)
    } else {
        checkpoints
            .first()
            .ok_or_else(|| no_anchor(&problems))
            .and_then(|oldest| Checker::anchor(store.blobs(), oldest))
    };
    let mut checker = match started {
        Ok(checker) => checker,
        Err(error) if error.is_local() => return Ok(Outcome::Report(nothing_holds(&error))),
        Err(error) => return Err(error),
    };
    let from = checker.position;
    checker.hash_only(PublishedVersions::of(store.journal(), from, last)?);
    let mut records = u64::from(from_the_start);
    let found = loop {
        let here = checkpoints.iter().find(|checkpoint| checkpoint.position == checker.position);
        match here.map_or(Ok(()), |checkpoint| checker.compare(store.blobs(), checkpoint)) {
            Err(error) if error.is_local() => break Some(error.to_string()),
            other => other?,
        }
        if checker.position >= last {
            break None;
        }
        match checker.step(store, overflows) {
            Err(Problem::Overflow(position)) => return Ok(Outcome::Overflow(position)),
            Err(Problem::Recovery(error)) if error.is_local() => break Some(error.to_string()),
            Err(Problem::Recovery(error)) => return Err(error),
            Err(Problem::Found(text)) => break Some(text),
            Ok(()) => records += 1,
        }
    };
    if let Some(beyond) = checkpoints.iter().find(|checkpoint| checkpoint.position > last) {
        problems.push(RecoveryError::Short { last, checkpoint: beyond.position }.to_string());
    }
    let problem = found.or_else(|| problems.into_iter().next());
    Ok(Outcome::Report(VerifyReport {
        holds: problem.is_none(),
        from,
        to: checker.position,
        records,
        version: checker.last_finite.unwrap_or(checker.version),
        model: Digest::of_f32(&checker.model),
        chain: checker.chain.0,
        problem,
    }))
}

fn no_anchor(problems: &[String]) -> RecoveryError {
    RecoveryError::Manifest(format!("is not usable in any checkpoint: {}", problems.join("; ")))
}

fn nothing_holds(error: &RecoveryError) -> VerifyReport {
    VerifyReport {
        holds: false,
        from: Position(0),
        to: Position(0),
        records: 0,
        version: ModelVersion(0),
        model: Digest::default(),
        chain: Digest::default(),
        problem: Some(error.to_string()),
    }
}
