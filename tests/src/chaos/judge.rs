//! Which promises a run kept: what agents were told against the journal, and the journal against itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anabranch_coordinator::recovery::Recovered;
use anabranch_coordinator::store::{Journal, Store as _};
use anyhow::Context as _;

use super::drive::Record;
use super::fleet::Fleet;
use super::pod;
use super::scenario::{COORDINATOR, Scenario, Task};
use crate::invariants::{self, exactly_once, same_bits, told};

/// What became of a promise.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// It was kept.
    Kept,
    /// It was broken; how.
    Broken(String),
}

impl Promise {
    fn of(checked: anyhow::Result<()>) -> Self {
        checked.map_or_else(|error| Self::Broken(format!("{error:#}")), |()| Self::Kept)
    }

    pub(super) fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Self {
        if holds { Self::Kept } else { Self::Broken(otherwise()) }
    }
}

/// What the store says after a run.
#[derive(Debug, Default)]
pub struct Audit {
    /// Updates in the journal.
    pub merged: u64,
    /// Updates that agents were told to be merged.
    pub acknowledged: u64,
    /// Acknowledged, and not in the journal.
    pub lost: u64,
    /// In the journal more than once.
    pub duplicated: u64,
    /// Refusals by reason.
    pub refused: BTreeMap<String, u64>,
    /// Newest version.
    pub version: u64,
    /// Whether the model at the end has the bits of the run without faults, if that was compared.
    pub same_bits: Option<bool>,
    /// Seconds from the restart of each killed process until its pods had another update accepted, in order.
    pub pod_recoveries: Vec<f64>,
    /// Promises by name.
    pub promises: BTreeMap<&'static str, Promise>,
}

impl Audit {
    /// Compares the model at the end with that of the run without faults (P2).
    pub(super) fn compare_bits(&mut self, undisturbed: &[u32], own: &[u32]) {
        self.same_bits = Some(undisturbed == own);
        if undisturbed != own {
            let differ = undisturbed.iter().zip(own).filter(|(one, other)| one != other).count();
            let of = undisturbed.len();
            let how = format!("{differ} of {of} values of the model are not those of the run without faults");
            self.promises.insert("P2", Promise::Broken(how));
        }
    }
}

/// Audits a copy of the store of a coordinator that has been parked.
pub(super) fn audit(fleet: &Fleet, scenario: &Scenario, record: &Record) -> anyhow::Result<Audit> {
    let mut audit = Audit::default();
    let told = told::keys(&fleet.cluster, &record.seen)?;
    audit.acknowledged = told.len() as u64;
    invariants::on_a_copy(&fleet.cluster.coordinator_dir(), |store| {
        let recovered = same_bits::check(store);
        let problem = recovered.as_ref().err().map(|error| format!("{error:#}"));
        audit.promises.insert("P2", Promise::require(problem.is_none(), || problem.clone().unwrap_or_default()));
        let recovered = recovered.ok().flatten().context("there is no run to audit")?;
        audit.version = recovered.state.version.0;
        for agent in recovered.state.agents.values() {
            for (reason, count) in &agent.refused {
                *audit.refused.entry(reason.as_str().to_owned()).or_default() += count;
            }
        }
        audit.merged = recovered.state.agents.values().map(|agent| agent.accepted).sum();
        let finite = recovered.model.model().iter().all(|value| value.is_finite());
        audit.promises.insert("P4", Promise::require(finite, || "the model is not finite".to_owned()));
        let once = if scenario.keep_journal { by_records(store.journal(), &told, &mut audit) } else { Ok(()) };
        let once = once
            .and_then(|()| if scenario.task == Task::Ledger { ledger(fleet, scenario, &recovered) } else { Ok(()) });
        audit.promises.insert("P1", Promise::of(once));
        Ok(())
    })?;
    Ok(audit)
}

/// Every record of the journal: decided once, and what was told is there.
fn by_records(journal: &dyn Journal, told: &BTreeSet<told::Key>, audit: &mut Audit) -> anyhow::Result<()> {
    let found = told::audit(journal, told)?;
    (audit.lost, audit.duplicated) = (found.lost, found.duplicated);
    anyhow::ensure!(audit.lost == 0, "{} acknowledged updates are not in the journal", audit.lost);
    anyhow::ensure!(audit.duplicated == 0, "{} updates are in the journal twice", audit.duplicated);
    found.problem.map_or(Ok(()), |violation| Err(violation.into()))
}

fn ledger(fleet: &Fleet, scenario: &Scenario, recovered: &Recovered) -> anyhow::Result<()> {
    let logs: Vec<PathBuf> = scenario.agent_names().iter().map(|name| fleet.cluster.log_path(name)).collect();
    let acknowledged = exactly_once::acknowledged(logs.iter().map(PathBuf::as_path))?;
    exactly_once::check(Some(recovered), &acknowledged)?;
    Ok(())
}

/// P5, P6, P7, P8 and P10, from what was seen; `clean` is the same run without faults.
pub(super) fn observe(scenario: &Scenario, record: &Record, clean: &Record, audit: &mut Audit) {
    let must = &scenario.must;
    let memory = record.peak_bytes.get(COORDINATOR).copied().unwrap_or(0) >> 20;
    let disk = record.disk_bytes >> 20;
    let within = memory <= must.coordinator_mib && disk <= must.disk_mib;
    audit.promises.insert(
        "P5",
        Promise::require(within, || {
            let (memory_limit, disk_limit) = (must.coordinator_mib, must.disk_mib);
            format!("the coordinator used {memory} MiB of {memory_limit}, its disk {disk} MiB of {disk_limit}")
        }),
    );
    audit.pod_recoveries = pod::recoveries(scenario, record);
    let slowest = audit.pod_recoveries.last().copied().unwrap_or(0.0);
    audit.promises.insert(
        "P6",
        match record.served_ms {
            None => Promise::Broken(format!(
                "not every agent was served again within {} s of the last fault",
                must.resume_s
            )),
            Some(_) => Promise::require(slowest <= must.recover_s, || {
                format!("a pod took {slowest:.2} s from a restart to its next update, above {} s", must.recover_s)
            }),
        },
    );
    let wrong: Vec<String> = record
        .exits
        .iter()
        .filter(|(.., expected)| !expected)
        .map(|(at_ms, node, code, _)| format!("{node} ended with {code} at {at_ms} ms"))
        .collect();
    audit.promises.insert("P7", Promise::require(wrong.is_empty(), || wrong.join(", ")));
    if let Some(kept) = others_keep(scenario, record, clean) {
        audit.promises.insert(
            "P8",
            Promise::require(kept >= must.others_keep, || {
                format!("agents that nothing was done to kept {:.0} % of their updates", kept * 100.0)
            }),
        );
    }
    if let Some(wanted) = must.accuracy {
        let reached = record.accuracy().unwrap_or(0.0);
        audit.promises.insert(
            "P10",
            Promise::require(reached >= wanted, || format!("the accuracy at the end is {reached:.3}, below {wanted}")),
        );
    }
}

/// Updates a second of agents that no fault named, as a share of the clean run; none when there are no such agents.
fn others_keep(scenario: &Scenario, record: &Record, clean: &Record) -> Option<f64> {
    let hurt: BTreeSet<&str> = record.injected.iter().map(|injected| injected.node.as_str()).collect();
    if hurt.is_empty() || hurt.contains(COORDINATOR) {
        return None;
    }
    // A pod is as slow as its slowest member.
    let names: Vec<String> = scenario.agent_names().split_off(scenario.owner_names().len());
    let others: BTreeSet<&str> = names.iter().map(String::as_str).filter(|name| !hurt.contains(name)).collect();
    if others.is_empty() {
        return None;
    }
    let rate = |record: &Record| {
        let updates =
            record.accepted().filter(|(at_ms, agent, ..)| *at_ms <= record.healed_ms && others.contains(agent));
        updates.count() as f64 / (record.healed_ms.max(1) as f64 / 1e3)
    };
    Some(rate(record) / rate(clean).max(1e-9))
}
