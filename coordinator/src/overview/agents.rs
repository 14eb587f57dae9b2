//! The agents of a run: what each does, and why one is slow, away or refused.

use anabranch_common::limits;
use anabranch_common::status::{AgentStatus, StatusReport};
use serde::Serialize;

use crate::commands::{bytes, count, heard, span};

/// How many times slower than half of the agents one is that counts as slow.
const SLOW: f64 = 3.0;
/// Agents whose speeds are known, below which none counts as slow.
const COMPARED: usize = 3;
/// How many times as many versions as half of the updates a lease is behind that counts as slow.
const BEHIND: u64 = 4;
/// Updates of an agent that were refused, below which it does not count as refused.
const REFUSED: u64 = 3;

/// What an agent does, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Doing {
    /// Its evaluations fail.
    Failing,
    /// More of its updates are refused than accepted.
    Refused,
    /// It computes, or is behind, much more slowly than the others.
    Slow,
    /// It is not connected.
    Away,
    /// It has a lease.
    Training,
    /// It is connected.
    Connected,
    /// Its certificate was revoked.
    Revoked,
}

impl Doing {
    /// Returns the word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Refused => "refused",
            Self::Slow => "slow",
            Self::Away => "away",
            Self::Training => "training",
            Self::Connected => "connected",
            Self::Revoked => "revoked",
        }
    }
}

/// What an agent is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usual {
    /// Half of the connected agents compute faster, in examples a second.
    examples_per_s: Option<f64>,
    /// Half of the merged updates were at most so stale, in versions.
    staleness: Option<u64>,
}

impl Usual {
    pub(crate) fn of(report: &StatusReport) -> Self {
        let known = report.agents.iter().filter(|agent| agent.connected && agent.examples_per_s > 0.0);
        let mut speeds: Vec<f64> = known.map(|agent| agent.examples_per_s).collect();
        speeds.sort_by(f64::total_cmp);
        let total: u64 = report.staleness_histogram.iter().sum();
        let mut seen = 0;
        let half = report.staleness_histogram.iter().position(|count| {
            seen += count;
            total > 0 && seen * 2 >= total
        });
        Self {
            examples_per_s: speeds.get(speeds.len() / 2).copied().filter(|_| speeds.len() >= COMPARED),
            staleness: half.map(|bucket| bucket as u64),
        }
    }
}

/// Returns what an agent does, and why that is so where it is not as it should be.
pub(crate) fn verdict(agent: &AgentStatus, usual: Usual) -> (Doing, Option<String>) {
    if agent.revoked {
        return (Doing::Revoked, None);
    }
    if !agent.connected {
        return (Doing::Away, Some(why_away(agent)));
    }
    let found = [(Doing::Failing, failing(agent)), (Doing::Refused, refused(agent)), (Doing::Slow, slow(agent, usual))];
    let found = found.into_iter().filter_map(|(doing, why)| Some((doing, why?)));
    let (doings, whys): (Vec<Doing>, Vec<String>) = found.unzip();
    let well = if agent.lag_versions.is_some() { Doing::Training } else { Doing::Connected };
    (doings.first().copied().unwrap_or(well), (!whys.is_empty()).then(|| whys.join("; ")))
}

/// `heard of 42 s ago`.
pub(crate) fn why_away(agent: &AgentStatus) -> String {
    match agent.last_seen_ms {
        Some(ms) => format!("heard of {} ago", span((ms / 1_000) as f64)),
        None => "not heard of since the coordinator was started".to_owned(),
    }
}

fn failing(agent: &AgentStatus) -> Option<String> {
    let problem = agent.evaluation_problem.as_ref()?;
    let times = if problem.failures > 1 { format!(" ({} failures in a row)", problem.failures) } else { String::new() };
    Some(format!("did not evaluate version {}{times}: {}", problem.version, problem.reason))
}

fn refused(agent: &AgentStatus) -> Option<String> {
    let total: u64 = agent.updates_refused.values().sum();
    let most = agent.updates_refused.iter().max_by_key(|(_, count)| **count)?;
    (total >= REFUSED && total > agent.updates_accepted).then(|| {
        format!(
            "{} of its updates were refused and {} accepted; most were refused as {}",
            count(total),
            count(agent.updates_accepted),
            most.0
        )
    })
}

fn slow(agent: &AgentStatus, usual: Usual) -> Option<String> {
    let speed = agent.examples_per_s;
    let computing = usual.examples_per_s.filter(|usual| speed > 0.0 && speed * SLOW < *usual);
    let computing =
        computing.map(|usual| format!("computes {speed:.0} examples/s, half of the agents at least {usual:.0}"));
    let lag = agent.lag_versions.zip(usual.staleness);
    let behind = lag.filter(|(lag, usual)| *lag > BEHIND * (*usual).max(1)).map(|(lag, usual)| {
        let level = agent.codec_level.filter(|level| *level > 0);
        let line = level.map_or_else(String::new, |level| format!("; its line is thin: compression level {level}"));
        format!("its lease is {lag} versions behind, half of the updates at most {usual}{line}")
    });
    let whys: Vec<String> = computing.into_iter().chain(behind).collect();
    (!whys.is_empty()).then(|| whys.join("; "))
}

/// A row of the table of agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) doing: Doing,
    pub(crate) why: Option<String>,
    pub(crate) heard: Option<String>,
    pub(crate) device: String,
    pub(crate) speed: Option<String>,
    pub(crate) steps: Option<u32>,
    pub(crate) staleness: Option<u64>,
    pub(crate) lag: Option<u64>,
    pub(crate) loss: Option<String>,
    pub(crate) accepted: String,
    pub(crate) refused: String,
    pub(crate) up: String,
    pub(crate) down: String,
}

/// The agents of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Agents {
    /// How many do what, the most urgent first.
    pub(crate) counts: Vec<(Doing, usize)>,
    /// Those that need the operator first, then by name: at most `limits::PAGE_AGENTS`.
    pub(crate) rows: Vec<Row>,
    /// How many more there are.
    pub(crate) more: usize,
}

impl Agents {
    pub(crate) fn of(report: &StatusReport) -> Self {
        Self::named(report, "")
    }

    /// Returns the agents whose names have a part, in capitals or not. All agents are counted.
    pub(crate) fn named(report: &StatusReport, part: &str) -> Self {
        let usual = Usual::of(report);
        let mut all: Vec<_> = report.agents.iter().map(|agent| (verdict(agent, usual), agent)).collect();
        all.sort_by(|((a, _), one), ((b, _), other)| (a, &one.name, one.agent).cmp(&(b, &other.name, other.agent)));
        let mut counts: Vec<(Doing, usize)> = Vec::new();
        for ((doing, _), _) in &all {
            match counts.last_mut() {
                Some((last, count)) if last == doing => *count += 1,
                _ => counts.push((*doing, 1)),
            }
        }
        let part = part.to_lowercase();
        all.retain(|(_, agent)| agent.name.to_lowercase().contains(&part));
        let more = all.len().saturating_sub(limits::PAGE_AGENTS);
        let rows = all.into_iter().take(limits::PAGE_AGENTS).map(|((doing, why), agent)| row(agent, doing, why));
        Self { counts, rows: rows.collect(), more }
    }
}

fn row(agent: &AgentStatus, doing: Doing, why: Option<String>) -> Row {
    Row {
        name: agent.name.clone(),
        doing,
        why,
        heard: agent.last_seen_ms.map(heard),
        device: agent.device.clone(),
        speed: (agent.examples_per_s > 0.0).then(|| format!("{:.0} ex/s", agent.examples_per_s)),
        steps: agent.lease_steps,
        staleness: agent.staleness,
        lag: agent.lag_versions,
        loss: agent.train_loss.map(|loss| format!("{loss:.4}")),
        accepted: count(agent.updates_accepted),
        refused: count(agent.updates_refused.values().sum()),
        up: bytes(agent.uplink_bytes),
        down: bytes(agent.downlink_bytes),
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::ids::ModelVersion;
    use anabranch_common::status::EvaluationProblem;

    use super::super::tests::{agent, run};
    use super::*;

    fn report(agents: Vec<AgentStatus>) -> StatusReport {
        let mut report = *run("digits", agents).report.expect("a report");
        report.staleness_histogram = vec![4, 5, 1, 0];
        report
    }

    #[test]
    fn an_agent_that_is_slow_away_or_refused_has_a_reason() {
        let speed = |number, examples_per_s| AgentStatus { examples_per_s, lag_versions: Some(1), ..agent(number) };
        let mut agents = vec![speed(1, 900.0), speed(2, 1_000.0), speed(3, 1_100.0), speed(4, 100.0)];
        agents.push(AgentStatus { lag_versions: Some(9), codec_level: Some(2), ..speed(5, 1_000.0) });
        agents.push(AgentStatus { connected: false, last_seen_ms: Some(180_000), ..agent(6) });
        agents.push(AgentStatus { connected: false, last_seen_ms: None, ..agent(7) });
        agents.push(AgentStatus { updates_accepted: 2, updates_refused: [("stale".into(), 4)].into(), ..agent(8) });
        let problem = EvaluationProblem { version: ModelVersion(7), reason: "no <shard>".into(), failures: 2 };
        agents.push(AgentStatus { evaluation_problem: Some(problem), ..agent(9) });
        agents.push(AgentStatus { revoked: true, connected: false, ..agent(10) });
        agents.push(agent(11));
        let report = report(agents);
        let usual = Usual::of(&report);
        let verdicts = report.agents.iter().map(|agent| verdict(agent, usual));
        let expected = [
            (Doing::Training, None),
            (Doing::Training, None),
            (Doing::Training, None),
            (Doing::Slow, Some("computes 100 examples/s, half of the agents at least 1000")),
            (
                Doing::Slow,
                Some(
                    "its lease is 9 versions behind, half of the updates at most 1; its line is thin: compression level 2",
                ),
            ),
            (Doing::Away, Some("heard of 3 min 0 s ago")),
            (Doing::Away, Some("not heard of since the coordinator was started")),
            (Doing::Refused, Some("4 of its updates were refused and 2 accepted; most were refused as stale")),
            (Doing::Failing, Some("did not evaluate version 7 (2 failures in a row): no <shard>")),
            (Doing::Revoked, None),
            (Doing::Connected, None),
        ];
        let expected: Vec<_> = expected.map(|(doing, why)| (doing, why.map(String::from))).into();
        assert_eq!(verdicts.collect::<Vec<_>>(), expected);
        let agents = Agents::of(&report);
        let first: Vec<&str> = agents.rows.iter().take(3).map(|row| row.name.as_str()).collect();
        assert_eq!(first, ["agent-9", "agent-8", "agent-4"]);
        assert_eq!(agents.counts[..3], [(Doing::Failing, 1), (Doing::Refused, 1), (Doing::Slow, 2)]);
    }

    #[test]
    fn of_two_agents_none_is_slow_by_its_speed() {
        let agents = [100.0, 1_000.0].map(|examples_per_s| AgentStatus { examples_per_s, ..agent(1) });
        let report = report(agents.into());
        assert_eq!(verdict(&report.agents[0], Usual::of(&report)), (Doing::Connected, None));
    }

    #[test]
    fn agents_beyond_the_bound_are_counted() {
        let mut all: Vec<AgentStatus> = (0..limits::PAGE_AGENTS + 5).map(agent).collect();
        all[7].connected = false;
        let agents = Agents::of(&report(all));
        assert_eq!((agents.rows.len(), agents.more), (limits::PAGE_AGENTS, 5));
        assert_eq!((agents.rows[0].doing, agents.rows[0].name.as_str()), (Doing::Away, "agent-7"));
    }

    #[test]
    fn agents_are_found_by_a_part_of_their_names_beyond_the_bound_too() {
        let all: Vec<AgentStatus> = (0..limits::PAGE_AGENTS + 5).map(agent).collect();
        let last = format!("AGENT-{}", limits::PAGE_AGENTS + 4);
        let agents = Agents::named(&report(all), &last);
        assert_eq!((agents.rows.len(), agents.more), (1, 0));
        assert_eq!(agents.counts, [(Doing::Connected, limits::PAGE_AGENTS + 5)]);
    }
}
