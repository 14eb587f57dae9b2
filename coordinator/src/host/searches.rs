//! The searches of the process (docs/adr/0037-search.md): what their state machines want is done to runs, and what becomes of
//! runs is told to them.
//!
//! ```text
//!  search start ─► Searches(Create) ─► Opened ─► Search ─► Append ─► Searches(Write) ─► Written ─┐
//!                                                  ▲                                              │
//!                            Reached, Measured,    │     ┌─ Make ─────────► a run, like `runs create`
//!                            Finished, Gone, ... ──┴─────┼─ Continue, Hold, End ─► its node ◄─────┘
//!                                  ▲                     ├─ Measure ─► Searches(Rebuild) ─► Rebuilt ─► its node
//!                                  └── its node          └─ Copy ─► `copies`
//! ```
//! A trial's run is known by its name and by the token of its submission. While its search goes on, it gives no leases but
//! those that the search has ordered ([`Order`]). Orders are applied when they are given, and when the run is opened.

mod answers;
mod copies;
mod interface;

use std::collections::{BTreeMap, VecDeque};

use anabranch_common::ids::{Digest, ModelVersion, RunId};
use anabranch_common::journal::FinishReason;
use anabranch_common::lane::Lane;

use super::runs::{About, Created};
use super::{Host, Output};
use crate::core::event::{Event, Now, RequestId};
use crate::core::status::json;
use crate::core::trial::{LeaseLimit, TrialNews, TrialOrder};
use crate::node;
use crate::runs::Submission;
use crate::search::record::{Record, TrialId};
use crate::search::report::SearchStarted;
use crate::search::{self, EndReason, Search, run_name};

pub use answers::SearchView;
use copies::{Copies, Copying};
pub use interface::{CopiedModel, SearchTexts, SearchesDone, SearchesJob};

/// The searches of a process.
#[derive(Debug, Default)]
pub(super) struct Searches {
    by_name: BTreeMap<String, Standing>,
    /// What has become of runs by name, until it is told: at most a few for each run and input.
    news: VecDeque<(String, News)>,
    /// Runs that are opened again with another configuration once their last jobs are done, with name and configuration: one
    /// for each search at most.
    reopening: BTreeMap<RunId, (String, String)>,
}

/// A search of the process.
#[derive(Debug)]
enum Standing {
    /// Its directory is being made or opened.
    Opening {
        /// Who waits for it.
        request: Option<RequestId>,
    },
    /// It is served.
    Serving(Box<Serving>),
    /// It cannot be served.
    Failed(String),
}

/// A search that is served.
#[derive(Debug)]
struct Serving {
    search: Search,
    /// Records that are not durable: a few for each input, and inputs about trials are bounded by what their runs can say.
    writer: Lane<Record>,
    /// What each trial is to do, by number.
    orders: BTreeMap<TrialId, Order>,
    /// Trials that go on from copies of others.
    copies: Copies,
    /// Who waits until the start is durable.
    request: Option<RequestId>,
}

/// What a trial is to do.
#[derive(Debug, Clone, Copy, Default)]
struct Order {
    limit: LeaseLimit,
    measure: Option<ModelVersion>,
    /// Whether the version to be measured is being rebuilt.
    is_rebuilding: bool,
    end: Option<EndReason>,
}

/// What has become of a run.
#[derive(Debug)]
pub(super) enum News {
    /// As its node says.
    Trial(TrialNews),
    /// It has failed, or cannot be opened.
    Failed(String),
    /// It was deleted.
    Gone(String),
}

/// Token of the submissions of a search's trials.
fn token(search: &str) -> String {
    format!("trial of search {search}")
}

/// The search and the trial that a run's name would be of.
fn parts(name: &str) -> Option<(&str, TrialId)> {
    let (search, number) = name.rsplit_once('-')?;
    let trial = TrialId(number.parse().ok()?);
    (run_name(search, trial) == name).then_some((search, trial))
}

/// The search that has made a run, and the trial that the run is.
fn trial_of(about: &About) -> Option<(&str, TrialId)> {
    let (search, trial) = parts(&about.name)?;
    let made = about.submission.is_some_and(|submission| submission.token == Digest::of(token(search).as_bytes()));
    made.then_some((search, trial))
}

impl Standing {
    /// Whether trials do what the search has ordered, and nothing else.
    fn governs(&self) -> bool {
        match self {
            Self::Opening { .. } | Self::Failed(_) => true,
            Self::Serving(serving) => serving.search.state().outcome.is_none(),
        }
    }
}

impl Host {
    /// Opens a search whose directory is there. Runs are to be opened before this. Returns what is to be done.
    pub fn open_search(&mut self, name: String) -> Vec<Output> {
        self.searches.by_name.insert(name.clone(), Standing::Opening { request: None });
        self.out.push(Output::Searches(SearchesJob::Open { name }));
        self.outputs()
    }

    /// Whether a search may still need the process: one that goes on, unless the process is parked; or a record that is
    /// being written.
    pub(super) fn searches_go_on(&self) -> bool {
        let goes_on = |standing: &Standing| match standing {
            Standing::Opening { .. } => !self.parking,
            Standing::Serving(serving) => !serving.writer.is_idle() || (standing.governs() && !self.parking),
            Standing::Failed(_) => false,
        };
        self.searches.by_name.values().any(goes_on)
    }

    /// Returns the search that says what a run does, if one does.
    pub(super) fn search_of(&self, run: RunId) -> Option<&str> {
        let (search, _) = trial_of(self.about.get(&run)?)?;
        self.searches.by_name.get(search).is_some_and(Standing::governs).then_some(search)
    }

    /// Notes what has become of a run, to be told when the input was handled.
    pub(super) fn note_news(&mut self, run: RunId, news: News) {
        if let Some(about) = self.about.get(&run)
            && trial_of(about).is_some()
        {
            self.searches.news.push_back((about.name.clone(), news));
        }
    }

    /// The same for a run that could not be opened.
    pub(super) fn note_unopened(&mut self, name: &str, why: &str) {
        self.searches.news.push_back((name.to_owned(), News::Failed(why.to_owned())));
    }

    /// A run is served: a trial does what its search has ordered so far.
    pub(super) fn trial_opened(&mut self, now: Now, run: RunId) {
        let Some(about) = self.about.get(&run) else { return };
        let Some((search, trial)) = parts(&about.name) else { return };
        if trial_of(about).is_none() {
            // Only a search that wanted it listens.
            let problem = format!("there is another run {}, which the search has not made", about.name);
            return self.searches.news.push_back((about.name.clone(), News::Failed(problem)));
        }
        let search = search.to_owned();
        if self.search_of(run).is_some() {
            self.tell_trial(now, run, TrialOrder::Limit(LeaseLimit::Held));
        }
        self.opened_for_copy(now, &search, trial, run);
        self.apply(now, &search, trial);
        self.pace_copies(now, &search);
    }

    /// Says in a list of runs why a run gives no leases.
    pub(super) fn held_by(&self, run: RunId) -> Option<String> {
        Some(format!("no leases: search {} holds it at a rung", self.search_of(run)?))
    }

    /// Tells searches what has become of their trials. A process that parks its runs tells nothing: the next one looks again.
    pub(super) fn settle_searches(&mut self, now: Now) {
        while let Some((run, news)) = self.searches.news.pop_front() {
            let Some((search, trial)) = parts(&run).filter(|_| !self.parking) else { continue };
            let search = search.to_owned();
            let input = match news {
                News::Trial(TrialNews::Reached { contributions, version }) => {
                    search::Input::Reached { trial, contributions, version }
                }
                News::Trial(TrialNews::Measured { version, accuracy, loss }) => {
                    self.measured_trial(&search, trial, version);
                    search::Input::Measured { trial, version, accuracy, loss }
                }
                News::Trial(TrialNews::Stuck(stuck)) => self.stuck_input(trial, &run, stuck),
                News::Trial(TrialNews::Finished { reason: FinishReason::NonFinite }) => {
                    let reason = "its model stopped being finite".to_owned();
                    search::Input::Diverged { trial, reason }
                }
                News::Trial(TrialNews::Copied { rung }) => {
                    self.copied(now, &search, trial, rung);
                    continue;
                }
                News::Trial(TrialNews::NotCopied { reason }) => search::Input::Failed { trial, reason },
                News::Trial(TrialNews::Finished { reason }) => {
                    search::Input::Gone { trial, reason: format!("its run has ended: {reason}") }
                }
                News::Failed(reason) => search::Input::Failed { trial, reason },
                News::Gone(reason) => search::Input::Gone { trial, reason },
            };
            self.tell_search(now, &search, input);
        }
    }

    /// A version was measured: it is not rebuilt again.
    fn measured_trial(&mut self, search: &str, trial: TrialId, version: ModelVersion) {
        if let Some(order) = self.serving_mut(search).and_then(|serving| serving.orders.get_mut(&trial)) {
            order.measure = order.measure.filter(|wanted| *wanted != version);
        }
    }

    fn tell_search(&mut self, now: Now, name: &str, input: search::Input) {
        let Some(Standing::Serving(serving)) = self.searches.by_name.get_mut(name) else { return };
        for output in serving.search.handle(now, input) {
            self.carry_out_search(now, name, output);
        }
        self.pace_copies(now, name);
    }

    fn serving_mut(&mut self, name: &str) -> Option<&mut Serving> {
        match self.searches.by_name.get_mut(name)? {
            Standing::Serving(serving) => Some(serving),
            Standing::Opening { .. } | Standing::Failed(_) => None,
        }
    }

    fn carry_out_search(&mut self, now: Now, name: &str, output: search::Output) {
        match output {
            search::Output::Append(record) => {
                if let Some(serving) = self.serving_mut(name) {
                    serving.writer.push(record);
                }
            }
            search::Output::Make { name: run, config, .. } => self.make_trial(name, run, config),
            search::Output::Continue { trial, until } => {
                self.order(now, name, trial, |order| (order.limit, order.measure) = (LeaseLimit::Until(until), None));
            }
            search::Output::Hold { trial } => self.order(now, name, trial, |order| order.limit = LeaseLimit::Held),
            search::Output::Measure { trial, version } => {
                self.order(now, name, trial, |order| order.measure = Some(version));
            }
            search::Output::Copy { trial, rung, from, version, config } => {
                self.order_copy(now, name, trial, Copying::new(rung, from, version, config));
            }
            search::Output::End { trial, why } => self.order(now, name, trial, |order| order.end = Some(why)),
            search::Output::Finished(outcome) => {
                let winner = outcome.winner.map(|trial| run_name(name, trial));
                tracing::info!(search = name, winner, stopped = outcome.stopped, "the search has ended");
            }
        }
    }

    /// Has the run of a trial made, unless it is there.
    fn make_trial(&mut self, search: &str, run: String, config: String) {
        let submission = Submission::new(&token(search), &config);
        // Its directory is being opened: whether it is this trial's, it will show.
        if self.opening.get(&run).is_some_and(|opening| opening.submission.is_none()) {
            return;
        }
        if let Created::Refused(response) = self.create(None, run.clone(), config, Some(submission)) {
            self.searches.news.push_back((run, News::Failed(answers::text(response))));
        }
    }

    fn order(&mut self, now: Now, search: &str, trial: TrialId, change: impl FnOnce(&mut Order)) {
        let Some(serving) = self.serving_mut(search) else { return };
        change(serving.orders.entry(trial).or_default());
        self.apply(now, search, trial);
    }

    /// Lets the run of a trial do what was ordered. A run that is being opened does so when it is.
    fn apply(&mut self, now: Now, search: &str, trial: TrialId) {
        let ordered = self.serving_mut(search).and_then(|serving| {
            let order = serving.orders.get(&trial).copied()?;
            // Both go on when the copy is durable.
            let limit = if serving.copies.concern(trial) { LeaseLimit::Held } else { order.limit };
            Some(Order { limit, ..order })
        });
        let Some(order) = ordered else { return };
        let name = run_name(search, trial);
        if self.opening.contains_key(&name) {
            return;
        }
        let run = self.trial_run(&name);
        let is_served = run.is_some_and(|run| self.nodes.contains_key(&run));
        if let Some(why) = order.end {
            let result = self.result_of(search, trial).filter(|_| why == EndReason::Won);
            return run.into_iter().for_each(|run| self.tell_trial(now, run, TrialOrder::End { result }));
        }
        let Some(run) = run.filter(|_| is_served) else {
            let news = self.why_not_served(&name, run);
            return self.searches.news.push_back((name, news));
        };
        self.tell_trial(now, run, TrialOrder::Limit(order.limit));
        let Some(version) = order.measure.filter(|_| !order.is_rebuilding) else { return };
        if let Some(order) = self.serving_mut(search).and_then(|serving| serving.orders.get_mut(&trial)) {
            order.is_rebuilding = true;
        }
        let search = search.to_owned();
        self.out.push(Output::Searches(SearchesJob::Rebuild { search, trial, run, version }));
    }

    /// The run of a trial. A run that is none may have the same name.
    fn trial_run(&self, name: &str) -> Option<RunId> {
        let is_it = |about: &About| about.name == name && trial_of(about).is_some();
        self.about.iter().find_map(|(run, about)| is_it(about).then_some(*run))
    }

    fn why_not_served(&self, name: &str, run: Option<RunId>) -> News {
        let ended = run.and_then(|run| self.ended.get(&run)).and_then(|ended| ended.problem.clone());
        let unserved = self.unserved.get(name).map(|unserved| unserved.why.clone());
        match (ended.or(unserved), run) {
            (Some(why), _) => News::Failed(why),
            (None, Some(_)) => News::Gone("its run has ended".to_owned()),
            (None, None) => News::Gone("its run is not there".to_owned()),
        }
    }

    /// The version of a trial that was measured last.
    fn result_of(&mut self, search: &str, trial: TrialId) -> Option<ModelVersion> {
        let trials = &self.serving_mut(search)?.search.state().trials;
        let trial = trials.iter().find(|known| known.id == trial)?;
        trial.newest().map(|measured| measured.version)
    }

    fn tell_trial(&mut self, now: Now, run: RunId, order: TrialOrder) {
        self.tell(now, run, node::Input::Event(Event::Trial(order)));
    }

    pub(super) fn searches_done(&mut self, now: Now, done: SearchesDone) {
        match done {
            SearchesDone::Opened { name, records, texts } => self.search_opened(now, &name, &records, texts),
            SearchesDone::NotOpened { name, is_there, why } => {
                let standing = self.searches.by_name.remove(&name);
                if let Some(Standing::Opening { request: Some(request) }) = standing {
                    self.answer(request, answers::failed(&why));
                }
                if is_there {
                    self.searches.by_name.insert(name, Standing::Failed(why));
                }
            }
            SearchesDone::Written { name, result: Ok(position) } => {
                let Some(serving) = self.serving_mut(&name) else { return };
                serving.writer.done();
                let started =
                    serving.request.take().map(|request| (request, SearchStarted::of(serving.search.state())));
                if let Some((request, started)) = started {
                    self.answer(request, json(&started));
                }
                self.tell_search(now, &name, search::Input::Written { position });
            }
            SearchesDone::Written { name, result: Err(why) } => self.search_failed(now, &name, why),
            SearchesDone::Copied { search, trial, run, version: _, model } => {
                self.copy_fetched(now, &search, trial, run, model);
            }
            SearchesDone::Rebuilt { search, trial, run, version, model } => {
                let order = self.serving_mut(&search).and_then(|serving| serving.orders.get_mut(&trial));
                let Some(order) = order else { return };
                order.is_rebuilding = false;
                if order.measure != Some(version) || order.end.is_some() {
                    return;
                }
                match model {
                    Ok(model) => self.tell(now, run, node::Input::Measure(model)),
                    // The run says so itself once its record of that is durable.
                    Err(_) if self.has_diverged(run) => {}
                    Err(why) => self.searches.news.push_back((run_name(&search, trial), News::Failed(why))),
                }
            }
        }
    }

    fn has_diverged(&self, run: RunId) -> bool {
        let state = self.nodes.get(&run).and_then(|node| node.core().state());
        state.is_some_and(|state| matches!(state.finished, Some((FinishReason::NonFinite, _))))
    }

    fn search_opened(&mut self, now: Now, name: &str, records: &[Record], texts: Option<SearchTexts>) {
        let Some(Standing::Opening { request }) = self.searches.by_name.get(name) else { return };
        let request = *request;
        let search = match texts {
            Some(SearchTexts { path, search, base }) => Search::start(now, path, search, base),
            None => Search::restore(records),
        };
        match search {
            Ok(search) => {
                let (writer, orders, copies) = (Lane::default(), BTreeMap::new(), Copies::default());
                let serving = Serving { search, writer, orders, copies, request };
                self.searches.by_name.insert(name.to_owned(), Standing::Serving(Box::new(serving)));
                if !self.parking {
                    self.tell_search(now, name, search::Input::Begin);
                }
            }
            Err(error) => {
                if let Some(request) = request {
                    self.answer(request, answers::failed(&error.to_string()));
                }
                self.searches.by_name.insert(name.to_owned(), Standing::Failed(error.to_string()));
            }
        }
    }

    /// What the search has decided since its newest durable record is in doubt: nothing more comes of it in this process.
    fn search_failed(&mut self, now: Now, name: &str, why: String) {
        tracing::error!(search = name, why, "the search has failed; its trials give no leases");
        if let Some(request) = self.serving_mut(name).and_then(|serving| serving.request.take()) {
            self.answer(request, answers::failed(&why));
        }
        self.searches.by_name.insert(name.to_owned(), Standing::Failed(why));
        let is_trial = |about: &About| trial_of(about).is_some_and(|(search, _)| search == name);
        let runs: Vec<RunId> = self.about.iter().filter(|(_, about)| is_trial(about)).map(|(run, _)| *run).collect();
        runs.into_iter().for_each(|run| self.tell_trial(now, run, TrialOrder::Limit(LeaseLimit::Held)));
    }

    /// Has records written that wait.
    pub(super) fn write_searches(&mut self) {
        for (name, standing) in &mut self.searches.by_name {
            let Standing::Serving(serving) = standing else { continue };
            if let Some(records) = serving.writer.next(|waiting| waiting.drain(..).collect()) {
                self.out.push(Output::Searches(SearchesJob::Write { name: name.clone(), records }));
            }
        }
    }
}
