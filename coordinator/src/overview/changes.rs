//! The events between two snapshots, in words.

use std::collections::BTreeMap;

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_common::status::{AgentStatus, StatusReport};
use serde::Serialize;

use super::agents::why_away;
use super::words::{health, percent};
use crate::host::{RunView, SearchView};
use crate::search::report::SearchReport;
use crate::web::Snapshot;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    /// Unix time in milliseconds of the snapshot that shows it.
    pub(crate) at_ms: u64,
    pub(crate) kind: EventKind,
    /// The run that it is about.
    pub(crate) run: Option<String>,
    pub(crate) text: String,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EventKind {
    Process,
    Run,
    Agent,
    Refused,
    Measured,
    Checkpoint,
    Search,
}

impl EventKind {
    /// Whether a run that is well brings such events all the time.
    pub(crate) fn is_routine(self) -> bool {
        matches!(self, Self::Measured | Self::Checkpoint)
    }
}

/// Returns what happened between two snapshots: the most general first, and at most `limits::PAGE_EVENTS_AT_ONCE`, the last
/// of which counts those that are left out.
pub(crate) fn between(before: &Snapshot, after: &Snapshot) -> Vec<Entry> {
    let mut found = Found { at_ms: after.at_ms, run: None, entries: Vec::new() };
    if before.view.health != after.view.health {
        found.add(EventKind::Process, health(&after.view.health));
    }
    members(&mut found, before, after);
    runs(&mut found, before, after);
    searches(&mut found, before, after);
    let Found { mut entries, .. } = found;
    let surplus = entries.len().saturating_sub(limits::PAGE_EVENTS_AT_ONCE);
    if surplus > 0 {
        entries.truncate(limits::PAGE_EVENTS_AT_ONCE - 1);
        let text = format!("{} more events at this moment", surplus + 1);
        entries.push(Entry { at_ms: after.at_ms, kind: EventKind::Process, run: None, text });
    }
    entries
}

struct Found {
    at_ms: u64,
    run: Option<String>,
    entries: Vec<Entry>,
}

impl Found {
    fn add(&mut self, kind: EventKind, text: String) {
        self.entries.push(Entry { at_ms: self.at_ms, kind, run: self.run.clone(), text });
    }
}

fn members(found: &mut Found, before: &Snapshot, after: &Snapshot) {
    // Before the process serves, it knows no members.
    if before.view.members.is_empty() && after.view.members.len() > 1 {
        return;
    }
    let known: BTreeMap<AgentId, bool> =
        before.view.members.iter().map(|member| (member.agent, member.revoked)).collect();
    for member in &after.view.members {
        match known.get(&member.agent) {
            None => found.add(EventKind::Agent, format!("{} has joined", member.name)),
            Some(false) if member.revoked => found.add(EventKind::Agent, format!("{} was revoked", member.name)),
            Some(_) => {}
        }
    }
}

fn runs(found: &mut Found, before: &Snapshot, after: &Snapshot) {
    let known: BTreeMap<&str, &RunView> =
        before.view.runs.iter().map(|view| (view.summary.name.as_str(), view)).collect();
    for view in &after.view.runs {
        found.run = Some(view.summary.name.clone());
        match known.get(view.summary.name.as_str()).filter(|old| is_same(old, view)) {
            Some(old) => run(found, old, view),
            None => found.add(EventKind::Run, format!("the run is {}", view.summary.state.word())),
        }
    }
    for old in &before.view.runs {
        if !after.view.runs.iter().any(|view| view.summary.name == old.summary.name) {
            found.run = Some(old.summary.name.clone());
            found.add(EventKind::Run, "the run was deleted".to_owned());
        }
    }
    found.run = None;
}

/// Whether two views of one name are of one run. The identity of a run that is being opened is not known yet.
fn is_same(old: &RunView, new: &RunView) -> bool {
    old.summary.run.is_none() || new.summary.run.is_none() || old.summary.run == new.summary.run
}

fn run(found: &mut Found, old: &RunView, new: &RunView) {
    if old.summary.state != new.summary.state {
        let why = new.report.as_ref().and_then(|report| report.finished);
        let why = why.map_or_else(String::new, |reason| format!(": {reason}"));
        found.add(EventKind::Run, format!("the run is {}{why}", new.summary.state.word()));
    }
    if let Some(problem) = new.summary.problem.as_ref().filter(|problem| old.summary.problem.as_ref() != Some(problem))
    {
        found.add(EventKind::Run, problem.clone());
    }
    let (Some(old), Some(new)) = (&old.report, &new.report) else { return };
    for (was, is) in [(&old.target_problem, &new.target_problem), (&old.quota_problem, &new.quota_problem)] {
        if let Some(problem) = is.as_ref().filter(|problem| was.as_ref() != Some(problem)) {
            found.add(EventKind::Run, problem.clone());
        }
    }
    agents(found, old, new);
    measured(found, old, new);
    if let Some(version) = new.checkpoint_version.filter(|version| old.checkpoint_version != Some(*version)) {
        found.add(EventKind::Checkpoint, format!("version {version} has a checkpoint"));
    }
}

fn agents(found: &mut Found, old: &StatusReport, new: &StatusReport) {
    let known: BTreeMap<AgentId, &AgentStatus> = old.agents.iter().map(|agent| (agent.agent, agent)).collect();
    for agent in &new.agents {
        let name = &agent.name;
        let old = known.get(&agent.agent).copied();
        match (old.is_some_and(|old| old.connected), agent.connected) {
            (false, true) => found.add(EventKind::Agent, format!("{name} is connected")),
            (true, false) => found.add(EventKind::Agent, format!("{name} is away: {}", why_away(agent))),
            _ => {}
        }
        for (reason, count) in &agent.updates_refused {
            let before = old.and_then(|old| old.updates_refused.get(reason)).copied().unwrap_or(0);
            match count.saturating_sub(before) {
                0 => {}
                1 => found.add(EventKind::Refused, format!("an update of {name} was refused: {reason}")),
                several => found.add(EventKind::Refused, format!("{several} updates of {name} were refused: {reason}")),
            }
        }
        let problem = agent.evaluation_problem.as_ref();
        if let Some(problem) = problem.filter(|_| old.and_then(|old| old.evaluation_problem.as_ref()) != problem) {
            let text = format!("{name} did not evaluate version {}: {}", problem.version, problem.reason);
            found.add(EventKind::Agent, text);
        }
    }
}

fn measured(found: &mut Found, old: &StatusReport, new: &StatusReport) {
    let newest = old.aggregates.last();
    let (Some(timed), false) = (new.aggregates.last(), new.aggregates.last() == newest) else { return };
    let aggregate = &timed.aggregate;
    let text = format!(
        "version {} was measured: accuracy {}, loss {:.4}",
        aggregate.version,
        percent(aggregate.accuracy),
        aggregate.loss
    );
    found.add(EventKind::Measured, text);
}

fn searches(found: &mut Found, before: &Snapshot, after: &Snapshot) {
    let known: BTreeMap<&str, &SearchView> =
        before.view.searches.iter().map(|view| (view.summary.name.as_str(), view)).collect();
    for view in &after.view.searches {
        let old = known.get(view.summary.name.as_str()).copied();
        let name = &view.summary.name;
        if old.map(|old| old.summary.state) != Some(view.summary.state) {
            let state = view.summary.state.word();
            found.add(EventKind::Search, format!("search {name} is {state}"));
        }
        if let Some(problem) = &view.summary.problem
            && old.and_then(|old| old.summary.problem.as_ref()) != Some(problem)
        {
            found.add(EventKind::Search, format!("search {name}: {problem}"));
        }
        let Some(report) = &view.report else { continue };
        // What a process reads at its start is no news.
        if let Some(old) = old.and_then(|old| old.report.as_ref()) {
            trials(found, old, report);
        }
    }
}

fn trials(found: &mut Found, old: &SearchReport, new: &SearchReport) {
    let is_closed = |id| old.trials.iter().any(|trial| trial.trial == id && trial.closed.is_some());
    for trial in &new.trials {
        if let Some(closed) = trial.closed.as_ref().filter(|_| !is_closed(trial.trial)) {
            let text = format!("search {}: trial {} was closed: {}", new.name, trial.trial, closed.reason);
            found.add(EventKind::Search, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use anabranch_common::status::RunStanding;

    use super::super::tests::{agent, run, snapshot_at};
    use super::*;

    fn texts(before: &Snapshot, after: &Snapshot) -> Vec<(EventKind, String)> {
        between(before, after).into_iter().map(|entry| (entry.kind, entry.text)).collect()
    }

    #[test]
    fn what_happens_to_a_run_and_its_agents_is_said_once() {
        let before = snapshot_at(1, vec![run("digits", vec![agent(1), agent(2)])]);
        assert_eq!(texts(&before, &before), []);
        let mut after = before.clone();
        after.at_ms = 2;
        let view = &mut after.view.runs[0];
        view.summary.state = RunStanding::Paused;
        let report = view.report.as_mut().expect("a report");
        report.agents[0].connected = false;
        report.agents[0].last_seen_ms = Some(42_000);
        report.agents[1].updates_refused = [("stale".to_owned(), 2), ("duplicate".to_owned(), 1)].into();
        report.agents.push(agent(3));
        report.target_problem = Some("no evaluator is connected".to_owned());
        after.view.runs.push(run("wards", Vec::new()));
        let expected = [
            (EventKind::Run, "the run is paused"),
            (EventKind::Run, "no evaluator is connected"),
            (EventKind::Agent, "agent-1 is away: heard of 42 s ago"),
            (EventKind::Refused, "an update of agent-2 was refused: duplicate"),
            (EventKind::Refused, "2 updates of agent-2 were refused: stale"),
            (EventKind::Agent, "agent-3 is connected"),
            (EventKind::Run, "the run is running"),
        ];
        let expected: Vec<_> = expected.map(|(kind, text)| (kind, text.to_owned())).into();
        assert_eq!(texts(&before, &after), expected);
        let runs = between(&before, &after).into_iter().filter_map(|entry| entry.run);
        assert_eq!(runs.collect::<Vec<_>>().last().map(String::as_str), Some("wards"));
        assert_eq!(texts(&after, &before).last(), Some(&(EventKind::Run, "the run was deleted".to_owned())));
    }

    #[test]
    fn many_events_at_once_are_counted() {
        let agents = |connected| {
            (0..limits::PAGE_EVENTS_AT_ONCE + 20)
                .map(|number| AgentStatus { connected, ..agent(number) })
                .collect::<Vec<_>>()
        };
        let (before, after) =
            (snapshot_at(1, vec![run("digits", agents(false))]), snapshot_at(2, vec![run("digits", agents(true))]));
        let entries = between(&before, &after);
        assert_eq!(entries.len(), limits::PAGE_EVENTS_AT_ONCE);
        assert_eq!(entries.last().map(|entry| entry.text.as_str()), Some("21 more events at this moment"));
    }
}
