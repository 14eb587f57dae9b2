//! The runs of the process: which there are, and what operators do with them.
//!
//! ```text
//!  Create ─► Runs(Create) ─► Opened ─► a node ─► Reply       the directory is made and opened beside the loop
//!            Runs(Open) ───► Opened ─► a node                at the start of the process, one for each directory
//!            Runs(Reopen) ─► Opened ─► a node                a trial that goes on with another configuration
//!  Delete ─► the node goes, Runs(Delete) ─► Deleted ─► Reply
//! ```
//! A run whose directory cannot be opened stays listed with the reason. So does a run that has ended: what is asked of it
//! is answered from its store ([`Output::Look`]).

use anabranch_common::ids::RunId;
use anabranch_common::limits;
use anabranch_common::status::{RunCreated, RunStanding, RunSummary};
use anabranch_common::transfer::Half;
use anabranch_common::wire::message::RunPhase;
use anabranch_common::wire::operator::{OperatorResponse, RunRequest, RunsRequest};

use super::answer::{Candidate, choose};
use super::{Host, News, Output};
use crate::core::event::{Event, Now, RequestId};
use crate::core::status::json;
use crate::node::{self, JobError, Node, Settings, ToPeer};
use crate::recovery::Recovered;
use crate::runs::{Submission, is_own, is_running, taken, too_many, unreadable as unknown};

/// What the process knows of a run, beside what its journal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub name: String,
    /// Its share of an agent's device, in proportion to the other runs'.
    pub weight: u32,
    /// Whether it shares its directory with the process.
    pub is_own: bool,
    /// How it was asked for, if with a token.
    pub submission: Option<Submission>,
    /// Bytes on the disk above which it gives no more leases.
    pub disk_quota_bytes: Option<u64>,
}

impl About {
    /// The run that shares its directory with the process.
    #[must_use]
    pub fn own(name: &str) -> Self {
        Self { name: name.to_owned(), weight: 1, is_own: true, submission: None, disk_quota_bytes: None }
    }
}

/// A run whose store is open.
#[derive(Debug)]
pub struct OpenedRun {
    /// What the process knows of it.
    pub about: About,
    /// What its node is told.
    pub settings: Settings,
    /// What its store holds, once there is a model.
    pub recovered: Option<Recovered>,
    /// Halves of uploads on disk.
    pub halves: Vec<Half>,
}

/// What is to be done to the directory of a run, beside the loop. Of one name, at most one job is out.
#[derive(Debug, PartialEq, Eq)]
pub enum RunsJob {
    /// Make the directory and open it.
    Create {
        /// Name of the run.
        name: String,
        /// The text of its configuration.
        config: String,
        /// How it was asked for, if with a token.
        submission: Option<Submission>,
    },
    /// Open a directory that is there.
    Open {
        /// Name of the run.
        name: String,
    },
    /// Give a run whose node is gone another configuration, and open it again.
    Reopen {
        /// Name of the run.
        name: String,
        /// Its id.
        run: RunId,
        /// The text of its configuration.
        config: String,
    },
    /// Close what is open, and delete the directory.
    Delete {
        /// Name of the run.
        name: String,
        /// Its id, unless it cannot be opened.
        run: Option<RunId>,
    },
}

impl RunsJob {
    /// Name of the run.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Create { name, .. } | Self::Open { name } | Self::Reopen { name, .. } | Self::Delete { name, .. } => {
                name
            }
        }
    }
}

/// A job on the directory of a run has ended.
#[derive(Debug)]
pub enum RunsDone {
    /// The directory is open.
    Opened(Box<OpenedRun>),
    /// The directory cannot be made, or cannot be opened.
    NotOpened {
        /// Name of the run.
        name: String,
        /// Whether the directory is there.
        is_there: bool,
        /// The problem, and what to do about it.
        why: String,
    },
    /// The run is closed, but not deleted: others still use its store.
    InUse {
        /// Name of the run.
        name: String,
    },
    /// The run is gone.
    Deleted {
        /// Name of the run.
        name: String,
        /// The problem where files of it are left.
        left: Option<String>,
    },
}

/// What comes of a request for a run.
#[derive(Debug)]
pub(super) enum Created {
    /// It is there: the request is a repeated one.
    IsThere(RunId),
    /// It is being made.
    Waits,
    /// It is not made; the answer says why.
    Refused(OperatorResponse),
}

/// A run that is being opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) submission: Option<Submission>,
    /// Who waits for it. None where it is opened at the start of the process, or for a search.
    requests: Vec<RequestId>,
}

impl Opening {
    /// One that no operator waits for.
    pub(super) fn unasked() -> Self {
        Self { submission: None, requests: Vec::new() }
    }

    /// Whether an operator waits for it.
    pub(super) fn is_asked_for(&self) -> bool {
        !self.requests.is_empty()
    }
}

/// A run that cannot be served.
#[derive(Debug)]
pub(super) struct Unserved {
    is_own: bool,
    pub(super) why: String,
    /// How it was asked for in this process, if with a token.
    submission: Option<Submission>,
}

impl Host {
    /// Keeps the process when every run has ended: operators may create more.
    pub fn stay(&mut self) {
        self.stays = true;
    }

    /// Opens a run whose directory is there. Returns what is to be done.
    pub fn open(&mut self, name: String) -> Vec<Output> {
        self.opening.insert(name.clone(), Opening::unasked());
        self.out.push(Output::Runs(RunsJob::Open { name }));
        self.outputs()
    }

    /// Lists a run that cannot be served, with the reason.
    pub fn cannot_serve(&mut self, name: &str, is_own: bool, why: String) {
        self.unserved.insert(name.to_owned(), Unserved { is_own, why, submission: None });
    }

    /// Every run of the process: its own first, the others by name.
    #[must_use]
    pub fn summaries(&self) -> Vec<RunSummary> {
        let known = self.about.iter().map(|(run, about)| self.summary(*run, about));
        let opening =
            self.opening.keys().map(|name| RunSummary { state: RunStanding::Opening, ..unknown(name.clone(), None) });
        let unserved = self.unserved.iter().map(|(name, Unserved { is_own, why, .. })| RunSummary {
            own: *is_own,
            ..unknown(name.clone(), Some(why.clone()))
        });
        let mut all: Vec<RunSummary> = known.chain(opening).chain(unserved).collect();
        all.sort_by(|a, b| (!a.own, &a.name).cmp(&(!b.own, &b.name)));
        all
    }

    /// What is said of a run, as long as it is served; afterwards what was said last.
    pub(super) fn summary(&self, run: RunId, about: &About) -> RunSummary {
        if let Some(ended) = self.ended.get(&run) {
            return ended.clone();
        }
        let mut summary =
            RunSummary { own: about.is_own, run: Some(run), weight: about.weight, ..unknown(about.name.clone(), None) };
        let Some(node) = self.nodes.get(&run) else { return summary };
        summary.state = node.core().phase().into();
        summary.problem = node.core().quota_problem().map(String::from);
        if summary.state == RunStanding::Running && node.core().is_held() {
            (summary.state, summary.problem) = (RunStanding::Paused, self.held_by(run));
        }
        summary.connected = self.peers.values().filter(|peer| peer.run == run).count() as u64;
        if let Some(state) = node.core().state() {
            summary.version = Some(state.version);
            summary.updates_accepted = state.totals.accepted;
            summary.agents = state.agents.values().filter(|agent| agent.epoch.0 > 0).count() as u64;
        }
        summary
    }

    /// The last words on a run that has ended or failed. What a run that failed did last may not be durable.
    pub(super) fn last_summary(&self, run: RunId, error: Option<&JobError>) -> Option<RunSummary> {
        let mut last = self.summary(run, self.about.get(&run)?);
        last.connected = 0;
        match error {
            Some(error) => {
                (last.state, last.version, last.updates_accepted) = (RunStanding::Failed, None, 0);
                last.problem = Some(error.to_string());
            }
            None if last.state == RunStanding::Running => last.state = RunStanding::Parked,
            None => {}
        }
        Some(last)
    }

    /// Returns the run that is called so, or the only one.
    ///
    /// # Errors
    /// The answer says which runs there are, or why that one is not served.
    pub(super) fn resolve(&self, wanted: Option<&str>) -> Result<RunId, OperatorResponse> {
        let unopened = || self.opening.keys().chain(self.unserved.keys()).map(String::as_str);
        let only = || unopened().next().filter(|_| self.about.is_empty() && unopened().count() == 1);
        let is_known = |name: &&str| self.about.values().any(|about| about.name == *name);
        if let Some(name) = wanted.or_else(only).filter(|name| !is_known(name)) {
            if let Some(Unserved { why, .. }) = self.unserved.get(name) {
                return Err(OperatorResponse::Conflict(format!("run {name} cannot be served: {why}")));
            }
            if self.opening.contains_key(name) {
                return Err(OperatorResponse::Conflict(format!("run {name} is being opened; try again")));
            }
        }
        let candidates = self.about.iter().map(|(run, about)| Candidate { run: *run, name: &about.name });
        choose(candidates, unopened(), wanted)
    }

    /// Answers for a run that is not served any more.
    pub(super) fn answer_for_ended(&mut self, request: RequestId, run: RunId, what: RunRequest) {
        match what {
            RunRequest::Status | RunRequest::AgentsList if self.looking >= limits::RUN_LOOKS => {
                let text = "too many requests read the stores of ended runs already; try again later";
                self.answer(request, OperatorResponse::Conflict(text.to_owned()));
            }
            RunRequest::Status | RunRequest::AgentsList => {
                self.looking += 1;
                self.out.push(Output::Look { request, run, what });
            }
            _ => {
                let name = self.about.get(&run).map_or_else(|| run.to_string(), |about| about.name.clone());
                let text = format!("run {name} has ended; `status --run {name}` says why");
                self.answer(request, OperatorResponse::Conflict(text));
            }
        }
    }

    pub(super) fn operate_runs(&mut self, request: RequestId, operation: RunsRequest) {
        let response = match operation {
            RunsRequest::List => json(&self.summaries()),
            RunsRequest::Create { name, config, submit_token } => {
                let created = match Submission::of_request(&name, &config, submit_token.as_deref()) {
                    Ok(submission) => self.create(Some(request), name.clone(), config, submission),
                    Err(problem) => Created::Refused(OperatorResponse::Failed(problem)),
                };
                match created {
                    Created::Waits => return,
                    Created::IsThere(run) => json(&RunCreated { name, run }),
                    Created::Refused(response) => response,
                }
            }
            RunsRequest::Delete { run } => match self.delete(request, &run) {
                Ok(()) => return,
                Err(response) => response,
            },
        };
        self.answer(request, response);
    }

    /// Has a run made, for an operator or for a search.
    pub(super) fn create(
        &mut self,
        request: Option<RequestId>,
        name: String,
        config: String,
        submission: Option<Submission>,
    ) -> Created {
        let taken = || Created::Refused(OperatorResponse::Conflict(taken(&name)));
        if let Some((run, about)) = self.about.iter().find(|(_, about)| about.name == name) {
            let is_same = submission.is_some() && about.submission == submission;
            return if is_same { Created::IsThere(*run) } else { taken() };
        }
        if let Some(opening) = self.opening.get_mut(&name) {
            if submission.is_none() || opening.submission != submission {
                return taken();
            }
            opening.requests.extend(request);
            return Created::Waits;
        }
        // Its directory was made for this request, and could not be opened.
        let is_same = |unserved: &Unserved| submission.is_some() && unserved.submission == submission;
        if self.unserved.get(&name).is_some_and(is_same) {
            self.unserved.remove(&name);
            return self.wait_for(name.clone(), submission, request, RunsJob::Open { name });
        }
        if self.unserved.contains_key(&name) || self.deleting.contains_key(&name) {
            return taken();
        }
        if self.about.len() + self.unserved.len() + self.opening.len() >= limits::RUNS {
            return Created::Refused(OperatorResponse::Conflict(too_many()));
        }
        self.left_over.remove(&name);
        self.wait_for(name.clone(), submission, request, RunsJob::Create { name, config, submission })
    }

    fn wait_for(
        &mut self,
        name: String,
        submission: Option<Submission>,
        request: Option<RequestId>,
        job: RunsJob,
    ) -> Created {
        self.opening.insert(name, Opening { submission, requests: request.into_iter().collect() });
        self.out.push(Output::Runs(job));
        Created::Waits
    }

    /// Closes a run and has its directory deleted; the answer follows when it is gone.
    fn delete(&mut self, request: RequestId, wanted: &str) -> Result<(), OperatorResponse> {
        let own = |name: &str| OperatorResponse::Conflict(is_own(name));
        let (name, run) = match self.unserved.get(wanted) {
            Some(Unserved { is_own: true, .. }) => return Err(own(wanted)),
            Some(_) => (wanted.to_owned(), None),
            None if self.left_over.contains(wanted) => (wanted.to_owned(), None),
            None => {
                let run = self.resolve(Some(wanted))?;
                let about = &self.about[&run];
                if about.is_own {
                    return Err(own(&about.name));
                }
                (about.name.clone(), Some(run))
            }
        };
        if let Some(node) = run.and_then(|run| self.nodes.get(&run))
            && node.core().phase() == RunPhase::Running
        {
            return Err(OperatorResponse::Conflict(is_running(&name)));
        }
        if let Some(run) = run {
            self.note_news(run, News::Gone("its run was deleted".to_owned()));
            self.drop_node(run, &format!("run {name} was deleted"), ConnectionEnd::Close);
            self.ended.remove(&run);
            self.last_reports.remove(&run);
            self.about.remove(&run);
        }
        self.unserved.remove(&name);
        self.left_over.remove(&name);
        self.deleting.insert(name.clone(), request);
        self.out.push(Output::Runs(RunsJob::Delete { name, run }));
        Ok(())
    }

    pub(super) fn runs_done(&mut self, now: Now, done: RunsDone) {
        match done {
            RunsDone::Opened(opened) => self.opened(now, *opened),
            RunsDone::NotOpened { name, is_there, why } => {
                let Some(Opening { requests, submission }) = self.opening.remove(&name) else { return };
                for request in requests {
                    self.answer(request, OperatorResponse::Failed(why.clone()));
                }
                self.note_unopened(&name, &why);
                if is_there {
                    self.unserved.insert(name, Unserved { is_own: false, why, submission });
                }
            }
            RunsDone::InUse { name } => {
                let Some(request) = self.deleting.remove(&name) else { return };
                let why = format!("it is closed, but its store is still in use; repeat `runs delete {name}`");
                let text = format!("run {name} is not deleted: {why}");
                self.cannot_serve(&name, false, why);
                self.answer(request, OperatorResponse::Conflict(text));
            }
            RunsDone::Deleted { name, left } => {
                let Some(request) = self.deleting.remove(&name) else { return };
                let response = match left {
                    None => OperatorResponse::Done(format!("deleted run {name}")),
                    Some(problem) => {
                        if self.left_over.len() < limits::RUNS {
                            self.left_over.insert(name.clone());
                        }
                        OperatorResponse::Failed(format!(
                            "run {name} is gone, but files of it are left: {problem}; the next start removes them, or \
                             repeat `runs delete {name}`"
                        ))
                    }
                };
                self.answer(request, response);
            }
        }
    }

    fn opened(&mut self, now: Now, opened: OpenedRun) {
        let OpenedRun { about, settings, recovered, halves } = opened;
        let (name, run) = (about.name.clone(), settings.options.run);
        let requests = self.opening.remove(&name).map(|opening| opening.requests).unwrap_or_default();
        let response = if self.about.contains_key(&run) {
            let why = "a run with the same id is served already: one of the two directories is a copy of the other";
            self.cannot_serve(&name, false, why.to_owned());
            OperatorResponse::Failed(why.to_owned())
        } else if self.parking {
            self.out.push(Output::Close { run });
            json(&RunCreated { name, run })
        } else {
            match self.begin(about, settings, recovered, &halves, now) {
                Ok(()) => json(&RunCreated { name, run }),
                Err(mismatch) => {
                    let why = format!("{mismatch}; change its run.toml, then start the coordinator again");
                    self.note_unopened(&name, &why);
                    self.cannot_serve(&name, false, why.clone());
                    self.out.push(Output::Close { run });
                    OperatorResponse::Failed(why)
                }
            }
        };
        for request in requests {
            self.answer(request, response.clone());
        }
    }

    /// Has the stores of runs with a quota measured, from time to time.
    pub(super) fn measure(&mut self, now: Now) {
        if now.mono_ms < self.measure_at_ms {
            return;
        }
        self.measure_at_ms = now.mono_ms + limits::QUOTA_LOOK_MS;
        let with_quota = |run: &RunId| self.about.get(run).is_some_and(|about| about.disk_quota_bytes.is_some());
        let is_idle = |run: &RunId| !self.measuring.contains(run);
        let measured: Vec<RunId> = self.serving().filter(with_quota).filter(is_idle).collect();
        self.measuring.extend(&measured);
        self.out.extend(measured.into_iter().map(|run| Output::Measure { run }));
    }

    pub(super) fn measured(&mut self, now: Now, run: RunId, disk_bytes: Option<u64>) {
        self.measuring.remove(&run);
        let quota_bytes = self.about.get(&run).and_then(|about| about.disk_quota_bytes);
        if let Some((disk_bytes, quota_bytes)) = disk_bytes.zip(quota_bytes) {
            self.tell(now, run, node::Input::Event(Event::DiskMeasured { disk_bytes, quota_bytes }));
        }
    }

    /// Ends what concerns a run in this process: its node, its connections, and what waits for an answer.
    pub(super) fn drop_node(&mut self, run: RunId, why: &str, connections: ConnectionEnd) -> Option<Node> {
        let node = self.nodes.remove(&run);
        self.subscriptions.ended(run);
        self.measuring.remove(&run);
        for (peer, _) in self.peers.extract_if(.., |_, peer| peer.run == run) {
            if connections == ConnectionEnd::Close {
                self.out.push(Output::ToPeer(ToPeer::Close { peer }));
            }
        }
        self.asked_to_renew.retain(|_, peer| self.peers.contains_key(peer));
        self.revocations.values_mut().for_each(|waiting| _ = waiting.runs.remove(&run));
        for (request, _) in self.asked.extract_if(.., |_, of| *of == run) {
            self.out.push(Output::Reply { request, answer: OperatorResponse::Failed(why.to_owned()).into() });
        }
        node
    }

    pub(super) fn answer(&mut self, request: RequestId, response: OperatorResponse) {
        self.out.push(Output::Reply { request, answer: response.into() });
    }
}

/// What becomes of the connections of a run that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionEnd {
    /// They are closed.
    Close,
    /// The run has closed them.
    Closed,
}
