//! Versions and publications: the contributions that fill the buffer are closed by the next record, one that does not fill
//! it by none, a round behind a barrier when it may be and in time, agents may train from the versions that the distance of
//! the track's records says, and a lease is given on the version that was published last, under its digest.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, LeaseId, ModelVersion};
use anabranch_common::journal::{Close, CloseReason, Contribution, Lease, Publication, Record, RecordBody};
use anabranch_common::limits;
use anabranch_common::merge::barrier::{Barrier, Closing};
use anabranch_common::spec::RunSpec;

use super::{Checked, ensure};

const NAME: &str = "closes";
/// How long after it may be closed a round behind a barrier may stay open, beside the waits that are its own: the
/// coordinator looks several times a second.
const OVERDUE_MS: u64 = 5_000;

#[derive(Debug, Default)]
pub(super) struct Closes {
    waiting: u32,
    /// The newest version that agents may train from.
    base: ModelVersion,
    /// Contributions so far, and the latest of each agent.
    contributions: u64,
    latest: BTreeMap<AgentId, u64>,
    published: Option<Publication>,
    /// Whose updates wait.
    delivered: BTreeSet<AgentId>,
    /// Outstanding leases by holder, and their bases.
    held: BTreeMap<AgentId, (LeaseId, ModelVersion)>,
    /// Since when the round has had all that it needs to be closed, for each reason, in the life of this process.
    complete_since_ms: Option<u64>,
    quorum_since_ms: Option<u64>,
    has_ended: bool,
}

impl Closes {
    /// `spec` and `version` are those before the record.
    pub(super) fn apply(&mut self, spec: Option<&RunSpec>, version: ModelVersion, record: &Record) -> Checked {
        let closing = spec.map(|spec| spec.merge.closing());
        let position = record.position;
        let is_full = matches!(closing, Some(Closing::Full(size)) if self.waiting >= size);
        ensure(!is_full || matches!(record.body, RecordBody::Closed(_)), NAME, || {
            format!("record {position} follows {} contributions that are not closed", self.waiting)
        })?;
        match &record.body {
            RecordBody::Contribution(update) => return self.contribute(closing, version, record, update),
            RecordBody::Closed(close) => {
                self.distance(spec, *close)?;
                return self.close(closing, version, record, *close);
            }
            RecordBody::ConfigChanged { spec: new } => self.change(spec, new, version),
            RecordBody::Imported { version, .. } => {
                self.base = *version;
                self.begin();
            }
            RecordBody::Branched { version, .. } => self.branch(*version),
            RecordBody::Published(publication) => return self.publish(version, record, *publication),
            RecordBody::LeaseGranted(lease) => return self.grant(closing, version, record, lease),
            RecordBody::LeaseEnded { lease, .. } | RecordBody::Refused { lease, .. } => self.end(*lease),
            RecordBody::AgentRevoked { agent } => drop(self.held.remove(agent)),
            RecordBody::Finished { .. } => self.has_ended = true,
            RecordBody::Reopened => self.has_ended = false,
            _ => {}
        }
        Ok(())
    }

    fn branch(&mut self, version: ModelVersion) {
        let (contributions, latest) = (self.contributions, std::mem::take(&mut self.latest));
        *self = Self { base: version, contributions, latest, ..Self::default() };
    }

    /// Agents of which each brought one of the latest updates, of twice as many as there are of them at most. More agents
    /// than the coordinator remembers do not count.
    fn reporting(&self) -> u64 {
        let mut latest: Vec<u64> = self.latest.values().copied().collect();
        latest.sort_unstable_by(|one, other| other.cmp(one));
        latest.truncate(limits::VOTES_KEPT);
        let since = |latest: u64| self.contributions - latest;
        let silent = (0..).zip(&latest).find(|(others, latest)| since(**latest) >= 2 * others + 2);
        silent.map_or(latest.len() as u64, |(others, _)| others)
    }

    /// A track that is switched on or off begins at the newest version, and one whose base is too old for its updates.
    fn change(&mut self, old: Option<&RunSpec>, new: &RunSpec, version: ModelVersion) {
        let Some(old) = old else { return };
        if !new.merge.keeps_waiting(&old.merge) {
            self.begin();
        }
        let most = if new.merge.barrier().is_some() { 0 } else { new.admit.max_staleness };
        if new.downlink.track.is_some() != old.downlink.track.is_some() || version.0 - self.base.0 > most {
            self.base = version;
        }
    }

    /// Without a track agents may train from every version, and so in rounds. With one, half of the fleet's
    /// updates lie between two records, beyond eight agents the root of twice their number, or as many versions as the configuration says.
    fn distance(&mut self, spec: Option<&RunSpec>, close: Close) -> Checked {
        let Some(spec) = spec else { return Ok(()) };
        let distance = match &spec.downlink.track {
            None => 1,
            Some(_) if spec.merge.barrier().is_some() => 1,
            Some(track) => {
                let agents = self.reporting();
                let root = (0..=agents).take_while(|root| root * root <= 2 * agents).last().unwrap_or(0);
                let follows = (agents / 2).min(root) / u64::from(close.contributions);
                track.every.unwrap_or(follows).min(spec.admit.max_staleness + 1).max(1)
            }
        };
        let (passed, made) = (close.version.0 - self.base.0, close.version);
        ensure(close.is_base == (passed >= distance), NAME, || {
            format!(
                "version {made}, {passed} after the one that agents train from, is a base or not: {}",
                close.is_base
            )
        })?;
        if close.is_base {
            self.base = made;
        }
        Ok(())
    }

    /// A round behind a barrier begins, or what waits for a buffer is dropped.
    fn begin(&mut self) {
        self.waiting = 0;
        self.delivered.clear();
        (self.complete_since_ms, self.quorum_since_ms) = (None, None);
    }

    fn end(&mut self, lease: LeaseId) {
        self.held.retain(|_, (held, _)| *held != lease);
    }

    fn contribute(
        &mut self,
        closing: Option<Closing>,
        version: ModelVersion,
        record: &Record,
        update: &Contribution,
    ) -> Checked {
        self.waiting += 1;
        self.contributions += 1;
        self.latest.insert(update.meta.key.agent, self.contributions);
        self.end(update.meta.lease);
        let (agent, base) = (update.meta.key.agent, update.meta.base_version);
        let first = self.delivered.insert(agent);
        let behind_a_barrier = matches!(closing, Some(Closing::Barrier(_)));
        ensure(!behind_a_barrier || (first && base == version), NAME, || {
            let (position, which) = (record.position, if first { "first" } else { "second" });
            format!(
                "record {position} is the {which} update of {} from {base} in the round of {version}",
                agent.short()
            )
        })
    }

    fn close(&mut self, closing: Option<Closing>, version: ModelVersion, record: &Record, close: Close) -> Checked {
        let Close { version: made, contributions, why, .. } = close;
        let holds = match (closing, why) {
            (Some(Closing::Full(size)), CloseReason::Filled) => contributions == size,
            (Some(Closing::Barrier(_)), CloseReason::Complete) => self.is_complete(version),
            (Some(Closing::Barrier(barrier)), CloseReason::Deadline) => self.has_quorum(&barrier),
            _ => false,
        };
        let counted = made == version.next() && contributions == self.waiting;
        ensure(counted && holds, NAME, || {
            let (position, Self { waiting, held, .. }) = (record.position, &*self);
            format!("record {position} makes {made} of {contributions}, {why:?}: {waiting} wait at {version}, {held:?}")
        })?;
        self.begin();
        Ok(())
    }

    /// Holders of leases whose agents have not delivered.
    fn at_work(&self) -> impl Iterator<Item = ModelVersion> {
        self.held.iter().filter(|(agent, _)| !self.delivered.contains(agent)).map(|(_, (_, base))| *base)
    }

    fn is_complete(&self, version: ModelVersion) -> bool {
        self.waiting > 0 && self.at_work().all(|base| base != version)
    }

    fn has_quorum(&self, barrier: &Barrier) -> bool {
        let (delivered, active) = (self.delivered.len(), self.delivered.len() + self.at_work().count());
        barrier.deadline_s.is_some() && delivered > 0 && delivered as f64 >= barrier.quorum * active as f64
    }

    /// The coordinator has looked at what is due, at this virtual time.
    pub(super) fn looked(&mut self, spec: Option<&RunSpec>, version: ModelVersion, now_ms: u64) -> Checked {
        let barrier = spec.filter(|_| !self.has_ended).and_then(|spec| spec.merge.barrier());
        let since = |holds: bool, before: Option<u64>| holds.then(|| before.unwrap_or(now_ms));
        self.complete_since_ms = since(barrier.is_some() && self.is_complete(version), self.complete_since_ms);
        let quorum = barrier.is_some_and(|barrier| self.has_quorum(&barrier));
        self.quorum_since_ms = since(quorum, self.quorum_since_ms);
        let deadline_ms = barrier.and_then(|barrier| barrier.deadline_ms()).unwrap_or(0);
        for (what, since_ms, wait_ms) in [
            ("is complete", self.complete_since_ms, limits::ROUND_REJOIN_MS),
            ("has its quorum", self.quorum_since_ms, deadline_ms),
        ] {
            let waited_ms = since_ms.map_or(0, |since_ms| now_ms - since_ms);
            ensure(waited_ms <= wait_ms + OVERDUE_MS, NAME, || {
                format!("the round of {version} {what} and is open {waited_ms} ms later, {wait_ms} ms are its own")
            })?;
        }
        Ok(())
    }

    /// A new process goes on: its waits begin anew.
    pub(super) fn restarted(&mut self) {
        (self.complete_since_ms, self.quorum_since_ms) = (None, None);
    }

    /// Whether a round behind a barrier takes no update of `agent` from `base`.
    pub(super) fn is_late(&self, spec: &RunSpec, version: ModelVersion, agent: AgentId, base: ModelVersion) -> bool {
        spec.merge.barrier().is_some() && (base != version || self.delivered.contains(&agent))
    }

    fn grant(&mut self, closing: Option<Closing>, version: ModelVersion, record: &Record, lease: &Lease) -> Checked {
        let published = self.published.map(|published| (published.version, published.digest));
        ensure(published == Some((lease.base_version, lease.base_digest)), NAME, || {
            format!("lease {:?} at record {} is of another version than {published:?}", lease.id, record.position)
        })?;
        let behind_a_barrier = matches!(closing, Some(Closing::Barrier(_)));
        let welcome = lease.base_version == version && !self.delivered.contains(&lease.agent);
        self.held.insert(lease.agent, (lease.id, lease.base_version));
        ensure(!behind_a_barrier || welcome, NAME, || {
            format!("lease {:?} at record {} gives nothing to the round of {version}", lease.id, record.position)
        })
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
