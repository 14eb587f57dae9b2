//! A page as JSON: the process, its runs and searches, and one of them in detail.

use anabranch_common::limits;
use anabranch_io::terminal::make_visible;
use serde::Serialize;

use super::run::RunDetail;
use super::search::{SearchDetail, SearchLine};
use crate::commands::{bytes, count, span};
use crate::host::Health;
use crate::overview::attention::{self, Note};
use crate::overview::changes::Entry;
use crate::overview::history::Page;
use crate::overview::runs::{RunLine, connected, ordered};
use crate::overview::words::health;

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

/// Returns a page as JSON in one line. Text that agents chose is made visible: no control character and no override of the
/// direction of writing is left in it.
pub(super) fn json(page: &Page, which: &Which) -> String {
    let mut value = serde_json::to_value(state(page, which)).expect("strings and numbers");
    make_visible(&mut value);
    value.to_string()
}

fn state<'a>(page: &'a Page, which: &'a Which) -> State<'a> {
    let view = &page.snapshot.view;
    let mut runs = ordered(page);
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
        runs: runs.into_iter().map(|view| RunLine::of(page, view)).collect(),
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

fn facts(page: &Page) -> Vec<(&'static str, String)> {
    let snapshot = &page.snapshot;
    let serving_ms = snapshot.at_ms.saturating_sub(snapshot.started_at_ms);
    let members = snapshot.view.members.iter().filter(|member| !member.revoked).count();
    vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("started", format!("{} ago", span((serving_ms / 1_000) as f64))),
        ("agents", format!("{} of {} connected", count(connected(page) as u64), count(members as u64))),
        ("received", bytes(snapshot.network.received.ip_bytes())),
        ("sent", bytes(snapshot.network.sent.ip_bytes())),
    ]
}

#[cfg(test)]
mod tests {
    use anabranch_common::status::RunStanding;

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
