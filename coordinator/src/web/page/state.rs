//! A page as JSON: the process, its runs and searches, and one of them in detail.

use std::collections::BTreeMap;

use anabranch_common::limits;
use anabranch_common::status::{RunStanding, TimedAggregate};
use anabranch_io::terminal::make_visible;
use serde::Serialize;

use super::attention::{self, Note};
use super::changes::Entry;
use super::history::Page;
use super::run::RunDetail;
use super::search::{SearchDetail, SearchLine};
use crate::commands::{bytes, count, span};
use crate::host::{Health, RunView};

/// Which details a client looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    Nothing,
    Run(String),
    Search(String),
    /// What there is not, in words.
    Missing(String),
}

impl Which {
    /// Reads `run=NAME` or `search=NAME`. Names have no characters that a query would encode.
    pub(super) fn of_query(query: Option<&str>) -> Self {
        match query.and_then(|query| query.split_once('=')) {
            Some(("run", name)) => Self::Run(name.to_owned()),
            Some(("search", name)) => Self::Search(name.to_owned()),
            _ => Self::Nothing,
        }
    }

    /// Returns this, if the page has it.
    pub(super) fn existing(self, page: &Page) -> Self {
        let view = &page.snapshot.view;
        let missing = |kind: &str, name: &str| Self::Missing(format!("there is no {kind} {name} here"));
        match self {
            Self::Run(name) if !view.runs.iter().any(|run| run.summary.name == name) => missing("run", &name),
            Self::Search(name) if !view.searches.iter().any(|search| search.summary.name == name) => {
                missing("search", &name)
            }
            which => which,
        }
    }
}

#[derive(Debug, Serialize)]
struct State<'a> {
    at_ms: u64,
    health: &'static str,
    health_text: String,
    facts: Vec<(&'static str, String)>,
    notes: Vec<Note>,
    runs: Vec<RunLine>,
    /// Runs that are not listed.
    more_runs: usize,
    searches: Vec<SearchLine>,
    log: Vec<&'a Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunDetail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    search: Option<SearchDetail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<&'a str>,
}

/// A run in the list of runs.
#[derive(Debug, Serialize)]
struct RunLine {
    name: String,
    state: &'static str,
    version: Option<u64>,
    accuracy: Option<String>,
    loss: Option<String>,
    /// Accuracies, oldest first: at most `limits::PAGE_SPARK_POINTS`.
    spark: Vec<f64>,
    /// Merged updates a minute.
    rate: Option<String>,
    accepted: String,
    refused: String,
    agents: String,
    problem: Option<String>,
}

/// Returns a page as JSON in one line. Text that agents chose is made visible: no control character and no override of the
/// direction of writing is left in it.
pub(super) fn json(page: &Page, which: &Which) -> String {
    let mut value = serde_json::to_value(state(page, which)).expect("strings and numbers");
    make_visible(&mut value);
    value.to_string()
}

fn state<'a>(page: &'a Page, which: &'a Which) -> State<'a> {
    let view = &page.snapshot.view;
    let mut runs: Vec<&RunView> = view.runs.iter().collect();
    // The sort is stable: the process's own run stays first of its kind.
    runs.sort_by_key(|view| rank(view.summary.state));
    let more_runs = runs.len().saturating_sub(limits::PAGE_RUNS);
    runs.truncate(limits::PAGE_RUNS);
    let run = view.runs.iter().find(|run| matches!(which, Which::Run(name) if *name == run.summary.name));
    let is_meant = |name: &String| matches!(which, Which::Search(wanted) if wanted == name);
    let search = view.searches.iter().find(|search| is_meant(&search.summary.name));
    let of_run = |entry: &Entry| match which {
        Which::Run(name) => entry.run.as_ref() == Some(name),
        _ => true,
    };
    let log = page.log.iter().rev().map(AsRef::as_ref).filter(|entry| of_run(entry)).take(limits::PAGE_EVENTS_SHOWN);
    State {
        at_ms: page.snapshot.at_ms,
        health: match view.health {
            Health::Starting => "starting",
            Health::Serving => "serving",
            Health::Leaving(_) => "leaving",
            Health::Failed(_) => "failed",
        },
        health_text: health(&view.health),
        facts: facts(page),
        notes: attention::notes(page),
        runs: runs.into_iter().map(|view| line(page, view)).collect(),
        more_runs,
        searches: view.searches.iter().map(SearchLine::of).collect(),
        log: log.collect(),
        run: run.map(RunDetail::of),
        search: search.map(SearchDetail::of),
        missing: match which {
            Which::Missing(what) => Some(what),
            _ => None,
        },
    }
}

/// What comes first in the list of runs.
fn rank(state: RunStanding) -> u8 {
    match state {
        RunStanding::Failed => 0,
        RunStanding::Running => 1,
        RunStanding::Paused => 2,
        RunStanding::Pending => 3,
        RunStanding::Opening => 4,
        RunStanding::Parked => 5,
        RunStanding::Finished => 6,
    }
}

fn facts(page: &Page) -> Vec<(&'static str, String)> {
    let snapshot = &page.snapshot;
    let serving_ms = snapshot.at_ms.saturating_sub(snapshot.started_at_ms);
    let members = snapshot.view.members.iter().filter(|member| !member.revoked).count();
    let mut connected: BTreeMap<_, bool> = BTreeMap::new();
    for agent in snapshot.view.runs.iter().filter_map(|run| run.report.as_ref()).flat_map(|report| &report.agents) {
        *connected.entry(agent.agent).or_default() |= agent.connected;
    }
    let connected = connected.into_values().filter(|connected| *connected).count();
    vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("started", format!("{} ago", span((serving_ms / 1_000) as f64))),
        ("agents", format!("{} of {} connected", count(connected as u64), count(members as u64))),
        ("received", bytes(snapshot.network.received.ip_bytes())),
        ("sent", bytes(snapshot.network.sent.ip_bytes())),
    ]
}

fn line(page: &Page, view: &RunView) -> RunLine {
    let summary = &view.summary;
    let report = view.report.as_ref();
    let aggregates = report.map_or(&[][..], |report| &report.aggregates);
    let newest = aggregates.last().map(|timed| &timed.aggregate);
    let refused = report.map_or(0, |report| report.updates_refused.values().sum());
    RunLine {
        name: summary.name.clone(),
        state: summary.state.word(),
        version: summary.version.map(|version| version.0),
        accuracy: newest.map(|aggregate| percent(aggregate.accuracy)),
        loss: newest.map(|aggregate| format!("{:.4}", aggregate.loss)),
        spark: thinned(aggregates, limits::PAGE_SPARK_POINTS).map(|timed| timed.aggregate.accuracy).collect(),
        rate: page.rates.get(&summary.name).map(|rate| format!("{:.0} a minute", rate.accepted_per_min())),
        accepted: count(summary.updates_accepted),
        refused: count(refused),
        agents: format!("{} of {}", count(summary.connected), count(summary.agents)),
        problem: summary.problem.clone(),
    }
}

/// Returns at most so many of some measurements, evenly spread: the first and the newest are among them.
pub(super) fn thinned(all: &[TimedAggregate], most: usize) -> impl Iterator<Item = &TimedAggregate> {
    let points = all.len().min(most);
    let last = all.len().saturating_sub(1);
    (0..points).filter_map(move |nth| all.get(if points > 1 { nth * last / (points - 1) } else { last }))
}

/// `91.20 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Whether the process does its work, in words.
pub(super) fn health(health: &Health) -> String {
    match health {
        Health::Starting => "the process is starting: it reads what is stored".to_owned(),
        Health::Serving => "the process serves its runs".to_owned(),
        Health::Leaving(why) | Health::Failed(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agent, measured, page, run};
    use super::*;

    #[test]
    fn a_query_names_what_is_looked_at() {
        assert_eq!(Which::of_query(None), Which::Nothing);
        assert_eq!(Which::of_query(Some("run=wards-2.1")), Which::Run("wards-2.1".to_owned()));
        assert_eq!(Which::of_query(Some("search=lr")), Which::Search("lr".to_owned()));
        assert_eq!(Which::of_query(Some("token=x")), Which::Nothing);
        let page = page(vec![run("wards", Vec::new())]);
        assert_eq!(Which::Run("wards".into()).existing(&page), Which::Run("wards".into()));
        let missing = Which::Missing("there is no run <b> here".into());
        assert_eq!(Which::Run("<b>".into()).existing(&page), missing);
    }

    #[test]
    fn curves_are_thinned_between_their_ends() {
        let all: Vec<TimedAggregate> = (0..101).map(measured).collect();
        let versions = |most| thinned(&all, most).map(|timed| timed.aggregate.version.0).collect::<Vec<_>>();
        assert_eq!(versions(5), [0, 25, 50, 75, 100]);
        assert_eq!(versions(1), [100]);
        assert_eq!(versions(200).len(), 101);
        assert_eq!(thinned(&[], 5).count(), 0);
    }

    #[test]
    fn every_run_has_a_line_the_failed_first_and_one_is_shown_in_detail() {
        let mut wards = run("wards", vec![agent(1)]);
        let report = wards.report.as_mut().expect("a report");
        report.aggregates = vec![measured(3)];
        report.updates_refused = [("stale".to_owned(), 1_234)].into();
        let mut failed = run("old", Vec::new());
        (failed.report, failed.summary.state) = (None, RunStanding::Failed);
        let page = page(vec![wards, failed]);
        let state = |which| -> serde_json::Value { serde_json::from_str(&json(&page, &which)).expect("JSON") };
        let overview = state(Which::Nothing);
        let names: Vec<_> = overview["runs"].as_array().expect("runs").iter().map(|run| &run["name"]).collect();
        assert_eq!(names, ["old", "wards"]);
        assert_eq!(overview["runs"][1]["accuracy"], "3.00 %");
        assert_eq!(overview["runs"][1]["refused"], "1,234");
        assert_eq!(overview["health"], "serving");
        assert!(overview.get("run").is_none());
        let detail = state(Which::Run("wards".into()));
        assert_eq!(detail["run"]["name"], "wards");
        assert_eq!(detail["run"]["agents"]["rows"][0]["name"], "agent-1");
        assert_eq!(state(Which::Missing("there is no run x here".into()))["missing"], "there is no run x here");
    }

    #[test]
    fn runs_beyond_the_bound_are_counted() {
        let runs = (0..limits::PAGE_RUNS + 3).map(|number| run(&format!("run-{number}"), Vec::new()));
        let page = page(runs.collect());
        let state: serde_json::Value = serde_json::from_str(&json(&page, &Which::Nothing)).expect("JSON");
        assert_eq!(state["runs"].as_array().map(Vec::len), Some(limits::PAGE_RUNS));
        assert_eq!(state["more_runs"], 3);
    }

    #[test]
    fn text_that_agents_chose_has_no_hidden_characters() {
        let hostile = "<img src=x onerror=alert(1)>\u{202e}\u{1b}[31m\n";
        let mut agent = agent(1);
        agent.device = hostile.to_owned();
        let text = json(&page(vec![run("wards", vec![agent])]), &Which::Run("wards".into()));
        assert!(text.contains("<img src=x onerror=alert(1)>"), "text stays text");
        assert!(!text.contains(['\u{202e}', '\u{1b}', '\n']), "{text}");
        assert!(text.contains("\\\\u202e"), "{text}");
    }
}
