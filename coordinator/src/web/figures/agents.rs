//! Figures of the agents of runs. At most `limits::METRICS_AGENTS` pairs of run and agent have series of their own; the other
//! agents of a run share those of `agent="other"`.
//!
//! A pair that has series keeps them as long as the process and the run live: a counter that moved to `other` and back would
//! look like a restart. First come those with the most updates.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use anabranch_common::ids::{AgentId, RunId};
use anabranch_common::limits;
use anabranch_common::status::AgentStatus;
use metrics::{Label, SharedString};

use super::{Family, Look, Points, Run, counter, gauge, shared};

pub(super) const ALL: [Family; 10] = [
    gauge("anabranch_run_agent_connected", "1 while an agent is connected; of `other`, how many are", |look| {
        of(look, |row| Some(row.connected))
    }),
    counter("anabranch_run_agent_updates_accepted_total", "Updates of an agent that were merged", |look| {
        of(look, |row| Some(row.accepted as f64))
    }),
    counter("anabranch_run_agent_updates_refused_total", "Updates of an agent that were refused", |look| {
        of(look, |row| Some(row.refused as f64))
    }),
    gauge("anabranch_run_agent_share_ratio", "Part of the run's merged updates that are an agent's", |look| {
        of(look, |row| row.share)
    }),
    gauge(
        "anabranch_run_agent_lag_versions",
        "Versions since the base of an agent's outstanding lease; of `other`, the most",
        |look| of(look, |row| row.lag.map(|versions| versions as f64)),
    ),
    gauge(
        "anabranch_run_agent_staleness_versions",
        "Staleness of an agent's latest merged update; of `other`, the most",
        |look| of(look, |row| row.staleness.map(|versions| versions as f64)),
    ),
    gauge(
        "anabranch_run_agent_codec_level",
        "Level of an agent's compression, 0 is the mildest (upload.adaptive); of `other`, the hardest",
        |look| of(look, |row| row.level.map(|level| level as f64)),
    ),
    gauge("anabranch_run_agent_examples_per_second", "Speed of an agent's latest round", |look| {
        of(look, |row| Some(row.examples_per_s))
    }),
    counter("anabranch_run_agent_uplink_bytes_total", "Payload bytes of an agent's merged updates", |look| {
        of(look, |row| Some(row.uplink_bytes as f64))
    }),
    counter("anabranch_run_agent_downlink_bytes_total", "Payload bytes of models sent to an agent", |look| {
        of(look, |row| Some(row.downlink_bytes as f64))
    }),
];

/// The label of the agents that share series.
const OTHER: &str = "other";

/// What is shown of an agent, or of several.
#[derive(Debug, Clone)]
pub(super) struct AgentRow {
    run: SharedString,
    agent: SharedString,
    /// Its identity; nothing of several.
    id: SharedString,
    connected: f64,
    accepted: u64,
    refused: u64,
    share: Option<f64>,
    lag: Option<u64>,
    staleness: Option<u64>,
    level: Option<u64>,
    examples_per_s: f64,
    uplink_bytes: u64,
    downlink_bytes: u64,
}

impl AgentRow {
    fn of(run: &SharedString, agent: &AgentStatus, accepted_in_run: u64) -> Self {
        Self {
            run: run.clone(),
            agent: shared(&agent.name),
            id: shared(&agent.agent.to_string()),
            connected: f64::from(u8::from(agent.connected)),
            accepted: agent.updates_accepted,
            refused: agent.updates_refused.values().sum(),
            share: (accepted_in_run > 0).then(|| agent.updates_accepted as f64 / accepted_in_run as f64),
            lag: agent.lag_versions,
            staleness: agent.staleness,
            level: agent.codec_level,
            examples_per_s: agent.examples_per_s,
            uplink_bytes: agent.uplink_bytes,
            downlink_bytes: agent.downlink_bytes + agent.evaluation_downlink_bytes,
        }
    }

    /// Counts another agent in.
    fn add(&mut self, other: &Self) {
        self.connected += other.connected;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.share = self.share.zip(other.share).map(|(one, other)| one + other);
        self.lag = self.lag.max(other.lag);
        self.staleness = self.staleness.max(other.staleness);
        self.level = self.level.max(other.level);
        self.examples_per_s += other.examples_per_s;
        self.uplink_bytes += other.uplink_bytes;
        self.downlink_bytes += other.downlink_bytes;
    }

    fn labels(&self) -> Vec<Label> {
        let labels = [("run", &self.run), ("agent", &self.agent), ("agent_id", &self.id)];
        labels.map(|(key, value)| Label::new(key, value.clone())).into()
    }
}

fn of(look: &Look<'_>, value: impl Fn(&AgentRow) -> Option<f64>) -> Points {
    look.agents.iter().filter_map(|row| Some((row.labels(), value(row)?))).collect()
}

/// The pairs of run and agent that have series of their own.
#[derive(Debug, Default)]
pub(super) struct Named(BTreeMap<RunId, BTreeSet<AgentId>>);

impl Named {
    /// Returns what is shown of the agents of all runs, and names further agents while there is room.
    pub(super) fn rows(&mut self, runs: &[Run<'_>]) -> Vec<AgentRow> {
        let reports = || runs.iter().filter_map(|run| Some((&run.label, run.view.report.as_deref()?)));
        let served: BTreeSet<RunId> =
            reports().filter(|(_, report)| report.serving).map(|(_, report)| report.run).collect();
        self.0.retain(|run, _| served.contains(run));
        let mut rows = Vec::new();
        for (label, report) in reports() {
            self.name(report.run, &report.agents);
            let named = self.0.get(&report.run);
            let is_named = |agent: &AgentStatus| named.is_some_and(|named| named.contains(&agent.agent));
            let mut rest: Option<AgentRow> = None;
            for agent in &report.agents {
                let row = AgentRow::of(label, agent, report.updates_accepted);
                match &mut rest {
                    _ if is_named(agent) => rows.push(row),
                    Some(rest) => rest.add(&row),
                    None => rest = Some(AgentRow { agent: OTHER.into(), id: "".into(), ..row }),
                }
            }
            rows.extend(rest);
        }
        rows
    }

    fn name(&mut self, run: RunId, agents: &[AgentStatus]) {
        let taken: usize = self.0.values().map(BTreeSet::len).sum();
        let room = limits::METRICS_AGENTS.saturating_sub(taken);
        let named = self.0.entry(run).or_default();
        let mut new: Vec<&AgentStatus> = agents.iter().filter(|agent| !named.contains(&agent.agent)).collect();
        if new.len() > room {
            new.sort_by_key(|agent| (Reverse(agent.updates_accepted), agent.agent));
            new.truncate(room);
        }
        named.extend(new.iter().map(|agent| agent.agent));
    }
}
