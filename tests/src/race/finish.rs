//! What one race came to, as figures.

use std::collections::BTreeMap;

use anabranch_common::ids::AgentId;
use anabranch_common::journal::{Contribution, RecordBody};
use serde::Serialize;

use crate::invariants::journal::Journal;
use crate::report::quantile;
use crate::sim::Outcome;

use super::Reference;
use super::scoreboard::{Look, reached};
use super::workload::Workload;

/// One race. The same seed on the same build gives the same value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finish {
    /// Its seed.
    pub seed: u64,
    /// Digest of the whole journal, and of what came of every record; of replicas, which have no journal, that of their last model.
    pub journal: String,
    /// Records in the journal.
    pub records: u64,
    /// The promise that was broken, if one was, and when.
    pub broken: Option<String>,
    /// Figures; names end in their unit.
    pub metrics: BTreeMap<String, f64>,
    /// Accuracy of each class at the end.
    pub accuracy_by_class: Vec<f64>,
    /// Updates that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Who took part, the first agent first.
    pub agents: Vec<Participation>,
    /// Bytes of models that left the line to each agent, the first agent first; empty with real processes.
    pub agents_downlink_bytes: Vec<u64>,
    /// The curve.
    pub looks: Vec<Look>,
}

/// What one agent contributed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Participation {
    /// Its updates that were merged.
    pub updates: u64,
    /// Their share of all that were.
    pub share: f64,
    /// Share of the weights with which updates were merged, each times the norm of its update.
    pub pull: f64,
}

impl Finish {
    pub(super) fn new(
        workload: &Workload,
        looks: Vec<Look>,
        outcome: &Outcome,
        journal: &Journal,
        params: usize,
        ids: &[AgentId],
    ) -> Self {
        let agents = participation(journal, ids);
        let refused = refused(journal);
        let accepted: u64 = agents.iter().map(|agent| agent.updates).sum();
        let last = looks.last();
        let mut metrics = BTreeMap::new();
        let mut metric = |name: String, value: f64| _ = metrics.insert(name, value);
        for target in workload.all_targets() {
            if let Some(look) = reached(&looks, target) {
                let name = target.name();
                metric(format!("time_to_{name}_s"), look.at_ms as f64 / 1_000.0);
                metric(format!("uplink_bytes_to_{name}"), look.uplink_bytes as f64);
                metric(format!("downlink_bytes_to_{name}"), look.downlink_bytes as f64);
                metric(format!("updates_to_{name}"), look.updates as f64);
            }
        }
        if let Some(last) = last {
            metric("final_accuracy".to_owned(), last.score.accuracy);
            metric("final_loss".to_owned(), last.score.loss);
            metric("uplink_bytes".to_owned(), last.uplink_bytes as f64);
            metric("downlink_bytes".to_owned(), last.downlink_bytes as f64);
            for class in &workload.watch {
                let share = last.score.by_class.get(*class as usize).copied().unwrap_or(0.0);
                metric(format!("class_{class}_accuracy"), share);
            }
        }
        metric("raw_f32_uplink_bytes".to_owned(), (accepted * params as u64 * 4) as f64);
        metric("updates_accepted".to_owned(), accepted as f64);
        metric("updates_refused".to_owned(), refused.values().sum::<u64>() as f64);
        metric("updates_lost".to_owned(), outcome.lost as f64);
        let staleness = staleness(journal);
        metric("staleness_p50_versions".to_owned(), quantile(&staleness, 0.5));
        metric("staleness_p90_versions".to_owned(), quantile(&staleness, 0.9));
        metric("versions".to_owned(), outcome.versions as f64);
        metric("recoveries".to_owned(), outcome.recoveries as f64);
        metric("faults".to_owned(), outcome.faults as f64);
        let broken = outcome.violation.as_ref().map(|(at_ms, violation)| format!("{violation} (at {at_ms} ms)"));
        Self {
            seed: outcome.seed,
            journal: journal.chain().0.to_string(),
            records: journal.records().len() as u64,
            broken,
            metrics,
            accuracy_by_class: last.map(|look| look.score.by_class.clone()).unwrap_or_default(),
            refused,
            agents,
            agents_downlink_bytes: Vec::new(),
            looks,
        }
    }

    /// Adds what this race took in times of `other`, the race with the same seed that it is compared with.
    pub(super) fn compare(&mut self, reference: Reference, other: &Self) {
        let ratio = |(name, value): (&String, &f64)| {
            let time = name.strip_prefix("time_to_").and_then(|_| name.strip_suffix("_s"));
            let base = time.or_else(|| name.strip_prefix("final_").map(|_| name.as_str()))?;
            let other = other.metrics.get(name).filter(|other| **other > 0.0)?;
            Some((format!("{base}_ratio_to_{}", reference.name()), value / other))
        };
        let ratios: Vec<(String, f64)> = self.metrics.iter().filter_map(ratio).collect();
        self.metrics.extend(ratios);
    }

    /// Whether every promise was kept and no acknowledged update is lost.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.broken.is_none() && self.metrics.get("updates_lost") == Some(&0.0)
    }
}

fn participation(journal: &Journal, ids: &[AgentId]) -> Vec<Participation> {
    let mut by_agent: BTreeMap<AgentId, (u64, f64)> = BTreeMap::new();
    for record in journal.records() {
        if let RecordBody::Contribution(update) = &record.body {
            let Contribution { meta, weight, norm, .. } = &**update;
            let (updates, pull) = by_agent.entry(meta.key.agent).or_default();
            *updates += 1;
            *pull += f64::from(*weight) * norm;
        }
    }
    let all: u64 = by_agent.values().map(|(updates, _)| updates).sum();
    let all_pull: f64 = by_agent.values().map(|(_, pull)| pull).sum();
    let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
    let of = |id: &AgentId| {
        let (updates, pull) = by_agent.get(id).copied().unwrap_or_default();
        Participation { updates, share: share(updates as f64, all as f64), pull: share(pull, all_pull) }
    };
    ids.iter().map(of).collect()
}

/// Of every merged update, sorted.
fn staleness(journal: &Journal) -> Vec<f64> {
    let of = |body: &RecordBody| match body {
        RecordBody::Contribution(update) => Some(update.staleness as f64),
        _ => None,
    };
    let mut staleness: Vec<f64> = journal.records().iter().filter_map(|record| of(&record.body)).collect();
    staleness.sort_by(f64::total_cmp);
    staleness
}

fn refused(journal: &Journal) -> BTreeMap<String, u64> {
    let mut refused = BTreeMap::new();
    for record in journal.records() {
        if let RecordBody::Refused { reason, .. } = &record.body {
            *refused.entry(format!("{reason:?}")).or_default() += 1;
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::race::workload::Target;

    #[test]
    fn a_target_is_named_in_percent_or_in_nats() {
        let names = [0.9, 0.95, 0.975, 1.0].map(|share| Target::Accuracy(share).name());
        assert_eq!(names, ["90", "95", "97_5", "100"]);
        assert_eq!([1.8, 2.0].map(|loss| Target::Loss(loss).name()), ["loss_1_8", "loss_2"]);
    }

    #[test]
    fn a_race_is_compared_by_what_both_have_reached() {
        let finish = |metrics: &[(&str, f64)]| Finish {
            seed: 1,
            journal: String::new(),
            records: 0,
            broken: None,
            metrics: metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            accuracy_by_class: vec![],
            refused: BTreeMap::new(),
            agents: vec![],
            agents_downlink_bytes: Vec::new(),
            looks: vec![],
        };
        let mut race =
            finish(&[("time_to_90_s", 30.0), ("time_to_95_s", 50.0), ("final_loss", 3.0), ("versions", 8.0)]);
        let other = finish(&[("time_to_90_s", 24.0), ("final_loss", 2.0), ("versions", 4.0)]);
        race.compare(Reference::Pauses, &other);
        let added: Vec<(&str, f64)> = race
            .metrics
            .iter()
            .filter(|(name, _)| name.contains("ratio"))
            .map(|(name, value)| (&**name, *value))
            .collect();
        assert_eq!(added, [("final_loss_ratio_to_pauses", 1.5), ("time_to_90_ratio_to_pauses", 1.25)]);
    }
}
