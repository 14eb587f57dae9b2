//! P1, record by record: what agents were told against a whole journal (`retention = "all"`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anabranch_common::ids::{AgentId, Position};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_coordinator::store;

use super::journal::{Journal, Violation};
use crate::process::{Cluster, Seen, What};

/// An update: who computed it, in which epoch, the how-manieth.
pub type Key = (AgentId, u64, u64);

/// What the agents of a cluster were told to be merged.
///
/// # Errors
/// One of them has not joined.
pub fn keys(cluster: &Cluster, seen: &[Seen]) -> anyhow::Result<BTreeSet<Key>> {
    let (mut told, mut ids) = (BTreeSet::new(), BTreeMap::new());
    for seen in seen {
        if let What::Accepted { key: (epoch, seq), .. } = seen.what {
            let id = match ids.get(&seen.agent) {
                Some(id) => *id,
                None => *ids.entry(&seen.agent).or_insert(cluster.agent_id(&seen.agent)?),
            };
            told.insert((id, epoch, seq));
        }
    }
    Ok(told)
}

/// What a journal says of what was told.
#[derive(Debug)]
pub struct Told {
    /// Updates that an agent was told to be merged and that are not in the journal.
    pub lost: u64,
    /// Updates that are in the journal more than once, or under a lease whose update is.
    pub duplicated: u64,
    /// The first promise that a record breaks, if one does.
    pub problem: Option<Violation>,
}

/// Reads every record.
///
/// # Errors
/// A record cannot be read.
pub fn audit(records: &dyn store::Journal, told: &BTreeSet<Key>) -> anyhow::Result<Told> {
    let (mut merged, mut leases, mut duplicated) = (BTreeSet::new(), BTreeSet::new(), 0);
    let (mut journal, mut problem) = (Journal::default(), None);
    let mut position = Position(0);
    while let Some(bytes) = records.record(position)? {
        position = Position(position.0 + 1);
        let record = Record::from_bytes(&bytes)?;
        if let RecordBody::Contribution(update) = &record.body {
            let key = update.meta.key;
            let first =
                merged.insert((key.agent, u64::from(key.epoch.0), key.seq.0)) & leases.insert(update.meta.lease);
            duplicated += u64::from(!first);
        }
        // After the first problem the rest is counted only: how much is lost or doubled.
        if problem.is_none() {
            problem = journal.appended(&Arc::new(record)).err();
        }
    }
    Ok(Told { lost: told.difference(&merged).count() as u64, duplicated, problem })
}
