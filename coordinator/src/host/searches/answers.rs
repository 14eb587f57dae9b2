//! What operators ask about searches.

use std::path::Path;

use anabranch_common::limits;
use anabranch_common::wire::message::NOT_FINITE;
use anabranch_common::wire::operator::{OperatorResponse, RunRequest, SearchRequest};

use super::{SearchTexts, SearchesJob, Standing};
use crate::core::event::{Now, RequestId};
use crate::core::status::json;
use crate::core::trial::Stuck;
use crate::host::{Host, Output};
use crate::search::base::Base;
use crate::search::record::TrialId;
use crate::search::report::{self, SearchReport, SearchResult, SearchStarted, SearchSummary};
use crate::search::spec::SearchSpec;
use crate::search::{self, run_name};

/// A search as those see it who watch the process.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchView {
    /// What `search list` says of it.
    pub summary: SearchSummary,
    /// What `search status` says of it, while its journal is read.
    pub report: Option<Box<SearchReport>>,
}

pub(super) fn failed(why: &str) -> OperatorResponse {
    OperatorResponse::Failed(why.to_owned())
}

/// Returns the text of an answer that says no.
pub(super) fn text(response: OperatorResponse) -> String {
    match response {
        OperatorResponse::Failed(why) | OperatorResponse::NotFound(why) | OperatorResponse::Conflict(why) => why,
        other => format!("{other:?}"),
    }
}

impl Host {
    pub(in crate::host) fn operate_search(&mut self, now: Now, request: RequestId, operation: SearchRequest) {
        let response = match operation {
            SearchRequest::Start { path, search, base } => {
                match self.start_search(request, SearchTexts { path, search, base }) {
                    Ok(()) => return,
                    Err(response) => response,
                }
            }
            SearchRequest::Status { name } => self.reported(name.as_deref(), |report, _| json(report)),
            SearchRequest::Export { name } => {
                self.reported(name.as_deref(), |_, state| match SearchResult::of(state) {
                    Ok(result) => json(&result),
                    Err(why) => OperatorResponse::Conflict(why),
                })
            }
            SearchRequest::List => json(&self.search_summaries()),
            SearchRequest::Stop { name } => self.stop_search(now, &name),
        };
        self.answer(request, response);
    }

    /// Begins to make a search; the answer follows when its start is durable. A repeated request has the same answer.
    fn start_search(&mut self, request: RequestId, texts: SearchTexts) -> Result<(), OperatorResponse> {
        let SearchTexts { path, search, base } = &texts;
        if [path, search, base].iter().any(|text| text.len() > limits::RUN_CONFIG_BYTES) {
            let text = format!("SEARCH.toml and its base have at most {} bytes each", limits::RUN_CONFIG_BYTES);
            return Err(OperatorResponse::Failed(text));
        }
        let spec = SearchSpec::parse(Path::new(path), search).map_err(|error| failed(&error.to_string()))?;
        if let Some(Standing::Serving(serving)) = self.searches.by_name.get(&spec.name) {
            let plan = &serving.search.state().plan;
            let is_same = plan.spec == spec && Base::parse(Path::new(path), base).is_ok_and(|base| base == plan.base);
            if is_same && serving.request.is_none() {
                return Err(json(&SearchStarted::of(serving.search.state())));
            }
        }
        let name = spec.name;
        if self.searches.by_name.contains_key(&name) {
            let text = format!(
                "there is a search {name} already, of other files: set another search.name in SEARCH.toml, or see \
                 `search status {name}`"
            );
            return Err(OperatorResponse::Conflict(text));
        }
        if self.searches.by_name.len() >= limits::SEARCHES {
            let text = format!("there are {} searches already, as many as a coordinator has", limits::SEARCHES);
            return Err(OperatorResponse::Conflict(text));
        }
        let runs = self.about.len() + self.unserved.len() + self.opening.len();
        if runs.saturating_add(usize::try_from(spec.trials).unwrap_or(usize::MAX)) > limits::RUNS {
            let text = format!(
                "there are {runs} runs; with {} trials that would be more than {}: delete some with `runs delete` first",
                spec.trials,
                limits::RUNS
            );
            return Err(OperatorResponse::Conflict(text));
        }
        self.searches.by_name.insert(name.clone(), Standing::Opening { request: Some(request) });
        self.out.push(Output::Searches(SearchesJob::Create { name, texts }));
        Ok(())
    }

    fn stop_search(&mut self, now: Now, name: &str) -> OperatorResponse {
        match self.searches.by_name.get(name) {
            None => self.no_search(Some(name)),
            Some(Standing::Opening { .. }) => opening(name),
            Some(Standing::Failed(why)) => cannot_serve(name, why),
            Some(standing) if !standing.governs() => OperatorResponse::Done(format!("search {name} had ended already")),
            Some(Standing::Serving(_)) => {
                self.tell_search(now, name, search::Input::Stop);
                OperatorResponse::Done(format!(
                    "stopped search {name} and its trials; `search status {name}` shows what was measured"
                ))
            }
        }
    }

    /// Answers about a search that is served.
    fn reported(
        &self,
        wanted: Option<&str>,
        answer: impl FnOnce(&SearchReport, &search::SearchState) -> OperatorResponse,
    ) -> OperatorResponse {
        let found = match wanted {
            Some(name) => self.searches.by_name.get_key_value(name),
            None if self.searches.by_name.len() == 1 => self.searches.by_name.first_key_value(),
            None => None,
        };
        match found {
            None => self.no_search(wanted),
            Some((name, Standing::Opening { .. })) => opening(name),
            Some((name, Standing::Failed(why))) => cannot_serve(name, why),
            Some((name, Standing::Serving(serving))) => {
                let state = serving.search.state();
                let report = SearchReport { problem: self.search_problem(name, state), ..SearchReport::of(state) };
                answer(&report, state)
            }
        }
    }

    /// Returns what a search is told of a trial whose run gets no further.
    pub(super) fn stuck_input(&self, trial: TrialId, name: &str, stuck: Stuck) -> search::Input {
        match stuck {
            Stuck::NoUpdates => {
                let reason = "no agent gets an update out of a local round; the log of an agent says why".to_owned();
                search::Input::Failed { trial, reason }
            }
            Stuck::NotFinite { version } => {
                let run = self.about.iter().find_map(|(run, about)| (about.name == name).then_some(*run));
                let state = run.and_then(|run| self.nodes.get(&run)).and_then(|node| node.core().state());
                let problems = state.into_iter().flat_map(|state| state.agents.values());
                let mut problems = problems.filter_map(|agent| agent.evaluation_problem.as_ref());
                let why = problems.find(|(of, _)| *of == version).map_or(NOT_FINITE, |(_, why)| why);
                search::Input::Diverged { trial, reason: format!("version {version} cannot be evaluated: {why}") }
            }
        }
    }

    /// Why a trial of a search gets no further, as far as that is known.
    fn search_problem(&self, name: &str, state: &search::SearchState) -> Option<String> {
        let active = state.trials.iter().filter(|trial| trial.is_active());
        let problems = active.filter_map(|trial| {
            let run = run_name(name, trial.id);
            let id = self.about.iter().find_map(|(id, about)| (about.name == run).then_some(*id))?;
            let problem = self.nodes.get(&id)?.core().measure_problem()?;
            Some(format!("run {run} waits to be measured, but {problem}"))
        });
        problems.into_iter().next()
    }

    fn search_summaries(&self) -> Vec<SearchSummary> {
        self.searches.by_name.iter().map(|(name, standing)| summary(name, standing)).collect()
    }

    /// Every search, by name.
    pub(in crate::host) fn search_views(&self) -> Vec<SearchView> {
        let view = |(name, standing): (&String, &Standing)| {
            let report = match standing {
                Standing::Serving(serving) => {
                    let state = serving.search.state();
                    let problem = self.search_problem(name, state);
                    Some(Box::new(SearchReport { problem, ..SearchReport::of(state) }))
                }
                Standing::Opening { .. } | Standing::Failed(_) => None,
            };
            SearchView { summary: summary(name, standing), report }
        };
        self.searches.by_name.iter().map(view).collect()
    }

    fn no_search(&self, wanted: Option<&str>) -> OperatorResponse {
        OperatorResponse::NotFound(report::no_search(wanted, self.searches.by_name.keys()))
    }

    /// Returns why an operator may not do something to a run: it is a trial of a search that goes on.
    pub(in crate::host) fn refused_for_trial(
        &self,
        run: anabranch_common::ids::RunId,
        what: &RunRequest,
    ) -> Option<OperatorResponse> {
        if !matches!(what, RunRequest::Pause | RunRequest::Resume) {
            return None;
        }
        let search = self.search_of(run)?;
        let name = self.about.get(&run).map_or("", |about| &about.name);
        Some(OperatorResponse::Conflict(format!(
            "run {name} is a trial of search {search}, which pauses and resumes it; end the trial with `runs stop {name}`, \
             or the search with `search stop {search}`"
        )))
    }
}

fn summary(name: &str, standing: &Standing) -> SearchSummary {
    match standing {
        Standing::Serving(serving) => SearchSummary::of(serving.search.state()),
        Standing::Opening { .. } => SearchSummary::unread(name, None),
        Standing::Failed(why) => SearchSummary::unread(name, Some(why.clone())),
    }
}

fn opening(name: &str) -> OperatorResponse {
    OperatorResponse::Conflict(format!("search {name} is being opened; try again"))
}

fn cannot_serve(name: &str, why: &str) -> OperatorResponse {
    OperatorResponse::Conflict(format!("search {name} cannot be served: {why}"))
}
