//! Leases: an agent holds one at a time, numbers are never used twice, and an update counts under the lease of its agent.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, Digest, LeaseId, ModelVersion};
use anabranch_common::journal::{Lease, LeaseEnd, Record, RecordBody};

use super::{Checked, ensure};

const NAME: &str = "leases";

#[derive(Debug, Default)]
pub(super) struct Leases {
    granted: BTreeMap<LeaseId, Lease>,
    used: BTreeMap<LeaseId, u64>,
    held: BTreeMap<AgentId, LeaseId>,
    /// Held leases that are over, and when that was first seen in a record.
    overdue: BTreeMap<LeaseId, u64>,
    revoked: BTreeSet<AgentId>,
    paused: bool,
}

/// How long after its end a lease may still be held: the coordinator looks several times a second.
const OVERDUE_MS: u64 = 10_000;

impl Leases {
    /// `in_pods`: leases whose rounds pods compute go on while they do, which the records do not say ([`Leases::overdue`]).
    pub(super) fn apply(&mut self, record: &Record, version: ModelVersion, in_pods: bool) -> Checked {
        if record.body.granted().is_some() && !in_pods {
            self.look_for_overdue(record.at_ms)?;
        }
        match &record.body {
            RecordBody::Paused => {
                self.paused = true;
                Ok(())
            }
            RecordBody::Resumed => {
                self.paused = false;
                Ok(())
            }
            RecordBody::LeaseGranted(lease) => self.grant(lease, version),
            RecordBody::LeaseEnded { lease, why } => {
                let Some(granted) = self.granted.get(lease) else {
                    return super::broken(NAME, format!("lease {lease:?} ended that was never granted"));
                };
                let (agent, expires) = (granted.agent, granted.expires_at_ms);
                self.held.retain(|holder, held| *holder != agent || held != lease);
                ensure(*why != LeaseEnd::Expired || record.at_ms >= expires, NAME, || {
                    format!("lease {lease:?} expired at {} instead of {expires}", record.at_ms)
                })
            }
            RecordBody::Contribution(update) => {
                let (meta, id) = (&update.meta, update.meta.lease);
                let Some(lease) = self.granted.get(&id) else {
                    return super::broken(NAME, format!("an update was merged under lease {id:?}, which is not known"));
                };
                let base = |lease: &Lease| (lease.agent, lease.base_version, lease.base_digest, lease.branch);
                let said: (AgentId, ModelVersion, Digest, _) =
                    (meta.key.agent, meta.base_version, meta.base_digest, meta.branch);
                ensure(base(lease) == said, NAME, || format!("the update at {} is not of its lease", record.position))?;
                ensure(!self.revoked.contains(&meta.key.agent), NAME, || {
                    format!("the update at {} is of a revoked agent", record.position)
                })?;
                self.held.retain(|_, held| *held != id);
                let uses = self.used.entry(id).or_default();
                *uses += 1;
                ensure(*uses == 1, NAME, || format!("lease {id:?} gave {uses} updates"))
            }
            RecordBody::Refused { lease, .. } => {
                self.held.retain(|_, held| held != lease);
                Ok(())
            }
            RecordBody::AgentRevoked { agent } => {
                self.revoked.insert(*agent);
                self.held.remove(agent);
                Ok(())
            }
            RecordBody::Branched { .. } => {
                self.held.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whoever grants a lease has looked for those that are over. The wall clock may jump either way in between: only a
    /// lease that stays overdue counts.
    fn look_for_overdue(&mut self, at_ms: u64) -> Checked {
        let granted = &self.granted;
        let over = |id: &LeaseId| granted.get(id).is_some_and(|lease| lease.expires_at_ms < at_ms);
        let held: BTreeSet<LeaseId> = self.held.values().copied().filter(over).collect();
        self.overdue.retain(|id, _| held.contains(id));
        for id in held {
            let since_ms = *self.overdue.entry(id).or_insert(at_ms);
            ensure(at_ms <= since_ms + OVERDUE_MS, NAME, || {
                format!("lease {id:?} is held at {at_ms}, over at {since_ms}")
            })?;
        }
        Ok(())
    }

    /// Returns the leases that are held, and were over before then.
    pub(super) fn overdue(&self, unix_ms: u64) -> impl Iterator<Item = &Lease> {
        let held = self.held.values().filter_map(|id| self.granted.get(id));
        held.filter(move |lease| lease.expires_at_ms < unix_ms)
    }

    /// Returns a lease that was granted.
    pub(super) fn granted(&self, id: LeaseId) -> Option<&Lease> {
        self.granted.get(&id)
    }

    /// Whether a lease is outstanding, and its base.
    pub(super) fn outstanding(&self, id: LeaseId) -> Option<ModelVersion> {
        let held = self.held.values().any(|held| *held == id);
        self.granted.get(&id).filter(|_| held).map(|lease| lease.base_version)
    }

    fn grant(&mut self, lease: &Lease, version: ModelVersion) -> Checked {
        let id = lease.id;
        ensure(!self.paused, NAME, || format!("lease {id:?} is granted while the run is paused"))?;
        let newest = self.granted.last_key_value().map(|(id, _)| *id);
        ensure(newest.is_none_or(|newest| newest < id), NAME, || format!("lease {id:?} after {newest:?}"))?;
        ensure(lease.base_version <= version, NAME, || {
            format!("lease {id:?} of version {}, and the newest is {version}", lease.base_version)
        })?;
        let held = self.held.insert(lease.agent, id);
        self.granted.insert(id, lease.clone());
        ensure(held.is_none(), NAME, || format!("{} was granted {id:?} and holds {held:?}", lease.agent.short()))
    }
}
