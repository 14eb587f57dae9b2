//! P1: an acknowledged update is merged once, an update that was not acknowledged at most once.
//!
//! | where it comes from | what is read |
//! |---|---|
//! | the agents' logs, of all their lives | which update was offered under which lease, and which were accepted |
//! | the recovered model of the ledger task | how often the update of each lease was merged |

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anabranch_coordinator::recovery::Recovered;
use anyhow::{Context as _, ensure};
use serde_json::Value;

/// The leases whose updates agents were told to be merged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// Lease numbers.
    pub leases: BTreeSet<u64>,
    /// Epochs that agents were told, by the log they stand in: one for each process, at most.
    pub epochs: BTreeMap<String, BTreeSet<u64>>,
}

/// Reads agents' logs (JSON lines, `anabranch_agent=debug`). Lines that a kill cut off are passed over.
///
/// # Errors
/// A log cannot be read, or one says that an update was accepted that it never offered.
pub fn acknowledged<'a>(logs: impl IntoIterator<Item = &'a Path>) -> anyhow::Result<Acknowledged> {
    let mut found = Acknowledged::default();
    for path in logs {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.display().to_string();
        read_log(&String::from_utf8_lossy(&text), &name, &mut found)?;
    }
    Ok(found)
}

fn read_log(text: &str, name: &str, found: &mut Acknowledged) -> anyhow::Result<()> {
    let mut offered = BTreeMap::new();
    for line in text.lines() {
        let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
        let number = |field: &str| entry[field].as_u64();
        let key = number("epoch").zip(number("seq"));
        match entry["message"].as_str() {
            Some("offering an update") => {
                if let Some((key, lease)) = key.zip(number("lease")) {
                    let before = offered.insert(key, lease);
                    ensure!(
                        before.is_none_or(|before| before == lease),
                        "{name}: update {key:?} has two leases, {before:?} and {lease}"
                    );
                }
            }
            Some("update accepted") => {
                let key = key.with_context(|| format!("{name}: a line without its key: {line}"))?;
                let lease = offered.get(&key).with_context(|| format!("{name}: {key:?} was never offered"))?;
                found.leases.insert(*lease);
            }
            Some(message) if message.starts_with("connected as") => {
                if let Some(epoch) = number("epoch") {
                    found.epochs.entry(name.to_owned()).or_default().insert(epoch);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Compares what agents were told with the model.
///
/// # Errors
/// An acknowledged update is missing, one was merged twice, or the coordinator counts otherwise.
pub fn check(recovered: Option<&Recovered>, acknowledged: &Acknowledged) -> anyhow::Result<u64> {
    let Some(recovered) = recovered else {
        ensure!(acknowledged.leases.is_empty(), "updates were acknowledged of a run that is not there");
        return Ok(0);
    };
    let counted: u64 = recovered.state.agents.values().map(|agent| agent.accepted).sum();
    // A process that was killed between a contribution and its close has not acknowledged it; the next start closes it.
    let waiting = u64::from(recovered.state.round.contributions);
    ensure!(waiting <= 1, "{waiting} contributions to a ledger wait");
    judge(recovered.model.model(), counted - waiting, &acknowledged.leases)
}

/// Compares a ledger with the leases that were acknowledged; `counted` is how many updates the coordinator says it has merged.
fn judge(model: &[f32], counted: u64, acknowledged: &BTreeSet<u64>) -> anyhow::Result<u64> {
    for (lease, value) in model.iter().enumerate() {
        ensure!([0.0, 1.0].contains(value), "the update of lease {lease} was merged {value} times");
    }
    for lease in acknowledged {
        let value = usize::try_from(*lease).ok().and_then(|lease| model.get(lease));
        ensure!(value == Some(&1.0), "the acknowledged update of lease {lease} is lost");
    }
    let merged = model.iter().filter(|value| **value == 1.0).count() as u64;
    ensure!(merged == counted, "{merged} updates are in the model, and {counted} were counted");
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"{"message":"offering an update","lease":7,"epoch":1,"seq":0}
{"message":"offering an update","lease":8,"epoch":1,"seq":1}
{"message":"update accepted","epoch":1,"seq":0,"version":3}
{"message":"connected as one","epoch":1}
{"message":"update acc"#;

    #[test]
    fn only_what_was_accepted_counts_and_a_torn_line_does_not() {
        let mut found = Acknowledged::default();
        read_log(LOG, "one", &mut found).expect("a log");
        assert_eq!(found.leases, BTreeSet::from([7]));
        assert_eq!(found.epochs["one"], BTreeSet::from([1]));
    }

    #[test]
    fn a_verdict_on_something_never_offered_is_noticed() {
        let log = r#"{"message":"update accepted","epoch":1,"seq":9,"version":3}"#;
        assert!(read_log(log, "one", &mut Acknowledged::default()).is_err());
    }

    /// The audit itself bites: every way to break the promise is told by its name.
    #[test]
    fn a_lost_a_doubled_and_an_uncounted_update_are_noticed() {
        let acknowledged = BTreeSet::from([1, 2]);
        let problem = |model: &[f32], counted| judge(model, counted, &acknowledged).expect_err("broken").to_string();
        assert_eq!(judge(&[0.0, 1.0, 1.0, 1.0], 3, &acknowledged).expect("an unacknowledged one may be in"), 3);
        assert_eq!(judge(&[0.0, 1.0, 1.0, 0.0], 2, &acknowledged).expect("and may be out"), 2);
        assert_eq!(problem(&[0.0, 1.0, 0.0, 0.0], 1), "the acknowledged update of lease 2 is lost");
        assert_eq!(problem(&[0.0, 1.0, 2.0, 0.0], 2), "the update of lease 2 was merged 2 times");
        assert_eq!(problem(&[0.0, 1.0], 1), "the acknowledged update of lease 2 is lost");
        assert_eq!(problem(&[0.0, 1.0, 1.0, 1.0], 2), "3 updates are in the model, and 2 were counted");
    }
}
