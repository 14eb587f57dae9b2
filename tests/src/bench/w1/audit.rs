//! Whether what agents were told is what the journal says, record by record.

use std::collections::BTreeSet;

use anabranch_agent::config::{AgentConfig, AgentDir};
use anabranch_common::ids::{Epoch, UpdateSeq};
use anabranch_common::journal::{Record, RecordBody};
use anabranch_common::update::UpdateKey;
use anabranch_coordinator::store::Store;
use anyhow::Context as _;
use serde_json::Value;

use crate::invariants::journal::Journal;
use crate::invariants::on_a_copy;
use crate::process::Cluster;

/// What an audit found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// Updates that an agent was told to be merged and that are not in the journal.
    pub(super) lost: u64,
    /// Updates that are in the journal more than once, or under a lease whose update is.
    pub(super) duplicated: u64,
}

/// Reads the whole journal of a stopped coordinator, and the logs of `agents`.
///
/// # Errors
/// The store or a log cannot be read, or a record breaks another promise.
pub(super) fn audit(cluster: &Cluster, agents: &[String]) -> anyhow::Result<Found> {
    let mut told = BTreeSet::new();
    for name in agents {
        let config = AgentConfig::read(&AgentDir::new(cluster.agent_dir(name)).config())?;
        let log = std::fs::read(cluster.log_path(name)).with_context(|| format!("cannot read the log of {name}"))?;
        told.extend(accepted(&String::from_utf8_lossy(&log)).into_iter().map(|(epoch, seq)| UpdateKey {
            run: config.run,
            agent: config.agent,
            epoch: Epoch(epoch),
            seq: UpdateSeq(seq),
        }));
    }
    on_a_copy(&cluster.coordinator_dir(), |store| {
        let (mut merged, mut leases, mut duplicated) = (BTreeSet::new(), BTreeSet::new(), 0);
        let mut journal = Journal::default();
        while let Some(bytes) = store.record(journal.next())? {
            let record = Record::from_bytes(&bytes)?;
            if let RecordBody::Update(update) = &record.body {
                let first = merged.insert(update.meta.key) & leases.insert(update.meta.lease);
                duplicated += u64::from(!first);
            }
            journal.appended(&record.into())?;
        }
        Ok(Found { lost: told.difference(&merged).count() as u64, duplicated })
    })
}

/// The keys (epoch, sequence number) in an agent's log (JSON lines) that it was told to be merged.
fn accepted(log: &str) -> BTreeSet<(u32, u64)> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let accepted = lines.filter(|entry| entry["message"] == "update accepted");
    let epoch = |entry: &Value| entry["epoch"].as_u64().and_then(|epoch| u32::try_from(epoch).ok());
    accepted.filter_map(|entry| epoch(&entry).zip(entry["seq"].as_u64())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_accepted_counts() {
        let log = "{\"message\":\"update accepted\",\"epoch\":2,\"seq\":7}\n\
                   {\"message\":\"update refused\",\"epoch\":2,\"seq\":8}\n{\"message\":\"update acc";
        assert_eq!(accepted(log), BTreeSet::from([(2, 7)]));
    }
}
