//! P1: an update is merged once, its verdict is final, and what was acknowledged is there.

use std::collections::BTreeMap;

use anabranch_common::ids::{LeaseId, ModelVersion, Position};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::spec::RunSpec;
use anabranch_common::update::{UpdateKey, Verdict};

use super::{Checked, broken, ensure};

const P1: &str = "P1";

/// An update in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// The first version that it is part of.
    pub version: ModelVersion,
    /// The lease it was computed under.
    pub lease: LeaseId,
}

/// Decisions by update.
#[derive(Debug, Default)]
pub(super) struct Once {
    decided: BTreeMap<UpdateKey, (Position, Verdict)>,
    merged: Vec<Merged>,
}

impl Once {
    /// `spec` and `version` are those before the record.
    pub(super) fn apply(&mut self, spec: Option<&RunSpec>, version: ModelVersion, record: &Record) -> Checked {
        let (key, verdict) = match &record.body {
            RecordBody::Contribution(update) => {
                let (position, next) = (record.position, version.next());
                self.merged.push(Merged { version: next, lease: update.meta.lease });
                let waiting = self.merged.iter().filter(|merged| merged.version == next).count();
                let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
                let fills = spec.is_some_and(|spec| spec.merge.is_full(waiting));
                let version = if fills { next } else { version };
                let (weight, staleness) = (update.weight, update.staleness);
                (update.meta.key, Verdict::Accepted { position, version, weight, staleness })
            }
            RecordBody::Refused { key, reason, .. } => (*key, Verdict::Refused { reason: *reason }),
            RecordBody::Branched { version, .. } => {
                self.merged.retain(|merged| merged.version <= *version);
                return Ok(());
            }
            RecordBody::Imported { .. } => {
                self.merged.clear();
                return Ok(());
            }
            _ => return Ok(()),
        };
        match self.decided.insert(key, (record.position, verdict)) {
            None => Ok(()),
            Some((before, first)) => {
                broken(P1, format!("update {key:?} was decided at record {before} ({first:?}) and again: {record:?}"))
            }
        }
    }

    pub(super) fn position(&self, key: UpdateKey) -> Option<Position> {
        self.decided.get(&key).map(|(position, _)| *position)
    }

    pub(super) fn staleness(&self) -> Vec<u64> {
        let accepted = self.decided.values().filter_map(|(position, verdict)| match verdict {
            Verdict::Accepted { staleness, .. } => Some((*position, *staleness)),
            Verdict::Refused { .. } => None,
        });
        let mut accepted: Vec<(Position, u64)> = accepted.collect();
        accepted.sort_unstable();
        accepted.into_iter().map(|(_, staleness)| staleness).collect()
    }

    pub(super) fn merged(&self) -> &[Merged] {
        &self.merged
    }

    /// A refusal may repeat without a record of its own only when the journal says it already.
    pub(super) fn told(&self, key: UpdateKey, verdict: &Verdict) -> Checked {
        match (self.decided.get(&key), verdict) {
            (Some((_, decided)), told) if decided == told => Ok(()),
            // What can no longer be told apart is refused as a duplicate or a conflict, without a record.
            (_, Verdict::Refused { reason }) if !reason.content_returns() => Ok(()),
            (decided, told) => broken(P1, format!("update {key:?}: told {told:?}, journalled {decided:?}")),
        }
    }
}

/// What agents were told.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<UpdateKey, Verdict>);

impl Heard {
    pub(super) fn heard(&mut self, key: UpdateKey, verdict: &Verdict) -> Checked {
        let first = *self.0.entry(key).or_insert(*verdict);
        ensure(first == *verdict, P1, || format!("update {key:?} heard {first:?}, and later {verdict:?}"))
    }

    pub(super) fn verdict(&self, key: UpdateKey) -> Option<&Verdict> {
        self.0.get(&key)
    }

    pub(super) fn audit(&self, once: &Once) -> Checked {
        self.0.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Accepted { .. })).try_for_each(|(key, told)| {
            let decided = once.decided.get(key).map(|(_, verdict)| verdict);
            ensure(decided == Some(told), P1, || format!("update {key:?} was acknowledged as {told:?}: {decided:?}"))
        })
    }

    /// Acknowledged updates, and those of them that are lost.
    pub(super) fn counts(&self, once: &Once) -> (u64, u64) {
        let accepted = self.0.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Accepted { .. }));
        let (mut all, mut lost) = (0, 0);
        for (key, told) in accepted {
            all += 1;
            lost += u64::from(once.decided.get(key).map(|(_, verdict)| verdict) != Some(told));
        }
        (all, lost)
    }
}
