//! Where snapshots come from: a running coordinator, or the directory of a stopped one.

use std::collections::BTreeMap;

use anabranch_common::limits;
use anabranch_common::status::{RunStanding, RunSummary, StatusReport};
use anabranch_common::wire::message::RunPhase;
use anabranch_common::wire::operator::{OperatorRequest, OperatorResponse, RunRequest, RunsRequest, SearchRequest};
use anabranch_io::durable;
use serde::de::DeserializeOwned;

use super::compose::{self, Answers};
use super::place::Place;
use crate::cli::{RunTargetArgs, TargetArgs};
use crate::commands::output;
use crate::commands::reach::{self, Coordinator};
use crate::commands::search::Source as SearchSource;
use crate::commands::status::Source;
use crate::host::SearchView;
use crate::runs;
use crate::search::report::{SearchPhase, SearchReport, SearchStanding, SearchSummary};
use crate::web::Snapshot;

/// A source of snapshots.
pub(super) trait Feed: Send + 'static {
    /// Returns the next snapshot, with what is needed where the operator looks.
    ///
    /// # Errors
    /// Nobody answers. A later call may succeed.
    fn next(&mut self, place: &Place) -> anyhow::Result<Snapshot>;
}

/// One run: `status --watch`.
pub(super) struct OneRun(Source);

impl OneRun {
    pub(super) fn new(target: &RunTargetArgs) -> Self {
        Self(Source::new(target))
    }
}

impl Feed for OneRun {
    fn next(&mut self, _: &Place) -> anyhow::Result<Snapshot> {
        let report: StatusReport = output::read_report(&self.0.next()?, "the status")?;
        let summary = compose::summary(&report);
        // The directory of a run that has finished says all that there is.
        let is_running = report.serving || summary.state == RunStanding::Finished;
        Ok(compose::snapshot(Answers { is_running, runs: vec![(summary, Some(report))], searches: Vec::new() }))
    }
}

/// One search: `search status --watch`.
pub(super) struct OneSearch(SearchSource);

impl OneSearch {
    pub(super) fn new(source: SearchSource) -> Self {
        Self(source)
    }
}

impl Feed for OneSearch {
    fn next(&mut self, _: &Place) -> anyhow::Result<Snapshot> {
        let (_, report) = self.0.next()?;
        let summary = SearchSummary {
            state: match report.state {
                SearchPhase::Running => SearchStanding::Running,
                SearchPhase::Finished => SearchStanding::Finished,
                SearchPhase::Stopped => SearchStanding::Stopped,
            },
            ..SearchSummary::unread(&report.name, None)
        };
        let searches = vec![SearchView { summary, report: Some(Box::new(report)) }];
        Ok(compose::snapshot(Answers { is_running: true, runs: Vec::new(), searches }))
    }
}

/// The whole process: `top`.
pub(super) struct Everything {
    target: TargetArgs,
    running: Option<Coordinator>,
    /// What `status` said last of each run, by its name or id.
    reports: BTreeMap<String, StatusReport>,
    turn: usize,
    /// What a stopped coordinator's directory said, and for which place it was read.
    read: Option<(Place, Answers)>,
}

impl Everything {
    pub(super) fn new(target: TargetArgs) -> Self {
        Self { target, running: None, reports: BTreeMap::new(), turn: 0, read: None }
    }

    fn look(&mut self, place: &Place) -> anyhow::Result<Answers> {
        // A directory that nobody serves says the same each time. It is let go at once: a coordinator may want to start on it.
        let dir = self.target.dir.as_ref().filter(|_| self.target.connect.is_none());
        let is_written = dir.is_none_or(|dir| durable::is_written(&dir.join(runs::STORE_DIR)));
        if let Some((_, answers)) = self.read.as_ref().filter(|(read, _)| !is_written && read == place) {
            return Ok(answers.clone());
        }
        let mut coordinator = Coordinator::look(&self.target)?;
        let answers = self.ask(&mut coordinator, place)?;
        if answers.is_running {
            (self.running, self.read) = (Some(coordinator), None);
        } else {
            self.read = Some((place.clone(), answers.clone()));
        }
        Ok(answers)
    }

    fn ask(&mut self, coordinator: &mut Coordinator, place: &Place) -> anyhow::Result<Answers> {
        let is_running = matches!(coordinator, Coordinator::Running(_));
        let runs: Vec<RunSummary> = asked(coordinator, RunsRequest::List, "the list of runs")?.unwrap_or_default();
        for key in wanted(&runs, place, &self.reports, &mut self.turn) {
            let request = OperatorRequest::Run { run: Some(key.clone()), request: RunRequest::Status };
            match asked(coordinator, request, "the status")? {
                Some(report) => _ = self.reports.insert(key, report),
                None => _ = self.reports.remove(&key),
            }
        }
        self.reports.retain(|key, _| runs.iter().any(|run| key_of(run) == *key));
        let searches: Vec<SearchSummary> =
            asked(coordinator, SearchRequest::List, "the list of searches")?.unwrap_or_default();
        let searches = searches.into_iter().map(|summary| search(coordinator, summary, place));
        let searches = searches.collect::<anyhow::Result<_>>()?;
        let runs = runs.into_iter().map(|run| {
            let report = self.reports.get(&key_of(&run)).cloned();
            (run, report)
        });
        Ok(Answers { is_running, runs: runs.collect(), searches })
    }
}

impl Feed for Everything {
    /// Asks the coordinator that answered last, then looks for one again.
    fn next(&mut self, place: &Place) -> anyhow::Result<Snapshot> {
        if let Some(mut running) = self.running.take()
            && let Ok(answers) = self.ask(&mut running, place)
        {
            self.running = Some(running);
            return Ok(compose::snapshot(answers));
        }
        self.look(place).map(compose::snapshot)
    }
}

/// Asks for a report; nothing where the coordinator answers that it has none.
fn asked<T: DeserializeOwned>(
    coordinator: &mut Coordinator,
    request: impl Into<OperatorRequest>,
    what: &str,
) -> anyhow::Result<Option<T>> {
    match coordinator.exchange(request)? {
        OperatorResponse::Json(json) => output::read_report(&json, what).map(Some),
        OperatorResponse::Failed(_) | OperatorResponse::NotFound(_) | OperatorResponse::Conflict(_) => Ok(None),
        other => Err(reach::unexpected(&other)),
    }
}

/// A search that has ended says no more than its line, unless it is looked at.
fn search(coordinator: &mut Coordinator, summary: SearchSummary, place: &Place) -> anyhow::Result<SearchView> {
    let is_looked_at = matches!(place, Place::Search(name) if *name == summary.name);
    let report: Option<SearchReport> = if is_looked_at || summary.state == SearchStanding::Running {
        let request = SearchRequest::Status { name: Some(summary.name.clone()) };
        asked(coordinator, request, "the search")?
    } else {
        None
    };
    Ok(SearchView { summary, report: report.map(Box::new) })
}

/// What a run is asked for by: its id, since two runs may have one name.
fn key_of(run: &RunSummary) -> String {
    run.run.map_or_else(|| run.name.clone(), |id| id.to_string())
}

/// Returns the runs whose status is asked for now: the one that is looked at, and at most `limits::TOP_REPORTS` of those
/// that change. A run that has ended is asked once more, so that its last report is known; one that had ended before is read
/// from its journal, and so only where it is looked at, once.
fn wanted(runs: &[RunSummary], place: &Place, known: &BTreeMap<String, StatusReport>, turn: &mut usize) -> Vec<String> {
    let is_looked_at = |run: &&RunSummary| matches!(place, Place::Run(name) if *name == run.name);
    let changes = |run: &&RunSummary| match run.state {
        RunStanding::Pending | RunStanding::Running | RunStanding::Paused | RunStanding::Parked => true,
        RunStanding::Finished => known.get(&key_of(run)).is_some_and(|report| report.state != RunPhase::Finished),
        RunStanding::Opening | RunStanding::Failed => false,
    };
    let says_more = |run: &&RunSummary| match run.state {
        RunStanding::Pending | RunStanding::Running | RunStanding::Paused | RunStanding::Parked => true,
        RunStanding::Finished => known.get(&key_of(run)).is_none_or(|report| report.state != RunPhase::Finished),
        RunStanding::Opening | RunStanding::Failed => false,
    };
    let mut keys: Vec<String> = runs.iter().filter(is_looked_at).filter(says_more).map(key_of).collect();
    let others: Vec<String> = runs.iter().filter(|run| !is_looked_at(run)).filter(changes).map(key_of).collect();
    let count = others.len().min(limits::TOP_REPORTS);
    keys.extend(others.iter().cycle().skip(*turn % others.len().max(1)).take(count).cloned());
    *turn = turn.wrapping_add(count);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overview::tests::run;

    fn line(number: usize, state: RunStanding) -> RunSummary {
        RunSummary { run: None, state, ..run(&format!("run-{number}"), Vec::new()).summary }
    }

    #[test]
    fn every_run_has_its_turn_and_the_one_that_is_looked_at_every_time() {
        let runs: Vec<RunSummary> =
            (0..limits::TOP_REPORTS + 5).map(|number| line(number, RunStanding::Running)).collect();
        let (place, known, mut turn) = (Place::Run("run-3".to_owned()), BTreeMap::new(), 0);
        let first = wanted(&runs, &place, &known, &mut turn);
        assert_eq!((first.len(), first[0].as_str()), (limits::TOP_REPORTS + 1, "run-3"));
        let second = wanted(&runs, &place, &known, &mut turn);
        assert_eq!((second.len(), second[0].as_str()), (limits::TOP_REPORTS + 1, "run-3"));
        let all: std::collections::BTreeSet<&String> = first.iter().chain(&second).collect();
        assert_eq!(all.len(), runs.len(), "none is forgotten");
    }

    #[test]
    fn a_run_that_has_ended_is_asked_once_more_and_one_that_cannot_be_opened_never() {
        let runs = [line(0, RunStanding::Finished), line(1, RunStanding::Failed), line(2, RunStanding::Opening)];
        let asked = |place: &Place, known: &BTreeMap<String, StatusReport>| wanted(&runs, place, known, &mut 0);
        let mut known = BTreeMap::new();
        assert_eq!(asked(&Place::Overview, &known), [""; 0], "its journal would be read");
        assert_eq!(asked(&Place::Run("run-0".into()), &known), ["run-0"]);
        assert_eq!(asked(&Place::Run("run-1".into()), &known), [""; 0]);
        let mut report = *run("run-0", Vec::new()).report.expect("a report");
        known.insert("run-0".to_owned(), report.clone());
        assert_eq!(asked(&Place::Overview, &known), ["run-0"]);
        report.state = RunPhase::Finished;
        assert_eq!(asked(&Place::Run("run-0".into()), &known), ["run-0"], "what is known is older than its end");
        known.insert("run-0".to_owned(), report);
        assert_eq!(asked(&Place::Overview, &known), [""; 0]);
        assert_eq!(asked(&Place::Run("run-0".into()), &known), [""; 0], "its journal would be read each second");
    }
}
